/** The fields of the page: what a person does to them changes the view, and they show what it is. */

import { asSeed, seedBeside } from "./seeds.js";

export const find = (id) => document.getElementById(id);

/** A seed that fits into a line and is easy to say. */
const randomSeed = () => BigInt(Math.floor(1e6 * Math.random()));

/** Fills a select with options `[value, text]`. */
function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

export class Controls {
  /** `change(part)` is told what becomes of fields of the view. */
  constructor(model, change) {
    this.model = model;
    this.change = change;
    this.steps = model.teacher ? Object.keys(model.teacher.solvers[0].steps).map(Number) : [];
    this.#seeds();
    this.#told();
    this.#solver();
    find("mix").addEventListener("input", ({ target }) => change({ mix: Number(target.value) }));
    find("frame").addEventListener("input", ({ target }) => {
      change({ frame: target.value === target.max ? Infinity : Number(target.value) });
    });
  }

  /** Shows a view. */
  see(view) {
    for (const key of ["seed", "to"]) {
      if (find(key) !== document.activeElement) this.#write(find(key), view[key]);
    }
    find("mix").value = view.mix;
    for (const button of find("label").children) button.setAttribute("aria-pressed", Number(button.value) === view.label);
    if (this.model.guidance) {
      find("guidance").value = view.guidance;
      find("guidance-value").value = view.guidance;
    }
    if (view.passes) find("passes").value = view.passes;
    if (this.model.teacher) {
      find("solver").value = view.solver;
      find("steps").value = this.steps.indexOf(view.steps);
      find("steps-value").value = view.steps;
    }
  }

  /** The seed `by` further on; from anywhere on the way between two, the first. */
  move(view, by) {
    this.change({ seed: seedBeside(view.seed, by), mix: 0, wall: null });
  }

  /** Another seed, and the picture of it. */
  surprise() {
    this.change({ seed: randomSeed(), mix: 0, wall: null });
  }

  #write(input, seed) {
    input.value = String(seed);
    input.size = Math.max(6, input.value.length);
    input.removeAttribute("aria-invalid");
  }

  #seeds() {
    const ends = { seed: (seed) => ({ seed, mix: 0, wall: null }), to: (to) => ({ to }) };
    for (const [key, part] of Object.entries(ends)) {
      const input = find(key);
      input.addEventListener("input", () => {
        const seed = asSeed(input.value);
        input.setAttribute("aria-invalid", String(seed === null));
        if (seed !== null) this.change(part(seed));
      });
      find(`${key}-random`).addEventListener("click", () => this.change(part(randomSeed())));
    }
  }

  #told() {
    const { classes, guidance, student } = this.model;
    const passes = Object.keys(student.passes);
    find("label-field").hidden = !classes;
    find("guidance-field").hidden = !guidance;
    find("passes-field").hidden = passes.length === 1;
    for (let label = 0; label < (classes ?? 0); label++) {
      const button = find("label").appendChild(document.createElement("button"));
      Object.assign(button, { type: "button", value: label, textContent: label });
      button.addEventListener("click", () => this.change({ label }));
    }
    if (guidance) Object.assign(find("guidance"), { min: guidance[0], max: guidance[1] });
    find("guidance").addEventListener("input", ({ target }) => this.change({ guidance: Number(target.value) }));
    fill(find("passes"), passes.map((count) => [count, count]));
    find("passes").addEventListener("change", ({ target }) => this.change({ passes: Number(target.value) }));
  }

  #solver() {
    const { teacher } = this.model;
    for (const id of ["teacher-figure", "teacher-options", "comparison"]) find(id).hidden = !teacher;
    if (!teacher) return;
    fill(find("solver"), teacher.solvers.map(({ name, title }) => [name, title]));
    find("solver").addEventListener("change", ({ target }) => this.change({ solver: target.value }));
    find("steps").max = this.steps.length - 1;
    find("steps").addEventListener("input", ({ target }) => this.change({ steps: this.steps[target.value] }));
  }
}
