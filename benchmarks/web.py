"""What the page of `dsno web` costs: the same pass in a browser, in onnxruntime and in PyTorch, on one machine.

    python benchmarks/web.py [--runtime DIR]

The shipped digits student and its teacher, batch 1, one thread each. *In a browser*: Chromium without a window, driven
by playwright, and in it the page's own modules, from a seed to the picture's numbers, the way to its worker and back
included. *onnxruntime*: the same graphs, in Python. *PyTorch*: the samplers of the library, eager. The pass is measured
for the sample alone and for all frames; the teacher makes 16 steps of DDIM; the wall draws 64 samples, 16 a call.
Medians of 50.

Claims: the browser's samples of 100 seeds are PyTorch's to 1e-4; a sample takes the browser at most 20 ms, at most five
times what onnxruntime takes, and at most a fifth of its teacher's 16 steps. A larger figure refutes it.

Needs `pip install 'dsno[web,browser]'` and Chromium. Writes benchmarks/results/web.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import Claim, claim, parse, parser, write

from dsno import OnePass, SolverSampler, load_student, load_teacher, noise, seed_range, shipped
from dsno.grids import even
from dsno.web.serve import served
from dsno.web.site import write_site

BOUNDS = {"error": 1e-4, "milliseconds": 20.0, "over onnxruntime": 5.0, "over the teacher": 1 / 5}
STEPS, SEEDS, WALL = 16, 100, 64
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

IN_BROWSER = """async ([repeats, steps, seeds, count]) => {
    const {openNetworks} = await import("/networks.js");
    const {runPasses, runSteps} = await import("/samplers.js");
    const {noise} = await import("/seeds.js");
    const model = await (await fetch("/model.json")).json();
    const {shape, student, teacher} = model;
    const size = shape.reduce((product, n) => product * n);
    const ask = await openNetworks(model.graphs);
    const of = (seeds) => () => Float32Array.from(seeds.flatMap((seed) => [...noise(BigInt(seed), size)]));
    const given = {shape, rows: 1, told: {}, ask};
    const drawn = (name, plan) => (seed) => runPasses(
        {...given, name, plan, sigma: student.sigma, draw: of([seed])});
    const sample = drawn("sample", student.sample), path = drawn("student", student.passes[1]);
    const solve = (seed) => runSteps(
        {...given, name: "teacher", plan: teacher.solvers[0].steps[steps], sigma: teacher.sigma, clip: teacher.clip,
         draw: of([seed]), stale: () => false});
    const wall = async () => {
        for (let first = 0; first < count; first += student.rows) {
            const rows = [...Array(student.rows).keys()].map((row) => first + row);
            await runPasses({...given, name: "wall", plan: student.wall[1], sigma: student.sigma, rows: student.rows,
                             draw: of(rows)});
        }
    };
    const timed = async (run) => {
        const taken = [];
        for (let seed = 0; seed < repeats + 10; seed++) {
            const began = performance.now();
            await run(seed);
            taken.push(performance.now() - began);
        }
        return taken.slice(10);
    };
    const samples = [];
    for (let seed = 0; seed < seeds; seed++) samples.push([...(await sample(seed)).states.at(-1)]);
    const milliseconds = {}, runs = {sample, path, teacher: solve, wall};
    for (const [name, run] of Object.entries(runs)) milliseconds[name] = await timed(run);
    return {samples, milliseconds};
}"""


def in_browser(site: Path, repeats: int) -> dict[str, Any]:
    """What the page's modules make and take."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("DSNO_BROWSER") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    with served(site) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{address}seeds.js")
        made = page.evaluate(IN_BROWSER, [repeats, STEPS, SEEDS, WALL])
        return {**made, "browser": f"Chromium {browser.version}"}


def timed(run: Callable[[int], object], repeats: int) -> list[float]:
    """Milliseconds of the repeats, but for the first ten."""
    taken = []
    for seed in range(repeats + 10):
        began = time.perf_counter()
        run(seed)
        taken.append(1e3 * (time.perf_counter() - began))
    return taken[10:]


def in_python(site: Path, repeats: int) -> dict[str, dict[str, list[float]]]:
    """What PyTorch takes, and onnxruntime for the student's graphs."""
    import onnxruntime

    student, teacher = load_student(shipped() / "student"), load_teacher(shipped() / "teacher")
    sampler = OnePass(student, whole=True)
    solver = SolverSampler(teacher, teacher.schedule, even(teacher.schedule, STEPS))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    t = torch.ones(1).numpy()

    def graph(name: str) -> Callable[[int], object]:
        session = onnxruntime.InferenceSession(str(site / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        return lambda seed: session.run(None, {"x": noise([seed], student.shape).numpy(), "t": t})

    def wall(_: int) -> object:
        return [student.sample(noise(seed_range(first, 16), student.shape)) for first in range(0, WALL, 16)]

    return {
        "onnxruntime": {"sample": timed(graph("sample"), repeats), "path": timed(graph("student"), repeats)},
        "PyTorch": {
            "sample": timed(lambda seed: student.sample(noise([seed], student.shape)), repeats),
            "path": timed(lambda seed: sampler(noise([seed], student.shape)), repeats),
            "teacher": timed(lambda seed: solver(noise([seed], student.shape)), repeats),
            "wall": timed(wall, repeats),
        },
    }


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """Every claim of the figures."""
    taken = numbers["milliseconds"]
    one = taken["browser"]["sample"]
    found = {
        "error": numbers["error"],
        "milliseconds": one,
        "over onnxruntime": one / taken["onnxruntime"]["sample"],
        "over the teacher": one / taken["browser"]["teacher"],
    }
    names = {
        "error": f"largest difference from PyTorch, {SEEDS} seeds, pixels in [-1, 1]",
        "milliseconds": "one sample in a browser, milliseconds",
        "over onnxruntime": "the same over onnxruntime in Python",
        "over the teacher": f"the same over its teacher's {STEPS} steps, in the browser",
    }
    return [claim(names[key], found[key], bound, "<=") for key, bound in BOUNDS.items()]


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("--runtime", type=Path, help="folder of onnxruntime-web's files; fetched by default")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    repeats = 3 if arguments.quick else 50
    student, teacher = load_student(shipped() / "student"), load_teacher(shipped() / "teacher")
    with tempfile.TemporaryDirectory() as folder:
        site = write_site(Path(folder) / "site", student, teacher, "Digits", runtime=arguments.runtime)
        made = in_browser(site, repeats)
        taken = {"browser": made["milliseconds"], **in_python(site, repeats)}
    expected = student.sample(noise(seed_range(0, SEEDS), student.shape))
    error = float((torch.tensor(made["samples"]).reshape(expected.shape) - expected).abs().max())
    numbers = {
        "browser": made["browser"],
        "error": error,
        "milliseconds": {side: {n: statistics.median(t) for n, t in all_.items()} for side, all_ in taken.items()},
        "samples a second": {
            side: 1e3 * WALL / statistics.median(taken[side]["wall"]) for side in ("browser", "PyTorch")
        },
    }
    setting = f"one thread; digits 1x8x8; 4 frames, batch 1; DDIM-{STEPS}; wall of {WALL}; medians of {repeats}"
    write(arguments, "web", setting, judged(numbers), **numbers)


if __name__ == "__main__":
    main()
