/**
 * What was measured of a picture, y = A x + tau n, and the mean of x ~ N(z, r^2 I) given y, as `dsno.inverse` has them:
 *
 *     E[x | y] = z + A^T (A A^T + delta I)^-1 (y - A z),    delta = tau^2 / r^2,
 *
 * in closed form, as A A^T is diagonal at once (a mask), or in a basis U of each side: A is a matrix M for the rows and
 * one for the columns, M M^T = U diag(l) U^T. Pictures are arrays (C, H, W). A problem has
 *
 *     shape        what is measured of a picture
 *     A(x)         that
 *     mean(z, y, delta)
 */

const range = (count) => [...Array(count).keys()];
const matrix = (rows, columns, entry) => range(rows).map((i) => Float64Array.from(range(columns), (j) => entry(i, j)));
const transposed = (M) => matrix(M[0].length, M.length, (i, j) => M[j][i]);
const product = (M, N) =>
  matrix(M.length, N[0].length, (i, j) => M[i].reduce((sum, value, k) => sum + value * N[k][j], 0));

/** Pictures with a matrix applied to their columns, V, and one to their rows, H. */
function applied(V, H, x) {
  const [height, width] = [V[0].length, H[0].length];
  const channels = x.length / (height * width);
  const made = new Float64Array(channels * V.length * H.length);
  for (let c = 0; c < channels; c++) {
    const lines = range(height).map((i) => {
      const line = x.subarray((c * height + i) * width, (c * height + i + 1) * width);
      return H.map((row) => row.reduce((sum, weight, j) => sum + weight * line[j], 0));
    });
    for (const [a, row] of V.entries()) {
      for (const b of H.keys()) {
        made[(c * V.length + a) * H.length + b] = row.reduce((sum, weight, i) => sum + weight * lines[i][b], 0);
      }
    }
  }
  return made;
}

/** Eigenvalues of A A^T of this share of the largest are none: what `Blur.A_dagger` drops in float32. */
const DROPPED = 2 ** -23;

/** The problem of a matrix for each side, `{ M, U, l }`. */
function separable([channels, height, width], side) {
  const [v, h] = [side(height), side(width)];
  const shape = [channels, v.M.length, h.M.length];
  const l = Float64Array.from(range(shape[1] * shape[2]), (k) => v.l[Math.floor(k / shape[2])] * h.l[k % shape[2]]);
  const least = DROPPED * l.reduce((most, value) => Math.max(most, value));
  const A = (x) => applied(v.M, h.M, x);
  const there = [transposed(v.U), transposed(h.U)];
  const back = [v, h].map(({ M, U }) => product(transposed(M), U));
  const mean = (z, y, delta) => {
    const e = applied(...there, A(z).map((Az, k) => y[k] - Az));
    const shares = e.map((value, k) => {
      const own = l[k % l.length];
      return delta > 0 || own > least ? value / (own + delta) : 0;
    });
    const moved = applied(...back, shares);
    return z.map((value, i) => value + moved[i]);
  };
  return { shape, A, mean };
}

/** y = m x with m, `keep`, of 1 where a pixel is seen and 0 where it is hidden, in all channels alike. */
export function masked(shape, keep) {
  const seen = (i) => keep[i % keep.length];
  const A = (x) => x.map((value, i) => seen(i) * value);
  const mean = (z, y, delta) => z.map((value, i) => value + (seen(i) * (y[i] - value)) / (1 + delta));
  return { shape, A, mean };
}

/** Which pixels are seen, 1 and 0 (H, W), where `seen(line, column)` says it. */
export const keeping = ([, height, width], seen) =>
  Uint8Array.from({ length: height * width }, (_, k) => Number(seen(Math.floor(k / width), k % width)));

/** All but a box in the middle, of half of every side. */
export function boxed(shape) {
  const [within, across] = shape.slice(1).map((n) => (i) => i >= (n - (n >> 1)) >> 1 && i < (n + (n >> 1)) >> 1);
  return keeping(shape, (i, j) => !(within(i) && across(j)));
}

/** The left half: `Mask.half`. */
export const left = (shape) => keeping(shape, (_, j) => j < (shape[2] + 1) >> 1);

/** Means of blocks of two by two: `Downsample(2)`. */
export function halved(shape) {
  return separable(shape, (n) => ({
    M: matrix(n / 2, n, (i, j) => (j >> 1 === i ? 0.5 : 0)),
    U: matrix(n / 2, n / 2, (i, j) => Number(i === j)),
    l: range(n / 2).map(() => 0.5),
  }));
}

/** The pixels on each side of a Gaussian kernel's centre: three deviations, where there is room for them. */
export const reach = ([, height, width], std) => Math.min(Math.ceil(3 * std), (Math.min(height, width) - 1) >> 1);

/**
 * A Gaussian blur that goes on from the other side: `Blur(gaussian((2 r + 1, 2 r + 1), std))`, r its `reach`.
 *
 * The basis of a symmetric circulant matrix is that of Hartley, U_jk = cas(2 pi j k / n) / sqrt(n), cas = cos + sin,
 * and its eigenvalues are the kernel's Fourier transform.
 */
export function blurred(shape, std) {
  const r = reach(shape, std);
  const bell = range(2 * r + 1).map((m) => Math.exp(-(((m - r) / std) ** 2) / 2));
  const sum = bell.reduce((total, value) => total + value);
  const kernel = bell.map((value) => value / sum);
  return separable(shape, (n) => {
    const turn = (j) => (2 * Math.PI * (j % n)) / n;
    const spectrum = range(n).map((j) => kernel.reduce((total, k, m) => total + k * Math.cos(turn(j * Math.abs(m - r))), 0));
    return {
      M: matrix(n, n, (i, j) => kernel[(j - i + r + n) % n] ?? 0),
      U: matrix(n, n, (i, j) => (Math.cos(turn(i * j)) + Math.sin(turn(i * j))) / Math.sqrt(n)),
      l: spectrum.map((value) => value ** 2),
    };
  });
}
