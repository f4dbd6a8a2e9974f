// The page: list of episodes, keys, the event's card, saving. model.js says what a deed does.

import { Episode, KINDS, LEVELS, unsaid } from "./model.js";
import { Player } from "./player.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const SHOWN = 300; // rows of the list at a time
const HINTS = { task: "what the whole episode is for", subtask: "the part of the task", action: "what the robot does, short", segment: "what the arm did, in detail" };

const open = new Map(); // episodes that were looked at, with what is not saved yet
let listed = [], shown = [], episode = null, number = 0, chosen = 0;

const timeline = new Timeline({
  seek: (at_s) => { player.pause(); player.seek(at_s); },
  select: (cut) => { player.pause(); goTo(cut); },
  drag: (cut, at_s) => moveTo(cut, episode.step(at_s)),
});
const player = new Player((at_s) => {
  const step = episode.step(at_s);
  $("clock").textContent = `${at_s.toFixed(3)} s of ${episode.end_s.toFixed(3)} s · control step ${step} of ${episode.last}`;
  $("play").textContent = player.playing ? "❚❚" : "▶";
  timeline.follow(at_s);
  if (episode.at(step) !== number) { number = episode.at(step); chosen = number; draw(); }
});

// --- keys ----------------------------------------------------------------------------------------

const KEYS = [ // shown on the page in this order; what the keys are called, what they do
  [["Space"], "play, pause", [" "], () => (player.playing ? player.pause() : player.play())],
  [["←", "→"], "one step (Shift: ten)", ["ArrowLeft", "ArrowRight"], (key, event) => stepBy((key === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? 10 : 1))],
  [["↑", "↓"], "boundary before, after", ["ArrowUp", "ArrowDown"], (key) => goTo(key === "ArrowUp" ? before() : number + 1)],
  [["L"], "play this event", ["l"], playEvent],
  [["S"], "split here", ["s"], () => did(episode.split(here()), () => { number = episode.at(here()); chosen = number; })],
  [["[", "]"], "move boundary one step (Shift: ten)", ["[", "]", "{", "}"], (key, event) => nudge(("[{".includes(key) ? -1 : 1) * ("{}".includes(key) || event.shiftKey ? 10 : 1))],
  [["B"], "bring the boundary here", ["b"], bring],
  [["M"], "merge with next event", ["m"], () => did(episode.merge(number))],
  [["1", "2", "3", "4"], KINDS.join(", "), ["1", "2", "3", "4"], (key) => did(episode.setKind(number, KINDS[key - 1]))],
  [["R"], "rename (write words)", ["r"], () => words("action")],
  [["A"], "accept, go to next", ["a"], accept],
  [["X"], "give back to the machine", ["x"], () => did(episode.revert(number))],
  [["U"], "undo", ["u"], () => did(episode.undo())],
  [["N", "P"], "next, previous episode", ["n", "p"], (key) => neighbour(key === "n" ? 1 : -1)],
  [["+", "−", "0"], "zoom the timeline", ["+", "=", "-", "0"], (key) => (key === "0" ? timeline.show(episode) : timeline.zoom(key === "-" ? 1.6 : 0.6, player.at_s))],
  [["Ctrl+S"], "save", [], () => save()],
];

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s") { event.preventDefault(); return void save(); }
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !typing(event)) { event.preventDefault(); return void did(episode?.undo()); }
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event) || !episode || $("conflict").open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const found = KEYS.find(([, , keys]) => keys.includes(key));
  if (!found) return;
  event.preventDefault();
  found[3](key, event);
});

const typing = (event) => Boolean(event.target.closest?.("input, textarea, select"));

function here() { return episode.step(player.at_s); }

function stepBy(count) {
  player.pause();
  player.seek(episode.time(Math.max(0, Math.min(episode.last, here() + count))));
}

function before() { // the start of this event, or of the one before where we stand at it
  return here() > episode.events[number].start_frame ? number : number - 1;
}

function goTo(event) { // the boundary at an event's start
  player.pause();
  const to = Math.max(0, Math.min(episode.events.length - 1, event));
  [number, chosen] = [to, to];
  player.seek(episode.time(episode.events[to].start_frame));
  draw();
}

function nearest() { // the boundary nearest to the playhead; 0 for none
  const starts = episode.events.map((event, n) => [Math.abs(event.start_frame - here()), n]).slice(1);
  return starts.length ? starts.reduce((a, b) => (b[0] < a[0] ? b : a))[1] : 0;
}

function moveTo(cut, step) {
  if (!cut) return say("There is no boundary to move: split first (S).");
  if (episode.move(cut, step)) {
    player.seek(episode.time(episode.events[cut].start_frame));
    [number, chosen] = [cut, cut];
    changed();
  }
}

function nudge(count) {
  player.pause();
  const cut = chosen || nearest();
  if (cut) moveTo(cut, episode.events[cut].start_frame + count); else moveTo(0);
}

function bring() {
  player.pause();
  moveTo(nearest(), here());
}

function playEvent() {
  const event = episode.events[number];
  player.pause();
  player.seek(episode.time(event.start_frame));
  player.play(episode.time(event.end_frame) - 1e-3);
}

