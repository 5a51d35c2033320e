/** The fields of the page: what a person does to them changes the view, and they show what it is. */

import { asSeed, seedBeside } from "./seeds.js";
import { BLURS, LOUDEST } from "./view.js";

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
    this.#restoring();
    find("mix").addEventListener("input", ({ target }) => change({ mix: Number(target.value) }));
    find("frame").addEventListener("input", ({ target }) => {
      change({ frame: target.value === target.max ? Infinity : Number(target.value) });
    });
  }

  /** Shows a view. */
  see(view) {
    for (const key of ["seed", "to", ...(this.model.teacher ? ["first"] : [])]) {
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
      this.#open(view.tab);
      for (const id of ["problem", "blur", "noise", "restoring"]) find(id).value = view[id];
      find("blur-field").hidden = view.problem !== "blur";
      find("noise-value").value = view.noise;
    }
  }

  /** The seed `by` further on; from anywhere on the way between two, the first. */
  move(view, by) {
    if (view.tab === "restore") this.change({ first: seedBeside(view.first, by) });
    else this.change({ seed: seedBeside(view.seed, by), mix: 0, wall: null });
  }

  /** Another seed, and the picture of it. */
  surprise(view) {
    this.change(view.tab === "restore" ? { first: randomSeed() } : { seed: randomSeed(), mix: 0, wall: null });
  }

  /** Shows a tab, and there what both are told. */
  #open(tab) {
    if (this.tab === tab) return;
    this.tab = tab;
    for (const element of document.querySelectorAll("[data-tab]")) {
      if (element.matches("button")) element.setAttribute("aria-pressed", String(element.dataset.tab === tab));
      else element.hidden = element.dataset.tab !== tab;
    }
    find(tab === "restore" ? "told-restoring" : "told").prepend(find("label-field"), find("guidance-field"));
  }

  #write(input, seed) {
    input.value = String(seed);
    input.size = Math.max(6, input.value.length);
    input.removeAttribute("aria-invalid");
  }

  #seeds() {
    const ends = { seed: (seed) => ({ seed, mix: 0, wall: null }), to: (to) => ({ to }), first: (first) => ({ first }) };
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

  #restoring() {
    find("tabs").hidden = !this.model.teacher;
    for (const button of document.querySelectorAll("button[data-tab]")) {
      button.addEventListener("click", () => this.change({ tab: button.dataset.tab }));
    }
    const [, height, width] = this.model.shape;
    const problems = [["mask", "Parts are hidden"], ["blur", "It is blurred"], ["means", "Half the resolution"]];
    fill(find("problem"), height % 2 || width % 2 ? problems.slice(0, 2) : problems);
    fill(find("blur"), BLURS.map((std) => [std, std]));
    fill(find("restoring"), Object.keys(this.model.teacher?.restoring ?? {}).map((count) => [count, count]));
    Object.assign(find("noise"), { max: LOUDEST, step: LOUDEST / 50 });
    find("problem").addEventListener("change", ({ target }) => this.change({ problem: target.value }));
    for (const id of ["blur", "restoring"]) {
      find(id).addEventListener("change", ({ target }) => this.change({ [id]: Number(target.value) }));
    }
    find("noise").addEventListener("input", ({ target }) => this.change({ noise: Number(target.value) }));
  }
}
