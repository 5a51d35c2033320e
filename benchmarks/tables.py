"""Write the tables of README.md and docs/ from benchmarks/results/*.json, so that no number is typed.

    python benchmarks/tables.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything between is replaced. Each NAME belongs to
one function in `TABLES`. --check changes nothing and exits with 1 if a page is out of date, holds a table that nobody
writes or that has no end, or if a table is on no page: what was measured is told, and so is every claim.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"<!-- table: ([^>]*?) -->(?:(?!<!--).)*<!-- end -->", re.DOTALL)

Record = Mapping[str, Any]


# Pieces


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def deviating(value: Mapping[str, float], seeds: int, digits: int = 2) -> str:
    """A mean, and the standard deviation where there are several seeds."""
    return f"{value['mean']:.{digits}f}" + (f" ± {value['spread']:.{digits}f}" if seeds > 1 else "")


def counted(entry: Record, what: str) -> str:
    """A mean, and the worst of the batch where it differs."""
    mean, worst = entry[what], entry[f"{what}_max"]
    if mean == worst:
        return f"{mean:,.0f}"
    return f"{mean:,.{1 if mean < 100 else 0}f} ({worst:,.0f})"


def passes_said(count: str) -> str:
    return f"{count} pass{'es' * (count != '1')}"


def by_frechet(table: Record, one: Callable[[Any], float]) -> list[tuple[str, Any]]:
    """Best first."""
    return sorted(table.items(), key=lambda item: one(item[1]))


# Tables


def claims(record: Record) -> str:
    """Claims of one benchmark, those that fall short included."""
    body = [
        [c["name"], f"{c['value']:.3g}", f"{c['direction']} {c['bound']:g}", "yes" if c["holds"] else "**no**"]
        for c in record["claims"]
    ]
    return rows(["claim", "measured", "bound", "holds"], body)


def recipe(record: Record) -> str:
    """The shipped student beside its teacher's solvers."""
    named = {r["name"]: r for r in record["results"]}
    chosen = {
        "DSNO": (None,),
        "DDIM": (1, 4, 8, 16, 64),
        "DPM-Solver++": (4, 8, 16),
        "UniPC": (8, 16),
        "teacher, fine": (None,),
    }
    body = []
    for name in (name if n is None else f"{name}-{n}" for name, steps in chosen.items() for n in steps):
        cost, quality, error = named[name]["cost"], named[name]["quality"], named[name]["path_error"]
        sampled = bool(cost["rounds"])
        body.append(
            [
                f"**{name}, one pass**" if name == "DSNO" else name,
                str(cost["rounds"]) if sampled else "-",
                f"{cost['flops'] / 1e6:,.0f}" if sampled else "-",
                *(f"{quality[key]:.2f}" for key in ("frechet", "precision", "recall")),
                "-" if error is None else f"{error:.3f}",
            ]
        )
        if name == "DSNO" and (two := record.get("seeds", {}).get("0", {}).get("2")):
            # Both passes make one frame each, so the second costs as much.
            numbers = [f"{two[key]:.2f}" for key in ("frechet", "precision", "recall")]
            body.append([f"{name}, two passes", "2", f"{2 * cost['flops'] / 1e6:,.0f}", *numbers, "-"])
    head = ["sampler", "serial network calls", "MFLOP a sample", "Fréchet", "precision", "recall", "path error"]
    return rows(head, body)


def digits(record: Record) -> str:
    """Students at equal training FLOPs."""
    body = [
        [
            name,
            str(s["run"]["frames"]),
            f"{s['sample_flops'] / 1e6:.0f}",
            f"{s['network_images'] / 1e3:.0f}k",
            deviating(s["frechet"], s["seeds"]),
            deviating(s["path_error"], s["seeds"], 4),
            str(s["seeds"]),
        ]
        for name, s in by_frechet(record["table"], lambda s: s["frechet"]["mean"])
    ]
    return rows(["student", "M", "MFLOP a sample", "network images", "Fréchet", "path error", "seeds"], body)


