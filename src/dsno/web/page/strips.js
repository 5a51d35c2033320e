/** The frames of a trajectory as strips of small pictures. */

import { paint } from "./pictures.js";

const MOST = 7;

/** Places 0 to count - 1, both ends included, no more of them than fit. */
function spread(count) {
  if (count <= MOST) return [...Array(count).keys()];
  return [...Array(MOST).keys()].map((i) => Math.round((i * (count - 1)) / (MOST - 1)));
}

/** t as it is said below a picture. */
export const timeText = (t) => (t === 1 ? "noise" : t === 0 ? "sample" : `t ${t.toFixed(t < 0.1 ? 3 : 2)}`);

/** The place of the time that is nearest to `t`. */
export const nearest = (times, t) =>
  times.reduce((best, time, n) => (Math.abs(time - t) < Math.abs(times[best] - t) ? n : best), 0);

/** A row of pictures under a title, of a class of its own; `chosen(n)` is called for a picture that is pressed. */
export class Strip {
  #shown = [];

  constructor(parent, title, kind, chosen = null) {
    this.chosen = chosen;
    this.element = parent.appendChild(document.createElement("div"));
    this.element.className = `strip ${kind}`;
    this.element.appendChild(document.createElement("p")).textContent = title;
    this.thumbs = this.element.appendChild(document.createElement("div"));
    this.thumbs.className = "thumbs";
  }

  /** Shows states at times, null where there is none, and marks the one whose time is nearest to `t`. */
  show(states, times, shape, t) {
    const places = spread(states.length);
    if (places.join() !== this.#shown.map(({ place }) => place).join()) this.#build(places);
    const marked = places[nearest(places.map((n) => times[n]), t)];
    for (const { place, thumb, canvas, text } of this.#shown) {
      thumb.style.visibility = states[place] === null ? "hidden" : "";
      if (states[place] !== null) paint(canvas, states[place], shape);
      text.textContent = timeText(times[place]);
      thumb.setAttribute("aria-current", String(place === marked));
    }
  }

  #build(places) {
    this.#shown = places.map((place) => {
      const thumb = document.createElement(this.chosen ? "button" : "div");
      const canvas = thumb.appendChild(document.createElement("canvas"));
      const text = thumb.appendChild(document.createElement("small"));
      if (this.chosen) {
        thumb.type = "button";
        thumb.addEventListener("click", () => this.chosen(place));
      }
      return { place, thumb, canvas, text };
    });
    this.thumbs.replaceChildren(...this.#shown.map(({ thumb }) => thumb));
  }
}
