/** A picture that people draw on, and hide parts of: by pointer, by keys, or from a file. */

import { find } from "./controls.js";
import { paintHidden } from "./pictures.js";

/** What a hidden pixel still shows of itself, of 255. */
const VEILED = 90;

/** How bright red, green and blue are (ITU-R BT.601). */
const BRIGHT = [0.299, 0.587, 0.114];

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** The levels, 0 to 255, of a picture file, its middle brought to a shape. */
export async function levelsOf(file, [channels, height, width]) {
  const image = await createImageBitmap(file);
  const context = new OffscreenCanvas(width, height).getContext("2d");
  const scale = Math.max(width / image.width, height / image.height);
  const [w, h] = [scale * image.width, scale * image.height];
  // What is transparent lies on black.
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  const { data } = context.getImageData(0, 0, width, height);
  const plane = height * width;
  return Uint8Array.from({ length: channels * plane }, (_, i) => {
    const rgb = data.subarray(4 * (i % plane), 4 * (i % plane) + 3);
    if (channels === 3) return rgb[Math.floor(i / plane)];
    return Math.round(BRIGHT.reduce((sum, share, c) => sum + share * rgb[c], 0));
  });
}

export class Paper {
  #at = null;

  /** `touched(pixels)` is told which pixels, as places in (H, W), a tool went over. */
  constructor([, height, width], touched) {
    Object.assign(this, { height, width, touched });
    this.canvas = find("paper");
    this.brush = Math.max(1, Math.round(Math.min(height, width) / 10));
    this.#pointer();
    this.#keys();
  }

  /** Shows a picture, and what of it is hidden, 0 in `keep`. */
  show(x, keep, shape) {
    paintHidden(this.canvas, x, keep, VEILED, shape);
  }

  /** A tool at a pixel. */
  #touch(line, column) {
    const half = (this.brush - 1) >> 1;
    const pixels = [];
    for (let i = line - half; i < line - half + this.brush; i++) {
      for (let j = column - half; j < column - half + this.brush; j++) {
        if (i >= 0 && i < this.height && j >= 0 && j < this.width) pixels.push(i * this.width + j);
      }
    }
    this.touched(pixels);
  }

  #pointer() {
    const place = ({ clientX, clientY }) => {
      const box = this.canvas.getBoundingClientRect();
      return [((clientY - box.top) / box.height) * this.height, ((clientX - box.left) / box.width) * this.width];
    };
    let last = null;
    const draw = (event) => {
      const next = place(event);
      const way = next.map((value, side) => value - last[side]);
      const count = Math.max(1, Math.ceil(Math.max(...way.map(Math.abs))));
      // A quick stroke is told at few points, and is one line all the same.
      for (let n = 1; n <= count; n++) {
        this.#touch(...last.map((value, side) => Math.floor(value + (way[side] * n) / count)));
      }
      last = next;
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      last = place(event);
      draw(event);
    });
    this.canvas.addEventListener("pointermove", (event) => last && draw(event));
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => (last = null));
  }

  #keys() {
    const mark = find("paper-mark");
    this.canvas.addEventListener("focus", () => this.#move(this.#at ?? [this.height >> 1, this.width >> 1]));
    this.canvas.addEventListener("blur", () => (mark.hidden = true));
    this.canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in MOVES) this.#move(this.#at.map((value, side) => value + MOVES[event.key][side]));
      else if (event.key === " " || event.key === "Enter") this.#touch(...this.#at);
      else return;
      event.preventDefault();
    });
  }

  #move([line, column]) {
    const within = (value, count) => Math.max(0, Math.min(count - 1, value));
    this.#at = [within(line, this.height), within(column, this.width)];
    const [i, j] = this.#at;
    const percent = (n, of) => `${(100 * n) / of}%`;
    const mark = find("paper-mark");
    mark.hidden = !this.canvas.matches(":focus-visible");
    Object.assign(mark.style, {
      top: percent(i, this.height),
      left: percent(j, this.width),
      height: percent(1, this.height),
      width: percent(1, this.width),
    });
    find("paper-said").textContent = `Row ${i + 1}, column ${j + 1}`;
  }
}
