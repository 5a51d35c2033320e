r"""Linear inverse problems: what was measured of a sample, and how well that is known.

$$ y = A x + \tau n, \qquad n \sim \mathcal N(0, I), $$

with $A$ a mask, a blur, a loss of resolution or of colour. Nothing else is asked of a problem than $A$, its adjoint
$A^\top$ and $\tau$; a matrix is never made. A sample $x \sim \mathcal N(z, r^2 I)$ of which $y$ was measured has the
mean

$$ \mathbb E[x \mid y] = \arg\min_x \frac{|A x - y|^2}{\tau^2} + \frac{|x - z|^2}{r^2}
   = z + r^2 A^\top (r^2 A A^\top + \tau^2 I)^{-1} (y - A z), $$

which is the proximal map of $\gamma / 2 \, |A x - y|^2$ with $\gamma = r^2 / \tau^2$, and without noise the projection
$z + A^+ (y - A z)$ onto what fits. Every posterior step in this room that solves a problem is this one function
(`posterior_mean`): in closed form where the problem has one, else by conjugate gradients.

The methods are called as in `deepinv.physics.LinearPhysics`, whose objects are problems as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dsno.seeds import noise

__all__ = ["Dagger", "Problem", "Prox", "check_problem", "conjugate_gradients", "noise_of", "posterior_mean"]


@runtime_checkable
class Problem(Protocol):
    r"""$y = A x + \tau n$ with $A$ linear. Samples lie in $[-1, 1]$.

    `noise` is $\tau \ge 0$ in the units of the samples; of a deepinv problem, which has no such attribute, it is
    `noise_model.sigma` (`noise_of`).
    """

    def A(self, x: Tensor, /) -> Tensor:
        """What is measured of samples, (B, *shape) to (B, *measured)."""

    def A_adjoint(self, y: Tensor, /) -> Tensor:
        """$A^\\top y$, (B, *measured) to (B, *shape)."""


@runtime_checkable
class Dagger(Problem, Protocol):
    """A problem that knows its pseudo-inverse."""

    def A_dagger(self, y: Tensor, /) -> Tensor:
        """$A^+ y$, the shortest of the samples that fit best, (B, *measured) to (B, *shape)."""


@runtime_checkable
class Prox(Problem, Protocol):
    """A problem that knows its proximal map."""

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, /) -> Tensor:
        r"""$\arg\min_x \tfrac\gamma2 |A x - y|^2 + \tfrac12 |x - z|^2$, of the shape of `z` (B, *shape)."""


def noise_of(problem: object) -> float:
    r"""$\tau$, the standard deviation of what is measured: `noise`, or deepinv's `noise_model.sigma`; else 0.

    Raises:
        ValueError: if it is no finite number of 0 or more.
    """
    model = getattr(problem, "noise_model", None)  # of deepinv, where `noise` is a method
    given = getattr(problem, "noise", 0.0) if model is None else getattr(model, "sigma", 0.0)
    tau = float(given)
    if not 0 <= tau < math.inf:
        raise ValueError(f"the noise of a problem is a standard deviation of 0 or more, got {tau:g}")
    # The square of a smaller one is 0.
    return tau if tau > 1e-150 else 0.0


def check_problem(
    problem: Problem,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rows: int = 2,
) -> tuple[int, ...]:
    r"""The shape of what is measured of a sample of `shape`, if $A^\top$ is the adjoint of $A$ and its noise is one.

    The dot test: $\langle A x, y \rangle = \langle x, A^\top y \rangle$ for noise x and y, to within the rounding of
    `dtype`. Where there is a proximal map, it must be a minimum to within a hundredth: the slope there is
    $x - z - A^\top (y - A x)$. Of a batch of `rows`, which a problem that is another for each row needs to be its own.

    Raises:
        ValueError: if the problem is not one of samples of this shape, its adjoint fails the dot test, its `prox_l2` is
            no minimum, or the noise is negative.
    """
    noise_of(problem)
    name = type(problem).__name__
    x = noise(range(rows), shape, 0, dtype, device)
    try:
        Ax = problem.A(x)
        y = noise(range(rows), Ax.shape[1:], 1, dtype, device)
        adjoint = problem.A_adjoint(y)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"{name} does not measure samples of shape {tuple(shape)}: state the problem for what "
            f"the teacher makes, or, where that are latents, as Decoded(problem, latents) ({error})"
        ) from None
    if len(Ax) != len(x) or adjoint.shape != x.shape:
        raise ValueError(
            f"the adjoint of {name} makes {tuple(adjoint.shape)} of what is measured of "
            f"{tuple(x.shape)}: expected the same shape"
        )
    one, other = (Ax * y).flatten(1).sum(1).double(), (x * adjoint).flatten(1).sum(1).double()
    scale = Ax.flatten(1).double().norm(dim=1) * y.flatten(1).double().norm(dim=1)
    scale = torch.maximum(scale, x.flatten(1).double().norm(dim=1) * adjoint.flatten(1).double().norm(dim=1))
    gap = float(((one - other).abs() / scale.clamp_min(torch.finfo(torch.float64).tiny)).max())
    if not gap <= torch.finfo(dtype).eps ** 0.5:
        raise ValueError(
            f"the adjoint of {name} is none: <A x, y> and <x, A_adjoint y> differ by {gap:.2g} of "
            "their size; is A linear, and A_adjoint its transpose?"
        )
    if isinstance(problem, Prox):
        nearest = problem.prox_l2(x, y, 1.0)
        slope = nearest - x - problem.A_adjoint(y - problem.A(nearest))
        if not float(slope.norm()) <= 1e-2 * float(x.norm() + adjoint.norm()):
            raise ValueError(
                f"prox_l2 of {name} is not the minimum it says: leave it out, or state the problem as "
                f"Function(problem.A, {tuple(shape)}), whose solves need none"
            )
    return tuple(Ax.shape[1:])


def posterior_mean(problem: Problem, z: Tensor, y: Tensor, variance: float) -> Tensor:
    r"""$\mathbb E[x \mid y]$ of $x \sim \mathcal N(z, r^2 I)$, the formula above, of the shape of `z` (B, *shape).

    Arguments:
        problem: $A$ and $\tau$.
        z: (B, *shape).
        y: What was measured, (B, *measured).
        variance: $r^2 \ge 0$; where it is infinite what was measured is met exactly, as it is without noise, whatever
            $r^2$ is.
    """
    tau = noise_of(problem)
    exact = tau == 0 or variance == math.inf
    if variance == 0 and not exact:
        return z
    if exact and isinstance(problem, Dagger):
        return z + problem.A_dagger(y - problem.A(z))
    if not exact and isinstance(problem, Prox):
        return problem.prox_l2(z, y, variance / tau**2)
    return z + conjugate_gradients(problem, problem.A_adjoint(y - problem.A(z)), 0.0 if exact else tau**2 / variance)


def conjugate_gradients(problem: Problem, b: Tensor, ridge: float = 0.0, steps: int = 50) -> Tensor:
    r"""$(A^\top A + \delta I)^{-1} b$ with a `ridge` $\delta \ge 0$, of the shape of `b` (B, *shape); without one the
    shortest solution, for b in the range of $A^\top$.

    A fixed number of steps, and each row its own, so that nothing is read back from the device; a row that has arrived
    stays where it is.

    Source: Hestenes & Stiefel, 1952.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).reshape(-1, *[1] * (u.ndim - 1))

    def apply(v: Tensor) -> Tensor:
        return problem.A_adjoint(problem.A(v)) + ridge * v

    x, r = torch.zeros_like(b), b
    p, rr = r, dot(r, r)
    least = rr * torch.finfo(b.dtype).eps ** 2
    for _ in range(steps):
        q = apply(p)
        going = rr > least
        step = torch.where(going, rr / torch.where(going, dot(p, q), 1.0), 0.0)
        x, r = x + step * p, r - step * q
        before, rr = rr, dot(r, r)
        p = r + torch.where(going, rr / torch.where(going, before, 1.0), 0.0) * p
    return x
