r"""Score identity distillation: one pass that is held against the teacher's distribution, with no data (SiD).

Matching (`dsno.distillation.matching`) descends the divergence as if the two denoisers did not depend on the sample.
With the sample $x = G(z)$ noised to $x_t = \alpha_t x + \sigma_t \epsilon$, the teacher $D$ and the denoiser $D_G$ of
the student's own samples, the loss here keeps that dependence: gradients reach the student through $D(x_t, t)$ and
$D_G(x_t, t)$, too,

$$ L = \mathbb E \Big[ w \, \big\{ (1 - a) \, \| D - D_G \|^2 + (D - D_G) \cdot (D_G - x) \big\} \Big], \qquad
   w = \frac{1}{S \sin\theta_t}, $$

with $S$ and $\theta_t$ of `dsno.distillation.matching`; w passes no gradient. For the exact $D_G$

$$ \mathbb E [ (D - D_G) \cdot (D_G - x) ] = 0, \qquad
   \mathbb E \| D - D_G \|^2 = \mathbb E [ (D - D_G) \cdot (D - x) ], $$

the score identities: both sides of the second are the Fisher divergence of the two laws, and L is their mixture
$L = w \, \{ (D - D_G) \cdot (D - x) - a \, \| D - D_G \|^2 \}$, which does without the derivative of $D_G$ in the
student's weights that nobody knows. With a = 0 and no gradient through D and $D_G$ it is matching.

As there, $D_G$ starts as the teacher's copy and learns beside the student by denoising its samples, `pace` times as
fast. The rates decide: the student's too high, or $D_G$ too slow to follow, and the distance rises again.

Source: Zhou et al., 2024 (arXiv 2404.04057), algorithm 1. The weight there is each sample's own; why it is
one of a batch here says `dsno.distillation.matching`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.condition import Cond
from dsno.denoise import Denoiser, Prediction, expand_like, still
from dsno.distillation.denoising import noised
from dsno.distillation.matching import Paced, Starts, at_levels, check_levels, made_by, one_ended, student_denoiser
from dsno.distillation.stages import Given, Stage
from dsno.engine import mean_of_all, share_of
from dsno.nets.backbone import Backbone, own_null
from dsno.schedule import Schedule
from dsno.seeds import generator
from dsno.solvers.run import initial_state
from dsno.students.flowmap import FlowMap
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student
from dsno.trajectories.labels import uniform_labels

__all__ = ["Fresh", "Identity", "IdentityOptions", "Twin", "identity"]


class Twin(nn.Module):
    """A one-pass student and the denoiser of its own samples, which answers twice: to the student, and to learn.

    Arguments:
        student: A `TrajectoryStudent`, a `FlowMap` or a `ParallelDecoder`.
        fake: $D_G$, which the twin takes over: its parameters are rescaled.
        pace: The learning rate of $D_G$ over the student's.

    Raises:
        ValueError: for a pace that is not positive.
    """

    def __init__(self, student: nn.Module, fake: nn.Module, pace: float = 1.0) -> None:
        super().__init__()
        self.student: Any = one_ended(student)
        self.fake = Paced(fake, pace)

    def forward(self, x_1: Tensor, cond: Cond | None, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The student's sample from the state x_1 of pure noise (B, *shape); that sample noised to t (B,) by eps
        (B, *shape); and what $D_G$ says of it: with a gradient to the sample alone, and to the weights of $D_G$ alone.
        """
        x = made_by(self.student, x_1, cond, 1.0, (-1,))[:, -1]
        x_t = noised(self.student.schedule, x, eps, t)
        return x, x_t, still(self.fake, x_t, t, cond), self.fake(x_t.detach(), t, cond)


