"""What sampling produces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsno.denoise import Cond

__all__ = ["Trajectory"]


@dataclass(frozen=True)
class Trajectory:
    r"""States along the probability-flow ODE (or a stochastic chain), noise first, sample last.

    Attributes:
        x: States, shape (B, T, *shape).
        t: Their times, shape (T,), decreasing float64 on the host.
        x0: The denoiser's $\hat x_0(x_t, t)$ at each kept state, shape (B, T, *shape), where it was asked for; at
            $\sigma_t = 0$ it is the state itself.
        cond: The condition, one tensor or several by name, first dimension B; or None.
        seeds: The seeds of the initial noise, shape (B,), or None.
        nfe: Network evaluations per sample (the total cost).
        rounds: Serial network calls (the latency).
    """

    x: Tensor
    t: Tensor
    x0: Tensor | None = None
    cond: Cond | None = None
    seeds: Tensor | None = None
    nfe: int = 0
    rounds: int = 0

    @property
    def noise(self) -> Tensor:
        """The first state, shape (B, *shape)."""
        return self.x[:, 0]

    @property
    def sample(self) -> Tensor:
        """The last state, shape (B, *shape)."""
        return self.x[:, -1]