def halves(record: Record) -> str:
    """Parts of the real data against each other, and what their law says of a table's counts."""
    body = [
        [f"two parts of {r['count']:,}", *(deviating(r[name], 2) for name in ("frechet", "precision", "recall"))]
        for r in record["rows"]
    ]
    expected = [f"{record['samples']:,} against all, from the first row", f"{record['expected']:.2f}", "-", "-"]
    return rows(["real images", "Fréchet", "precision", "recall"], [*body, expected])


def parallel(record: Record) -> str:
    """Exact samplers on mixtures."""
    body = []
    for r in record["rows"]:
        if r["N"] == 500 or "order 8" in r["method"] or "m = 3" in r["method"]:
            continue
        residual = f"{r['residual_rounds']:.1f} ({r['residual_rounds_max']:.0f})" if "residual_rounds" in r else "-"
        error = f"{r['max']:.0e}" if "max" in r else "in law"
        chain = f"d = {r['d']}, N = {r['N']:,}, {'DDPM' if r['eta'] else 'DDIM'}"
        method = f"{r['method']}, L = {r['L']}" if "L" in r else r["method"].replace("eps held", "noise held")
        body.append([chain, method, counted(r, "rounds"), counted(r, "rows"), residual, error])
    head = ["chain", "sampler", "rounds", "rows", "rounds to residual 1e-3", "worst error to the chain"]
    return rows(head, body)


def guidance(record: Record) -> str:
    """The median errors with a smooth and a rough guide, and the orders."""
    steps = sorted({r["steps"] for r in record["rows"]})
    body = []
    for guide in ("smooth", "rough"):
        for method, order in record["orders"].items():
            found = [r for r in record["rows"] if (r["guide"], r["method"]) == (guide, method)]
            calls, gradients = (found[0][what] / found[0]["steps"] for what in ("calls", "gradients"))
            errors = [f"{next(r['median'] for r in found if r['steps'] == N):.2g}" for N in steps]
            body.append([guide, method, f"{order:.2f}", f"{calls:.0f}", f"{gradients:.0f}", *errors])
    return rows(["guide", "solver", "order seen", "calls a step", "gradients", *(f"N = {N}" for N in steps)], body)


def steered(record: Record) -> str:
    """Agreement, Frechet distance and diversity of guided samples, by method and steps, beside their time."""
    scale, seconds = record["scale"], record["seconds_a_step"]
    longest = max(r["steps"] for r in record["rows"])
    body = []
    for r in sorted([*record["rows"], *record["student"]["rows"]], key=lambda r: (r["method"], r["steps"])):
        alike = [
            o
            for o in (*record["rows"], *record["student"]["rows"])
            if (o["method"], o["steps"], o["scale"]) == (r["method"], r["steps"], scale)
        ]
        if not alike or r is not alike[0]:
            continue
        means = [statistics.mean(o[what] for o in alike) for what in ("agreement", "frechet", "diversity")]
        time = "-"
        if r["method"] in seconds:
            time = f"{100 * r['steps'] * seconds[r['method']] / (longest * seconds['ddim']):.0f} %"
        body.append(
            [r["method"], f"{r['steps']}", f"{r['calls']}", f"{r['gradients']}", *(f"{m:.3g}" for m in means), time]
        )
    time_head = f"time, of DDIM in {longest} steps"
    return rows(["solver", "steps", "calls", "gradients", "agreement", "Fréchet", "diversity", time_head], body)


def path_errors(record: Record) -> str:
    """Errors to the fine solution of the ODE against rounds and rows."""
    chosen: dict[str, tuple[int, ...]] = {
        "DDIM": (8, 16, 32, 100),
        "DPM-Solver++ 1": (),
        "DPM-Solver++ 2": (8, 16, 32),
        "DPM-Solver++ 3": (8, 16, 32),
        "UniPC 2": (),
        "UniPC 3": (6, 8, 12, 16, 32),
    }
    body = []
    for r in record["rows"]:
        family, point = r["family"], r["point"]
        if (family in chosen and int(point) not in chosen[family]) or r.get("N", 100) != 100:
            continue
        if "N" in r:
            name = f"{family}, tolerance {r['tolerance']:g}"
        else:
            name = f"{family}-{point}" if family in chosen else f"{family}, {point}"
        body.append(
            [
                name,
                counted(r, "rounds"),
                f"{r['draft_rounds']:.1f}" if r.get("draft_rounds") else "-",
                counted(r, "rows"),
                f"{r['fine_rmse']:.4f}",
                f"{r['fine_median']:.4f}",
                f"{r['rmse']:.4f}" if "rmse" in r else "-",
            ]
        )
    errors = ["error to the fine solution", "its median", "error to the chain"]
    return rows(["sampler", "rounds", "of them the student's", "rows", *errors], body)


