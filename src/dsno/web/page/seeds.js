/**
 * Noise from per-sample seeds, as `dsno.seeds` draws it: a seed is the same picture here and in Python.
 *
 *     (seed, stream, index) -> z ~ N(0, 1)
 *
 * by the counter-based generator Philox-4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3")
 * followed by Box-Muller. Stream 0 is the initial noise, stream n + 1 that of step n of a stochastic chain.
 */

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const WEYL = [0x9e3779b9, 0xbb67ae85];
const ROUNDS = 10;
const MASK = 0xffffffffn;

const LAST = 2n ** 63n - 1n;

/** The seed that a text spells, a BigInt in [0, 2^63), or null. */
export function asSeed(text) {
  if (!/^\s*\d{1,19}\s*$/.test(text)) return null;
  const seed = BigInt(text.trim());
  return seed <= LAST ? seed : null;
}

/** The seed `by` further on, at the nearer end where there is none. */
export function seedBeside(seed, by) {
  const moved = seed + BigInt(by);
  return moved < 0n ? 0n : moved > LAST ? LAST : moved;
}

/** The upper and the lower 32 bits of a product of two words of 32 bits, which is too long for a number. */
function product(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const middle = a1 * b0 + a0 * b1 + Math.floor((a0 * b0) / 0x10000);
  return [a1 * b1 + Math.floor(middle / 0x10000), Math.imul(a, b)];
}

/** Ten rounds of Philox-4x32: four words of 32 bits for a counter of four and a key of two. */
export function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < ROUNDS; round++) {
    const [upper0, lower0] = product(c0, MULTIPLIERS[0]);
    const [upper1, lower1] = product(c2, MULTIPLIERS[1]);
    [c0, c1, c2, c3] = [upper1 ^ c1 ^ k0, lower1, upper0 ^ c3 ^ k1, lower0];
    [k0, k1] = [k0 + WEYL[0], k1 + WEYL[1]];
  }
  return [c0 >>> 0, c1 >>> 0, c2 >>> 0, c3 >>> 0];
}

/** Standard normal noise of a seed, a Float32Array of `size` numbers. */
export function noise(seed, size, stream = 0) {
  const key = [Number(seed & MASK), Number(seed >> 32n)];
  const z = new Float32Array(4 * Math.ceil(size / 4));
  for (let block = 0; block < z.length / 4; block++) {
    const [u0, u1, u2, u3] = philox([block, 0, stream, 0], key).map((word) => (word + 0.5) * 2 ** -32);
    const r0 = Math.sqrt(-2 * Math.log(u0)), r1 = Math.sqrt(-2 * Math.log(u2));
    const a0 = 2 * Math.PI * u1, a1 = 2 * Math.PI * u3;
    z.set([r0 * Math.cos(a0), r0 * Math.sin(a0), r1 * Math.cos(a1), r1 * Math.sin(a1)], 4 * block);
  }
  return z.subarray(0, size);
}

/**
 * The noise at `u` in [0, 1] on the arc between two noises, as `dsno.report.pictures.slerp` has it:
 *
 *     z(u) = sin((1 - u) w) / sin(w) a + sin(u w) / sin(w) b,    cos(w) = a.b / |a||b|
 *
 * A straight line would leave the shell where Gaussian noise lives. Parallel noises are joined by one.
 */
export function slerp(a, b, u) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const omega = Math.acos(Math.max(-1, Math.min(1, dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)))));
  const sin = Math.sin(omega);
  const [p, q] = sin < 1e-6 ? [1 - u, u] : [Math.sin((1 - u) * omega) / sin, Math.sin(u * omega) / sin];
  return a.map((value, i) => p * value + q * b[i]);
}
