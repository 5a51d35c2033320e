/** The page: a view, and the student, the teacher and the wall that show it. */

import { Controls } from "./controls.js";
import { openNetworks, threadsFor } from "./networks.js";
import { paint, save } from "./pictures.js";
import { runPasses, runSteps } from "./samplers.js";
import { noise, seedBeside, slerp } from "./seeds.js";
import { Strip, nearest, timeText } from "./strips.js";
import { Median, Newest } from "./tasks.js";
import { fieldsOf, readView, writeView } from "./view.js";
import { COUNT, Wall, blockOf } from "./wall.js";
import { callsOf, comparison, facts, headings, plural, python, timeOf } from "./words.js";

/** Milliseconds that a frame is played for, and until the address follows the view. */
const PLAYED = 400, ADDRESSED = 250;

/** How often what is measured is drawn once all is loaded. */
const SETTLED = 5;

const find = (id) => document.getElementById(id);

/** The fields of the view that each part of the page is drawn from. */
const NOISE = ["seed", "to", "mix"];
const TOLD = ["label", "guidance"];

class Page {
  #drawn = {};
  #lanes = { student: new Newest(), teacher: new Newest(), wall: new Newest() };
  #medians = { student: new Median(), teacher: new Median(), wall: new Median() };
  #running = false;
  taken = {};

  constructor(model, ask) {
    this.model = model;
    this.ask = ask;
    this.size = model.shape.reduce((product, n) => product * n);
    this.fields = fieldsOf(model);
    this.view = readView(this.fields, location.hash);
    this.controls = new Controls(model, (part) => this.change(part));
    this.wall = new Wall(find("wall"), find("wall-mark"), model.shape);
    const chosen = (n) => this.change({ frame: n === this.student.states.length - 1 ? Infinity : n });
    const strip = (...given) => new Strip(find("strips"), ...given);
    this.strips = {
      student: {
        states: strip("Student: its states", "states", chosen),
        predictions: strip("Student: what it says of the sample at each time", "predictions", chosen),
      },
      teacher: {
        states: strip("Teacher: its states", "teacher states"),
        predictions: strip("Teacher: what it says of the sample at each time", "teacher predictions"),
      },
    };
    this.#buttons();
    this.#keys();
    addEventListener("hashchange", () => {
      if (location.hash !== writeView(this.fields, this.view)) this.#see(readView(this.fields, location.hash));
    });
    this.#see(this.view);
  }

  /** Changes fields of the view, and draws what depends on them. */
  change(part) {
    this.#see({ ...this.view, ...part });
    clearTimeout(this.addressed);
    this.addressed = setTimeout(() => {
      history.replaceState(null, "", writeView(this.fields, this.view));
    }, ADDRESSED);
  }