def law(record: Record) -> str:
    """Stochastic chains: Frechet distances against rounds and rows."""

    def distance(r: Record) -> str:
        if "frechet" not in r:
            return "the chain's own samples"
        return f"{r['frechet']:.2f}" + (f" ± {r['frechet_std']:.2f}" if "frechet_std" in r else "")

    body = [
        [
            f"{r['family']}{', ' if 'N' in r else '-'}{r['point']}",
            counted(r, "rounds"),
            counted(r, "rows"),
            distance(r),
            f"{r['max']:.3f}" if "max" in r else "-",
        ]
        for r in record["law"]
    ]
    return rows(["sampler", "rounds", "rows", "Fréchet", "worst error to the chain's sample"], body)


def one_pass(summary: Record) -> float:
    return summary["points"]["1"]["frechet"]["mean"]


def family(record: Record) -> str:
    """Every method at the main budget, best first, and the solvers that need no training."""
    body = []
    for name, s in by_frechet(record["budgets"][record["main"]], one_pass):
        if name not in record["entered"]:
            continue
        points, seeds = s["points"], len(s["seeds"])
        one = points["1"]
        body.append(
            [
                name.split("@")[0],
                f"{s['flops_per_row'] / record['teacher_flops']:.1f}",
                f"{one['flops'] / 1e6:.0f}",
                deviating(one["frechet"], seeds),
                f"{one['kernel']['mean']:.3g}",
                *(f"{one[key]['mean']:.2f}" for key in ("precision", "recall")),
                f"{one['path_error']['mean']:.3f}",
                *(deviating(points[k]["frechet"], seeds) if k in points else "-" for k in ("2", "4")),
                str(seeds),
            ]
        )
    for name in ("DDIM", "DPM-Solver++", "UniPC"):
        one, two, four = (record["solvers"][f"{name}-{k}"] for k in (1, 2, 4))
        body.append(
            [
                f"{name}, no training",
                "-",
                f"{one['flops'] / 1e6:.0f}",
                f"{one['frechet']:.0f}",
                f"{one['kernel']:.3g}",
                *(f"{one[key]:.2f}" for key in ("precision", "recall")),
                f"{one['path_error']:.3f}",
                f"{two['frechet']:.1f}",
                f"{four['frechet']:.2f}",
                "-",
            ]
        )
    cost = ["teacher calls' worth of FLOPs a training row", "MFLOP a pass"]
    quality = ["Fréchet, 1 pass", "kernel", "precision", "recall", "path error", "Fréchet, 2 passes", "4 passes"]
    return rows(["method", *cost, *quality, "seeds"], body)


def sweep(record: Record) -> str:
    """One pass as the budget grows, for the methods that were run at more than one."""
    budgets = record["budgets"]
    body = []
    for name, _ in by_frechet(budgets[record["main"]], one_pass):
        entries = [table.get(name) for table in budgets.values()]
        if name in record["entered"] and sum(e is not None for e in entries) < 2:
            continue
        points = [None if e is None else (e["points"]["1"], len(e["seeds"])) for e in entries]
        cells = ["-" if p is None else deviating(p[0]["frechet"], p[1]) for p in points]
        errors = ["-" if p is None else f"{p[0]['path_error']['mean']:.3f}" for p in points]
        body.append([name, *cells, *errors])
    return rows(["method", *(f"Fréchet, x{f}" for f in budgets), *(f"path error, x{f}" for f in budgets)], body)


