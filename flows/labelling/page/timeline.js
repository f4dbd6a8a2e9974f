// The timeline: a ruler, a band for each event, curves of the signals, boundaries and the playhead.

import { unsaid } from "./model.js";

const LINES = { "arm speed": "#1b6ca8", "gripper": "#111111", "gripper command": "#d95f02" };
const $ = (id) => document.getElementById(id);

export class Timeline {
  constructor(asked) { // asked: what somebody wants, {seek(s), select(number), drag(number, s), dropped()}
    this.asked = asked;
    this.episode = null;
    const box = $("timeline");
    box.addEventListener("pointerdown", (event) => this.#pressed(event));
    box.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  show(episode) {
    this.episode = episode;
    [this.from_s, this.to_s] = [0, Math.max(episode.end_s, 1e-3)];
    this.draw();
  }

  zoom(factor, about_s) {
    const all = Math.max(this.episode.end_s, 1e-3), least = Math.min(all, 0.2);
    const wide = Math.min(all, Math.max(least, (this.to_s - this.from_s) * factor));
    const share = (about_s - this.from_s) / (this.to_s - this.from_s);
    this.from_s = Math.max(0, Math.min(all - wide, about_s - share * wide));
    this.to_s = this.from_s + wide;
    this.draw();
  }

  follow(at_s) { // keep the playhead on screen
    const wide = this.to_s - this.from_s;
    if (at_s < this.from_s - 1e-9 || at_s > this.to_s + 1e-9) {
      this.from_s = Math.max(0, Math.min(this.episode.end_s - wide, at_s - wide / 10));
      this.to_s = this.from_s + wide;
      this.draw();
    }
    $("playhead").style.left = this.#percent(at_s);
  }

  draw(current = this.current, chosen = this.chosen) { // numbers of the event and the boundary
    [this.current, this.chosen] = [current, chosen];
    if (!this.episode) return;
    this.#ruler();
    this.#bands();
    this.#curves();
  }

  #percent(at_s) { return `${100 * (at_s - this.from_s) / (this.to_s - this.from_s)}%`; }

  #seconds(event) {
    const box = $("timeline").getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    return Math.max(0, Math.min(this.episode.end_s, this.from_s + share * (this.to_s - this.from_s)));
  }

  #ruler() {
    const wide = this.to_s - this.from_s, rough = wide / 8, size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= rough);
    const marks = [];
    const last_s = this.to_s - 0.03 * wide;  // beyond, its words would be cut off
    for (let n = Math.ceil(this.from_s / step); n * step <= last_s; n++) {
      const mark = document.createElement("span");
      mark.textContent = `${(n * step).toFixed(step < 0.1 ? 2 : step < 1 ? 1 : 0)} s`;
      mark.style.left = this.#percent(n * step);
      marks.push(mark);
    }
    $("ruler").replaceChildren(...marks);
  }

  #bands() {
    const bands = [], cuts = [];
    this.episode.events.forEach((event, number) => {
      const start_s = this.episode.time(event.start_frame), end_s = this.episode.time(event.end_frame);
      if (end_s < this.from_s || start_s > this.to_s) return;
      const band = document.createElement("div");
      band.className = `band ${event.kind}`;
      band.classList.toggle("person", Boolean(event.person));
      band.classList.toggle("unsaved", Boolean(event.person?.unsaved));
      band.classList.toggle("current", number === this.current);
      band.style.left = this.#percent(Math.max(start_s, this.from_s));
      band.style.width = `${100 * (Math.min(end_s, this.to_s) - Math.max(start_s, this.from_s)) / (this.to_s - this.from_s)}%`;
      const title = document.createElement("b"), by = document.createElement("small");
      title.textContent = `${number + 1} ${event.kind}`;
      by.textContent = event.person ? (event.person.unsaved ? "you, not saved" : event.person.author) : unsaid(event);
      band.title = `${title.textContent}: ${by.textContent}`;
      band.append(title, by);
      bands.push(band);
      if (number && start_s >= this.from_s) cuts.push(this.#cut(event, number, start_s));
    });
    $("bands").replaceChildren(...bands);
    $("cuts").replaceChildren(...cuts);
  }

  #cut(event, number, start_s) {
    const cut = document.createElement("div");
    cut.className = "cut";
    cut.classList.toggle("person", Boolean(event.person || this.episode.events[number - 1].person));
    cut.classList.toggle("chosen", number === this.chosen);
    cut.style.left = this.#percent(start_s);
    cut.dataset.number = number;
    cut.title = "Drag to move this boundary";
    return cut;
  }

  #curves() {
    const canvas = $("signals"), scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    for (const { name, times_s, values } of this.episode.signals) {
      pen.beginPath();
      pen.strokeStyle = LINES[name];
      pen.lineWidth = 1.5;
      pen.setLineDash(name === "gripper command" ? [4, 3] : []);
      times_s.forEach((at_s, i) => {
        const x = width * (at_s - this.from_s) / (this.to_s - this.from_s);
        const y = 6 + (height - 12) * (1 - values[i]);
        if (i) pen.lineTo(x, y); else pen.moveTo(x, y);
      });
      pen.stroke();
    }
    $("legend").replaceChildren(...this.episode.signals.map(({ name, top }) => {
      const entry = document.createElement("span"), line = document.createElement("i");
      line.style.borderTop = `3px ${name === "gripper command" ? "dashed" : "solid"} ${LINES[name]}`;
      entry.append(line, `${name} (top: ${top})`);
      return entry;
    }));
  }

  #pressed(event) {
    if (!this.episode || event.button) return;
    event.preventDefault();
    const box = $("timeline"), cut = event.target.closest(".cut");
    const number = cut ? Number(cut.dataset.number) : 0;
    if (cut) this.asked.select(number); else this.asked.seek(this.#seconds(event));
    box.setPointerCapture(event.pointerId);
    const moved = (next) => (cut ? this.asked.drag(number, this.#seconds(next)) : this.asked.seek(this.#seconds(next)));
    box.addEventListener("pointermove", moved);
    box.addEventListener("pointerup", () => {
      box.removeEventListener("pointermove", moved);
    }, { once: true });
  }

  #wheel(event) {
    if (!this.episode) return;
    event.preventDefault();
    this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.#seconds(event));
  }
}