  #see(view) {
    this.view = view;
    this.controls.show(view);
    find("python").textContent = python(this.model, view);
    this.#when("student", [...NOISE, ...TOLD, "passes"], () => this.#drawStudent());
    if (this.model.teacher) {
      this.#when("teacher", [...NOISE, ...TOLD, "solver", "steps"], () => this.#drawTeacher());
    }
    this.first = view.wall ?? blockOf(view.seed);
    this.#when("wall", ["first", ...TOLD, "passes"], () => this.#drawWall());
    this.#show();
  }

  /** Draws a part of the page where one of the fields that it is drawn from has changed. */
  #when(part, keys, draw) {
    const key = keys.map((name) => String(name === "first" ? this.first : this.view[name])).join();
    if (this.#drawn[part] === key) return;
    this.#drawn[part] = key;
    draw();
  }

  // Samplers

  /** What networks are told of so many rows. */
  #told(rows) {
    const { label, guidance } = this.view;
    return {
      ...(label === undefined ? {} : { label: new BigInt64Array(rows).fill(BigInt(label)) }),
      ...(guidance === undefined ? {} : { weight: new Float32Array(rows).fill(guidance) }),
    };
  }

  /** The noise of the view: of its seed, or on the way to the other one. */
  #noise() {
    const { seed, to, mix } = this.view;
    return (stream) => {
      const z = noise(seed, this.size, stream);
      return mix === 0 ? z : slerp(z, noise(to, this.size, stream), mix);
    };
  }

  #plans(plans) {
    return plans[this.view.passes ?? Object.keys(plans)[0]];
  }

  #given(name, of, plan) {
    const { shape } = this.model;
    return { name, plan, sigma: of.sigma, shape, rows: 1, draw: this.#noise(), told: this.#told(1), ask: this.ask };
  }

  #drawStudent(times = 1) {
    const { student } = this.model;
    const given = this.#given("student", student, this.#plans(student.passes));
    this.#repeat("student", times, () => runPasses(given));
  }

  #drawTeacher(times = 1) {
    const { teacher } = this.model;
    const { solver, steps } = this.view;
    const plan = teacher.solvers.find(({ name }) => name === solver).steps[steps];
    const given = { ...this.#given("teacher", teacher, plan), clip: teacher.clip, empty: teacher.null };
    // What another number of steps took says nothing of this one.
    if (this.teacher?.states.length !== plan.length + 1) this.#medians.teacher = new Median();
    this.#repeat("teacher", times, (stale) => runSteps({ ...given, stale }));
  }

  /** Draws the trajectory of one of the two, and shows what drawing it took. */
  #repeat(part, times, draw) {
    const { seed } = this.view;
    find(part).ariaBusy = "true";
    this.#lanes[part].run(async (stale) => {
      for (let count = 0; count < times && !stale(); count++) {
        const made = await draw(stale);
        if (made === null) return;
        this[part] = { ...made, seed };
        this.taken[part] = this.#medians[part].add(made.milliseconds);
        find(`${part}-time`).value = timeOf(this.taken[part]);
        find(part).ariaBusy = String(stale());
        this.#show();
      }
    });
  }

  /** Measures again what was drawn while programs were still compiled. */
  #settle() {
    this.#medians = { student: new Median(), teacher: new Median(), wall: new Median() };
    this.#drawStudent(SETTLED);
    if (this.model.teacher) this.#drawTeacher(SETTLED);
  }

  #drawWall() {
    const { student } = this.model;
    const given = { student, plan: this.#plans(student.wall), told: this.#told(student.rows), ask: this.ask };
    this.#lanes.wall.run(async (stale) => {
      do {
        const first = this.first;
        const began = performance.now();
        const drawn = await this.wall.draw({ ...given, first, stale });
        if (drawn < COUNT) return;
        const taken = this.#medians.wall.add(performance.now() - began);
        find("wall-time").value = `${Math.round((1000 * COUNT) / taken)} samples a second`;
        find("wall-seeds").value = `seeds ${first} to ${seedBeside(first, COUNT - 1)}, ${timeOf(taken)}`;
        if (!this.settled) this.#settle();
        this.settled = true;
        if (this.#running && !stale()) this.#next(first);
      } while (this.#running && !stale());
    });
  }

  /** Goes on to the next block of the wall, which is drawn by the task that runs. */
  #next(first) {
    const wall = seedBeside(first, COUNT);
    this.first = wall;
    this.#drawn.wall = null;
    this.view = { ...this.view, wall };
    this.#show();
  }

  // What is seen

  #show() {
    const { seed } = this.view;
    const place = Number(seed - this.first);
    this.wall.frame(seed >= this.first && place < COUNT ? place : null);
    if (!this.student) return;
    const { states, times, seed: drawn } = this.student;
    const last = states.length - 1;
    const frame = Math.min(this.view.frame, last);
    const { shape } = this.model;
    paint(find("student"), states[frame], shape);
    find("student").setAttribute("aria-label", `The student's frame ${frame} of seed ${drawn}`);
    find("student-calls").textContent = callsOf(this.#plans(this.model.student.passes).length, last);
    Object.assign(find("frame"), { max: last, value: frame });
    find("frame-value").value = `${frame} of ${last}, ${timeText(times[frame])}`;
    this.#showStrips("student", times[frame]);
    if (this.teacher) this.#showTeacher(times[frame]);
  }

  #showTeacher(t) {
    const { states, times } = this.teacher;
    const shown = nearest(times, t);
    paint(find("teacher"), states[shown], this.model.shape);
    find("teacher").setAttribute("aria-label", `The teacher's state ${shown} of ${states.length - 1}`);
    find("teacher-calls").textContent = plural(states.length - 1, "step");
    this.#showStrips("teacher", t);
    const ratio = this.taken.teacher / this.taken.student;
    find("difference").textContent = comparison(this.student.states.at(-1), states.at(-1), ratio);
  }

  #showStrips(part, t) {
    const { states, predictions, times } = this[part];
    const { shape } = this.model;
    this.strips[part].states.show(states, times, shape, t);
    this.strips[part].predictions.element.hidden = predictions === null;
    if (predictions) this.strips[part].predictions.show(predictions, times, shape, t);
  }

  // What is done

  #buttons() {
    const name = () => this.model.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
    const beside = (by) => this.change({ wall: seedBeside(this.first, by) });
    const done = {
      play: () => this.#play(),
      save: () => save(find("student"), `${name()}-seed-${this.student.seed}.png`),
      "save-wall": () => save(find("wall"), `${name()}-seeds-from-${this.first}.png`),
      copy: () => this.#copy(),
      "wall-before": () => beside(-COUNT),
      "wall-after": () => beside(COUNT),
      "wall-run": () => this.#keepDrawing(!this.#running),
    };
    for (const [id, act] of Object.entries(done)) find(id).addEventListener("click", act);
    find("wall-frame").addEventListener("click", (event) => {
      this.#keepDrawing(false);
      this.change({ seed: seedBeside(this.first, this.wall.placeAt(event)), mix: 0, wall: null });
    });
  }

  #keys() {
    const done = {
      ArrowLeft: () => this.controls.move(this.view, -1),
      ArrowRight: () => this.controls.move(this.view, 1),
      r: () => this.controls.surprise(),
      p: () => this.#play(),
      w: () => this.#keepDrawing(!this.#running),
      s: () => find("save").click(),
      l: () => this.#copy(),
    };
    addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("input, select, textarea");
      if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in done)) return;
      event.preventDefault();
      done[event.key]();
    });
  }

  #play() {
    clearInterval(this.playing);
    let frame = 0;
    const last = this.student.states.length - 1;
    const step = () => {
      this.change({ frame: frame >= last ? Infinity : frame });
      if (frame++ >= last) clearInterval(this.playing);
    };
    step();
    this.playing = setInterval(step, PLAYED);
  }

  #keepDrawing(running) {
    if (running === this.#running) return;
    this.#running = running;
    find("wall-run").ariaPressed = String(running);
    this.#medians.wall = new Median();
    if (running) this.#drawWall();
    else this.change({});
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
}

/** Says what went wrong where the page would say that it loads. */
function fail(error) {
  find("status").hidden = false;
  find("status").textContent = `This page does not run here: ${error?.message ?? error}`;
}

async function start() {
  const answer = await fetch("model.json");
  if (!answer.ok) throw new Error(`model.json: ${answer.status} ${answer.statusText}`);
  const model = await answer.json();
  const { title, about } = headings(model);
  document.title = find("title").textContent = title;
  find("about").textContent = about;
  find("status").textContent = "Loading the networks…";
  const terms = facts(model).flatMap((pair) => pair.map((text, n) => {
    const term = document.createElement(n === 0 ? "dt" : "dd");
    term.textContent = text;
    return term;
  }));
  find("facts").replaceChildren(...terms);
  const names = ["student", "wall", ...(model.teacher ? ["teacher"] : [])];
  const ask = await openNetworks(names, threadsFor(model.student));
  find("status").hidden = true;
  find("page").hidden = false;
  new Page(model, ask);
}

addEventListener("error", ({ error, message }) => fail(error ?? message));
start().catch(fail);
