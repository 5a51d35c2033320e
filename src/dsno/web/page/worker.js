/** Networks on a thread of their own, so that the page answers while they run. */

import * as ort from "./ort.wasm.bundle.min.mjs";

const WEIGHTS = "weights.bin";
const sessions = new Map();

/** Opens graphs by name, on so many threads. */
async function open({ names, threads }) {
  ort.env.wasm.numThreads = threads;
  const answer = await fetch(WEIGHTS);
  if (!answer.ok) throw new Error(`${WEIGHTS}: ${answer.status} ${answer.statusText}`);
  const externalData = [{ path: WEIGHTS, data: new Uint8Array(await answer.arrayBuffer()) }];
  for (const name of names) {
    const options = { executionProviders: ["wasm"], externalData };
    const session = await ort.InferenceSession.create(`${name}.onnx`, options);
    // The first run compiles, and is nobody's.
    await session.run(Object.fromEntries(session.inputMetadata.map((input) => [input.name, zeros(input)])));
    sessions.set(name, session);
  }
  return {};
}

const zeros = ({ type, shape }) => {
  const size = shape.reduce((product, n) => product * n, 1);
  return new ort.Tensor(type, type === "int64" ? new BigInt64Array(size) : new Float32Array(size), shape);
};

/** What a network says of arrays by name, `{ data, dims }`, and the milliseconds that it took. */
async function ask({ name, inputs }) {
  const session = sessions.get(name);
  const feeds = {};
  for (const key of session.inputNames) {
    const { data, dims } = inputs[key];
    feeds[key] = new ort.Tensor(data instanceof BigInt64Array ? "int64" : "float32", data, dims);
  }
  const began = performance.now();
  const { F } = await session.run(feeds);
  return { F: F.data, milliseconds: performance.now() - began };
}

const VERBS = { open, ask };
let last = Promise.resolve();

self.onmessage = ({ data: { id, verb, ...given } }) => {
  // One after the other: a session does not run twice at once.
  last = last.then(async () => {
    try {
      self.postMessage({ id, ...(await VERBS[verb](given)) });
    } catch (error) {
      self.postMessage({ id, error: String(error?.message ?? error) });
    }
  });
};
