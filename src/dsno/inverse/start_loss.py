r"""How a start is learned: through the teacher, which stays as it is.

$$ \hat x_0 = D(\alpha_\tau y_0 + \sigma_\tau f_w(y_0, \tau), \tau), \qquad
   L = \| \hat x_0 - x_0 \|^2 + \lambda_p \, d(\hat x_0, x_0) - \lambda_a \, C(\hat x_0), $$

mean over pairs $(x_0, y)$ that the problem makes of data, and over the starts $\tau$. $D$ gets no gradient, and passes
it on to $f_w$. $d$ is a perceptual distance, $C$ a critic that learns beside it, by the hinge loss,

$$ L_C = \mathrm{mean} \, (1 - C(x_0))_+ + \mathrm{mean} \, (1 + C([\hat x_0]))_+, $$

and is listened to only after some steps, when it has something to say; $[\cdot]$ passes no gradient. It is a U-Net,
which judges every pixel (Schönfeld, Schiele & Khoreva, 2020, arXiv 2002.12655).

The squares alone lead to $\mathbb E[x_0 \mid y]$, which no predictor of this loss can be ahead of in squared error, and
which is blurred where the answer is not unique: the other two are what makes it look like data.

Source: Yue, Liao & Loy, 2025 (arXiv 2412.09013).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.condition import Cond, map_cond
from dsno.denoise import Denoiser, expand_like, still
from dsno.distillation.distances import Distance
from dsno.engine import Undivided, share_of
from dsno.inverse.decoded import Decoded
from dsno.inverse.problem import Problem, check_problem, noise_of
from dsno.inverse.start import OneJump, latents_of, pseudo_inverse
from dsno.inverse.start_net import PHASES, NoisePredictor
from dsno.nets.unet import UNet
from dsno.schedule import Schedule
from dsno.seeds import generator

__all__ = ["Inversion", "Learner", "Shares"]


@dataclass(frozen=True)
class Shares:
    """What each part of the loss weighs; 0 leaves it out, the distance and the critic with it.

    Attributes:
        l2: The squares.
        perceptual: $\\lambda_p$, where there is a distance.
        adversarial: $\\lambda_a$.
        after: The steps after which the critic is listened to; it learns from the first on.

    Raises:
        ValueError: for a negative number, or nothing to descend.
    """

    l2: float = 1.0
    perceptual: float = 2.0
    adversarial: float = 0.1
    after: int = 1000

    def __post_init__(self) -> None:
        held = (self.l2, self.perceptual, self.adversarial)
        if not all(share >= 0 for share in held) or not sum(held) > 0 or self.after < 0:
            raise ValueError(
                "the parts of a loss weigh 0 or more, one of them more than 0, and a critic is listened to after 0 or "
                f"more steps: got l2, perceptual and adversarial {held}, after={self.after}"
            )


class Learner(Undivided):
    """A noise predictor, and the critic of what comes of it.

    Arguments:
        net: $f_w$.
        critic: Called as `critic(x, t)` with x (B, *shape) and t = 0, (B,); what it says of each pixel, (B, ...). None
            where nothing is adversarial.
    """

    def __init__(self, net: NoisePredictor, critic: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.critic = net, critic

    @classmethod
    def of(cls, net: NoisePredictor, shares: Shares) -> Learner:
        """With a critic of the predictor's size, if one is to be listened to."""
        return cls(net, UNet(**net.unet.config) if shares.adversarial else None)


