"""Write the tables of README.md and docs/ from benchmarks/results/*.json, so that no number is typed.

    python benchmarks/tables.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything between is replaced. --check changes nothing
and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rows(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def recipe(record: dict[str, Any]) -> str:
    """The shipped student beside its teacher's solvers."""
    chosen = ("DSNO", "DDIM-1", "DDIM-4", "DDIM-8", "DDIM-16", "DDIM-64", "DPM-Solver++-4", "DPM-Solver++-8",
              "DPM-Solver++-16", "UniPC-8", "UniPC-16", "teacher, fine")  # fmt: skip
    named = {r["name"]: r for r in record["results"]}
    body = []
    for name in chosen:
        r = named[name]
        cost, quality = r["cost"], r["quality"]
        sampled = bool(cost["rounds"])
        body.append([
            f"**{name}, one pass**" if name == "DSNO" else name,
            str(cost["rounds"]) if sampled else "-",
            f"{cost['flops'] / 1e6:,.0f}" if sampled else "-",
            f"{quality['frechet']:.2f}", f"{quality['precision']:.2f}", f"{quality['recall']:.2f}",
            f"{r['path_error']:.3f}" if r["path_error"] is not None else "-",
        ])  # fmt: skip
    return rows(
        ["sampler", "serial network calls", "MFLOP a sample", "Fréchet", "precision", "recall", "path error"], body
    )


def digits(record: dict[str, Any]) -> str:
    """Students at equal training FLOPs."""
    body = [
        [
            name, str(s["run"]["frames"]), f"{s['sample_flops'] / 1e6:.0f}", f"{s['network_images'] / 1e3:.0f}k",
            f"{s['frechet']['mean']:.2f}" + (f" ± {s['frechet']['spread']:.2f}" if s["seeds"] > 1 else ""),
            f"{s['path_error']['mean']:.4f}" + (f" ± {s['path_error']['spread']:.4f}" if s["seeds"] > 1 else ""),
            str(s["seeds"]),
        ]
        for name, s in sorted(record["table"].items(), key=lambda item: item[1]["frechet"]["mean"])
    ]  # fmt: skip
    return rows(["student", "M", "MFLOP a sample", "network images", "Fréchet", "path error", "seeds"], body)


def claims(record: dict[str, Any]) -> str:
    """Claims of one benchmark, those that fall short included."""
    body = [
        [c["name"], f"{c['value']:.3g}", f"{c['direction']} {c['bound']:g}", "yes" if c["holds"] else "**no**"]
        for c in record["claims"]
    ]
    return rows(["claim", "measured", "bound", "holds"], body)


def counted(entry: dict[str, Any], what: str) -> str:
    """A mean, and the worst of the batch where it differs."""
    mean, worst = entry[what], entry[f"{what}_max"]
    return (
        f"{mean:,.0f}"
        if mean == worst
        else f"{mean:,.1f} ({worst:,.0f})"
        if mean < 100
        else f"{mean:,.0f} ({worst:,.0f})"
    )


def parallel(record: dict[str, Any]) -> str:
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


def path(record: dict[str, Any]) -> str:
    """Errors to the fine solution of the ODE against rounds and rows."""
    chosen = {
        "DDIM": "8 16 32 100",
        "DPM-Solver++ 2": "8 16 32",
        "DPM-Solver++ 3": "8 16 32",
        "UniPC 3": "6 8 12 16 32",
    }
    body = []
    for r in record["rows"]:
        sequential = r["family"] in chosen
        if (sequential and r["point"] not in chosen[r["family"]].split()) or r["family"] in (
            "DPM-Solver++ 1",
            "UniPC 2",
        ):
            continue
        if r.get("N", 100) != 100:
            continue
        named = r["family"] if "N" not in r else f"{r['family']}, tolerance {r['tolerance']:g}"
        name = (
            f"{named}, {r['point']}" if "student" in r["family"] else f"{named}-{r['point']}" if sequential else named
        )
        passes = f"{r['draft_rounds']:.1f}" if r.get("draft_rounds") else "-"
        body.append([
            name, counted(r, "rounds"), passes, counted(r, "rows"), f"{r['fine_rmse']:.4f}", f"{r['fine_median']:.4f}",
            f"{r['rmse']:.4f}" if "rmse" in r else "-",
        ])  # fmt: skip
    head = [
        "sampler",
        "rounds",
        "of them the student's",
        "rows",
        "error to the fine solution",
        "its median",
        "error to the chain",
    ]
    return rows(head, body)


