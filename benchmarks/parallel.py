"""Exact samplers in serial rounds and rows: on mixtures, and on a recipe's teacher beside its sequential solvers.

    python benchmarks/parallel.py mixtures
    python benchmarks/parallel.py digits|fashion [--run runs/digits] [--out runs/parallel/digits] [--count 32]

`mixtures` measures what related work reports on closed-form teachers. With a recipe, its teacher is solved from held-out
noises by every sampler: the error to the fine solution of the ODE against serial rounds, and the Frechet distance of
stochastic chains; drafts come from the recipe's one-pass student and from a restartable one, which is trained first (an
hour on one core, resumable). Every number carries the rows it cost. What is measured is kept in --out and not measured
again: use another --out for another run of the recipe. Writes benchmarks/results/parallel[_NAME].json and docs/images/parallel-NAME.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import claim, write
from torch import Tensor

from dsno.checkpoint import read_json, write_json
from dsno.data.load import load_data
from dsno.denoise import Denoiser
from dsno.distillation.run import distill
from dsno.grids import uniform
from dsno.measure.evaluate import Reference
from dsno.measure.features import extract
from dsno.measure.metrics import frechet_distance
from dsno.nets.features import load_feature_net
from dsno.parallel.picard import Picard
from dsno.parallel.receding import Receding
from dsno.parallel.rounds import Exact
from dsno.parallel.speculative import Speculative
from dsno.parallel.srds import SRDS
from dsno.parallel.taa import ParaTAA
from dsno.report.compare import HELD_OUT
from dsno.runs.recipes import RECIPES
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.solvers.chain import Chain
from dsno.solvers.fine import fine_solution
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import MultiPass, OnePass
from dsno.teachers.closed import GaussianMixture
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate
from dsno.trajectory import Sampler, Trajectory

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SPECULATIVE: dict[str, dict[str, bool]] = {
    "": {},
    ", adaptive window": {"adaptive": True},
    ", x0 frozen": {"reuse": False},
    ", x0 frozen, two calls": {"reuse": False, "refresh": True},
}
TOLERANCES = (1.0, 0.3, 0.1, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=["mixtures", "digits", "fashion"])
    parser.add_argument("--run", type=Path, help="the recipe's folder; runs/PROBLEM by default")
    parser.add_argument("--out", type=Path, help="what is trained and measured; runs/parallel/PROBLEM by default")
    parser.add_argument("--count", type=int, default=32, help="held-out noises of the path errors")
    parser.add_argument("--law", type=int, default=512, help="held-out noises of the Frechet distances; 0 for none")
    parser.add_argument("--data", help="where the recipe's data is on this machine")
    arguments = parser.parse_args()
    if arguments.problem == "mixtures":
        mixtures()
    else:
        recipe(arguments)


# Mixtures


def mixture(d: int) -> GaussianMixture:
    """Eight modes of standard deviation 0.2, on the unit circle or standard normal."""
    if d == 2:
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        means = torch.stack([angle.cos(), angle.sin()], 1)
    else:
        means = torch.randn(8, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(Cosine(), means, 0.2)


def mixtures() -> None:
    rows, claims = [], []
    linear = {"D held": 1e-3, "data_std 0.5": 0.5, "eps held": 1e3}
    for d in (2, 64):
        teacher, seeds = mixture(d), seed_range(HELD_OUT, 64)
        z = noise(seeds, (d,), dtype=torch.float64)
        for steps, eta in ((100, 0.0), (500, 0.0), (100, 1.0)):
            chain = Chain(Cosine(), uniform(steps), eta)
            reference = run(chain, teacher, z, seeds)
            methods: dict[str, Exact] = {"Picard": Picard(teacher, chain, tolerance=1e-4)}
            for name, std in linear.items():
                for m in (1, 2, 3):
                    sampler = ParaTAA(teacher, chain, memory=m, data_std=std, tolerance=1e-4)
                    methods[f"order N, m = {m}, {name}"] = sampler
            methods["order 8, m = 2, data_std 0.5"] = ParaTAA(teacher, chain, order=8, tolerance=1e-4)
            for name, sampler in methods.items():
                made = sampler(z, seeds=seeds)
                below = (made.trace.history >= 1e-3).nan_to_num(0).flip(0).cummax(0).values.sum(0) + 1.0
                entry = costs(made) | errors(made, reference)
                entry |= {"residual_rounds": float(below.mean()), "residual_rounds_max": float(below.max())}
                rows.append({"d": d, "N": steps, "eta": eta, "method": name, **entry})
                show(rows[-1])
        named = {(r["d"], r["N"], r["eta"], r["method"]): r for r in rows}
        for m, bounds in ((1, {2: 9.2, 64: 9.8}), (3, {2: 8.2, 64: 9.2})):
            title = f"DDIM N = 100, d = {d}, order N, m = {m}: rounds to a residual of 1e-3"
            found = named[d, 100, 0.0, f"order N, m = {m}, data_std 0.5"]["residual_rounds"]
            claims.append(claim(title, found, bounds[d], "<="))
        for steps in (25, 100, 256, 1024):
            chain = Chain(Cosine(), uniform(steps))
            reference = run(chain, teacher, z, seeds)
            for pipelined in (False, True):
                made = SRDS(teacher, chain, tolerance=1e-3, pipelined=pipelined)(z, seeds=seeds)
                iterations = int((~made.trace.history.isnan()).sum(0).max())
                name = f"SRDS {'pipelined' if pipelined else 'plain'}"
                entry = costs(made) | errors(made, reference) | {"iterations": iterations}
                rows.append({"d": d, "N": steps, "eta": 0.0, "method": name, **entry})
                show(rows[-1])
            if (d, steps) == (64, 1024):
                first = iterations_to(1e-3, teacher, chain, z, reference)
                claims.append(
                    claim("SRDS N = 1024, d = 64: iterations to a mean L1 error of 1e-3, worst of 64", first, 2, "<=")
                )
        seeds = seed_range(HELD_OUT, 500)
        z = noise(seeds, (d,), dtype=torch.float64)
        for steps, window in ((50, 10), (200, 20), (1000, 20), (1000, 60)):
            chain = Chain(Cosine(), uniform(steps), 1.0)
            for name, options in SPECULATIVE.items():
                sampler = Speculative(teacher, chain, window=window, **options)
                made = sampler(z, seeds=seeds)
                rows.append(
                    {"d": d, "N": steps, "eta": 1.0, "method": f"speculative{name}", "L": window, **costs(made)}
                )
                show(rows[-1])
                bound = {(64, 200, 20): 27, (2, 1000, 20): 58}.get((d, steps, window))
                if bound and name == "":
                    title = f"speculative, one call a window, d = {d}, N = {steps}, L = {window}: mean rounds"
                    claims.append(claim(title, rows[-1]["rounds"], bound, "<="))
    finish(
        "parallel",
        "eight modes of std 0.2 (d = 2: on the unit circle; d = 64: standard normal), cosine schedule, uniform grids, float64; "
        "64 noises (speculative: 500), seeds 2^40..; tolerance 1e-4 (SRDS: 1e-3); rounds and rows are means, with the worst "
        "sample beside; residual_rounds are rounds until every unaccepted equation's RMS residual is below 1e-3, the verifying "
        "one included; errors are RMS per sample to chain.run on the same tape",
        claims, rows,
    )  # fmt: skip


def iterations_to(error: float, teacher: Denoiser, chain: Chain, z: Tensor, reference: Trajectory) -> int:
    """Parareal iterations until the worst sample's mean absolute error is below `error`."""
    for iterations in range(1, len(chain)):
        made = SRDS(teacher, chain, tolerance=None, iterations=iterations)(z)
        if float((made.sample - reference.sample).abs().mean(1).max()) < error:
            return iterations
    return len(chain)


