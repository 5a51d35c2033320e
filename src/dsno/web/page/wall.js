/** A wall of seeds: a sample for each, drawn as fast as the machine allows. */

import { pixels } from "./pictures.js";
import { noise, seedBeside } from "./seeds.js";
import { runPasses } from "./samplers.js";

const SIDE = 8;
export const COUNT = SIDE * SIDE;

/** The first seed of the block of seeds that a seed lies in. */
export const blockOf = (seed) => seed - (seed % BigInt(COUNT));

/** The picture of a wall: tiles of samples with gaps between them. */
export class Wall {
  /** `canvas` shows the samples, `mark` frames one of them. */
  constructor(canvas, mark, shape) {
    const [, height, width] = shape;
    this.shape = shape;
    this.mark = mark;
    this.gap = Math.max(1, Math.round(width / 8));
    this.pitch = [width + this.gap, height + this.gap];
    [canvas.width, canvas.height] = this.pitch.map((pitch) => SIDE * pitch - this.gap);
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  /** Draws COUNT samples from `first` on, in batches; promises the number drawn, fewer where `stale()`. */
  async draw({ first, student, plan, told, ask, stale }) {
    const { rows } = student;
    const size = this.shape.reduce((product, n) => product * n);
    let done = 0;
    for (; done < COUNT && !stale(); done += rows) {
      const seeds = [...Array(rows).keys()].map((row) => seedBeside(first, done + row));
      const draw = (stream) => Float32Array.from(seeds.flatMap((seed) => [...noise(seed, size, stream)]));
      const given = { name: "wall", plan, sigma: student.sigma, shape: this.shape, rows, draw, told, ask };
      const { states } = await runPasses(given);
      for (let row = 0; row < rows && done + row < COUNT; row++) this.#paint(done + row, states.at(-1), row);
    }
    return Math.min(done, COUNT);
  }

  #paint(place, x, row) {
    const [column, line] = [place % SIDE, Math.floor(place / SIDE)];
    this.context.putImageData(pixels(x, this.shape, row), column * this.pitch[0], line * this.pitch[1]);
  }

  /** Frames the sample at a place, none for null. */
  frame(place) {
    this.mark.hidden = place === null;
    if (place === null) return;
    const [width, height] = [this.canvas.width, this.canvas.height];
    const percent = (n, of) => `${(100 * n) / of}%`;
    const [x, y] = [(place % SIDE) * this.pitch[0], Math.floor(place / SIDE) * this.pitch[1]];
    Object.assign(this.mark.style, {
      left: percent(x, width),
      top: percent(y, height),
      width: percent(this.pitch[0] - this.gap, width),
      height: percent(this.pitch[1] - this.gap, height),
    });
  }

  /** The place of the sample at a point of the page. */
  placeAt({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const cell = (offset, length) => Math.max(0, Math.min(SIDE - 1, Math.floor((offset / length) * SIDE)));
    return cell(clientY - box.top, box.height) * SIDE + cell(clientX - box.left, box.width);
  }
}