def law(record: dict[str, Any]) -> str:
    """Stochastic chains: Frechet distances against rounds and rows."""
    body = [
        [
            f"{r['family']}-{r['point']}" if "N" not in r else f"{r['family']}, {r['point']}", counted(r, "rounds"),
            counted(r, "rows"), (f"{r['frechet']:.2f}" + (f" ± {r['frechet_std']:.2f}" if "frechet_std" in r else ""))
            if "frechet" in r else "the chain's own samples",
            f"{r['max']:.3f}" if "max" in r else "-",
        ]
        for r in record["law"]
    ]  # fmt: skip
    return rows(["sampler", "rounds", "rows", "Fréchet", "worst error to the chain's sample"], body)


def spread(value: dict[str, float], seeds: int) -> str:
    return f"{value['mean']:.2f}" + (f" ± {value['spread']:.2f}" if seeds > 1 else "")


def family(record: dict[str, Any]) -> str:
    """Every method at the main budget, best first, and the solvers that need no training."""
    body = []
    for name, s in by_frechet(record["budgets"]["4"]):
        if name not in record["entered"]:
            continue
        points, seeds = s["points"], len(s["seeds"])
        one = points["1"]
        body.append([
            name.split("@")[0], f"{s['flops_per_row'] / record['teacher_flops']:.1f}", f"{one['flops'] / 1e6:.0f}",
            spread(one["frechet"], seeds), f"{one['kernel']['mean']:.3g}", f"{one['precision']['mean']:.2f}",
            f"{one['recall']['mean']:.2f}", f"{one['path_error']['mean']:.3f}", *(spread(points[k]["frechet"], seeds) if k in points else "-" for k in "24"),
            str(seeds),
        ])  # fmt: skip
    for name in ("DDIM", "DPM-Solver++", "UniPC"):
        one, two, four = (record["solvers"][f"{name}-{k}"] for k in (1, 2, 4))
        body.append([
            f"{name}, no training", "-", f"{one['flops'] / 1e6:.0f}", f"{one['frechet']:.0f}", f"{one['kernel']:.3g}",
            f"{one['precision']:.2f}", f"{one['recall']:.2f}", f"{one['path_error']:.3f}", f"{two['frechet']:.1f}", f"{four['frechet']:.2f}", "-",
        ])  # fmt: skip
    head = [
        "method", "teacher calls' worth of FLOPs a training row", "MFLOP a pass", "Fréchet, 1 pass", "kernel",
        "precision", "recall", "path error", "Fréchet, 2 passes", "4 passes", "seeds",
    ]  # fmt: skip
    return rows(head, body)


