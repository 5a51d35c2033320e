/** The tab of restorations: a picture, what was measured of it, and what the teacher makes of that, for some seeds. */

import { find } from "./controls.js";
import { Paper, levelsOf } from "./paper.js";
import { levels, paint, paintHidden } from "./pictures.js";
import { blurred, boxed, halved, keeping, left, masked } from "./problems.js";
import { runRestoring } from "./samplers.js";
import { noise, seedBeside } from "./seeds.js";
import { Newest } from "./tasks.js";
import { asBits, asHex, keyOf, ofBits, ofHex, toldOf } from "./view.js";
import { fit, plural, pythonRestoring, timeOf } from "./words.js";

/** Restorations side by side. */
const DRAWS = 4;

/** The stream of the noise that is measured, as `dsno restore --degrade` has it. */
const MEASURED = 2 ** 32 - 1;

/** The fields of a view that restorations are drawn from, beside the picture and the mask. */
const DRAWN_FROM = ["problem", "blur", "noise", "restoring", "first", "label", "guidance"];

const hiddenIn = (keep) => asBits(keep.map((seen) => 1 - seen));

export class Restore {
  #lane = new Newest(() => find("restorations").setAttribute("aria-busy", "false"));
  #drawn = "";
  #tool = null;

  /** `ask` runs networks, and `change(part)` changes the view. */
  constructor(model, ask, change) {
    Object.assign(this, { model, ask, change });
    this.paper = new Paper(model.shape, (pixels) => this.#touch(pixels));
    this.canvases = Array.from({ length: DRAWS }, () => {
      const figure = find("restorations").appendChild(document.createElement("figure"));
      const canvas = figure.appendChild(document.createElement("canvas"));
      Object.assign(canvas, { className: "picture", role: "img" });
      return { canvas, text: figure.appendChild(document.createElement("small")) };
    });
    this.#tools();
  }

  /** The first of the restorations, to be saved. */
  get first() {
    return this.canvases[0].canvas;
  }

  /** How the restorations are made in Python. */
  get python() {
    return pythonRestoring(this.model, this.view, this.text, hiddenIn(this.keep), DRAWS);
  }

  /** Shows a view, of the student's sample where nothing was drawn, and restores where that is another problem. */
  see(view, sample) {
    const { shape } = this.model;
    this.view = view;
    this.text = view.picture ?? asHex(levels(sample));
    this.keep = view.mask === null ? boxed(shape) : ofBits(view.mask, shape[1] * shape[2]).map((hidden) => 1 - hidden);
    this.x = Float32Array.from(ofHex(this.text), (level) => level / 127.5 - 1);
    this.#show();
    const key = [this.text, view.problem === "mask" ? hiddenIn(this.keep) : "", keyOf(view, DRAWN_FROM)].join();
    if (this.#drawn !== key) this.#draw();
    this.#drawn = key;
  }

  get #problem() {
    const { problem, blur } = this.view;
    const { shape } = this.model;
    return problem === "mask" ? masked(shape, this.keep) : problem === "blur" ? blurred(shape, blur) : halved(shape);
  }

  #draw() {
    const { first, noise: tau, restoring, guidance } = this.view;
    const { shape, teacher } = this.model;
    const problem = this.#problem;
    const { x } = this;
    const seen = this.#seen(problem.shape);
    const n = noise(first, problem.shape.reduce((product, length) => product * length), MEASURED);
    const y = Float32Array.from(problem.A(x), (value, i) => value + seen[i % seen.length] * tau * n[i]);
    paintHidden(find("measured"), y, seen, 0, problem.shape);
    const plan = teacher.restoring[restoring];
    const { sigma, clip, null: empty } = teacher;
    const given = { name: "teacher", plan, sigma, clip, empty, shape, problem, y, tau, ask: this.ask };
    const told = toldOf(this.view, 1);
    find("restorations").setAttribute("aria-busy", "true");
    this.#lane.run(async (stale) => {
      let milliseconds = 0;
      const made = [];
      for (const [count, { canvas, text }] of this.canvases.entries()) {
        const seed = seedBeside(first, count);
        const draw = (stream) => noise(seed, x.length, stream);
        const restored = await runRestoring({ ...given, told, draw, stale });
        if (restored === null) return;
        made.push(restored.x);
        milliseconds += restored.milliseconds;
        paint(canvas, restored.x, shape);
        canvas.setAttribute("aria-label", `Restored with seed ${seed}`);
        text.textContent = `seed ${seed}`;
      }
      const calls = plan.length * DRAWS * (guidance === undefined ? 1 : 2);
      find("restored-time").value = `${plural(calls, "call")}, ${timeOf(milliseconds)}`;
      find("restored-fit").textContent = fit(x, made, problem, y);
    });
  }

  /** What is seen of pictures of a shape. */
  #seen(shape) {
    return this.view.problem === "mask" ? this.keep : keeping(shape, () => true);
  }

  #show() {
    const { problem, picture } = this.view;
    this.paper.show(this.x, this.#seen(this.model.shape), this.model.shape);
    find("paper-what").textContent = picture === null ? "the student's sample" : "yours";
    for (const element of document.querySelectorAll(".of-mask")) element.hidden = problem !== "mask";
    const tool = this.tool;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
  }

  /** What was chosen last; nothing is hidden where there is no mask. */
  get tool() {
    const masks = this.view.problem === "mask";
    return masks || this.#tool === "erase" ? (this.#tool ?? "hide") : "draw";
  }

  #touch(pixels) {
    const { height, width } = this.paper;
    const plane = height * width;
    if (this.tool === "hide" || this.tool === "seen") {
      const keep = this.keep.slice();
      for (const i of pixels) keep[i] = Number(this.tool === "seen");
      return this.#mask(keep);
    }
    const picture = ofHex(this.text);
    const ink = this.tool === "erase" ? [0, 0, 0] : ofHex(find("ink").value.slice(1));
    for (const i of pixels) for (let k = i; k < picture.length; k += plane) picture[k] = ink[Math.floor(k / plane)];
    this.#picture(picture);
  }

  #mask(keep) {
    this.change({ mask: hiddenIn(keep) });
  }

  #picture(picture) {
    this.change({ picture: asHex(picture) });
  }

  #tools() {
    const { shape } = this.model;
    const [channels, height, width] = shape;
    find("ink-field").hidden = channels === 1;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => {
        this.#tool = button.dataset.tool;
        this.#show();
      });
    }
    const acts = {
      "paper-sample": () => this.change({ picture: null }),
      "paper-clear": () => this.#picture(new Uint8Array(channels * height * width)),
      "paper-open": () => find("paper-file").click(),
      "mask-box": () => this.change({ mask: null }),
      "mask-half": () => this.#mask(left(shape)),
      "mask-none": () => this.#mask(keeping(shape, () => true)),
    };
    for (const [id, act] of Object.entries(acts)) find(id).addEventListener("click", act);
    find("paper-file").addEventListener("change", async ({ target }) => {
      try {
        this.#picture(await levelsOf(target.files[0], shape));
        find("said").value = "";
      } catch {
        find("said").value = "This file is no picture that the browser reads";
      }
      target.value = "";
    });
  }
}
