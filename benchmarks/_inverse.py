"""Restoring where the posterior is known, and how symmetric a teacher's Jacobian is: the numbers of `inverse.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.cost import Meter, vjp
from dsno.denoise import Denoiser
from dsno.distillation.derivatives import jvp
from dsno.grids import uniform
from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.constrained import Constrained
from dsno.inverse.operators import Mask
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.inverse.run import Guidance, Run
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.teachers.closed import Gaussian

D, SEEN = 16, 8

METHODS: dict[str, Callable[[], Guidance]] = {
    **{
        f"constrained K={K}": lambda K=K: Constrained(uniform(20), inner=K, lr=(0.5, 0.1), eta=0.0)
        for K in (0, 1, 3, 5)
    },
    "constrained, eta=1": lambda: Constrained(uniform(10)),
    "dps": lambda: DPS(uniform(50)),
    "pigdm": lambda: PiGDM(uniform(50)),
    "diffpir": lambda: DiffPIR(uniform(50)),
    "replacement": lambda: Replacement(uniform(50)),
    "mpgd": lambda: MPGD(uniform(50)),
}


def gaussian_rows(draws: int) -> dict[str, Any]:
    """Every method on Gaussian data of correlated coordinates, half of them seen."""
    D64 = torch.float64
    g = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(D, D, dtype=D64, generator=g)).Q
    std = torch.linspace(0.15, 1.2, D, dtype=D64)
    C = basis * std**2 @ basis.T
    alone = Gaussian(Cosine(), torch.zeros(D, dtype=D64), std)

    def denoiser(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return alone(x_t @ basis, t) @ basis.T

    keep = torch.arange(D) < SEEN
    truth = torch.randn(1, D, dtype=D64, generator=g) * std @ basis.T
    z, seeds = noise(seed_range(0, draws), (D,), dtype=D64), seed_range(0, draws)
    rows = []
    for tau in (0.0, 0.1):
        problem = Mask(keep, noise=tau)
        y = problem.A(truth + tau * torch.randn(1, D, dtype=D64, generator=g))
        gain = torch.linalg.solve(C[keep][:, keep] + tau**2 * torch.eye(SEEN, dtype=D64), C[keep][:, ~keep]).T
        mean, spread = y[0, keep] @ gain.T, (C[~keep][:, ~keep] - gain @ C[keep][:, ~keep]).diagonal().sqrt()
        for name, make in METHODS.items():
            made = make()(denoiser, Cosine(), problem, y.expand(draws, D), z, seeds=seeds)
            hidden = made.x[:, ~keep]
            rows.append(
                {
                    "method": name,
                    "noise": tau,
                    "misfit": float(made.residual.square().mean().sqrt()) * math.sqrt(D / SEEN),
                    "spread": float((hidden.std(0) / spread).mean()),
                    "bias": float(((hidden.mean(0) - mean) / spread).square().mean().sqrt()),
                    "rounds": made.cost.rounds,
                    "rows": made.cost.rows / draws,
                    "vjps": made.cost.vjps / draws,
                }
            )
    return {"rows": rows, "contraction": contraction(denoiser, keep, truth), "draws": draws}


@torch.no_grad()
def contraction(denoiser: Denoiser, keep: Tensor, truth: Tensor, t: float = 0.4, lam: float = 0.5) -> float:
    """The largest difference of three unnormalised corrections from the identity (I - lam P J^2 P)^3 e."""
    problem = Mask(keep)
    run = Run(Meter(denoiser), Cosine(), problem, problem.A(truth))
    method = Constrained(uniform(2), inner=3, lr=(lam, lam), derivative="forward", normalised=False)
    x = noise([1], truth.shape[1:], dtype=truth.dtype)
    x0_hat = run.x0(x, t)
    _, after = method.corrected(run, x, x0_hat, t)
    eye = torch.eye(truth.shape[1], dtype=truth.dtype)
    J, P = denoiser(eye, torch.tensor(t, dtype=truth.dtype)), torch.diag(keep.to(truth))
    e = problem.A(run.y - x0_hat)
    for _ in range(3):
        e = e @ (eye - lam * P @ J @ J @ P)
    return float((problem.A(run.y - after) - e).abs().max())


def asymmetry(teacher: Any, images: Tensor) -> list[dict[str, float]]:
    r"""$|J v - J^\top v|$ over $|J v + J^\top v|$ for noise v, and the cosine of both, by time: means over images."""
    rows = []
    for t in (0.9, 0.7, 0.5, 0.3, 0.1):
        alpha_t, sigma_t = teacher.schedule.at(t)
        seeds = seed_range(0, len(images))
        z, v = (noise(seeds, images.shape[1:], stream, images.dtype, images.device) for stream in (0, 1))
        x_t = alpha_t * images + sigma_t * z
        with torch.no_grad():
            _, forward = jvp(lambda x, t=t: teacher(x, t), (x_t,), (v,))
            backward = vjp(Meter(teacher), x_t, t)[1](v)
        one, other = forward.flatten(1), backward.flatten(1)
        rows.append(
            {
                "t": t,
                "asymmetry": float(((one - other).norm(dim=1) / (one + other).norm(dim=1)).mean()),
                "cosine": float(torch.nn.functional.cosine_similarity(one, other).mean()),
            }
        )
    return rows
