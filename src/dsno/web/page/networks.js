/** The page's side of `worker.js`: what is asked there is promised here. */

const MOST_THREADS = 4;

/** Operations of a call below which threads wait for each other longer than they work. */
const WORTHWHILE = 5e8;

/** Threads share memory only where the page is isolated from other origins; elsewhere there is one. */
export function threadsFor({ flops }) {
  const shared = self.crossOriginIsolated && flops >= WORTHWHILE;
  return shared ? Math.min(MOST_THREADS, navigator.hardwareConcurrency ?? 1) : 1;
}

/** Opens graphs by name; promises a function `(name, inputs) -> { F, milliseconds }` (see `worker.js`). */
export async function openNetworks(names, threads = 1) {
  const worker = new Worker("worker.js", { type: "module" });
  const waiting = new Map();

  worker.onmessage = ({ data: { id, error, ...answer } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(answer);
    else reject(new Error(error));
  };
  worker.onerror = ({ message }) => {
    for (const { reject } of waiting.values()) reject(new Error(message ?? "the worker did not start"));
  };

  let count = 0;
  const call = (verb, given) =>
    new Promise((resolve, reject) => {
      waiting.set(++count, { resolve, reject });
      worker.postMessage({ id: count, verb, ...given });
    });

  await call("open", { names, threads });
  return (name, inputs) => call("ask", { name, inputs });
}