def passes(record: Record) -> str:
    """What an operator that restarts makes of more passes, by its own states or by noising again."""
    body = [
        [
            f"{name}, x{factor}",
            key,
            f"{point['flops'] / 1e6:.0f}",
            deviating(point["frechet"], len(s["seeds"])),
            f"{point['recall']['mean']:.2f}",
            f"{point['path_error']['mean']:.3f}",
        ]
        for factor, table in record["budgets"].items()
        for name, s in by_frechet(table, one_pass)
        if any("noised" in key for key in s["points"])
        for key, point in s["points"].items()
    ]
    return rows(["student", "passes", "MFLOP a sample", "Fréchet", "recall", "path error"], body)


def timings(record: Record) -> str:
    """One pass of each kind of student, as ratios to one call of the teacher."""
    body = [[name, f"{t['latency']:.2f}", f"{t['throughput']:.2f}"] for name, t in record["timings"].items()]
    return rows(["one pass of", "latency alone", "samples per second at saturation"], body)


def targets(record: Record) -> str:
    """What the students of trajectories are shown."""
    found = {**record["targets"], "teacher, fine": record["teacher"]["frechet"]}
    return rows(["ends of the trajectories of UniPC", "Fréchet"], [[name, f"{f:.2f}"] for name, f in found.items()])


def grids(record: Record) -> str:
    """How far the ends of trajectories are from the fine solution on each grid."""
    errors = record["grids"]["trajectories"]
    names = list(errors["16"])
    body = [[f"{n} steps of UniPC", *(f"{errors[n][grid]:.3f}" for grid in names)] for n in ("8", "16", "32")]
    return rows(["RMSE to the fine solution", *names], body)


def ring(record: Record) -> str:
    """Flow map losses against an exact flow: the mean over seeds, and the worst."""
    columns = list(record["euler"])
    body = []
    for name, m in record["methods"].items():
        errors = [m["rmse"][k] for k in columns]
        seconds = f"{sum(m['seconds']) / len(m['seconds']):.0f}"
        body.append([name, *(f"{sum(e) / len(e):.3f} ({max(e):.3f})" for e in errors), seconds])
    body.append(["Euler, exact velocity", *(f"{record['euler'][k]:.3f}" for k in columns), "-"])
    return rows(["method", *map(passes_said, columns), "seconds of training"], body)


def schedules(record: Record) -> str:
    """The same losses under other schedules of the same mixture."""
    columns, found = list(record["euler"]), record["schedules"]
    body = [
        [name, schedule, *(f"{errors[name][k]:.3f}" for k in columns)]
        for name in next(iter(found.values()))
        for schedule, errors in found.items()
    ]
    return rows(["method", "schedule", *map(passes_said, columns)], body)


def guided(record: Record) -> str:
    """One student of every guidance weight, and its teacher at two evaluations a step."""
    weights = list(record["teacher"]["1"])

    def said(stage: str) -> str:
        return "first stage, 32 steps" if stage == "guidance" else passes_said(stage.removeprefix("steps-"))

    found = {f"student, {said(stage)}": errors for stage, errors in record["student"].items()}
    found |= {f"teacher, {k} steps, {2 * int(k)} evaluations": errors for k, errors in record["teacher"].items()}
    body = [[name, *(f"{errors[w]:.3f}" for w in weights)] for name, errors in found.items()]
    return rows(["sampler", *(f"RMSE, w = {w}" for w in weights)], body)


def guided_digits(record: Record) -> str:
    """One student of every class and weight, and the guided teacher's solvers."""
    runs, solvers = record["runs"], record["solvers"]
    weights = list(next(iter(solvers.values())))
    found: dict[str, list[Record]] = {}
    for name in dict.fromkeys(run["name"] for run in runs):
        points = [run["points"] for run in runs if run["name"] == name]
        found |= {f"{name}, {passes_said(k)}": [p[k] for p in points] for k in sorted(points[0], key=int)}
    found |= {f"{name.replace('-', ', ')} steps": [point] for name, point in solvers.items()}

    def column(points: Sequence[Record], key: str, w: str) -> list[float]:
        return [p[w][key] for p in points]

    def distance(values: Sequence[float]) -> str:
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return deviating({"mean": statistics.mean(values), "spread": spread}, len(values))

    body = [
        [
            name,
            f"{points[0][weights[0]]['evaluations']:.0f}",
            *(distance(column(points, "frechet", w)) for w in weights),
            *(f"{statistics.mean(column(points, 'path_error', w)):.2f}" for w in weights),
            f"{statistics.mean(column(points, 'accuracy', weights[-1])):.2f}",
        ]
        for name, points in found.items()
    ]
    qualities = [f"{what}, w = {w}" for what in ("Fréchet", "path error") for w in weights]
    return rows(["sampler", "evaluations", *qualities, f"accuracy, w = {weights[-1]}"], body)


