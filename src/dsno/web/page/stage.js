/** The stage: a student and its teacher from the same noise, frame by frame, and what each takes. */

import { find } from "./controls.js";
import { paint } from "./pictures.js";
import { runPasses, runSteps } from "./samplers.js";
import { noise, slerp } from "./seeds.js";
import { Strip, nearest, timeText } from "./strips.js";
import { Median, Newest } from "./tasks.js";
import { keyOf, planOf, toldOf } from "./view.js";
import { comparison, plural, timeOf } from "./words.js";

/** The fields of a view that each of the two is drawn from. */
const GIVEN = ["seed", "to", "mix", "label", "guidance"];
const DRAWN_FROM = { student: [...GIVEN, "passes"], teacher: [...GIVEN, "solver", "steps"] };

/** How often both are drawn to find out what they take. */
const MEASURED = 5;

export class Stage {
  #lanes = {};
  #drawn = {};
  #taken = {};

  /** `ask` runs networks, `chosen(frame)` is told which frame of the path was pressed, and `drawn()` of a new sample. */
  constructor(model, ask, chosen, drawn) {
    Object.assign(this, { model, ask, drawn });
    this.parts = model.teacher ? ["student", "teacher"] : ["student"];
    this.strips = {};
    this.#taken.path = new Median();
    for (const part of this.parts) {
      this.#lanes[part] = new Newest(() => find(part).setAttribute("aria-busy", "false"));
      this.#taken[part] = new Median();
      const [who, press] = part === "student" ? ["Student", chosen] : ["Teacher", null];
      this.strips[part] = {
        states: new Strip(find("strips"), `${who}: its states`, `${part} states`, press),
        predictions: new Strip(find("strips"), `${who}: what it says of the sample`, `${part} predictions`, press),
      };
    }
  }

  /** The number of the last frame of the path. */
  get last() {
    return this.student.states.length - 1;
  }

  /** The student's sample, once there is one. */
  get sample() {
    return this.student?.states.at(-1);
  }

  /** Shows a view, and draws what of it is not drawn yet. */
  see(view) {
    this.view = view;
    for (const part of this.parts) {
      const key = keyOf(view, DRAWN_FROM[part]);
      if (this.#drawn[part] !== key) this.#draw(part);
      this.#drawn[part] = key;
    }
    this.#show();
  }

  /** Measures anew what both take: what was drawn while their programs were still compiled says little. */
  measure() {
    for (const part of this.parts) {
      this.#taken[part] = new Median();
      if (part === "student") this.#taken.path = new Median();
      this.#draw(part, MEASURED);
    }
  }

  #draw(part, times = 1) {
    const { seed } = this.view;
    const sample = this[`${part}Sampler`]();
    find(part).setAttribute("aria-busy", "true");
    this.#lanes[part].run(async (stale) => {
      for (let count = 0; count < times && !stale(); count++) {
        const made = await sample(stale);
        if (made === null) return;
        // What another number of calls took says nothing of this one.
        if (this[part]?.states.length !== made.states.length) this.#taken[part] = new Median();
        this[part] = { ...made, seed };
        this.#taken[part].add(made.milliseconds);
        if (part === "student") this.#taken.path.add(made.path);
        this.#show();
        if (part === "student") this.drawn();
      }
    });
  }

  /** What both samplers are given in a view: its noise, and what networks are told. */
  #given() {
    const { seed, to, mix } = this.view;
    const { shape } = this.model;
    const size = shape.reduce((product, n) => product * n);
    const draw = (stream) => {
      const z = noise(seed, size, stream);
      return mix === 0 ? z : slerp(z, noise(to, size, stream), mix);
    };
    return { shape, rows: 1, draw, told: toldOf(this.view, 1), ask: this.ask };
  }

  /** The whole path, and where the sample can be had alone, what that takes. */
  studentSampler() {
    const { passes, sample, sigma } = this.model.student;
    const given = { ...this.#given(), sigma };
    const plan = planOf(passes, this.view);
    return async () => {
      const alone = sample === null ? {} : await runPasses({ ...given, name: "sample", plan: sample });
      const whole = await runPasses({ ...given, name: "student", plan });
      return { ...whole, milliseconds: alone.milliseconds ?? whole.milliseconds, path: whole.milliseconds };
    };
  }

  teacherSampler() {
    const { solvers, sigma, clip, null: empty } = this.model.teacher;
    const plan = solvers.find(({ name }) => name === this.view.solver).steps[this.view.steps];
    const given = { ...this.#given(), name: "teacher", plan, sigma, clip, empty };
    return (stale) => runSteps({ ...given, stale });
  }

  #show() {
    if (!this.student) return;
    const { times, seed } = this.student;
    const frame = Math.min(this.view.frame, this.last);
    const calls = planOf(this.model.student.passes, this.view).length;
    this.#showPart("student", frame, `The student's frame ${frame} of seed ${seed}`, plural(calls, "pass", "passes"));
    find("path-time").value = `all ${this.last} frames in ${timeOf(this.#taken.path.value)}`;
    Object.assign(find("frame"), { max: this.last, value: frame });
    find("frame-value").value = `${frame} of ${this.last}, ${timeText(times[frame])}`;
    if (!this.teacher) return;
    const steps = this.teacher.states.length - 1;
    const state = nearest(this.teacher.times, times[frame]);
    this.#showPart("teacher", state, `The teacher's state ${state} of ${steps}`, plural(steps, "step"));
    const ratio = this.#taken.teacher.value / this.#taken.student.value;
    find("comparison").textContent = comparison(this.student.states.at(-1), this.teacher.states.at(-1), ratio);
  }

  #showPart(part, place, label, calls) {
    const { states, predictions, times } = this[part];
    const { shape } = this.model;
    paint(find(part), states[place], shape);
    find(part).setAttribute("aria-label", label);
    find(`${part}-calls`).textContent = calls;
    find(`${part}-time`).value = timeOf(this.#taken[part].value);
    const strips = this.strips[part];
    strips.states.show(states, times, shape, times[place]);
    strips.predictions.element.hidden = predictions === null;
    if (predictions) strips.predictions.show(predictions, times, shape, times[place]);
  }
}
