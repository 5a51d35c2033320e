"""One GPU in eight minutes: its tests, its speeds, and a recipe from nothing to one pass.

    python benchmarks/gpu.py --data fashion.npz [--seconds 460] [--runs runs/gpu]     (or: make gpu ARGS="--data ...")

Claims: no test of a GPU fails; one pass is five times as fast alone as eight steps of DPM-Solver++, and no slower
than the network with the official layer; a recorded graph is no slower than launching every kernel; one pass of the
recipe is within 1.3 times its teacher's Fréchet distance. A number on the other side refutes it.

- Speeds are of the paper's CIFAR-10 network with random weights, as published and lifted as the library does by
  default (`mid`, `once`), at batch 1 and 64, in fp32, tf32 and bf16: one pass launched kernel by kernel, recorded as a
  CUDA graph, and compiled (once); the same with the official layer, which goes through an FFT in float32; eight steps
  of the teacher, by the library's solver and by diffusers' scheduler; a training step; a generated trajectory.
- The recipe is `fashion-gpu`, cut to minutes, from the arrays `images` and `labels` of `--data`.

Every piece is kept in the folder of the run and made once, so what was interrupted goes on; a piece that does not fit
into what is left of `--seconds`, needs a library that is not there, or fails, is left out, and the result says why.
Without a GPU, or with `--quick`, sizes are of seconds. Writes benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _common import ROOT, Claim, claim, kept, parse, parser, printed, runs_of, write
from layers import fft_form
from torch import Tensor, nn

from dsno.app.export import CUDAGraphSampler
from dsno.cost import latency, timed
from dsno.data.load import load_data
from dsno.denoise import Prediction
from dsno.grids import quadratic, uniform
from dsno.nets.iddpm import CIFAR10, IDDPMUNet, published_blocks
from dsno.runs.recipes import RECIPES, Recipe
from dsno.schedule import Cosine
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.run import SolverSampler
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.temporal import TemporalFourier
from dsno.train import TrainConfig

PRECISIONS = ("fp32", "tf32", "bf16")
TIMES = quadratic(4)[1:]
STEPS = 8


@dataclass(frozen=True)
class Size:
    """How large and how often."""

    net: Mapping[str, Any]
    batches: tuple[int, ...] = (1, 64)
    repeats: int = 20
    count: int = 20_480
    teach: int = 2500
    distill: int = 2500
    features: int = 600
    held_out: int = 2048
    tests: str = "test_*.py"


FULL = Size(CIFAR10)
SMALL = Size(
    {**CIFAR10, "image_size": 8, "channels": 32, "ch_mult": (1, 1), "blocks": 1, "attention": (4,)},
    (1, 2),
    1,
    128,
    2,
    2,
    2,
    64,
    "test_export.py",
)


class Left(Exception):
    """A piece that is left out, and why."""


def needed(*packages: str) -> None:
    """Leave out what needs packages that are not there."""
    if lacking := [name for name in packages if find_spec(name) is None]:
        raise Left(f"there is no {', '.join(lacking)}")


# Tests


def tests(size: Size) -> dict[str, Any]:
    """How many of the tests that are marked `gpu` passed, failed and were skipped."""
    needed("pytest", "hypothesis")
    # To collect the others takes longer, and packages that may not be there.
    files = [str(path) for path in sorted((ROOT / "tests").rglob(size.tests)) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    print(ran.stdout[-4000:], ran.stderr[-2000:], flush=True)
    found = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", ran.stdout)}
    return {"passed": 0, "failed": 0, "error": 0, "skipped": 0, **found, "code": ran.returncode}


# Speeds


class Official(nn.Module):
    """The layer as the official code computes it: through an FFT, in float32."""

    def __init__(self, layer: TemporalFourier) -> None:
        super().__init__()
        imag = torch.zeros_like(layer.real)
        if layer.imag is not None:
            imag[1 : 1 + len(layer.imag)] = layer.imag
        self.frames = layer.frames
        self.weight = nn.Parameter(torch.complex(layer.real.detach(), imag.detach()))

    def forward(self, u: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            return fft_form(u.float(), self.weight, self.frames).to(u.dtype)


def with_official_layers(student: TrajectoryStudent) -> TrajectoryStudent:
    """The student with the official layers in place of its own, of the same weights."""
    made = copy.deepcopy(student)
    for parent in [*made.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, TemporalFourier):
                setattr(parent, name, Official(layer))
    return made


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Products in a precision: tf32 of float32 numbers, bf16 under autocast, whose casts no graph may hold on to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    half = contextlib.nullcontext()
    if precision == "bf16":
        half = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    try:
        with half:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def parts(size: Size, device: torch.device) -> tuple[Prediction, dict[str, TrajectoryStudent]]:
    """The teacher, and the students: as published, and as the library lifts by default."""
    torch.manual_seed(0)
    net = IDDPMUNet(**size.net)
    for parameter in net.parameters():  # as made, some are zero, and half of the network would be skipped
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    teacher = Prediction(net, Cosine(), "x0", shape=net.shape).to(device).eval()
    blocks = frozenset(published_blocks(net))
    published = student_from_teacher(
        teacher,
        TIMES,
        where=lambda name, shape: name in blocks,
        once=False,
        told="output",
        activation="leaky_relu",
        init="normal",
    )
    ours = student_from_teacher(teacher, TIMES, where="mid", once=True, init="normal")
    return teacher, {"published": published.eval(), "ours": ours.eval()}


def of_diffusers(teacher: Prediction, z: Tensor) -> Callable[[], object]:
    """Eight steps by diffusers' scheduler."""
    needed("diffusers")
    from diffusers import DPMSolverMultistepScheduler

    def run() -> Tensor:
        scheduler = DPMSolverMultistepScheduler(prediction_type="sample", trained_betas=None, beta_schedule="linear")
        scheduler.set_timesteps(STEPS, device=z.device)
        x = z
        for k in scheduler.timesteps:
            x0 = teacher(x, ((k + 1) / scheduler.config.num_train_timesteps).float())
            x = scheduler.step(x0, k, x).prev_sample
        return x

    return run


