/**
 * Samplers as plans (`dsno.web.plans`): all numbers stand in `model.json`, so no schedule and no solver is known here.
 *
 *     F = net(c x, t)            of a student  x_m = r x + sum_k w_mk F_k
 *                                of a teacher  x0_hat = clip(p x + q F),  x_s = a x + b x0_hat + b' x0_hat_before
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
 * A teacher's trajectory, as `runPasses` has a student's, or null where `stale()` says that nobody waits for it any more.
 *
 * Its `predictions` are of all times, at the last of which that is the sample.
 * With a weight in `told` the teacher is guided, (1 + w) F(label) - w F(null).
 */
export async function runSteps({ name, plan, sigma, clip, empty, shape, rows, draw, told, ask, stale }) {
  const states = [draw(0).map((z) => sigma * z)];
  const made = { times: [...plan.map((step) => step.t), 0], states, predictions: [], milliseconds: 0 };
  const { weight, ...known } = told;
  const say = async (x, step, label) => {
    const answer = await ask(name, inputs(x, step.scale, step.t, null, shape, label));
    made.milliseconds += answer.milliseconds;
    return answer.F;
  };
  let before = states[0].map(() => 0);
  for (const step of plan) {
    const x = states.at(-1);
    let F = await say(x, step, known);
    if (weight !== undefined) {
      const free = await say(x, step, { ...known, label: known.label.map(() => BigInt(empty)) });
      const size = x.length / rows;
      F = F.map((value, i) => value + weight[Math.floor(i / size)] * (value - free[i]));
    }
    if (stale()) return null;
    const x0_hat = combined(step.reading, x, F, rows);
    if (clip !== null) x0_hat.forEach((value, i) => (x0_hat[i] = Math.max(-clip, Math.min(clip, value))));
    const [a, b, c] = step.weights;
    states.push(x.map((value, i) => a * value + b * x0_hat[i] + c * before[i]));
    made.predictions.push(x0_hat);
    before = x0_hat;
  }
  made.predictions.push(states.at(-1));
  return made;
}
