/** What the page says in words: costs, the same in Python, and what runs. */

import { threadsFor } from "./networks.js";

export const plural = (count, noun, many = `${noun}s`) => `${count} ${count === 1 ? noun : many}`;

/** Milliseconds with two digits at least. */
export const timeOf = (milliseconds) => `${milliseconds < 9.95 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;

const millions = (count) => Number((count / 1e6).toPrecision(2));

const KINDS = { TrajectoryStudent: "operator on trajectories", FlowMap: "flow map", ParallelDecoder: "parallel decoder" };

/** How a teacher's sample compares with a student's, of the same noise. */
export function comparison(sample, end, ratio) {
  const square = sample.reduce((sum, value, i) => sum + (value - end[i]) ** 2, 0) / sample.length;
  return `From the same noise the teacher takes ${Number(ratio.toPrecision(2))} times as long, and the samples differ by `
    + `${Math.sqrt(square).toFixed(3)} (root mean square; pixels are −1 to 1).`;
}

/** The page's title and what it says below it. */
export function headings({ title, shape, student }) {
  const [channels, height, width] = shape;
  const size = `${height}×${width} ${channels === 1 ? "grey" : "colour"} pixels`;
  return {
    title: `${title}, in one pass`,
    about: `From noise to picture (${size}) in one call of a network with ${millions(student.weights)} million weights. `
      + "All of it runs in your browser.",
  };
}

/** How the picture of a view is made in Python. */
export function python({ student }, { seed, to, mix, label, guidance, passes }) {
  const told = [
    ...(label === undefined ? [] : [`"label": torch.tensor([${label}])`]),
    ...(guidance === undefined ? [] : [`"weight": torch.tensor([${guidance.toFixed(1)}])`]),
  ];
  const drawn = mix === 0
    ? [`z = noise([${seed}], student.shape)`]
    : [`a, b = noise([${seed}, ${to}], student.shape)`, `z = slerp(a, b, 1001)[[${Math.round(1000 * mix)}]]`];
  return [
    "import torch",
    "from dsno import load_student, noise",
    ...(mix === 0 ? [] : ["from dsno.report.pictures import slerp"]),
    "from dsno.students.samplers import sampler_of",
    "",
    'student = load_student("STUDENT")',
    ...drawn,
    `cond = ${told.length > 0 ? `{${told.join(", ")}}` : "None"}`,
    `sampler = sampler_of(student, ${passes ?? Object.keys(student.passes)[0]})`,
    `x = sampler(z, cond, torch.tensor([${seed}])).sample`,
  ].join("\n");
}

/** What runs on the page, as pairs of a name and a text. */
export function facts({ dsno, runtime, student, teacher }) {
  const size = ({ weights, flops }) => `${millions(weights)} million weights, ${millions(flops)} MFLOP a call`;
  const error = Math.max(student.error, teacher?.error ?? 0).toExponential(0);
  return [
    ["Student", `${KINDS[student.kind]}, ${size(student)}`],
    ...(teacher ? [["Teacher", size(teacher)]] : []),
    ["Made with", `dsno ${dsno}`],
    ["Run by", runtime],
    ["On", `WebAssembly, float32, ${plural(threadsFor(student), "thread")}`],
    ["Graphs", `differ from PyTorch by ${error} of the largest value`],
  ];
}