class Identity:
    r"""The objective of a `Twin`: L above for the student, and $(1 + \mathrm{SNR}_t) \| D_G - [x] \|^2$ for $D_G$.

    Arguments:
        starts: The noises, with their conditions.
        teacher: $D$.
        a: How much of the Fisher divergence is taken off, in [0, 1.2].
        low: With `high`, the range of the phase of the noise levels that are compared.
        high: See `low`.

    Raises:
        ValueError: for an `a` outside [0, 1.2], or a range outside (0, 1) or without room.
    """

    def __init__(
        self, starts: Starts, teacher: Denoiser, a: float = 1.2, low: float = 0.02, high: float = 0.98
    ) -> None:
        if not 0 <= a <= 1.2:
            raise ValueError(f"a is the share of the Fisher divergence that is taken off, in [0, 1.2], got {a:g}")
        check_levels(low, high)
        self.starts, self.schedule, self.teacher = starts, starts.schedule, teacher
        self.a, self.low, self.high = a, low, high

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Noises and conditions from step `start` on, with the noise levels t and the noise eps of the comparison."""
        return at_levels(self.starts, self.low, self.high, start, rank, world)

    def __call__(self, twin: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The sum of both losses of one batch, a scalar."""
        t, cond = batch["t"], batch.get("cond")
        x, x_t, D_G, own = twin(initial_state(self.schedule, batch["noise"]), cond, t, batch["eps"])
        D = still(self.teacher, x_t, t, cond)
        alpha_t, sigma_t = (expand_like(c, x) for c in self.schedule(t))
        with torch.no_grad():
            sine = sigma_t / (alpha_t**2 + sigma_t**2).sqrt()
            w = 1 / (sine * mean_of_all(((x - D).abs() / sine).mean()))
        match = (w * ((1 - self.a) * (D - D_G).square() + (D - D_G) * (D_G - x))).mean()
        denoise = ((1 + (alpha_t / sigma_t) ** 2) * (own - x.detach()).square()).mean()
        return match + denoise


class Fresh:
    """Noises without end, each with a label drawn evenly, never the one that stands for none.

    Arguments:
        schedule: The student's.
        shape: That of a sample.
        classes: How many the student is told, or None.
        null: The label that stands for none.
        batch: Rows per step, over all processes.
        seed: With the step, determines the batch.

    Raises:
        ValueError: when drawn from, if the batch cannot be shared evenly.
    """

    def __init__(
        self,
        schedule: Schedule,
        shape: tuple[int, ...],
        classes: int | None = None,
        null: int | None = None,
        batch: int = 64,
        seed: int = 0,
    ) -> None:
        self.schedule, self.shape, self.batch, self.seed = schedule, shape, batch, seed
        self.label = uniform_labels(classes, null) if classes else None

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step)."""
        mine, step = share_of(self.batch, rank, world), start
        while True:
            z = torch.randn(self.batch, *self.shape, generator=generator(self.seed, step))
            batch: dict[str, Any] = {"noise": z[mine]}
            if self.label is not None:
                batch["cond"] = self.label(step * self.batch + torch.arange(self.batch))[mine]
            yield batch
            step += 1


@dataclass(frozen=True)
class IdentityOptions:
    """Options of `identity`."""

    a: float = 1.2
    """How much of the Fisher divergence is taken off, in [0, 1.2]: 1 leaves the score identity alone."""
    pace: float = 33.0
    """The learning rate of the denoiser of the student's samples, over the student's."""
    rate: float = 0.03
    """The student's learning rate, over the run's."""

    def student(self, teacher: Prediction, given: Given) -> Student:
        """Refuse to make one: from noise, a copy of the teacher makes no samples whose denoiser is worth anything.

        Raises:
            ValueError: always; says what to give.
        """
        raise ValueError(
            "identity goes on from a student that another method trained: give it, student=load_student(...)"
        )


def identity(student: Student, given: Given, options: IdentityOptions = IdentityOptions()) -> list[Stage]:
    """Go on with a trained student at one pass, in one stage; nothing but the teacher is needed.

    Of a student of several frames the last one is trained; the others follow as far as they share its network. A step
    costs about twice as much as one of matching.

    Raises:
        ValueError: for options that cannot be, a teacher that cannot be copied, or a student that is told a text or a
            guidance weight, which cannot be drawn.
    """
    if not isinstance(student, TrajectoryStudent | FlowMap | ParallelDecoder):
        raise ValueError(
            f"identity trains a TrajectoryStudent, FlowMap or ParallelDecoder, got a {type(student).__name__}"
        )
    fake = student_denoiser(given.denoiser)  # refuses what cannot be copied
    net = unwrapped(cast(Prediction, fake).net)
    if student.guided or (isinstance(net, Backbone) and net.tokens):
        told = "a guidance weight" if student.guided else "a text"
        raise ValueError(f"identity draws labels, and this student is told {told}: take matching, on its trajectories")
    null = own_null(cast(Prediction, fake))
    starts = Fresh(given.schedule, student.shape, student.classes, null, given.batch, given.seed)
    objective = Identity(starts, given.denoiser, options.a)

    def make(student: Student) -> tuple[Twin, Identity]:
        return Twin(student, student_denoiser(given.denoiser), options.pace), objective

    def became(student: Student) -> Student:
        if isinstance(student, ParallelDecoder):
            return student.trained_for(student.count, student.count)
        return student.trained_for("grid", 1) if isinstance(student, FlowMap) else student

    return [Stage("identity", given.steps, make, became, lr=options.rate)]