def faults(record: Record) -> str:
    """What became of the cases of each kind."""
    columns = ("cases", "refused", "harmless", "held")
    bad = [
        {"bad": sum(value for name, value in count.items() if name not in columns), **count}
        for count in record["counts"].values()
    ]
    sums = {name: sum(count[name] for count in bad) for name in (*columns, "bad")}
    body = [
        [kind, *(str(count[name] or "-") for name in (*columns, "bad"))]
        for kind, count in zip([*record["counts"], "**all**"], [*bad, sums], strict=True)
    ]
    return rows(["kind", "cases", "refused", "opened, unharmed", "held", "bad"], body)


def steps(record: Record) -> str:
    """A step of every solver on every schedule, beside the network."""
    body = [
        [f"{solver}, {schedule}", f"{n['ours']:.0f}", f"{n['theirs']:.0f}", f"{n['ratio']:.2f}"]
        for schedule, solvers in record["schedules"].items()
        for solver, n in solvers.items()
    ]
    return rows(["solver, schedule", "microseconds a step", "diffusers'", "ratio"], body)


def precision(record: Record) -> str:
    """The temporal layer in bfloat16 beside itself in float32 and the official layer."""
    sides = ("bfloat16", "float32", "official")
    body = [
        [f"CPU {machine}, {layout}, batch {batch}, {way}", *(f"{t[side]:.2f}" for side in sides)]
        for machine, found in record["machines"].items()
        for layout, batches in found["times"].items()
        for batch, ways in batches.items()
        for way, t in ways.items()
    ]
    return rows(["milliseconds", *sides], body)


def inverse(record: Record) -> str:
    """Restorers where the posterior is known."""
    body = [
        [
            f"{r['method']}, noise {r['noise']:g}",
            f"{r['rows']:.0f}",
            f"{r['vjps']:.0f}",
            *(f"{r[key]:.3f}" for key in ("misfit", "spread", "bias")),
        ]
        for r in record["rows"]
    ]
    return rows(["method", "evaluations", "vjps", "misfit", "spread", "bias"], body)


def restored(record: Record) -> str:
    """Restorers on images: quality beside cost, seconds over those of DPS on the same task."""

    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    dps = {(r["task"], r["noise"]): r["seconds"] for r in record["rows"] if r["method"] == "dps"}
    body = [
        [
            f"{r['task']}{', noise ' + format(r['noise'], 'g') if r['noise'] else ''}: {r['method']}",
            *(shown(r[key], digits) for key, digits in (("psnr", 2), ("ssim", 3), ("feature_distance", 3))),
            *(shown(r[key], digits) for key, digits in (("frechet", 2), ("residual", 3), ("rows", 0), ("vjps", 0))),
            shown(r["seconds"] / dps[r["task"], r["noise"]] if r["rounds"] else None, 2),
            shown(r["peak_megabytes"], 2),
        ]
        for r in record["rows"]
        if r["seed"] == 0
    ]
    cost = ["misfit", "evaluations", "vjps", "seconds over DPS", "MB a sample"]
    return rows(["task: method", "PSNR", "SSIM", "feature distance", "Fréchet", *cost], body)


def asymmetry(record: Record) -> str:
    """How symmetric a trained teacher's Jacobian is."""
    body = [[f"{r['t']:g}", f"{r['asymmetry']:.3f}", f"{r['cosine']:.4f}"] for r in record["asymmetry"]]
    return rows(["t", "skew part over symmetric part", "cosine of J v and J^T v"], body)


