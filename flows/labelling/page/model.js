// One episode while somebody corrects it: its events, what was done to them, and undo.
// No drawing and no network here. Steps are control steps; an event ends where the next begins.

export const KINDS = ["motion", "grasp", "release", "idle"];
export const LEVELS = ["task", "subtask", "action", "segment"];
export const unsaid = (event) => (event.undecided ? "the next run decides" : "machine"); // whose an event is that no person speaks for
const SAME_EVENT = 0.5; // as components/captioning/corrected.py: more than this in common

export class Episode {
  constructor(shown) {
    this.load(shown);
  }

  load(shown) {
    Object.assign(this, shown);
    this.acts = []; // rows for the list of events, not saved yet
    this.past = []; // for undo
  }

  get last() { return this.times_s.length - 1; }
  get end_s() { return this.times_s[this.last]; }
  get unsaved() { return this.acts.length + this.captionRows().length; }

  time(step) { return this.times_s[Math.min(step, this.last)]; }

  step(at_s) { // the nearest control step
    let low = 0, high = this.last;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.times_s[middle] <= at_s) low = middle; else high = middle;
    }
    return at_s - this.times_s[low] <= this.times_s[high] - at_s ? low : high;
  }

  at(step) { // number of the event that a control step is in
    const found = this.events.findIndex((event) => step < event.end_frame);
    return found < 0 ? this.events.length - 1 : found;
  }

  // --- what people do -------------------------------------------------------------------------

  split(step) {
    const number = this.at(step), event = this.events[number];
    if (step <= event.start_frame || step >= Math.min(event.end_frame, this.last)) return false;
    this.#remember();
    const second = event.kind === "grasp" || event.kind === "release" ? "motion" : event.kind;
    const left = { ...event, end_frame: step };
    const right = { start_frame: step, end_frame: event.end_frame, kind: second, score: 1, evidence: {}, words: {} };
    this.events.splice(number, 1, left, right);
    this.#act("split", [left, right]);
    return true;
  }

  merge(number) { // an event with the next one
    const [first, second] = this.events.slice(number, number + 2);
    if (!second) return false;
    this.#remember();
    const calm = first.kind === "motion" || first.kind === "idle";
    const joined = { ...first, end_frame: second.end_frame, kind: calm ? second.kind : first.kind };
    this.events.splice(number, 2, joined);
    this.#act("merge", [joined]);
    return true;
  }

  move(number, step) { // the boundary at an event's start
    const [before, after] = [this.events[number - 1], this.events[number]];
    if (!before || !after) return false;
    const low = before.start_frame + 1, high = Math.min(after.end_frame, this.last) - 1;
    step = Math.max(low, Math.min(high, step));
    if (step === after.start_frame) return false;
    const again = this.acts.at(-1)?.moved === number && this.past.at(-1)?.acts.length === this.acts.length - 1;
    if (again) this.acts.pop(); else this.#remember();
    before.end_frame = after.start_frame = step;
    after.evidence = {};
    this.#act("move", [before, after]).moved = number;
    return true;
  }

  setKind(number, kind) {
    const event = this.events[number];
    if (event.kind === kind) return false;
    this.#remember();
    event.kind = kind;
    this.#act("kind", [event]);
    return true;
  }

  rename(number, level, text) {
    const event = this.events[number], before = event.words[level];
    text = text.trim().replace(/\s+/g, " ");
    if (!text || text === before?.text) return false;
    this.#remember();
    event.words[level] = { ...anchor(before), text, captioner: "person", unsaved: "rename", time: now(), machine_text: before?.machine_text || before?.text || "" };
    return true;
  }

  accept(number) {
    const event = this.events[number];
    this.#remember();
    this.#act("accept", [event]);
    for (const level of LEVELS) {
      const words = event.words[level];
      if (words?.text && words.captioner !== "person") Object.assign(words, { captioner: "person", unsaved: "accept", time: now() });
    }
    return true;
  }

  revert(number) { // what people said of it is void; the next run asks the machine again
    const event = this.events[number];
    if (!event.person && LEVELS.every((level) => event.words[level]?.captioner !== "person")) return false;
    this.#remember();
    const span = [event.start_frame, event.end_frame].map((step) => this.time(step));
    if (event.person) this.acts.push({ did: "revert", times_s: span, kinds: [], time: now() });
    event.person = null;
    event.undecided = true;
    for (const level of LEVELS) {
      const words = event.words[level];
      if (words?.captioner === "person") event.words[level] = { ...anchor(words), text: words.machine_text, captioner: "machine", unsaved: "revert", time: now() };
    }
    return true;
  }

  undo() {
    const before = this.past.pop();
    if (!before) return false;
    this.events = before.events;
    this.acts = before.acts;
    return true;
  }

  // --- what is sent ---------------------------------------------------------------------------

  eventRows() {
    return this.acts.map(({ did, times_s, kinds, time }) => ({ did, times_s, kinds, time }));
  }

  captionRows() { // words are anchored to their event as it stands now, and are no other event's
    const rows = [], anchored = this.events.filter((event) => LEVELS.some((level) => event.words[level]?.start_s != null));
    for (const event of this.events) {
      const start_s = this.time(event.start_frame), end_s = this.time(event.end_frame);
      for (const level of LEVELS) {
        const words = event.words[level];
        const person = words?.captioner === "person";
        const adrift = person && words.start_s != null && !covers(words, start_s, end_s);
        const stray = !person && anchored.some((other) => other !== event && covers(other.words[level], start_s, end_s));
        const did = words?.unsaved || (adrift ? "rename" : stray ? "revert" : "");
        if (did) rows.push({ did, start_s, end_s, level, text: did === "revert" ? "" : words.text, time: words?.unsaved ? words.time : now() });
      }
    }
    return rows;
  }

  restamp() { // put everything on top of what others said meanwhile
    for (const act of this.acts) act.time = now();
    for (const event of this.events) for (const words of Object.values(event.words)) if (words.unsaved) words.time = now();
  }

  #remember() {
    this.past.push({ events: structuredClone(this.events), acts: structuredClone(this.acts) });
  }

  #act(did, events) {
    const steps = [...events.map((event) => event.start_frame), events.at(-1).end_frame];
    const act = { did, times_s: steps.map((step) => this.time(step)), kinds: events.map((event) => event.kind), time: now() };
    for (const event of events) event.person = { did, unsaved: true };
    this.acts.push(act);
    return act;
  }
}

function anchor(words) { // the span for which a person's words were saved, if they were
  return { start_s: words?.start_s, end_s: words?.end_s };
}

function covers(words, start_s, end_s) { // whether the next run finds that span in this event
  if (words?.start_s == null) return false;
  const shared = Math.min(end_s, words.end_s) - Math.max(start_s, words.start_s);
  const covered = Math.max(end_s, words.end_s) - Math.min(start_s, words.start_s);
  return shared > SAME_EVENT * covered;
}

let latest = 0;
function now() { // later than any time given before, so that the order of deeds stays
  latest = Math.max(Date.now(), latest + 1);
  return new Date(latest).toISOString();
}