function accept() {
  if (!did(episode.accept(number))) return;
  if (number + 1 < episode.events.length) goTo(number + 1); else say("That was the last event. N goes to the next episode.");
}

function did(something, then) {
  if (!something) return false;
  player.pause();
  number = Math.min(number, episode.events.length - 1);
  then?.();
  if (here() < episode.events[number].start_frame || here() >= episode.events[number].end_frame) number = episode.at(here());
  changed();
  return true;
}

// --- drawing -------------------------------------------------------------------------------------

function changed() {
  draw();
  state();
  rows();
}

function draw() {
  timeline.draw(number, chosen);
  const event = episode.events[number];
  const span = [event.start_frame, event.end_frame].map((step) => episode.time(step).toFixed(3));
  $("which").textContent = `Event ${number + 1} of ${episode.events.length}`;
  $("who").replaceChildren(badge(event), ` ${span[0]} s to ${span[1]} s`);
  $("kinds").replaceChildren(...KINDS.map((kind, i) => {
    const button = document.createElement("button");
    button.textContent = `${i + 1} ${kind}`;
    button.className = kind;
    button.setAttribute("aria-pressed", event.kind === kind);
    button.addEventListener("click", () => { button.blur(); did(episode.setKind(number, kind)); });
    return button;
  }));
  drawWords(event);
  drawEvidence(event);
}

function badge(event) {
  const made = document.createElement("span"), person = event.person;
  made.className = person ? "badge person" : "badge";
  if (!person) made.textContent = unsaid(event);
  else if (person.unsaved) made.textContent = `you: ${person.did} (not saved)`;
  else made.textContent = `${person.author}: ${person.did}, ${day(person.time)}`;
  return made;
}

const day = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

function drawWords(event) {
  const at = number;
  $("words").replaceChildren(...LEVELS.map((level) => {
    const box = document.createElement("label"), name = document.createElement("span"), by = document.createElement("small");
    const field = document.createElement("textarea"), told = event.words[level];
    name.textContent = level;
    name.title = HINTS[level];
    Object.assign(field, { value: told?.text || "", rows: 1, maxLength: 2000, placeholder: "the next run says it", id: `words-${level}` });
    const who = told?.captioner === "person" ? (told.unsaved ? "you, not saved" : `${told.author || "a person"}${told.time ? ", " + day(told.time) : ""}`) : told ? told.captioner : "";
    by.textContent = who + (told?.wrong ? ` · check: ${told.wrong}` : "");
    by.classList.toggle("person", told?.captioner === "person");
    const mine = episode;
    const keep = () => { if (field.value !== (told?.text || "") && mine.rename(at, level, field.value)) { state(); rows(); if (mine === episode) timeline.draw(); } };
    field.addEventListener("blur", () => { keep(); if (mine === episode) draw(); });
    field.addEventListener("keydown", (key) => {
      if (key.key === "Escape") { field.value = told?.text || ""; field.blur(); }
      if (key.key === "Enter") { key.preventDefault(); field.blur(); }
    });
    const head = document.createElement("span");
    head.className = "head";
    head.append(name, by);
    box.append(head, field);
    requestAnimationFrame(() => { field.style.height = `${field.scrollHeight + 2}px`; });
    return box;
  }));
}

function words(level) {
  player.pause();
  const field = $(`words-${level}`);
  field.focus();
  field.select();
}

function drawEvidence(event) {
  $("evidencetitle").textContent = number ? "Why there is a boundary at its start" : "It starts with the episode";
  const votes = Object.entries(event.evidence).sort((a, b) => b[1] - a[1]);
  const rows = votes.map(([name, vote]) => {
    const row = document.createElement("li"), bar = document.createElement("meter");
    Object.assign(bar, { min: 0, max: 1, value: typeof vote === "number" ? vote : 0 });
    const told = name === "vlm" ? "vision-language model" : name.replaceAll("_", " ");
    row.append(bar, ` ${told} ${typeof vote === "number" ? vote.toFixed(2) : JSON.stringify(vote)}`);
    return row;
  });
  if (number && !votes.length) {
    const none = document.createElement("li");
    none.textContent = event.person ? "A person set it; no signal votes for it." : "No signal votes for it.";
    rows.push(none);
  }
  $("evidence").replaceChildren(...rows);
}