# A recipe's teacher


def recipe(arguments: argparse.Namespace) -> None:
    name = arguments.problem
    folder, out = arguments.run or Path("runs") / name, arguments.out or Path("runs/parallel") / name
    settings = RECIPES[name]
    teacher, student = load_teacher(folder / "teacher"), load_student(folder / "student")
    again = restartable(folder, out, name)
    shape = student.shape
    known = Known(out / f"measured-{arguments.count}.json")
    seeds = seed_range(HELD_OUT, arguments.count)
    z = noise(seeds, shape)
    fine = fine_solution(teacher, student.schedule, z)
    path, schedule = [], student.schedule

    def add(
        family: str, point: str, sampler: Callable[[], Sampler], reference: Trajectory | None = None, **said: Any
    ) -> None:
        def measured() -> dict[str, Any]:
            made = sampler()(z, seeds=seeds)
            compared = {} if reference is None else errors(made, reference)
            return costs(made) | compared | errors(made, fine, "fine_")

        path.append({"family": family, "point": point, **said, **known(f"path {family} {point}", measured)})
        show(path[-1])

    titles = {"ddim": "DDIM", "dpm1": "DPM-Solver++ 1", "dpm2": "DPM-Solver++ 2", "dpm3": "DPM-Solver++ 3", "unipc2": "UniPC 2", "unipc3": "UniPC 3"}  # fmt: skip
    for solver, title in titles.items():
        for steps in (4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64, 100):
            if title in ("DDIM", "UniPC 3") or steps <= 32:
                add(title, str(steps), partial(SolverSampler, teacher, schedule, uniform(steps), SOLVERS[solver]()))
    add("student", "one pass", partial(OnePass, student))
    for passes in range(1, again.frames + 1):
        add("restartable student", f"{passes} passes", partial(MultiPass, again, passes))
    for steps in (100, 256):
        chain = Chain(schedule, uniform(steps))
        reference = run(chain, teacher, z, seeds)
        for tolerance in TOLERANCES if steps == 100 else (0.3, 0.01):
            point, said = f"N = {steps}, {tolerance:g}", {"N": steps, "tolerance": tolerance}
            for title, draft in (("", None), (", drafted", student), (", drafted by states", again)):
                for family, method in (("Picard", Picard), ("ParaTAA", ParaTAA), ("SRDS", SRDS)):
                    sampler = partial(method, teacher, chain, tolerance=tolerance, draft=draft)
                    add(f"{family}{title}", point, sampler, reference, **said)
            for title, corrected in (("Receding", False), ("Receding, corrected", True)):
                # A student's word alone is accepted a step a round where the tolerance is below its error.
                if steps == 100 and (corrected or tolerance >= 1):
                    sampler = partial(Receding, teacher, chain, again, corrected, tolerance=tolerance)
                    add(title, point, sampler, reference, **said)
    law = laws(arguments, settings, folder, known, teacher, again, shape) if arguments.law else []
    claims = judged(path, law)
    finish(
        f"parallel_{name}",
        f"the teacher, one-pass student and features of `dsno reproduce {name}`; a student restartable from its frames; "
        f"{arguments.count} held-out noises for errors, RMS over samples and pixels to the fine ODE solution (fine_) and to the "
        f"chain's sequential run, {arguments.law} for Frechet distances (biased upwards at that count, alike for all); uniform "
        "grids, float32; rounds include the student's, one each; rows are the teacher's, beside the student's",
        claims, path, law=law,
    )  # fmt: skip
    plot(path, law, IMAGES / f"parallel-{name}.png", name)