def by_frechet(table: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(table.items(), key=lambda item: item[1]["points"]["1"]["frechet"]["mean"])


def sweep(record: dict[str, Any]) -> str:
    """One pass as the budget grows, for the methods that were run at more than one."""
    budgets = record["budgets"]
    names = [
        n
        for n, _ in by_frechet(budgets["4"])
        if n not in record["entered"] or sum(n in t for t in budgets.values()) > 1
    ]
    body = []
    for name in names:
        entries = [budgets[f].get(name) for f in budgets]
        cells = ["-" if e is None else spread(e["points"]["1"]["frechet"], len(e["seeds"])) for e in entries]
        paths = ["-" if e is None else f"{e['points']['1']['path_error']['mean']:.3f}" for e in entries]
        body.append([name, *cells, *paths])
    head = ["method", *(f"Fréchet, x{f}" for f in budgets), *(f"path error, x{f}" for f in budgets)]
    return rows(head, body)


def passes(record: dict[str, Any]) -> str:
    """What an operator that restarts makes of more passes, by its own states or by noising again."""
    body = []
    for factor, table in record["budgets"].items():
        for name, s in by_frechet(table):
            if "1" in s["points"] and any("noised" in k for k in s["points"]):
                for key, point in s["points"].items():
                    seeds = len(s["seeds"])
                    body.append([
                        f"{name}, x{factor}", key, f"{point['flops'] / 1e6:.0f}", spread(point["frechet"], seeds),
                        f"{point['recall']['mean']:.2f}", f"{point['path_error']['mean']:.3f}",
                    ])  # fmt: skip
    return rows(["student", "passes", "MFLOP a sample", "Fréchet", "recall", "path error"], body)


def ring(record: dict[str, Any]) -> str:
    """Flow map losses against an exact flow: the mean over seeds, and the worst."""
    columns = list(record["euler"])
    body = []
    for name, m in record["methods"].items():
        errors = [m["rmse"][k] for k in columns]
        seconds = f"{sum(m['seconds']) / len(m['seconds']):.0f}"
        body.append([name, *(f"{sum(e) / len(e):.3f} ({max(e):.3f})" for e in errors), seconds])
    body.append(["Euler, exact velocity", *(f"{record['euler'][k]:.3f}" for k in columns), "-"])
    return rows(["method", *(f"{k} pass{'es' * (k != '1')}" for k in columns), "seconds of training"], body)


def guided(record: dict[str, Any]) -> str:
    """One student of every guidance weight, and its teacher at two evaluations a step."""
    names = {
        "guidance": "first stage, 32 steps",
        **{f"steps-{n}": f"{n} pass{'es' * (n > 1)}" for n in (16, 8, 4, 2, 1)},
    }
    body = [[f"student, {names[k]}", *(f"{e[w]:.3f}" for w in "014")] for k, e in record["student"].items()]
    body += [
        [f"teacher, {k} steps, {2 * int(k)} evaluations", *(f"{e[w]:.3f}" for w in "014")]
        for k, e in record["teacher"].items()
    ]
    return rows(["sampler", *(f"RMSE, w = {w}" for w in "014")], body)


def guided_digits(record: dict[str, Any]) -> str:
    """One student of every class and weight, and the guided teacher's solvers."""
    weights = ("0", "1", "4")
    body = []
    held = record["runs"]
    for name in dict.fromkeys(run["name"] for run in held):
        points = [run["points"] for run in held if run["name"] == name]
        for k in sorted(points[0], key=int):
            body.append((f"{name}, {k} pass{'es' * (k != '1')}", [p[k] for p in points]))
    body += [(f"{name.replace('-', ', ')} steps", [point]) for name, point in record["solvers"].items()]

    def cells(points: list[dict[str, dict[str, float]]]) -> list[str]:
        columns = [[p[w][key] for p in points] for key in ("frechet", "path_error") for w in weights]
        columns.append([p["4"]["accuracy"] for p in points])
        return [
            f"{statistics.mean(c):.2f}" + (f" ± {statistics.stdev(c):.2f}" if len(c) > 1 and k < 3 else "")
            for k, c in enumerate(columns)
        ]

    head = [
        "sampler",
        "evaluations",
        *(f"Fréchet, w = {w}" for w in weights),
        *(f"path error, w = {w}" for w in weights),
    ]
    return rows(
        [*head, "accuracy, w = 4"],
        [[name, f"{points[0]['0']['evaluations']:.0f}", *cells(points)] for name, points in body],
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "recipe": recipe, "fashion": recipe, "sprites": recipe, "digits": digits, "ablation": digits,
    "parallel": parallel, "parallel_digits": path, "parallel_fashion": path, "family_digits": family,
    "family_fashion": family, "family_sprites": family, "ring": ring, "guided": guided,
    "guided_digits": guided_digits,
}  # fmt: skip


def timings(record: dict[str, Any]) -> str:
    """One pass of each kind of student, as ratios to one call of the teacher."""
    body = [[name, f"{t['latency']:.2f}", f"{t['throughput']:.2f}"] for name, t in record["timings"].items()]
    return rows(["one pass of", "latency alone", "samples per second at saturation"], body)


def paths(record: dict[str, Any]) -> str:
    """The same losses on other paths of the same mixture."""
    columns = list(record["euler"])
    body = [
        [name, path, *(f"{errors[k]:.3f}" for k in columns)]
        for name in next(iter(record["paths"].values()))
        for path, found in record["paths"].items()
        for errors in [found[name]]
    ]
    return rows(["method", "path", *(f"{k} pass{'es' * (k != '1')}" for k in columns)], body)


def targets(record: dict[str, Any]) -> str:
    """What the students of trajectories are shown."""
    found = {**record["targets"], "teacher, fine": record["teacher"]["frechet"]}
    return rows(["ends of the trajectories of UniPC", "Fréchet"], [[name, f"{f:.2f}"] for name, f in found.items()])


def grids(record: dict[str, Any]) -> str:
    """How far the ends of trajectories are from the fine solution on each grid."""
    errors = record["grids"]["trajectories"]
    names = list(errors["16"])
    body = [[f"{n} steps of UniPC", *(f"{errors[n][grid]:.3f}" for grid in names)] for n in ("8", "16", "32")]
    return rows(["RMSE to the fine solution", *names], body)


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "claims": claims,
    "grids": grids,
    "law": law,
    "paths": paths,
    "sweep": sweep,
    "targets": targets,
    "passes": passes,
    "timings": timings,
}
"""Other tables of a result: `<!-- table: PART NAME -->`."""


def render(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        *part, source = name.split()
        record = json.loads((ROOT / "benchmarks/results" / f"{source}.json").read_text())
        kind = PARTS[part[0]] if part else TABLES.get(name)
        assert kind is not None, f"no table named {name}"
        table = kind(record)
        return f"<!-- table: {name} -->\n\n{table}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w ]+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    stale = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{'out of date' if '--check' in sys.argv else 'written'}: {page.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            page.write_text(render(page.read_text()))
    sys.exit(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
