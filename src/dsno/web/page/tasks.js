/** Milliseconds that a task may run though a newer one waits: what is dragged along is seen on its way, too. */
const PATIENCE = 250;

/** Runs tasks one at a time, and of those that wait the newest alone: what a slider asks for while it is dragged. */
export class Newest {
  #waiting = null;
  #running = false;

  /** `idle` is called when nothing waits any more. */
  constructor(idle = () => {}) {
    this.idle = idle;
  }

  /** `task(stale)` is run once the one before it ends; `stale()` is whether it should give way to a newer one. */
  run(task) {
    this.#waiting = task;
    if (!this.#running) this.#work();
  }

  async #work() {
    this.#running = true;
    while (this.#waiting) {
      const task = this.#waiting;
      const began = performance.now();
      this.#waiting = null;
      try {
        await task(() => this.#waiting !== null && performance.now() - began > PATIENCE);
      } catch (error) {
        reportError(error);
      }
    }
    this.#running = false;
    this.idle();
  }
}

/** The median of the last numbers. */
export class Median {
  #numbers = [];

  constructor(count = 9) {
    this.count = count;
  }

  add(number) {
    this.#numbers = [...this.#numbers, number].slice(-this.count);
  }

  /** NaN of no numbers. */
  get value() {
    return [...this.#numbers].sort((a, b) => a - b)[this.#numbers.length >> 1] ?? NaN;
  }
}
