// The episode's time: it runs with the first camera's video, or by a clock where there is none.

const $ = (id) => document.getElementById(id);

export class Player {
  constructor(ticked) {
    this.ticked = ticked; // called with the episode's time, seconds, whenever it changes
    this.videos = [];
    this.at_s = 0;
    this.rate = 1;
    this.until_s = Infinity;
    this.playing = false;
  }

  async show(episode) {
    this.pause();
    this.episode = episode;
    this.videos = [];
    const figures = episode.cameras.map((camera, number) => this.#figure(episode, camera, number));
    $("videos").replaceChildren(...figures);
    if (!figures.length) $("videos").textContent = "This episode has no camera; the signals below play by themselves.";
    this.seek(0);
  }

  #figure(episode, camera, number) {
    const figure = document.createElement("figure"), video = document.createElement("video"), name = document.createElement("figcaption");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", disablePictureInPicture: true });
    video.tabIndex = -1;
    name.textContent = camera;
    figure.append(video, name);
    const broken = (why) => { name.textContent = `${camera}: no video (${why})`; figure.classList.add("broken"); };
    video.addEventListener("error", () => broken(video.error?.message || "the browser cannot play it"));
    fetch(`api/episodes/${encodeURIComponent(episode.episode_id)}/clips/${number}`)
      .then(async (answer) => {
        const told = await answer.json();
        if (!answer.ok) throw new Error(told.error);
        video.dataset.start = told.start_s;
        video.src = told.video;
        if (this.episode !== episode) return;
        this.videos.push(video);
        this.#place(video);
      })
      .catch((error) => broken(error.message));
    return figure;
  }

  seek(at_s) {
    this.at_s = Math.max(0, Math.min(this.episode.end_s, at_s));
    this.began = [performance.now(), this.at_s];
    for (const video of this.videos) this.#place(video);
    this.ticked(this.at_s);
  }

  #place(video) { // a little into the picture that belongs to this time, never the one before
    const step_s = this.episode.end_s / Math.max(this.episode.last, 1);
    video.currentTime = Number(video.dataset.start) + this.at_s + step_s / 8;
  }

  play(until_s = Infinity) {
    if (this.playing) return;
    if (this.at_s >= this.episode.end_s - 1e-6) this.seek(0);
    [this.playing, this.until_s] = [true, until_s];
    this.began = [performance.now(), this.at_s];
    for (const video of this.videos) {
      video.playbackRate = this.rate;
      video.play().catch(() => {});
    }
    requestAnimationFrame(() => this.#tick());
    this.ticked(this.at_s);
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    for (const video of this.videos) video.pause();
    this.seek(this.at_s);
  }

  set speed(rate) {
    this.rate = rate;
    this.began = [performance.now(), this.at_s];
    for (const video of this.videos) video.playbackRate = rate;
  }

  #tick() {
    if (!this.playing) return;
    const lead = this.videos.find((video) => !video.error && video.readyState > 1 && !video.ended);
    const clock_s = this.began[1] + this.rate * (performance.now() - this.began[0]) / 1000;
    const at_s = lead ? lead.currentTime - Number(lead.dataset.start) : clock_s;
    this.at_s = Math.max(0, Math.min(this.episode.end_s, at_s));
    for (const video of this.videos) { // cameras stay together
      const off_s = lead ? video.currentTime - Number(video.dataset.start) - at_s : 0;
      if (video !== lead && Math.abs(off_s) > 0.15) video.currentTime -= off_s;
    }
    if (this.at_s >= Math.min(this.episode.end_s, this.until_s) - 1e-3) {
      this.at_s = Math.min(this.at_s, this.until_s);
      this.pause();
      return;
    }
    this.ticked(this.at_s);
    requestAnimationFrame(() => this.#tick());
  }
}
