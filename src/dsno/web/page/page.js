/** The page: a view that people change, and the stage and the wall that show it. */

import { Controls, find } from "./controls.js";
import { save } from "./pictures.js";
import { Restore } from "./restore.js";
import { seedBeside } from "./seeds.js";
import { Stage } from "./stage.js";
import { fieldsOf, readView, writeView } from "./view.js";
import { COUNT, Wall, firstOf } from "./wall.js";
import { python } from "./words.js";

/** Milliseconds that a frame is played for, and until the address follows the view. */
const PLAYED = 400, ADDRESSED = 250;

export class Page {
  #measured = false;

  constructor(model, ask) {
    this.model = model;
    this.fields = fieldsOf(model);
    this.controls = new Controls(model, (part) => this.change(part));
    this.stage = new Stage(model, ask, (frame) => this.#show(frame), () => this.#restore());
    this.restore = model.teacher && new Restore(model, ask, (part) => this.change(part));
    this.wall = new Wall(model, ask, (wall) => this.change({ wall }), () => this.#measure());
    this.#buttons();
    this.#keys();
    addEventListener("hashchange", () => {
      if (location.hash !== writeView(this.fields, this.view)) this.#see(readView(this.fields, location.hash));
    });
    this.#see(readView(this.fields, location.hash));
  }

  /** Changes fields of the view. */
  change(part) {
    this.#see({ ...this.view, ...part });
    clearTimeout(this.addressed);
    this.addressed = setTimeout(() => {
      history.replaceState(null, "", writeView(this.fields, this.view));
    }, ADDRESSED);
  }

  #see(view) {
    this.view = view;
    for (const part of [this.controls, this.stage, this.wall]) part.see(view);
    find("python").textContent = python(this.model, view);
    this.#restore();
  }

  get #restoring() {
    return this.view.tab === "restore";
  }

  /** Restores, once there is something to restore. */
  #restore() {
    if (!this.#restoring || !(this.view.picture || this.stage.sample)) return;
    this.restore.see(this.view, this.stage.sample);
    find("python").textContent = this.restore.python;
  }

  /** Once all is loaded and drawn, what is measured is measured again. */
  #measure() {
    if (!this.#measured) this.stage.measure();
    this.#measured = true;
  }

  /** Shows a frame of the path; the last is the sample, however many there are. */
  #show(frame) {
    this.change({ frame: frame >= this.stage.last ? Infinity : frame });
  }

  #play() {
    clearInterval(this.playing);
    let frame = 0;
    const step = () => {
      this.#show(frame);
      if (frame++ >= this.stage.last) clearInterval(this.playing);
    };
    step();
    this.playing = setInterval(step, PLAYED);
  }

  async #copy() {
    const link = new URL(writeView(this.fields, this.view), location.href);
    try {
      await navigator.clipboard.writeText(link);
      find("said").value = "Link copied";
    } catch {
      location.replace(link);
      find("said").value = "The link is in the address bar";
    }
  }

  #save() {
    if (this.#restoring) save(this.restore.first, `${this.#name()}-restored.png`);
    else save(find("student"), `${this.#name()}-seed-${this.stage.student.seed}.png`);
  }

  #name() {
    return this.model.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  }

  #buttons() {
    const beside = (by) => this.change({ wall: seedBeside(firstOf(this.view), by) });
    const acts = {
      play: () => this.#play(),
      save: () => this.#save(),
      "save-wall": () => save(find("wall"), `${this.#name()}-seeds-from-${firstOf(this.view)}.png`),
      copy: () => this.#copy(),
      "wall-before": () => beside(-COUNT),
      "wall-after": () => beside(COUNT),
      "wall-run": () => this.wall.keep(!this.wall.running),
    };
    for (const [id, act] of Object.entries(acts)) find(id).addEventListener("click", act);
    find("wall-frame").addEventListener("click", (event) => {
      const seed = this.wall.seedAt(event);
      this.wall.keep(false);
      this.change({ seed, mix: 0, wall: null });
    });
  }

  #keys() {
    const acts = {
      ArrowLeft: () => this.controls.move(this.view, -1),
      ArrowRight: () => this.controls.move(this.view, 1),
      r: () => this.controls.surprise(this.view),
      s: () => this.#save(),
      l: () => this.#copy(),
    };
    const sampling = { p: () => this.#play(), w: () => this.wall.keep(!this.wall.running) };
    addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("input, select, textarea");
      const act = acts[event.key] ?? (this.#restoring ? undefined : sampling[event.key]);
      if (typing || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !act) return;
      event.preventDefault();
      act();
    });
  }
}