def told(stage: str, done: int, total: int, text: str) -> None:
    if done % 100 == 0:
        print(stage, done, total, text, flush=True)


def restartable(folder: Path, out: Path, name: str) -> TrajectoryStudent:
    """The student that starts from its frames, too; trained where it is not there yet."""
    if not (out / "student" / "config.json").is_file():
        teacher, settings = load_teacher(folder / "teacher"), RECIPES[name]
        assert teacher.shape is not None
        times = torch.tensor(settings.times, dtype=torch.float64)
        data = generate(
            teacher, out / "trajectories", 32_768, times=times, targets=("x0", "state"), grid="quadratic",
            resume=True, report=told,
        )  # fmt: skip
        torch.manual_seed(0)
        student = student_from_teacher(teacher, data.times, "state")
        config = TrainConfig(steps=4800, lr=1e-3, warmup=100, precision="bf16", checkpoint_every=250)
        distill(
            student, data, out / "student", config, "snr5", "l1", 128, 0.5, inner_starts=0.5, resume=True, report=told
        )
    return load_student(out / "student")


def laws(
    arguments: argparse.Namespace,
    settings: Any,
    folder: Path,
    known: Known,
    teacher: Denoiser,
    again: TrajectoryStudent,
    shape: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Stochastic chains: the Frechet distance of their samples to the recipe's data."""
    net, schedule = load_feature_net(folder / "features"), again.schedule
    data = load_data(arguments.data or settings.data, size=settings.size)
    reference, seeds = Reference.of(data.x, net), seed_range(HELD_OUT, arguments.law)
    z, found = noise(seeds, shape), []

    def add(family: str, point: str, sampler: Callable[[], Sampler], **said: Any) -> None:
        def measured() -> dict[str, Any]:
            made = sampler()(z, seeds=seeds)
            features = extract(net, made.sample.clamp(-1, 1))
            return costs(made) | {"frechet": frechet_distance(features, reference.features)}

        found.append(
            {"family": family, "point": point, **said, **known(f"law of {len(seeds)} {family} {point}", measured)}
        )
        show(found[-1])

    for title, solver, counts in (
        ("ancestral", "ancestral", (8, 16, 32, 50, 64, 100, 200, 1000)),
        ("DPM-Solver++ 2", "dpm2", (8, 16, 32)),
    ):
        for steps in counts:
            add(title, str(steps), partial(SolverSampler, teacher, schedule, uniform(steps), SOLVERS[solver]()))
    for steps, windows in ((200, (20, 50)), (1000, (50,))):
        chain, said = Chain(schedule, uniform(steps), 1.0), {"N": steps}
        for window in windows:
            point = f"N = {steps}, L = {window}"
            add("speculative", point, partial(Speculative, teacher, chain, window=window), **said)
            if window == 20:
                add(
                    "speculative, x0 frozen",
                    point,
                    partial(Speculative, teacher, chain, window=window, reuse=False),
                    **said,
                )
                drafted = partial(Speculative, teacher, chain, window=window, draft=again)
                add("speculative, student", point, drafted, **said)

    def spread(sampler: Sampler) -> dict[str, Any]:
        """The distance over four sets of seeds: that of a few hundred samples varies much."""
        each = []
        for k in range(4):
            rows = seeds + k * len(seeds)
            made = sampler(noise(rows, shape), seeds=rows)
            features = extract(net, made.sample.clamp(-1, 1))
            each.append(frechet_distance(features, reference.features))
        return costs(made) | {"frechet": sum(each) / 4, "frechet_std": float(torch.tensor(each).std()), "each": each}

    chain = Chain(schedule, uniform(50), 1.0)
    sequential = SolverSampler(teacher, schedule, chain.grid, SOLVERS["ancestral"]())
    for family, sampler in (("ancestral", sequential), ("speculative", Speculative(teacher, chain, window=10))):
        point = "N = 50, four sets" if family == "ancestral" else "N = 50, L = 10, four sets"
        found.append(
            {
                "family": family,
                "point": point,
                "N": 50,
                **known(f"law of {len(seeds)} {family} {point}", partial(spread, sampler)),
            }
        )
        show(found[-1])
    # The same path as the sequential chain's, sample by sample: few are enough, and no distance between sets is needed.
    chain, few = Chain(schedule, uniform(1000), 1.0), slice(0, 16)

    def pathwise() -> dict[str, Any]:
        made = ParaTAA(teacher, chain, tolerance=0.3)(z[few], seeds=seeds[few])
        return costs(made) | errors(made, run(chain, teacher, z[few], seeds[few]))

    point = "N = 1000, 0.3"
    found.append(
        {"family": "ParaTAA", "point": point, "N": 1000, **known(f"law of {len(seeds)} ParaTAA {point}", pathwise)}
    )
    show(found[-1])
    return found


def judged(path: list[dict[str, Any]], law: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The moonshot."""
    named = {(r["family"], r["point"]): r for r in path}
    ddim = named["DDIM", "100"]["fine_rmse"]
    parallel = [r for r in path if r.get("N") == 100 and r["fine_rmse"] <= 1.05 * ddim]
    best = min(parallel, key=lambda r: r["rounds"])
    claims = [
        claim(
            f"mean rounds to within 5 % of DDIM-100's error to the fine solution ({best['family']}, tolerance "
            f"{best['tolerance']:g}, {best['rows']:.0f} rows)", best["rounds"], 7, "<="
        ),
        claim("the same, worst sample", best["rounds_max"], 7, "<="),
    ]  # fmt: skip
    sequential = [r for r in path if "N" not in r and "student" not in r["family"] and r["fine_rmse"] <= 1.05 * ddim]
    first = min(sequential, key=lambda r: r["rounds"], default=named["DDIM", "100"])
    title = f"these rounds over those of the first sequential solver as accurate ({first['family']}-{first['point']})"
    claims.append(claim(title, best["rounds"] / first["rounds"], 1, "<="))
    chains = {(r["family"], r["point"]): r for r in law}
    if law:
        exact = min(
            (r for r in law if r.get("N") == 1000 and "speculative" in r["family"] and "frechet" in r),
            key=lambda r: r["rounds"],
        )
        title = f"rounds to the law of the 1000-step stochastic chain ({exact['family']}, {exact['rows']:,.0f} rows)"
        claims.append(claim(f"mean {title}", exact["rounds"], 50, "<="))
        claims.append(claim(f"worst {title}", exact["rounds_max"], 50, "<="))
        ours, theirs = chains["speculative", "N = 50, L = 10, four sets"], chains["ancestral", "N = 50, four sets"]
        error = math.hypot(ours["frechet_std"], theirs["frechet_std"]) / 2
        apart = abs(ours["frechet"] - theirs["frechet"]) / error
        title = "Frechet distances of the speculative and the sequential 50-step chain apart, in standard errors of four sets"
        claims.append(claim(title, apart, 3, "<="))
        same = chains["ParaTAA", "N = 1000, 0.3"]
        title = (
            f"rounds to the 1000-step stochastic chain's own samples (ParaTAA, tolerance 0.3, {same['rows']:,.0f} rows)"
        )
        claims.append(claim(f"mean {title}", same["rounds"], 50, "<="))
        claims.append(claim(f"worst {title}", same["rounds_max"], 50, "<="))
        claims.append(claim("RMS error of the worst of these samples to the chain's", same["max"], 0.3, "<="))
    return claims


class Known:
    """What has been measured, by name, kept on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, read_json(path) if path.is_file() else {}

    def __call__(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self.held:
            with torch.no_grad():
                self.held[name] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.held)
        return self.held[name]


def run(chain: Chain, teacher: Denoiser, z: Tensor, seeds: Tensor) -> Trajectory:
    """The chain's sequential run."""
    with torch.no_grad():
        tape = chain.tape(seeds, z.shape[1:], z.dtype) if chain.eta else None
        return chain.run(teacher, chain.schedule.at(float(chain.grid[0]))[1] * z, tape)


def costs(made: Trajectory) -> dict[str, float]:
    """Rounds and rows, mean and worst of the batch; the student's apart."""
    if (t := made.trace) is None:
        return {"rounds": made.rounds, "rounds_max": made.rounds, "rows": made.nfe, "rows_max": made.nfe}
    rounds = (t.rounds + t.draft_rounds).double()
    return {
        "rounds": float(rounds.mean()), "rounds_max": float(rounds.max()), "rows": float(t.rows.double().mean()),
        "rows_max": float(t.rows.max()), "draft_rounds": float(t.draft_rounds.double().mean()),
    }  # fmt: skip


def errors(made: Trajectory, reference: Trajectory, prefix: str = "") -> dict[str, float]:
    """RMS of all samples, and the median and worst of their own."""
    each = (made.sample - reference.sample).flatten(1).square().mean(1)
    own = each.sqrt()
    return {
        f"{prefix}rmse": float(each.mean().sqrt()), f"{prefix}median": float(own.median()), f"{prefix}max": float(own.max())
    }  # fmt: skip


def show(entry: dict[str, Any]) -> None:
    print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items()), flush=True)