def training_step(student: TrajectoryStudent, z: Tensor) -> Callable[[], object]:
    """Forward, backward and Adam."""
    made = copy.deepcopy(student).train()
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        made(z).float().square().mean().backward()
        optimizer.step()

    return step


def speeds(size: Size, device: torch.device, precision: str) -> dict[str, Any]:
    """Seconds of every call in one precision, by batch; None with the reason of what cannot be."""
    teacher, students = parts(size, device)
    found: dict[str, Any] = {}

    def note(name: str, make: Callable[[], Callable[[], object]], repeats: int = size.repeats) -> None:
        try:
            with torch.no_grad() if "training" not in name else contextlib.nullcontext():
                call = make()
                found[name] = latency(call, repeats=repeats, warmup=3)
        except (Left, ValueError, RuntimeError, ImportError) as error:
            found[name] = None
            found[f"{name}, why not"] = " ".join(str(error).split())[:300]
        print(precision, name, found[name], flush=True)

    with computing(precision, device):
        for batch in size.batches:
            z = torch.randn(batch, *teacher.shape or (), device=device)
            solver = SolverSampler(teacher, teacher.schedule, uniform(STEPS), DPMSolverPP(2))
            note(f"DPM-Solver++-{STEPS}, {batch}", lambda solver=solver, z=z: lambda: solver(z))
            note(f"DPM-Solver++-{STEPS} of diffusers, {batch}", lambda z=z: of_diffusers(teacher, z))
            for name, student in students.items():
                note(f"{name}, {batch}", lambda s=student, z=z: lambda: s.sample(z))
                note(f"{name}, all frames, {batch}", lambda s=student, z=z: lambda: s(z))
                note(f"{name}, graph, {batch}", lambda s=student, z=z: graph(s, z))
            official = with_official_layers(students["published"])
            note(f"official layers, all frames, {batch}", lambda s=official, z=z: lambda: s(z))
        note(f"training step, {batch}", lambda: training_step(students["ours"], z), max(1, size.repeats // 4))
        make = SolverSampler(teacher, teacher.schedule, uniform(16), UniPC(3))
        note(f"generation of 16 steps, {batch}", lambda: lambda: make(z), max(1, size.repeats // 4))
        if precision == "bf16" and size is FULL:
            note(f"ours, compiled, {batch}", lambda: compiled(students["ours"], z))
    return found


def graph(student: TrajectoryStudent, z: Tensor) -> Callable[[], object]:
    """The student's pass, recorded once."""
    sampler = CUDAGraphSampler(student, batch=len(z))
    return lambda: sampler.sample(z)


def compiled(student: TrajectoryStudent, z: Tensor) -> Callable[[], object]:
    made = torch.compile(copy.deepcopy(student).one_pass)
    return lambda: made(z)


# The recipe


def recipe(size: Size, data: str, quick: bool) -> Recipe:
    """`fashion-gpu`, cut to minutes."""
    known = RECIPES["fashion-gpu"]
    if quick:
        known = replace(known, net={"channels": [8, 16]}, teach_batch=16, distill_batch=16, size=16)

    def cut(config: TrainConfig, steps: int) -> TrainConfig:
        return replace(config, steps=steps, warmup=min(200, steps // 10), checkpoint_every=max(1, steps // 4))

    return replace(
        known,
        data=data,
        features_steps=size.features,
        count=size.count,
        teach=cut(known.teach, size.teach),
        distill=cut(known.distill, size.distill),
    )


def one_pass(size: Size, data: str, runs: Path, quick: bool) -> dict[str, Any]:
    """The recipe, and its student beside the teacher's solvers."""
    needed("accelerate", "torchmetrics", "lightning_utilities")
    from dsno.report.compare import compare

    made = recipe(size, data, quick)
    images = load_data(data, size=made.size)
    out, seconds = timed(lambda: made.run(runs / "fashion", printed(200), data=images))
    accelerator = None
    if torch.cuda.is_available():
        from accelerate import Accelerator

        accelerator = Accelerator()
    results = compare(
        out / "teacher",
        out / "student",
        out / "features",
        images,
        size.held_out,
        report=printed(),
        ddim=(1, 4, 8, 16),
        multistep=(4, 8),
        repeats=3,
        accelerator=accelerator,
    )
    return {"seconds": seconds, "results": [asdict(result) for result in results]}


# The whole


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """What was measured beside its bounds; what was left out makes no claim."""
    claims = []
    if (ran := numbers["tests"]) is not None:
        # All passed, some failed, none was found: anything else is pytest's own failure.
        broken = ran["code"] not in (0, 1, 5)
        claims.append(claim("tests of a GPU that failed", max(ran["failed"] + ran["error"], broken), 0, "<="))
    for precision, found in numbers["speeds"].items():
        for name, slow, fast, bound in (
            (f"DPM-Solver++-{STEPS} over one pass", f"DPM-Solver++-{STEPS}", "ours", 5),
            (f"DPM-Solver++-{STEPS} over one pass, recorded", f"DPM-Solver++-{STEPS}", "ours, graph", 5),
            ("official layers over ours, all frames", "official layers, all frames", "published, all frames", 1),
            ("kernel by kernel over recorded", "ours", "ours, graph", 1),
        ):
            for batch in numbers["batches"]:
                a, b = (found.get(f"{side}, {batch}") for side in (slow, fast))
                if a and b:
                    claims.append(claim(f"{precision}, batch {batch}: {name}", a / b, bound, ">="))
    if (made := numbers["recipe"]) is not None:
        quality = {r["name"]: r["quality"]["frechet"] for r in made["results"] if r["quality"]}
        ratio = quality["DSNO"] / quality["teacher, fine"]
        claims.append(claim("Frechet distance of one pass over the teacher's own", ratio, 1.3, "<="))
    claims.append(claim("seconds of the whole", numbers["seconds"], 480, "<="))
    return claims


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("--data", default="", help="an .npz of `images` and `labels`, or what load_data takes")
    made.add_argument("--seconds", type=float, default=460, help="what all pieces together may take")
    made.add_argument("--runs", type=Path, help="where pieces are kept; runs/gpu by default")
    made.add_argument("--device", help="cuda by default, where there is one")
    return made


def main(given: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if given is None else given
    arguments = parse(options(), given)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu" and not arguments.quick:
        arguments = parse(options(), [*given, "--quick"])
    began, quick = time.monotonic(), arguments.quick
    size, runs = SMALL if quick else FULL, runs_of(arguments, "runs/gpu")
    left: dict[str, str] = {}
    failed: list[str] = []

    def piece(name: str, seconds: float, make: Callable[[], Any]) -> Any:
        """One piece, kept; None where it was left out, with the reason in `left`."""
        path = runs / f"{name}.json"
        seconds = 0 if quick else seconds
        if not path.is_file() and time.monotonic() - began + seconds > arguments.seconds:
            left[name] = f"about {seconds:.0f} s do not fit into what is left of {arguments.seconds:.0f} s"
            return None
        try:
            return kept(path, lambda: {"seconds": (found := timed(make))[1], **found[0]})
        except (ImportError, Left) as error:
            left[name] = " ".join(str(error).split())
        except Exception as error:
            # The other pieces of these minutes are not to be lost with it.
            traceback.print_exc()
            failed.append(name)
            left[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"{name} is left out: {left[name]}", flush=True)
        return None

    numbers: dict[str, Any] = {"batches": [*size.batches], "tests": piece("tests", 60, lambda: tests(size))}
    # The recipe before the last speeds: it is the longest, and what people ask for.
    first = {"bf16": piece("bf16", 50, lambda: speeds(size, device, "bf16"))}
    data = arguments.data or ("digits" if quick else "")
    if data:
        numbers["recipe"] = piece("recipe", 240, lambda: one_pass(size, data, runs, quick))
    else:
        numbers["recipe"], left["recipe"] = None, "no --data"
    rest = {name: piece(name, 40, lambda name=name: speeds(size, device, name)) for name in PRECISIONS[:2]}
    numbers["speeds"] = {name: found for name, found in {**rest, **first}.items() if found is not None}
    numbers |= {"left_out": left, "seconds": time.monotonic() - began}
    write(
        arguments,
        "gpu",
        f"{'sizes of seconds on ' if quick else ''}{device}; medians of {size.repeats}; the recipe with {size.teach} "
        f"and {size.distill} steps and {size.count:,} trajectories, {size.held_out:,} held-out noises",
        judged(numbers),
        **numbers,
    )
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see the log")


if __name__ == "__main__":
    main()