class Inversion:
    r"""The objective of a `Learner`, L + L_C above.

    Arguments:
        x: The data (N, *shape); images, of a decoded problem.
        problem: What is measured of them.
        teacher: $D$, in the place where the batches are; a one-pass student as a `OneJump`.
        schedule: Its schedule.
        phases: Where restorations start, drawn evenly.
        labels: What the teacher is told of each, labels (N,) or whatever it takes with first dimension N; or None.
        distance: $d$, if it is to be part of the loss.
        shares: What the parts weigh.
        batch: Samples per step, over all processes.
        seed: With the step, determines the batch, its noise and its starts.
        shape: That of the teacher's samples, where it is not the data's: of latents.

    Raises:
        ValueError: if the problem is none of these samples (`check_problem`), a decoded one has no encoder, or a
            student that starts from noise alone is to start elsewhere; if `batch` is not positive, or nothing is left
            of the loss.
    """

    def __init__(
        self,
        x: Tensor,
        problem: Problem | Decoded,
        teacher: Denoiser,
        schedule: Schedule,
        phases: Sequence[float] = PHASES,
        labels: Cond | None = None,
        distance: Distance | None = None,
        shares: Shares = Shares(),
        batch: int = 64,
        seed: int = 0,
        shape: Sequence[int] | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if isinstance(teacher, OneJump) and teacher.from_noise and set(phases) != {1.0}:
            raise ValueError(f"this student starts from noise alone, so phases=(1.0,), got {tuple(phases)}")
        if distance is None and not (shares.l2 or shares.adversarial):
            raise ValueError("a loss of its perceptual part alone needs a distance: give one, or l2 > 0")
        if isinstance(problem, Decoded):
            latents_of(problem)
        self.x, self.problem, self.teacher, self.schedule, self.labels = x, problem, teacher, schedule, labels
        self.distance, self.shares, self.batch, self.seed = distance, shares, batch, seed
        self.phases = torch.tensor(phases, dtype=torch.float64)
        self.shape = tuple(x.shape[1:] if shape is None else shape)
        self.stated = problem.problem if isinstance(problem, Decoded) else problem
        self.measured = check_problem(self.stated, x.shape[1:], x.dtype)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step).

        Raises:
            ValueError: if the batch cannot be shared evenly.
        """
        mine, step = share_of(self.batch, rank, world), start
        while True:
            g = generator(self.seed, step)
            i = torch.randint(len(self.x), (self.batch,), generator=g)[mine]
            p = self.phases[torch.randint(len(self.phases), (self.batch,), generator=g)][mine]
            n = torch.randn(self.batch, *self.measured, generator=g)[mine]
            z = torch.randn(self.batch, *self.shape, generator=g)[mine]
            t = self.schedule.from_phase(p)
            batch: dict[str, Any] = {"x": self.x[i], "n": n, "z": z, "p": p.to(self.x), "t": t.to(self.x), "step": step}
            if self.labels is not None:
                batch["cond"] = map_cond(lambda c, i=i: c[i], self.labels)
            yield batch
            step += 1

    def pairs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        r"""$x_0$ and $y_0 = A^+ (A x_0 + \tau n)$, each (B, *shape)."""
        x = batch["x"]
        with torch.no_grad():
            y0 = pseudo_inverse(self.problem, self.stated.A(x) + noise_of(self.stated) * batch["n"].to(x))
            return latents_of(self.problem).encode(x) if isinstance(self.problem, Decoded) else x, y0

    def __call__(self, learner: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The loss of one batch, a scalar."""
        assert isinstance(learner, Learner)
        x0, y0 = self.pairs(batch)
        t, shares = batch["t"], self.shares
        alpha_t, sigma_t = (expand_like(c, y0) for c in self.schedule(t))
        x_t = alpha_t * y0 + sigma_t * learner.net.noise(y0, batch["p"], batch["z"].to(y0))
        x0_hat = still(self.teacher, x_t, t, batch.get("cond"))
        loss = shares.l2 * (x0_hat - x0).square().mean()
        if self.distance is not None and shares.perceptual:
            loss = loss + shares.perceptual * self.distance(x0_hat, x0).mean()
        if learner.critic is None:
            return loss
        real, made = _said(learner.critic, torch.cat([x0, x0_hat.detach()])).chunk(2)
        loss = loss + F.relu(1 - real).mean() + F.relu(1 + made).mean()
        if batch["step"] >= shares.after:
            loss = loss - shares.adversarial * still(learner.critic, x0_hat, torch.zeros_like(t)).mean()
        return loss


def _said(critic: nn.Module, x: Tensor) -> Tensor:
    said: Tensor = critic(x, x.new_zeros(len(x)))
    return said
