r"""One-dimensional signals, end to end: data, teacher, trajectories, one-pass student, and statistics that are known.

A signal is a sum of two damped oscillations, in volts, on 64 instants of a unit interval,

$$ x(\tau) = \sum_{k=1}^{2} a_k e^{-\gamma_k \tau} \cos(2 \pi f_k \tau + \varphi_k), $$

with amplitude, damping and frequency uniform in an interval and the phase uniform on the circle. It is not Gaussian,
but its covariance is a formula: with $s = \tau + \tau'$ and $d = \tau - \tau'$,

$$ C(\tau, \tau') = \sum_k \tfrac12 \mathbb E[a_k^2] \; \mathbb E[e^{-\gamma_k s}] \; \mathbb E[\cos 2 \pi f_k d]. $$

    python examples/signals.py            # about five minutes on one core; run again to go on
    python examples/signals.py --quick    # seconds: shows that it runs, not what it learns
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from dsno import OnePass, SolverSampler, UniPC, distill
from dsno.data.load import load_data
from dsno.grids import quadratic
from dsno.runs.teach import teach
from dsno.seeds import noise, seed_range
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate

LENGTH = 64
TAU = np.arange(LENGTH) / LENGTH
AMPLITUDE, DAMPING, FREQUENCIES = (3.0, 7.0), (1.0, 4.0), ((2.0, 5.0), (8.0, 12.0))


def signals(count: int, seed: int = 0) -> np.ndarray:
    """Draw signals in volts, (count, LENGTH)."""
    rng = np.random.default_rng(seed)
    x = np.zeros((count, LENGTH))
    for band in FREQUENCIES:
        a, gamma, f = (rng.uniform(*interval, (count, 1)) for interval in (AMPLITUDE, DAMPING, band))
        x += a * np.exp(-gamma * TAU) * np.cos(2 * np.pi * (f * TAU + rng.random((count, 1))))
    return x


def covariance() -> np.ndarray:
    """The exact covariance of the signals, (LENGTH, LENGTH) in square volts."""
    s, d = TAU[:, None] + TAU, TAU[:, None] - TAU
    (a0, a1), (g0, g1) = AMPLITUDE, DAMPING
    decay = np.divide(np.exp(-g0 * s) - np.exp(-g1 * s), (g1 - g0) * s, out=np.ones_like(s), where=s > 0)
    # np.sinc(u) = sin(pi u) / (pi u), so the mean cosine over a band is a difference of two, each by its edge.
    waves = [(f1 * np.sinc(2 * f1 * d) - f0 * np.sinc(2 * f0 * d)) / (f1 - f0) for f0, f1 in FREQUENCIES]
    return (a0**2 + a0 * a1 + a1**2) / 6 * decay * sum(waves)


def spectrum(cov: np.ndarray) -> np.ndarray:
    """The mean power of each frequency 0, ..., LENGTH / 2, from a covariance."""
    table = np.fft.rfft(np.eye(LENGTH), norm="ortho")
    return np.einsum("sk,st,tk->k", table.conj(), cov, table).real


def main(quick: bool = False, out: Path | None = None) -> dict[str, float]:
    """Learn damped oscillations.

    Args:
        quick: Take seconds.
        out: Folder for everything.

    Returns:
        The relative error of the covariance of each set, in the Frobenius norm.
    """
    out = out or Path("runs/examples") / ("signals-quick" if quick else "signals")
    out.mkdir(parents=True, exist_ok=True)
    count, teach_steps, trajectories, distill_steps = (256, 8, 128, 8) if quick else (20_000, 2000, 8192, 1500)

    def report(stage: str, done: int, total: int, text: str) -> None:
        if done % max(total // 10, 1) == 0:
            print(f"{stage} {done}/{total} {text}", flush=True)

    # Data in their own units; scale="std" remembers the way back.
    np.save(out / "signals.npy", signals(count))
    data = load_data(out / "signals.npy", channels="none", scale="std")
    config = TrainConfig(steps=teach_steps, lr=2e-3, checkpoint_every=500)
    teacher = teach(
        data, out / "teacher", (24, 48, 48), config, 64, attention=(2,), patch=2, resume=True, report=report
    )

    times = quadratic(4)[1:]
    paths = generate(teacher, out / "trajectories", trajectories, times=times, steps=16, resume=True, report=report)
    config = TrainConfig(steps=distill_steps, lr=2e-3, checkpoint_every=500)
    student = distill(
        teacher,
        paths,
        out / "student",
        config=config,
        batch=64,
        resume=True,
        report=report,
        weights="snr100",
        others=0.25,
    )

    # Noises neither has seen, and the same for both.
    z = noise(seed_range(10**6, 64 if quick else 8192), data.shape)
    solver = SolverSampler(teacher, teacher.schedule, quadratic(16), UniPC(3))
    sets: dict[str, Tensor] = {
        "data": torch.from_numpy(signals(len(z), seed=1))[:, None],
        "teacher, 16 calls": torch.cat([data.restore(solver(part).sample) for part in z.split(1024)]),
        "student, 1 call": data.restore(OnePass(student)(z).sample),
    }
    measured = {name: np.cov(x[:, 0].double().numpy().T) for name, x in sets.items()}
    exact = covariance()
    errors = {name: float(np.linalg.norm(c - exact) / np.linalg.norm(exact)) for name, c in measured.items()}
    for name, error in errors.items():
        print(f"{name}: relative error of the covariance {error:.3f}")
    apart = float((sets["student, 1 call"] - sets["teacher, 16 calls"]).square().mean().sqrt())
    print(f"student and teacher from the same noise: {apart:.2f} V apart (RMS) of {float(data.units.scale[0]):.2f} V")
    draw(sets, measured, exact).savefig(out / "signals.png", dpi=150)
    print(f"picture: {out / 'signals.png'}")
    return errors


def draw(sets: dict[str, Tensor], measured: dict[str, np.ndarray], exact: np.ndarray) -> Figure:
    """Signals, and what they have in common."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    signals_side, statistics_side = figure.subfigures(1, 2, width_ratios=(1.4, 1))
    (data, teacher, student), colours = sets, ("tab:gray", "tab:blue", "tab:orange")
    axes = signals_side.subplots(4, 2, sharex=True, sharey=True)
    for row in range(4):
        for column, name, colour, style in (
            (0, data, colours[0], "-"),
            (1, teacher, colours[1], "-"),
            (1, student, colours[2], "--"),
        ):
            axes[row, column].plot(TAU, sets[name][row, 0].numpy(), style, color=colour)
    axes[0, 0].set_title("data")
    axes[0, 1].set_title("teacher and student, same noise")
    signals_side.supxlabel("time", fontsize="medium")
    signals_side.supylabel("V", fontsize="medium")
    top, bottom = statistics_side.subplots(2, 1)
    for panel, x, curve in (
        (top, TAU, lambda cov: np.sqrt(np.diag(cov))),
        (bottom, np.arange(LENGTH // 2 + 1), spectrum),
    ):
        panel.plot(x, curve(exact), "k", lw=4, alpha=0.3, label="exact")
        for (name, cov), colour in zip(measured.items(), colours, strict=True):
            panel.plot(x, curve(cov), "--" if name == student else "-", color=colour, lw=1.2, label=name)
    top.set(title="RMS over signals", xlabel="time", ylabel="V")
    top.legend()
    bottom.set(title="mean power spectrum", xlabel="periods", ylabel="V$^2$", yscale="log")
    return figure


if __name__ == "__main__":
    tyro.cli(main)
