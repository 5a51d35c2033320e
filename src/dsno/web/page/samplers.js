/**
 * Samplers as plans (`dsno.web.plans`): all numbers stand in `model.json`, so no schedule and no solver is known here.
 *
 *     F = net(c x, t)            of a student  x_m = r x + sum_k w_mk F_k
 *                                of a teacher  x0_hat = clip(p x + q F),  x_s = a x + b x0_hat + b' x0_hat_before
 *                              of a restorer  x0 = E[x | y] of x ~ N(x0_hat, r^2 I),  x_s = a x + b x0 + nu z
 *
 * States are Float32Arrays of some rows of samples, (B, size); outputs (B, K, size).
 */

/** r x + sum_k w_k F_k for a row (r, w_1, ..., w_K). */
function combined([r, ...w], x, F, rows) {
  const size = x.length / rows;
  return x.map((value, i) => {
    const first = Math.floor(i / size) * w.length * size + (i % size);
    return w.reduce((sum, weight, k) => sum + weight * F[first + k * size], r * value);
  });
}

/** The arguments of a network: states, one time, and what it is told, an array with an entry for each row by name. */
function inputs(x, scale, t, later, shape, told) {
  const rows = x.length / shape.reduce((product, n) => product * n);
  const one = (value) => ({ data: Float32Array.of(value), dims: [1] });
  const given = { x: { data: scale === 1 ? x : x.map((v) => scale * v), dims: [rows, ...shape] }, t: one(t) };
  if (later !== null) given.later = one(later);
  for (const [name, data] of Object.entries(told)) given[name] = { data, dims: [rows] };
  return given;
}

/**
 * A student's trajectory, noise first.
 *
 * `draw(stream)` is the noise of a stream, `ask` runs the network `name`. Returns `times`, `states`, `predictions` (what
 * it says of the sample at each time, null at the first; or null) and the network's `milliseconds`.
 */
export async function runPasses({ name, plan, sigma, shape, rows, draw, told, ask }) {
  const states = [draw(0).map((z) => sigma * z)];
  const made = { times: [1], states, predictions: [null], milliseconds: 0 };
  for (const [n, call] of plan.entries()) {
    const x = states.at(-1);
    const { F, milliseconds } = await ask(name, inputs(x, call.scale, call.t, call.later, shape, told));
    made.milliseconds += milliseconds;
    made.times.push(...call.times);
    states.push(...call.states.map((row) => combined(row, x, F, rows)));
    made.predictions.push(...(call.predictions ?? []).map((row) => combined(row, x, F, rows)));
    if (call.fresh > 0) {
      const z = draw(n + 1);
      states.push(states.pop().map((value, i) => value + call.fresh * z[i]));
    }
  }
  return { ...made, predictions: made.predictions.length > 1 ? made.predictions : null };
}

/**
 * A teacher as a function of state and step: promises x0_hat, and the `milliseconds` that its network took.
 *
 * With a weight in `told` it is guided, (1 + w) F(label) - w F(null).
 */
function denoiserOf({ name, clip, empty, shape, rows, told, ask }) {
  const { weight, ...known } = told;
  return async (x, { scale, t, reading }) => {
    let { F, milliseconds } = await ask(name, inputs(x, scale, t, null, shape, known));
    if (weight !== undefined) {
      const without = { ...known, label: known.label.map(() => BigInt(empty)) };
      const free = await ask(name, inputs(x, scale, t, null, shape, without));
      const size = x.length / rows;
      F = F.map((value, i) => value + weight[Math.floor(i / size)] * (value - free.F[i]));
      milliseconds += free.milliseconds;
    }
    const x0_hat = combined(reading, x, F, rows);
    return { x0_hat: clip === null ? x0_hat : x0_hat.map((value) => Math.max(-clip, Math.min(clip, value))), milliseconds };
  };
}

/**
 * A teacher's trajectory, as `runPasses` has a student's, or null where `stale()` says that nobody waits for it any more.
 *
 * Its `predictions` are of all times, at the last of which that is the sample. `teacher` is as `denoiserOf` takes it.
 */
export async function runSteps({ plan, sigma, draw, stale, ...teacher }) {
  const denoise = denoiserOf(teacher);
  const states = [draw(0).map((z) => sigma * z)];
  const made = { times: [...plan.map((step) => step.t), 0], states, predictions: [], milliseconds: 0 };
  let before = states[0].map(() => 0);
  for (const step of plan) {
    const x = states.at(-1);
    const { x0_hat, milliseconds } = await denoise(x, step);
    if (stale()) return null;
    made.milliseconds += milliseconds;
    const [a, b, c] = step.weights;
    states.push(x.map((value, i) => a * value + b * x0_hat[i] + c * before[i]));
    made.predictions.push(x0_hat);
    before = x0_hat;
  }
  made.predictions.push(states.at(-1));
  return made;
}

/**
 * A restoration of what was measured, y, of a problem (`problems.js`) with noise tau, by `dsno.inverse.DiffPIR`: `x` and
 * the network's `milliseconds`, or null where `stale()`. One row; `teacher` is as `denoiserOf` takes it.
 */
export async function runRestoring({ problem, y, tau, plan, sigma, draw, stale, ...teacher }) {
  const denoise = denoiserOf({ ...teacher, rows: 1 });
  const made = { x: draw(0).map((z) => sigma * z), milliseconds: 0 };
  for (const [n, step] of plan.entries()) {
    const { x0_hat, milliseconds } = await denoise(made.x, step);
    if (stale()) return null;
    made.milliseconds += milliseconds;
    const x0 = problem.mean(x0_hat, y, tau ** 2 / step.variance);
    const [a, b, nu] = step.weights;
    const z = draw(n + 1);
    made.x = made.x.map((value, i) => a * value + b * x0[i] + nu * z[i]);
  }
  return made;
}