def blind(record: Record) -> str:
    """Blind methods beside the blurred picture and the kernel known, mean over seeds of medians over pictures."""
    seeds = len({r["seed"] for r in record["rows"]})
    fast = record["summary"]["fast"]["seconds"]["mean"]
    body = [
        [
            {"map": "plain MAP", "oracle": "kernel known"}.get(name, name),
            deviating(s["psnr"], seeds),
            deviating(s["psnr_tenth"], seeds),
            *(f"{s[key]['mean']:.{digits}f}" for key, digits in (("kernel_error", 3), ("reblur", 4))),
            *(f"{s[key]['mean']:,.0f}" for key in ("rounds", "rows", "vjps")),
            "-" if name == "blurred" else f"{s['seconds']['mean'] / fast:.2f}",
        ]
        for name, s in record["summary"].items()
    ]
    cost = ["rounds", "evaluations", "vjps", "seconds over fast"]
    return rows(["method", "PSNR", "PSNR of the worst tenth", "kernel error", "re-blur error", *cost], body)


def likelihood(record: Record) -> str:
    """EM on a Gaussian field, round by round."""
    sides = {"with the posterior variance": "with variance", "with the mean alone": "mean alone"}
    body = [[name, *(f"{value:,.0f}" for value in record["field"][key])] for name, key in sides.items()]
    return rows(["log-likelihood behind round", *map(str, range(len(body[0]) - 1))], body)


def bridge(record: Record) -> str:
    """The law of every sampler by calls, on every bridge."""
    found = record["ends"]
    columns = list(next(iter(next(iter(found.values()))["samplers"].values())))
    body = [
        [f"{label}, {name}", *(f"{by_calls[k]['distance']:.3f}" for k in columns)]
        for label, one in found.items()
        for name, by_calls in one["samplers"].items()
    ]
    floors = [[f"{label}, two draws of the law itself", f"{one['floor']:.3f}"] for label, one in found.items()]
    return rows(["distance, calls", *columns], body + [[*floor, *["-"] * (len(columns) - 1)] for floor in floors])


def bridge_pictures(record: Record) -> str:
    """What is made of a degraded picture, one problem after the other."""
    chosen = (
        ("odes3", "5"),
        ("odes3", "13"),
        ("dbim2", "5"),
        ("dbim2", "13"),
        ("ancestral", "13"),
        ("ancestral", "101"),
    )
    body = []
    for problem, found in record["problems"].items():
        picked = [(name, found["samplers"][name][k]) for name, k in chosen]
        for name, of in found["tuned"].items():
            picked += [(f"{name}, exponent {of['exponent']:g}", entry) for entry in of["calls"].values()]
        entries = {f"{name}, {entry['calls']:.0f} calls": entry for name, entry in picked}
        entries |= {"one pass": found["student"], "regression": found["regression"], "as it is": found["degraded"]}
        body += [
            [
                f"{problem}: {name}",
                f"{entry['frechet']:.2f}",
                f"{entry['feature_distance']:.2f}",
                f"{entry['psnr']:.1f}",
                f"{entry['diversity']:.3f}",
            ]
            for name, entry in entries.items()
        ]
    return rows(["", "Fréchet", "feature distance", "PSNR", "diversity"], body)


def started(record: Record) -> str:
    """Learned starts where the exact mean is known."""
    body = [
        [r["method"], str(r["rounds"]), str(r["vjps"]), f"{r['over_exact']:.2f}", f"{r['residual']:.3f}"]
        for r in record["rows"]
    ]
    return rows(["method", "calls", "vjps", "squared error over the exact mean's", "misfit"], body)


def started_pictures(record: Record) -> str:
    """Learned starts on images, one task after the other."""
    measures = {"psnr": 2, "feature_distance": 3, "frechet": 2, "agreement": 3, "residual": 3, "rows": 0, "vjps": 0}
    body = [
        [f"{r['task']}: {r['method']}", *(f"{r[key]:.{digits}f}" for key, digits in measures.items())]
        for r in record["rows"]
    ]
    head = ["PSNR", "feature distance", "Fréchet", "classifier agrees", "misfit", "evaluations", "vjps"]
    return rows(["task: method, steps", *head], body)


def web(record: Record) -> str:
    """The same calls in a browser, in onnxruntime and in PyTorch."""
    names = {"sample": "a sample", "path": "all frames", "teacher": "the teacher, 16 steps", "wall": "64 samples"}
    body = [
        [side, *(f"{taken[name]:.1f}" if name in taken else "-" for name in names)]
        for side, taken in record["milliseconds"].items()
    ]
    return rows(["milliseconds", *names.values()], body)


