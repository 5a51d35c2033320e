"""A mixture whose blocks were averaged, the exact mean of what is behind them, and a start that was trained on it."""

import functools
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from dsno.inverse.operators import Downsample
from dsno.inverse.start_loss import Inversion, Learner, Shares
from dsno.inverse.start_net import NoisePredictor
from dsno.schedule import Cosine
from dsno.teachers.closed import GaussianMixture
from dsno.train import TrainConfig, train

D, STD, TAU = 16, 0.15, 0.05
MEANS = 0.6 * torch.randn(8, 1, D, generator=torch.Generator().manual_seed(0))
TEACHER, PROBLEM = GaussianMixture(Cosine(), MEANS, STD), Downsample(4, noise=TAU)
SQUARES = Shares(perceptual=0, adversarial=0)


def measured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples (B, 1, D), and what was measured of them, (B, 1, D / 4)."""
    g = torch.Generator().manual_seed(seed)
    x = TEACHER.sample(count, g)
    return x, PROBLEM.A(x) + TAU * torch.randn(count, 1, D // 4, generator=g)


def posterior_mean_of(y: Tensor) -> Tensor:
    r"""$\mathbb E[x \mid y]$ (B, 1, D) of the mixture: of each component a Kalman gain, weighed by its evidence."""
    A = PROBLEM.A(torch.eye(D)[:, None])[:, 0].T
    S = STD**2 * A @ A.T + TAU**2 * torch.eye(D // 4)
    rest = y - MEANS[:, 0] @ A.T
    solved = torch.linalg.solve(S, rest.mT).mT
    weight = (-0.5 * (rest * solved).sum(-1)).softmax(1)
    return (weight[..., None] * (MEANS[:, 0] + STD**2 * solved @ A)).sum(1, keepdim=True)


@functools.cache
def learned() -> NoisePredictor:
    """A start by squares alone, in seconds."""
    torch.manual_seed(0)
    net = NoisePredictor({"in_channels": 1, "image_size": [D], "channels": [64], "patch": D, "attention": []})
    objective = Inversion(measured(4096, 1)[0], PROBLEM, TEACHER, Cosine(), shares=SQUARES, batch=128)
    config = TrainConfig(steps=150, lr=6e-3, warmup=20, ema=0.95, checkpoint_every=10**9, log_every=10**9)
    with tempfile.TemporaryDirectory() as folder:
        train(Learner.of(net, SQUARES), objective, config, Path(folder) / "run")
    return net
