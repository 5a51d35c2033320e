/** What the page says in words: costs, the same in Python, and what runs. */

import { threadsFor } from "./networks.js";
import { reach } from "./problems.js";

export const plural = (count, noun, many = `${noun}s`) => `${count} ${count === 1 ? noun : many}`;

/** Milliseconds with two digits at least, and a space that no line breaks at. */
export const timeOf = (taken) => `${taken < 9.95 ? taken.toFixed(1) : Math.round(taken)}\u00a0ms`;

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

/** How restorations fit the picture, what was measured of it, and each other. */
export function fit(x, made, problem, y) {
  const { sqrt } = Math;
  const apart = (a, b) => sqrt(a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0) / a.length);
  const middle = x.map((_, i) => made.reduce((sum, one) => sum + one[i], 0) / made.length);
  const mean = (of) => (made.reduce((sum, one) => sum + of(one) ** 2, 0) / made.length) ** 0.5;
  return `They differ by ${mean((one) => apart(y, problem.A(one))).toFixed(3)} from what was measured, by `
    + `${mean((one) => apart(x, one)).toFixed(3)} from the picture, and by ${mean((one) => apart(middle, one)).toFixed(3)} `
    + "from their mean (root mean square; pixels are −1 to 1).";
}

/** How the restorations of a view are made in Python, of a picture and a mask as they stand in its address. */
export function pythonRestoring({ shape, teacher }, view, text, hidden, count) {
  const [, height, width] = shape;
  const { problem, blur, noise, label, guidance, first, restoring } = view;
  const side = 2 * reach(shape, blur) + 1;
  const guided = guidance !== undefined;
  const stated = {
    mask: [
      `hidden = np.unpackbits(np.frombuffer(bytes.fromhex("${hidden}"), np.uint8), count=${height * width})`,
      `problem = Mask(torch.from_numpy(1 - hidden).reshape(${height}, ${width}), noise=${noise})`,
    ],
    blur: [`problem = Blur(gaussian((${side}, ${side}), ${blur}), noise=${noise})`],
    means: [`problem = Downsample(2, noise=${noise})`],
  };
  const rows = (value) => `torch.full((${count},), ${value})`;
  const cond = guided
    ? `{"label": ${rows(label)}, "weight": ${rows(guidance.toFixed(1))}}`
    : label === undefined ? "None" : rows(label);
  return [
    ...(problem === "mask" ? ["import numpy as np"] : []),
    "import torch",
    "from dsno import load_teacher, noise, seed_range",
    ...(guided ? ["from dsno.denoise import Guided"] : []),
    "from dsno.grids import uniform",
    `from dsno.inverse import ${{ mask: "DiffPIR, Mask", blur: "Blur, DiffPIR", means: "DiffPIR, Downsample" }[problem]}`,
    ...(problem === "blur" ? ["from dsno.inverse.kernels import gaussian"] : []),
    "",
    'teacher = load_teacher("TEACHER")',
    `x = torch.tensor(list(bytes.fromhex("${text}"))).reshape(1, ${shape.join(", ")}) / 127.5 - 1`,
    ...stated[problem],
    `y = problem.A(x)${noise > 0 ? ` + ${noise} * noise([${first}], problem.A(x).shape[1:], 2**32 - 1)` : ""}`,
    `seeds = seed_range(${first}, ${count})`,
    `y, z = y.expand(${count}, -1, -1, -1), noise(seeds, x.shape[1:])`,
    `cond = ${cond}`,
    `denoiser = ${guided ? `Guided(teacher, {"label": torch.tensor(${teacher.null})})` : "teacher"}`,
    `made = DiffPIR(uniform(${restoring}))(denoiser, teacher.schedule, problem, y, z, cond, seeds).x`,
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
