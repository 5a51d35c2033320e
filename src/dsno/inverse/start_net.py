r"""The noise that a restoration starts from, as a network reads it off what was measured.

With $y_0 = A^+ y$ the shortest sample that fits, a *noise predictor* $f_w$ says of each start the mean and the variance
of the noise to add,

$$ f_w(y_0, \tau) = \mu_w(y_0, p_\tau) + e^{v_w(y_0, p_\tau) / 2} \odot z, \qquad z \sim \mathcal N(0, I), $$

so that the teacher's answer at $x_\tau = \alpha_\tau y_0 + \sigma_\tau f_w$ is the restoration. Nothing holds it to a
standard normal, since it also has to move $y_0$ to where the teacher takes it for a noisy sample. An untrained one is
that: $\mu = 0$ and $v = 0$, which is SDEdit from $y_0$ (Meng et al., 2021, arXiv 2108.01073). The network is told the
phase of $\tau$ (`dsno.schedule`), so that it means the same on every schedule.

Source: Yue, Liao & Loy, 2025 (arXiv 2412.09013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.checkpoint import build, load_model, save_model
from dsno.condition import Cond
from dsno.grids import check_grid
from dsno.inverse.tiles import Tiling
from dsno.nets.unet import Head, UNet
from dsno.schedule import Schedule

__all__ = ["PHASES", "STARTS", "NoisePredictor", "load_start", "save_start", "start_grid"]

PHASES = (0.25, 0.2, 0.15, 0.1)
r"""Where restorations start, of which training draws: the paper's 250, 200, 150 and 100 of 1000, as phases.

The paper counts the steps of Stable Diffusion's schedule, where 250 is $\sigma_t / \alpha_t = 0.70$, the phase 0.4;
here it is 0.41, so less noise is added and more is kept of $y_0$. (0.4, 0.35, 0.28, 0.22) with `most` = 0.4 begin as
the paper does.
"""

STARTS: dict[int, tuple[float, ...]] = {
    1: (0.2,),
    2: (0.2, 0.1),
    3: (0.2, 0.1, 0.05),
    4: (0.2, 0.15, 0.1, 0.05),
    5: (0.25, 0.2, 0.15, 0.1, 0.05),
}
"""The phases of each number of steps, the paper's lists in thousandths; one network serves them all."""

LEAST, MOST = -20.0, 10.0
"""Between which a log variance stays."""


class NoisePredictor(nn.Module):
    r"""$(\mu_w, v_w)$: a `UNet` from samples of C channels to 2 C, the mean of the noise and its log variance.

    Arguments:
        net: The arguments of the `UNet`.
        phases: The starts that it is trained for, in (0, 1].

    Raises:
        ValueError: for arguments that a `UNet` refuses, one that is told classes among them; no phases, or some out of
            range; when called, for samples of another shape.
    """

    def __init__(self, net: Mapping[str, Any], phases: Sequence[float] = PHASES) -> None:
        super().__init__()
        if not phases or not all(0 < p <= 1 for p in phases):
            raise ValueError(f"restorations start at phases in (0, 1], 1 is noise: got {list(phases)}")
        if net.get("classes") is not None:
            raise ValueError("a noise predictor is told what was measured, and no class: leave `classes` out")
        self.unet = build(UNet, net, "the arguments of a UNet")
        self.shape, self.phases = self.unet.shape, tuple(map(float, phases))
        held = self.unet.config
        rank = len(self.shape) - 1
        cell = self.shape[0] * held["patch"] ** rank
        # The head of a U-Net is zero at first, and so are mean and log variance.
        self.unet.head = Head(held["channels"][0], 2 * cell, rank, held["padding_mode"])
        self.config: dict[str, Any] = {"net": held, "phases": list(self.phases)}

    def forward(self, y0: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """$y_0$ (B, *shape) and the phases of the starts (B,) to mean and log variance, each (B, *shape)."""
        if y0.shape[1:] != self.shape:
            raise ValueError(f"this start was trained for samples {self.shape}, and these are {tuple(y0.shape[1:])}")
        mean, log_variance = self.unet(y0, p).chunk(2, 1)
        return mean, log_variance.clamp(LEAST, MOST)

    def noise(self, y0: Tensor, p: Tensor, z: Tensor, tiling: Tiling | None = None) -> Tensor:
        r"""$f_w(y_0, \tau) = \mu_w + e^{v_w / 2} z$, (B, *shape); with `tiling` (B, *canvas), from means and log
        variances that are blended as the answers of a tiled teacher are, and one noise for the whole canvas."""
        mean, log_variance = self(y0, p) if tiling is None else tiling.ask(self._both, y0, p).chunk(2, 1)
        return mean + (0.5 * log_variance).exp() * z

    def _both(self, y0: Tensor, p: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.cat(self(y0, p), 1)


def start_grid(schedule: Schedule, steps: int = 1, most: float = PHASES[0]) -> Tensor:
    """The grid of 1 to 5 steps that ends at t = 0: the times of `STARTS`, in which `most` stands for the phase 0.25.

    Raises:
        ValueError: for another number of steps, or a `most` outside (0, 1].
    """
    if steps not in STARTS:
        raise ValueError(f"a learned start takes 1 to {max(STARTS)} steps, got {steps}: more only lose fidelity")
    if not 0 < most <= 1:
        raise ValueError(f"the highest start is a phase in (0, 1], got {most:g}")
    phases = torch.tensor(STARTS[steps], dtype=torch.float64) * (most / PHASES[0])
    return check_grid(torch.cat([schedule.from_phase(phases), torch.zeros(1, dtype=torch.float64)]))


def save_start(folder: Path | str, net: NoisePredictor, **notes: object) -> Path:
    """Write `config.json`, sealed, and `model.safetensors`; `notes` go into the former.

    Raises:
        FileExistsError: if the folder holds a model of another type.
    """
    return save_model(folder, {"type": "start", **net.config, "notes": notes}, net)


def load_start(folder: Path | str, unchecked: bool = False) -> NoisePredictor:
    """Read what `save_start` wrote; `unchecked`, also what was changed since.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights, or was changed since it was
            written.
    """

    def make(config: dict[str, Any]) -> tuple[NoisePredictor, NoisePredictor]:
        made = build(_make, config, "the configuration of a start")
        return made, made

    return load_model(folder, "start", make, unchecked).eval().requires_grad_(False)


def _make(net: dict[str, Any], phases: tuple[float, ...]) -> NoisePredictor:
    return NoisePredictor(net, phases)
