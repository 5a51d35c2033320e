/** What is looked at, as an address: a link that reproduces the view. */

import { asSeed } from "./seeds.js";

/** Standard deviations of a blur, in pixels, and the largest of noise, that restorations are offered for. */
export const BLURS = [0.5, 0.75, 1, 1.5, 2];
export const LOUDEST = 0.5;

const seed = (fallback) => ({ fallback, read: asSeed, write: String });
const choice = (values) => ({
  fallback: values[0],
  read: (text) => values.find((value) => String(value) === text) ?? null,
  write: String,
});
const number = (fallback, low, high) => ({
  fallback,
  read: (text) => {
    const value = Number(text);
    return text.trim() !== "" && value >= low && value <= high ? value : null;
  },
  write: (value) => String(Math.round(1e4 * value) / 1e4),
});

/** Bytes as two digits each, and back; of which there are `count` in an address. */
export const asHex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
export const ofHex = (text) => Uint8Array.from(text.match(/../g), (pair) => parseInt(pair, 16));
const hex = (count) => ({
  fallback: null,
  read: (text) => (text.length === 2 * count && /^[0-9a-f]*$/.test(text) ? text : null),
  write: String,
});

/** Bits, eight to a byte and the first the highest (`numpy.packbits`), and back. */
export const asBits = (bits) =>
  asHex(Array.from({ length: Math.ceil(bits.length / 8) }, (_, n) =>
    bits.slice(8 * n, 8 * n + 8).reduce((byte, bit, k) => byte | (bit << (7 - k)), 0)));
export const ofBits = (text, count) => {
  const bytes = ofHex(text);
  return Uint8Array.from({ length: count }, (_, k) => (bytes[k >> 3] >> (7 - (k & 7))) & 1);
};

const range = (count) => [...Array(count).keys()];

/**
 * The fields of a view of this model; each has what it is where nothing is said.
 *
 * `seed`, `to` and `mix` are the noise, `frame` the place on the student's path (Infinity is the sample), `wall` the
 * first seed of the wall where that is not the block of the seed.
 *
 * Of restorations `picture` is what was drawn or opened, levels in hexadecimal, and `mask` bits of what is hidden; null
 * is the student's sample, and the box in its middle. `first` is the first of their seeds.
 */
export function fieldsOf({ shape, classes, guidance, student, teacher }) {
  const fields = { seed: seed(7n), to: seed(11n), mix: number(0, 0, 1), frame: number(Infinity, 0, 1e4), wall: seed(null) };
  if (classes) fields.label = choice(range(classes));
  if (guidance) fields.guidance = number(guidance[0], ...guidance);
  const passes = Object.keys(student.passes).map(Number);
  if (passes.length > 1) fields.passes = choice(passes);
  if (teacher) {
    const [{ name, steps }] = teacher.solvers;
    const counts = Object.keys(steps).map(Number);
    fields.solver = choice([name, ...teacher.solvers.slice(1).map((solver) => solver.name)]);
    fields.steps = { ...choice(counts), fallback: counts.includes(16) ? 16 : counts.at(-1) };
    const [channels, height, width] = shape;
    const restoring = Object.keys(teacher.restoring).map(Number);
    Object.assign(fields, {
      tab: choice(["sample", "restore"]),
      problem: choice(height % 2 || width % 2 ? ["mask", "blur"] : ["mask", "blur", "means"]),
      blur: { ...choice(BLURS), fallback: 1 },
      noise: number(0, 0, LOUDEST),
      restoring: { ...choice(restoring), fallback: restoring.includes(20) ? 20 : restoring.at(-1) },
      first: seed(0n),
      picture: hex(channels * height * width),
      mask: hex(Math.ceil((height * width) / 8)),
    });
  }
  return fields;
}

/** The view that an address such as `#seed=7&mix=0.5` names; what it does not name, or wrongly, is as usual. */
export function readView(fields, hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const named = (key, { fallback, read }) => (given.has(key) ? read(given.get(key)) : null) ?? fallback;
  return Object.fromEntries(Object.entries(fields).map(([key, field]) => [key, named(key, field)]));
}

/** The address of a view: what is not as usual. */
export function writeView(fields, view) {
  const said = Object.entries(fields).filter(([key, { fallback }]) => view[key] !== fallback);
  return `#${new URLSearchParams(said.map(([key, { write }]) => [key, write(view[key])]))}`;
}

/** What is drawn from some fields of a view is drawn anew where this differs. */
export const keyOf = (view, fields) => fields.map((field) => String(view[field])).join();

/** What networks are told in a view, an array of so many rows by name. */
export function toldOf({ label, guidance }, rows) {
  return {
    ...(label === undefined ? {} : { label: new BigInt64Array(rows).fill(BigInt(label)) }),
    ...(guidance === undefined ? {} : { weight: new Float32Array(rows).fill(guidance) }),
  };
}

/** Of plans by their number of passes the one of a view; the only one where there is no choice. */
export const planOf = (plans, { passes }) => plans[passes ?? Object.keys(plans)[0]];