def finish(name: str, protocol: str, claims: list[dict[str, Any]], rows: list[dict[str, Any]], **extra: Any) -> None:
    for c in claims:
        print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.4g} ({c['direction']} {c['bound']:g})")
    print(write(name, protocol, claims, rows=json.loads(json.dumps(rows)), **extra))


def plot(path: list[dict[str, Any]], law: list[dict[str, Any]], file: Path, name: str) -> None:
    """Error against rounds, and Frechet distance against rounds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    panels = 3 if law else 2
    fig, axes = plt.subplots(1, panels, figsize=(6.2 * panels, 5.4), squeeze=False)
    sequential = {"DDIM": "#9aa0a6", "DPM-Solver++ 2": "#5f6b76", "DPM-Solver++ 3": "#33414e", "UniPC 3": "#000000"}
    marked = {
        "Picard": ("#1f77b4", "o"), "ParaTAA": ("#d62728", "o"), "SRDS": ("#2ca02c", "o"),
        "Picard, drafted by states": ("#1f77b4", "x"), "ParaTAA, drafted by states": ("#d62728", "x"),
        "SRDS, drafted by states": ("#2ca02c", "x"), "Receding, corrected": ("#9467bd", "^"),
        "restartable student": ("#ff7f0e", "s"), "student": ("#8c564b", "D"),
    }  # fmt: skip
    for axis, error, title in ((axes[0][0], "fine_rmse", "RMSE"), (axes[0][1], "fine_median", "median sample")):
        for family, colour in sequential.items():
            points = [r for r in path if r["family"] == family]
            rounds = [r["rounds"] for r in points]
            axis.plot(rounds, [r[error] for r in points], "-", color=colour, lw=1.2, label=family)
        for family, (colour, marker) in marked.items():
            points = [r for r in path if r["family"] == family and r.get("N", 100) == 100]
            label = f"{family}, N = 100" if "N" in points[0] else family
            rounds = [r["rounds"] for r in points]
            axis.plot(rounds, [r[error] for r in points], marker, ls=":", color=colour, ms=6, label=label)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="serial rounds (mean)",
            title=f"{name}: error to the fine ODE solution, {title}",
        )
    if law:
        right = axes[0][2]
        for family in dict.fromkeys(r["family"] for r in law):
            points = [r for r in law if r["family"] == family and "frechet" in r and "frechet_std" not in r]
            if points:
                style = "-" if family in ("ancestral", "DPM-Solver++ 2") else "o"
                right.plot([r["rounds"] for r in points], [r["frechet"] for r in points], style, label=family, ms=6)
        right.set(xscale="log", xlabel="serial rounds (mean)", title=f"{name}: Fréchet distance of stochastic chains")
    for axis in axes[0]:
        axis.grid(alpha=0.25, which="both", lw=0.5)
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=110)
    print(file)


if __name__ == "__main__":
    main()
