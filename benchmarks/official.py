"""Our student against the official modules: the same network with the same weights, in one run.

    python benchmarks/official.py --official path/to/DSNO-pytorch [--threads 1 2] [--compiled]

The paper's CIFAR-10 configuration with random weights, one pass from noise to four frames.

- On the processor, a batch of two, in fp32 and in bf16. The official code runs bf16 as it was written to, under autocast with
  its Fourier layer in fp32; ours runs with all weights in bf16. Both outputs are compared with the official one in fp32.
- On a GPU, where there is one, in bf16: latency at batch 1, throughput at the batch where it stops rising.

Of ours both the whole trajectory, which is what the official code computes, and the sample alone are timed, in memory
channels last. Each ratio is the median of repeats in which the sides alternate. With one thread the time is the
process's processor time, which other programs disturb less; with more it is the wall's. `--compiled` times
torch.compile on the processor, too. Writes benchmarks/results/official.json.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _common import claim, write
from torch import Tensor, nn

from dsno import Cosine
from dsno.students.official import official_student
from dsno.students.operator import TrajectoryStudent

CONFIG = {
    "data": {"image_size": 32, "num_channels": 3},
    "model": {
        "nf": 256, "temb_dim": 1024, "ch_mult": [1, 1, 1], "num_res_blocks": 3, "attn_resolutions": [8, 16],
        "num_attn_heads": 1, "dropout": 0.2, "resamp_with_conv": False, "conditional": True, "num_classes": 0,
        "resblock_type": "biggan", "init_scale": 0.0, "logsnr_type": "inv_cos", "fourier_feature": False,
        "nonlinearity": "swish", "time_conv": True, "with_nin": False, "num_modes": 2, "pred_eps": False,
    },
}  # fmt: skip
TIMES = torch.tensor([0.5625, 0.25, 0.0625, 0.0])


def official_net(checkout: Path) -> nn.Module:
    """The official network with weights that all have a part in the result: as made, many are almost zero."""
    sys.path.insert(0, str(checkout))
    space = SimpleNamespace(**{key: SimpleNamespace(**part) for key, part in CONFIG.items()})
    net: nn.Module = importlib.import_module("models.tddpmm").TDDPMm(space)
    for name, parameter in net.named_parameters():
        fan = parameter.shape[0] if "NIN" in name or "weights1" in name else parameter[0].numel()
        std = 0.1 if parameter.ndim < 2 else fan**-0.5 * (0.5 if "weights1" in name else 1)
        nn.init.normal_(parameter, float("GroupNorm" in name and name.endswith("weight")), std)
    return net.eval().requires_grad_(False)


def medians(sides: dict[str, Callable[[], object]], clock: Callable[[], float], repeats: int) -> dict[str, Any]:
    """Seconds of each side and the ratio of the first's to each other's, medians over alternating repeats."""
    rows = []
    for side in sides.values():
        side()
    for _ in range(repeats):
        row = {}
        for name, side in sides.items():
            began = clock()
            side()
            row[name] = clock() - began
        rows.append(row)
    first = next(iter(sides))
    seconds = {name: statistics.median(row[name] for row in rows) for name in sides}
    ratios = {name: statistics.median(row[first] / row[name] for row in rows) for name in sides if name != first}
    return {"seconds": seconds, "ratios": ratios}


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.float() - expected).abs().max() / expected.abs().max())


def sides(
    net: nn.Module, student: TrajectoryStudent, x: Tensor, half: bool, compiled: str | None
) -> dict[str, Callable[[], Tensor]]:
    """The passes to compare; `half` is bf16, `compiled` a mode of torch.compile."""
    log_snr = Cosine().log_snr(TIMES).to(x.device)
    shown = x.to(torch.bfloat16 if half else torch.float32).contiguous(memory_format=torch.channels_last)

    def official() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            return net(x, log_snr)

    def whole(z: Tensor) -> Tensor:
        return student(z)

    def alone(z: Tensor) -> Tensor:
        return student(z, select=(-1,))

    made: dict[str, Callable[[], Tensor]] = {
        "official": official, "whole trajectory": lambda: whole(shown), "sample alone": lambda: alone(shown)
    }  # fmt: skip
    if compiled is not None:
        for name, run in (("whole trajectory", whole), ("sample alone", alone)):
            fast = torch.compile(run, fullgraph=True, mode=compiled)
            made[f"{name}, compiled"] = lambda fast=fast: fast(shown)  # type: ignore[misc]
    return made


def on_the_processor(net: nn.Module, threads: int, compiled: bool, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    x = torch.randn(2, 3, 32, 32)
    found: dict[str, Any] = {"threads": threads}
    expected = net(x, Cosine().log_snr(TIMES))
    for half in (False, True):
        student = official_student(net.state_dict()).to(memory_format=torch.channels_last).requires_grad_(False)
        passes = sides(net, student.bfloat16() if half else student, x, half, "default" if compiled else None)
        errors = {
            name: error(out, expected if out.shape[1] > 1 else expected[:, -1:])
            for name, out in ((name, run()) for name, run in passes.items())
        }
        if not half:
            assert max(errors.values()) < 1e-4, errors
        found["bf16" if half else "fp32"] = {"errors": errors, **medians(passes, clock, repeats)}
    return found


def on_the_gpu(net: nn.Module, repeats: int) -> dict[str, Any]:
    net = net.cuda()
    student = official_student(net.state_dict()).to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    student.requires_grad_(False)

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    found: dict[str, Any] = {}
    batch, best = 1, 0.0
    while True:
        try:
            torch.compiler.reset()
            x = torch.randn(batch, 3, 32, 32, device="cuda")
            found[str(batch)] = medians(sides(net, student, x, True, "reduce-overhead"), clock, repeats)
        except torch.OutOfMemoryError:
            break
        throughput = batch / min(found[str(batch)]["seconds"].values())
        if throughput < 1.05 * best:
            break
        batch, best = 4 * batch, throughput
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, help="a checkout of neuraloperator/DSNO-pytorch")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads to time with")
    parser.add_argument("--compiled", action="store_true", help="time torch.compile on the processor, too")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if not (arguments.official / "models" / "tddpmm.py").is_file():
        parser.error(f"{arguments.official} is no checkout of neuraloperator/DSNO-pytorch: it has no models/tddpmm.py")
    torch.manual_seed(0)
    net = official_net(arguments.official)
    claims, found = [], {}
    with torch.no_grad():
        for threads in arguments.threads:
            cpu = on_the_processor(net, threads, arguments.compiled, arguments.repeats)
            found[f"processor, threads {threads}"] = cpu
            for kind in ("fp32", "bf16"):
                claims += [
                    claim(f"official over ours, {kind}, threads {threads}, {name}", ratio, 1.3, ">=")
                    for name, ratio in cpu[kind]["ratios"].items()
                ]
            errors = cpu["bf16"]["errors"]
            claims.append(
                claim(
                    f"error of ours over official in bf16, threads {threads}",
                    errors["whole trajectory"] / errors["official"],
                    1.5,
                    "<=",
                )
            )
        if torch.cuda.is_available():
            gpu = found["gpu"] = on_the_gpu(net, arguments.repeats)
            for name in ("whole trajectory, compiled", "sample alone, compiled"):
                claims.append(claim(f"official over ours, GPU, latency, {name}", gpu["1"]["ratios"][name], 2, ">="))
                most = max(
                    int(b) / run["seconds"][name] for b, run in gpu.items()
                ) / max(int(b) / run["seconds"]["official"] for b, run in gpu.items())  # fmt: skip
                claims.append(claim(f"ours over official, GPU, highest throughput, {name}", most, 2, ">="))
    for c in claims:
        print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.3f} ({c['direction']} {c['bound']})")
    write(
        "official",
        f"medians of {arguments.repeats} alternating repeats; CIFAR-10 configuration of the paper, random weights, four "
        "frames; processor: batch 2, processor time with one thread, wall time with more; GPU: bf16, against the official "
        "code under autocast",
        claims,
        timings=found,
    )


if __name__ == "__main__":
    main()
