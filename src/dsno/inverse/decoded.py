r"""Problems of pixels for a teacher of latents.

What was measured is of an image, and a latent teacher makes $x$ with the image $\mathrm{decode}(x)$, so

$$ y = A \, \mathrm{decode}(x) + \tau n, $$

which is not linear: of it there is a pullback at every $x$, through the decoder, and no pseudo-inverse. Methods that
walk down the misfit take such a problem (constrained sampling, DPS, MPGD); those that solve a linear problem cannot.
Its gradients cost vjps of the decoder, which are counted apart from the teacher's (`Cost.gradients`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.inverse.problem import Problem, noise_of

__all__ = ["Decoded", "linearised"]

Pull = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Decoded:
    """A problem of images, stated for latents.

    Arguments:
        problem: Of the images, (B, 3, H, W) in [-1, 1].
        decode: Latents (B, *shape) to images: a `Latents`, or any differentiable function.
    """

    problem: Problem
    decode: Callable[[Tensor], Tensor]

    @property
    def noise(self) -> float:
        return noise_of(self.problem)

    def A(self, x: Tensor, /) -> Tensor:
        """$A \\, \\mathrm{decode}(x)$, (B, *shape) to (B, *measured)."""
        return self.problem.A(self.decode(x))


def linearised(problem: Problem | Decoded, x: Tensor) -> tuple[Tensor, Pull]:
    r"""$A(x)$, (B, *measured), and the pullback $v \mapsto A'(x)^\top v$: $A^\top$ of a linear problem, else through
    the decoder."""
    if not isinstance(problem, Decoded):
        return problem.A(x), problem.A_adjoint
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        image = problem.decode(leaf)

    def pull(v: Tensor) -> Tensor:
        return torch.autograd.grad(image, leaf, problem.problem.A_adjoint(v), retain_graph=True)[0]

    return problem.problem.A(image.detach()), pull
