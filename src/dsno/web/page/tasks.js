/** Runs tasks one at a time, and of those that wait the newest alone: what a slider asks for while it is dragged. */
export class Newest {
  #waiting = null;
  #running = false;

  /** `task(stale)` is run once the one before it ends; `stale()` is whether a newer one waits by then. */
  run(task) {
    this.#waiting = task;
    if (!this.#running) this.#work();
  }

  async #work() {
    this.#running = true;
    while (this.#waiting) {
      const task = this.#waiting;
      this.#waiting = null;
      try {
        await task(() => this.#waiting !== null);
      } catch (error) {
        // Reported where all errors of the page are; the next task is run all the same.
        setTimeout(() => { throw error; });
      }
    }
    this.#running = false;
  }
}

/** The median of the last `count` numbers. */
export class Median {
  #numbers = [];

  constructor(count = 9) {
    this.count = count;
  }

  add(number) {
    this.#numbers = [...this.#numbers, number].slice(-this.count);
    return [...this.#numbers].sort((a, b) => a - b)[this.#numbers.length >> 1];
  }
}
