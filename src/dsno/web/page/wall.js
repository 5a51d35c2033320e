/** A wall of seeds: a sample for each, drawn as fast as the machine allows. */

import { find } from "./controls.js";
import { pixels } from "./pictures.js";
import { runPasses } from "./samplers.js";
import { noise, seedBeside } from "./seeds.js";
import { Median, Newest } from "./tasks.js";
import { keyOf, planOf, toldOf } from "./view.js";
import { timeOf } from "./words.js";

const SIDE = 8;
export const COUNT = SIDE * SIDE;

/** The fields of a view that a wall is drawn from, beside its first seed. */
const DRAWN_FROM = ["label", "guidance", "passes"];

/** The first seed of the wall of a view: its own, or that of the block of seeds that its seed lies in. */
export const firstOf = ({ seed, wall }) => wall ?? seed - (seed % BigInt(COUNT));

export class Wall {
  #lane = new Newest();
  #taken = new Median();
  #drawn = "";

  /** `moved(first)` is told which block comes next while it is kept drawing, and `done()` that one is drawn. */
  constructor(model, ask, moved, done) {
    const [, height, width] = model.shape;
    Object.assign(this, { model, ask, moved, done, running: false });
    this.gap = Math.max(1, Math.round(width / 8));
    this.pitch = [width + this.gap, height + this.gap];
    this.canvas = find("wall");
    [this.canvas.width, this.canvas.height] = this.pitch.map((pitch) => SIDE * pitch - this.gap);
    this.context = this.canvas.getContext("2d");
  }

  /** Draws block after block, or stops. */
  keep(running) {
    this.running = running;
    this.#taken = new Median();
    find("wall-run").setAttribute("aria-pressed", running);
    if (running) this.moved(seedBeside(firstOf(this.view), COUNT));
  }

  /** Shows a view, and draws its wall where that is another one. */
  see(view) {
    this.view = view;
    const first = firstOf(view);
    const key = `${first},${keyOf(view, DRAWN_FROM)}`;
    if (this.#drawn !== key) this.#draw(first);
    this.#drawn = key;
    const place = Number(view.seed - first);
    this.#mark(place >= 0 && place < COUNT ? place : null);
  }

  /** The seed at a point of the page. */
  seedAt({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const cell = (offset, length) => Math.max(0, Math.min(SIDE - 1, Math.floor((offset / length) * SIDE)));
    const [line, column] = [cell(clientY - box.top, box.height), cell(clientX - box.left, box.width)];
    return seedBeside(firstOf(this.view), SIDE * line + column);
  }

  #draw(first) {
    const { shape, student } = this.model;
    const { rows, sigma, wall } = student;
    const size = shape.reduce((product, n) => product * n);
    const given = { name: "wall", plan: planOf(wall, this.view), sigma, shape, rows, ask: this.ask };
    const told = toldOf(this.view, rows);
    this.#lane.run(async (stale) => {
      const began = performance.now();
      for (let done = 0; done < COUNT; done += rows) {
        if (stale()) return;
        const seeds = Array.from({ length: rows }, (_, row) => seedBeside(first, done + row));
        const draw = (stream) => Float32Array.from(seeds.flatMap((seed) => [...noise(seed, size, stream)]));
        const { states } = await runPasses({ ...given, told, draw });
        for (let row = 0; row < rows && done + row < COUNT; row++) this.#paint(done + row, states.at(-1), row);
      }
      this.#taken.add(performance.now() - began);
      find("wall-time").value = `${Math.round((1000 * COUNT) / this.#taken.value)} samples a second`;
      find("wall-seeds").value = `seeds ${first} to ${seedBeside(first, COUNT - 1)}, ${timeOf(this.#taken.value)}`;
      if (this.running) this.moved(seedBeside(first, COUNT));
      this.done();
    });
  }

  #paint(place, x, row) {
    const [column, line] = [place % SIDE, Math.floor(place / SIDE)];
    this.context.putImageData(pixels(x, this.model.shape, row), column * this.pitch[0], line * this.pitch[1]);
  }

  /** Frames the sample at a place, none for null. */
  #mark(place) {
    const mark = find("wall-mark");
    mark.hidden = place === null;
    if (place === null) return;
    const { width, height } = this.canvas;
    const percent = (n, of) => `${(100 * n) / of}%`;
    Object.assign(mark.style, {
      left: percent((place % SIDE) * this.pitch[0], width),
      top: percent(Math.floor(place / SIDE) * this.pitch[1], height),
      width: percent(this.pitch[0] - this.gap, width),
      height: percent(this.pitch[1] - this.gap, height),
    });
  }
}