FAMILIES = ("digits", "fashion", "clothes", "sprites", "sprites-x0")
TABLES: dict[str, Callable[[Record], str]] = {
    **{f"claims {path.stem}": claims for path in sorted(RESULTS.glob("*.json"))},
    "recipe": recipe,
    **{name: recipe for name in ("fashion", "sprites", "digits-classes") if (RESULTS / f"{name}.json").is_file()},
    **dict.fromkeys(("digits", "ablation"), digits),
    "halves": halves,
    "guidance": guidance,
    **{
        f"guidance_{problem}": steered
        for problem in ("fashion", "sprites")
        if (RESULTS / f"guidance_{problem}.json").is_file()
    },
    "parallel": parallel,
    **dict.fromkeys(("parallel_digits", "parallel_fashion"), path_errors),
    "law parallel_digits": law,
    **{f"family_{title}": family for title in FAMILIES},
    **{f"sweep family_{title}": sweep for title in FAMILIES},
    **{f"grids family_{title}": grids for title in ("digits", "fashion", "sprites", "sprites-x0")},
    "passes family_digits": passes,
    "timings family_digits": timings,
    "targets family_sprites": targets,
    "targets family_sprites-x0": targets,
    "ring": ring,
    "steps": steps,
    "precision": precision,
    "schedules ring": schedules,
    "guided": guided,
    "guided_digits": guided_digits,
    **{path.stem: bridge for path in RESULTS.glob("bridge.json")},
    **{path.stem: bridge_pictures for path in sorted(RESULTS.glob("bridge_*.json"))},
    **{path.stem: started for path in RESULTS.glob("starts.json")},
    **{path.stem: started_pictures for path in sorted(RESULTS.glob("starts_*.json"))},
    "faults": faults,
    **{path.stem: web for path in RESULTS.glob("web.json")},
    "inverse": inverse,
    **{path.stem: restored for path in sorted(RESULTS.glob("inverse_*.json"))},
    **{path.stem: blind for path in sorted(RESULTS.glob("blind*.json"))},
    **{f"likelihood {path.stem}": likelihood for path in RESULTS.glob("blind.json")},
    **{f"asymmetry {path.stem}": asymmetry for path in sorted(RESULTS.glob("inverse_*.json"))},
}
"""Who writes a table; the last word of its name is the result that it is of."""


# Pages


def render(text: str) -> str:
    """A page with its tables as the results have them.

    Raises:
        ValueError: for a table that nobody writes, or without an end.
    """

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"nobody writes the table {name!r}: give it to one in TABLES")
        record = json.loads((RESULTS / f"{name.split()[-1]}.json").read_text())
        return f"<!-- table: {name} -->\n\n{TABLES[name](record)}\n\n<!-- end -->"

    found, begun = len(BLOCK.findall(text)), text.count("<!-- table:")
    if found != begun:
        raise ValueError(
            f"{begun} tables begin, {found} of them have a name and an end: close each with `<!-- end -->`"
        )
    return BLOCK.sub(fill, text)


def missing(pages: Iterable[str]) -> list[str]:
    """Tables that are on no page."""
    shown = {name for text in pages for name in BLOCK.findall(text)}
    return [name for name in TABLES if name not in shown]


def options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="benchmarks/tables.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--check", action="store_true", help="write nothing; the exit code says whether all is up to date"
    )
    return made


def main(given: Sequence[str] | None = None) -> int:
    """Write the pages, or with `--check` say which are not what the results say; the exit code."""
    check = options().parse_args(given).check
    texts = {page: page.read_text() for page in PAGES}
    wrong = 0
    for page, text in texts.items():
        try:
            rendered = render(text)
        except ValueError as error:
            print(f"{page.relative_to(ROOT)}: {error}")
            wrong += 1
            continue
        if rendered != text:
            print(f"{'out of date' if check else 'written'}: {page.relative_to(ROOT)}")
            wrong += check
            if not check:
                page.write_text(rendered)
    for name in missing(texts.values()):
        print(f"on no page: <!-- table: {name} -->")
        wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
