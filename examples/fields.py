r"""Two-dimensional physical fields: periodic, Gaussian, with a power-law spectrum, so that every answer is known.

A field on a 32 x 32 torus is white noise shaped in Fourier space, with power

$$ P(k) \propto \big( 1 + |k|^2 / k_0^2 \big)^{-\nu - 1}, \qquad k_0 = 4, \; \nu = \tfrac12, $$

a Matérn field with mean 0 and variance 1. Its exact denoiser is diagonal in Fourier space,

$$ \hat D(k) = \frac{\alpha_t P}{\alpha_t^2 P + \sigma_t^2} \, \hat x_t(k), $$

and so is the solution of its probability-flow ODE. Two students are compared: one learns from a U-Net trained on fields
alone, the other from the formula, which serves as a teacher because any callable does.

    python examples/fields.py            # about five minutes on one core; run again to go on
    python examples/fields.py --quick    # seconds: shows that it runs, not what it learns
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from dsno import OnePass, Prediction, Schedule, SolverSampler, UniPC, distill, student_from_teacher
from dsno.data.load import load_data
from dsno.denoise import expand_like
from dsno.grids import quadratic
from dsno.nets.unet import UNet
from dsno.runs.teach import teach
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.solvers.run import initial_state
from dsno.train import TrainConfig
from dsno.trajectories.store import store

SIZE = 32
_k = torch.fft.fftfreq(SIZE, 1 / SIZE, dtype=torch.float64)
WAVENUMBER = (_k[:, None] ** 2 + _k**2).sqrt()
POWER = (1 + (WAVENUMBER / 4) ** 2) ** -1.5
POWER /= POWER.mean()


def shaped(x: Tensor, gain: Tensor) -> Tensor:
    """Multiply every Fourier mode of periodic fields (..., H, W) by a real gain."""
    return torch.fft.ifft2(gain * torch.fft.fft2(x)).real


class ExactDenoiser:
    """The denoiser of the fields, in closed form: called like any other."""

    def __init__(self, schedule: Schedule, power: Tensor) -> None:
        self.schedule, self.power = schedule, power

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha_t, sigma_t = (expand_like(c, x_t) for c in self.schedule(t))
        P = self.power.to(x_t)
        return shaped(x_t, alpha_t * P / (alpha_t**2 * P + sigma_t**2))

    def solution(self, z: Tensor) -> Tensor:
        """The probability-flow ODE solved exactly from noise."""
        (alpha_1, sigma_1), P = self.schedule.at(1.0), self.power.to(z)
        return shaped(initial_state(self.schedule, z), (P / (alpha_1**2 * P + sigma_1**2)).sqrt())


def radial(power: Tensor) -> Tensor:
    """The average over rings |k| = 0, 1, ..., SIZE / 2 of (..., SIZE, SIZE)."""
    ring = WAVENUMBER.round().long().flatten()
    total = torch.zeros(int(ring.max()) + 1, dtype=torch.float64)
    mean = total.index_add(0, ring, power.flatten()) / torch.bincount(ring)
    return mean[: SIZE // 2 + 1]


def spectrum(x: Tensor) -> Tensor:
    """The radially averaged power of fields (N, 1, SIZE, SIZE)."""
    return radial(torch.fft.fft2(x.double(), norm="ortho").abs().square().mean((0, 1)))


def main(quick: bool = False, out: Path | None = None) -> dict[str, float]:
    """Learn random fields.

    Args:
        quick: Take seconds.
        out: Folder for everything.

    Returns:
        The relative error of the power spectrum of each set, averaged over wavenumbers.
    """
    out = out or Path("runs/examples") / ("fields-quick" if quick else "fields")
    out.mkdir(parents=True, exist_ok=True)
    count, teach_steps, trajectories, distill_steps = (128, 4, 64, 4) if quick else (8192, 1200, 4096, 500)

    def report(stage: str, done: int, total: int, text: str) -> None:
        if done % max(total // 10, 1) == 0:
            print(f"{stage} {done}/{total} {text}", flush=True)

    white = noise(seed_range(0, count), (1, SIZE, SIZE), dtype=torch.float64)
    np.save(out / "fields.npy", shaped(white, POWER.sqrt())[:, 0].float().numpy())
    data = load_data(out / "fields.npy", channels="none")

    # Periodic fields: the convolutions wrap around. Patches of 2 x 2 make the network four times cheaper.
    shape = {"attention": (), "patch": 2, "padding_mode": "circular"}
    channels, schedule = (16, 32), Cosine()
    config = TrainConfig(steps=teach_steps, lr=2e-3, checkpoint_every=100)
    trained = teach(data, out / "teacher", channels, config, 32, schedule=schedule, resume=True, report=report, **shape)
    exact = ExactDenoiser(schedule, POWER)

    times, students = quadratic(4)[1:], {}
    config = TrainConfig(steps=distill_steps, lr=2e-3, checkpoint_every=100)
    # A formula has no weights to start from: its student is a network of the same kind, untrained.
    torch.manual_seed(0)
    fresh = Prediction(UNet(1, SIZE, channels, **shape), schedule, "v")
    for name, teacher, start in (("U-Net", trained, trained), ("formula", exact, fresh)):
        folder = out / name.lower()
        sampler = SolverSampler(teacher, schedule, quadratic(16), UniPC(3), keep=quadratic(4))
        paths = store(sampler, data.shape, folder / "trajectories", trajectories, resume=True)
        student = student_from_teacher(start, times)
        students[name] = distill(
            None,
            paths,
            folder / "student",
            config=config,
            batch=32,
            student=student,
            resume=True,
            report=report,
            weights="snr100",
            distance="l2",
            others=0.25,
        )

    z = noise(seed_range(10**6, 64 if quick else 2048), data.shape)
    solver = SolverSampler(trained, schedule, quadratic(16), UniPC(3))
    sets = {
        "data": shaped(noise(seed_range(2 * 10**6, len(z)), data.shape, dtype=torch.float64), POWER.sqrt()),
        "formula, exact solution": exact.solution(z),
        "U-Net, 16 calls": torch.cat([solver(part).sample for part in z.split(256)]),
        "student of U-Net, 1 call": OnePass(students["U-Net"])(z).sample,
        "student of formula, 1 call": OnePass(students["formula"])(z).sample,
    }
    truth, spectra = radial(POWER), {name: spectrum(x) for name, x in sets.items()}
    errors = {name: float((s / truth - 1).abs().mean()) for name, s in spectra.items()}
    for name, error in errors.items():
        apart = float((sets[name] - sets["formula, exact solution"]).square().mean().sqrt())
        same = "" if name == "data" else f", {apart:.3f} (RMS) from the exact solution of the same noise"
        print(f"{name}: relative error of the spectrum {error:.3f}{same}")
    draw(sets, spectra, truth).savefig(out / "fields.png", dpi=150)
    print(f"picture: {out / 'fields.png'}")
    return errors


def draw(sets: dict[str, Tensor], spectra: dict[str, Tensor], truth: Tensor) -> Figure:
    """Three fields of each set (all but the data from the same noises) above the spectra."""
    figure = Figure(figsize=(13, 11), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.45, 1))
    axes = above.subplots(3, len(sets))
    for column, (name, x) in enumerate(sets.items()):
        for row in range(3):
            axes[row, column].imshow(x[row, 0].numpy(), cmap="RdBu_r", vmin=-3, vmax=3)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(name, fontsize=10)
    left, right = below.subplots(1, 2)
    k, styles = np.arange(len(truth)), ("-", "-", "-", "--", "--")
    colours = ("tab:gray", "tab:green", "tab:blue", "tab:orange", "tab:red")
    left.loglog(k[1:], truth[1:].numpy(), "k", lw=4, alpha=0.3, label="exact")
    for (name, power), colour, style in zip(spectra.items(), colours, styles, strict=True):
        left.loglog(k[1:], power[1:].numpy(), style, color=colour, label=name)
        right.plot(k, (power / truth).numpy(), style, color=colour)
    left.set(xlabel="wavenumber", title="power, averaged over rings")
    left.legend()
    right.axhline(1, color="k", lw=4, alpha=0.3)
    right.set(xlabel="wavenumber", title="power / exact power", ylim=(0.5, 1.5))
    return figure


if __name__ == "__main__":
    tyro.cli(main)