function rows() {
  const asked = $("filter").value.trim().toLowerCase();
  shown = listed.filter((row) => !asked || `${row.task} ${row.episode_id} ${row.source_uri}`.toLowerCase().includes(asked));
  const looked = listed.filter((row) => row.corrections).length;
  $("progress").textContent = `${listed.length} episodes, ${looked} with corrections` + (asked ? `, ${shown.length} shown` : "");
  const place = Math.max(0, shown.findIndex((row) => row.episode_id === episode?.episode_id));
  const first = Math.max(0, Math.min(place - SHOWN / 2, shown.length - SHOWN));
  $("episodes").start = first + 1;
  $("episodes").replaceChildren(...shown.slice(first, first + SHOWN).map((row) => {
    const item = document.createElement("li"), button = document.createElement("button"), task = document.createElement("b"), about = document.createElement("small");
    task.textContent = row.task || "unnamed task";
    const unsaved = open.get(row.episode_id)?.unsaved;
    about.textContent = `${row.episode_id.slice(0, 8)} · ` + (unsaved ? `${unsaved} not saved` : `${row.duration_s.toFixed(1)} s · ${row.events} events` + (row.corrections ? ` · ✓ ${row.corrections}` : ""));
    about.classList.toggle("unsaved", Boolean(unsaved));
    button.title = row.source_uri;
    button.append(task, about);
    button.setAttribute("aria-current", row.episode_id === episode?.episode_id);
    button.addEventListener("click", () => { button.blur(); show(row.episode_id); });
    item.append(button);
    return item;
  }));
  $("episodes").querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" });
}

function state() {
  say("");
  const unsaved = [...open.values()].filter((each) => each.unsaved);
  const count = unsaved.reduce((sum, each) => sum + each.unsaved, 0);
  $("save").disabled = !count;
  $("state").textContent = count ? `${count} change${count > 1 ? "s" : ""} not saved` + (unsaved.length > 1 ? ` in ${unsaved.length} episodes` : "") : "all saved";
  $("state").className = count ? "unsaved" : "";
}

function say(text, bad = false) {
  $("notice").textContent = text;
  $("notice").className = bad ? "bad" : "";
}

// --- the server ----------------------------------------------------------------------------------

async function ask(path, body) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("wamflow label has ended; start it again to save. What you see here stays.");
  }
  const told = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok && answer.status !== 409) throw new Error(told.error);
  return { status: answer.status, told };
}

async function show(id) {
  try {
    if (!open.get(id)?.unsaved) open.set(id, new Episode((await ask(`api/episodes/${encodeURIComponent(id)}`)).told));
  } catch (error) { return say(error.message, true); }
  episode = open.get(id);
  [number, chosen] = [0, 0];
  $("task").textContent = episode.task;
  timeline.show(episode);
  await player.show(episode);
  draw();
  rows();
  state();
}

function neighbour(by) {
  const place = shown.findIndex((row) => row.episode_id === episode.episode_id);
  const next = shown[place + by];
  if (next) show(next.episode_id); else say(by > 0 ? "That was the last episode." : "This is the first episode.");
}

async function save() {
  document.activeElement?.blur(); // words that are being written count
  const author = $("author").value.trim();
  if (!author) { $("author").focus(); return say("Say who you are first.", true); }
  for (const each of [...open.values()].filter((one) => one.unsaved)) {
    if (!(await saveOne(each, author))) return;
  }
  changed();
}

async function saveOne(each, author) {
  const body = { version: each.version, author, events: each.eventRows(), captions: each.captionRows() };
  try {
    const { status, told } = await ask(`api/episodes/${encodeURIComponent(each.episode_id)}/corrections`, body);
    if (status === 409) return await settle(each, told, author);
    const row = listed.find((one) => one.episode_id === each.episode_id);
    row.corrections += body.events.length + body.captions.length;
    row.events = told.events.length;
    each.load(told);
    return true;
  } catch (error) { say(error.message, true); return false; }
}

async function settle(each, told, author) {
  $("conflictwords").textContent = `${told.by || "Somebody"} saved corrections of “${each.task}” (${each.episode_id.slice(0, 8)}) after you opened it.`;
  $("conflict").returnValue = "later";
  $("conflict").showModal();
  await new Promise((closed) => $("conflict").addEventListener("close", closed, { once: true }));
  const choice = $("conflict").returnValue;
  if (choice === "mine") {
    each.version = told.episode.version;
    each.restamp();
    return saveOne(each, author);
  }
  if (choice === "theirs") { each.load(told.episode); changed(); return true; }
  state();
  return false;
}

// --- begin ---------------------------------------------------------------------------------------

$("keys").replaceChildren(...KEYS.map(([names, what]) => {
  const entry = document.createElement("span");
  entry.append(...names.map((name) => Object.assign(document.createElement("kbd"), { textContent: name })), ` ${what}`);
  return entry;
}));
$("save").addEventListener("click", () => { $("save").blur(); save(); });
$("play").addEventListener("click", () => { $("play").blur(); if (player.playing) player.pause(); else player.play(); });
$("speed").addEventListener("change", () => { player.speed = Number($("speed").value); $("speed").blur(); });
$("filter").addEventListener("input", rows);
for (const id of ["filter", "author"]) $(id).addEventListener("keydown", (event) => { if (["Enter", "Escape"].includes(event.key)) $(id).blur(); });
window.addEventListener("beforeunload", (event) => { if ([...open.values()].some((each) => each.unsaved)) event.preventDefault(); });

try {
  const { told } = await ask("api/episodes");
  listed = told.episodes;
  $("run").textContent = `run ${told.run}`;
  $("author").value = told.author;
  rows();
  if (listed.length) await show(listed[0].episode_id); else say("This run has no episode with events.", true);
} catch (error) { say(error.message, true); }
