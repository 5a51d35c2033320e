r"""A trained network as the denoiser of a bridge: what it predicts, and how that is read.

$F$ is the network's output and $\hat x_0 = p \, x_t + e \, x_T + q F(s \, x_t, t, x_T)$; its target in training is what
this makes of $x_0$ itself:

| kind | target of $F$ | $s$ | $p$ | $e$ | $q$ |
|---|---|---|---|---|---|
| `x0` | $x_0$ | 1 | 0 | 0 | 1 |
| `flow` | $x_T - x_0$, the velocity of the straight path | 1 | 0 | 1 | -1 |
| `i2sb` | $(x_t / \alpha_t - x_0) / \rho_t$, the drift back | 1 | $1 / \alpha_t$ | 0 | $-\rho_t$ |
| `ddbm` | what no linear guess knows | $1 / n_t$ | $(b \sigma_0^2 + a \sigma_{0T}) / n_t^2$ | 0 | $w_t / n_t$ |

$$ n_t^2 = a^2 \sigma_T^2 + b^2 \sigma_0^2 + 2 a b \, \sigma_{0T} + c^2, \qquad
   w_t^2 = a^2 (\sigma_T^2 \sigma_0^2 - \sigma_{0T}^2) + c^2 \sigma_0^2, $$

with the variances of both ends and their covariance: $n_t$ is the deviation of $x_t$, $p \, x_t$ the best linear guess
of $x_0$ and $w_t / n_t$ the deviation of what it leaves.

Source: Liu et al., 2023 (arXiv 2302.05872), eq. 12; Zhou et al., 2023 (arXiv 2309.16948).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dsno.bridge.coefficients import Bridge
from dsno.condition import Cond
from dsno.denoise import each_row, expand_like

__all__ = ["BridgeKind", "BridgePrediction", "Moments", "reading"]

BridgeKind = Literal["x0", "flow", "i2sb", "ddbm"]
"""What the network of a bridge predicts."""

Moments = tuple[float, float, float]
r"""$(\sigma_0, \sigma_T, \sigma_{0T})$: the deviations of clean and degraded samples, and their covariance."""


def reading(bridge: Bridge, kind: BridgeKind, t: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""$(s, p, e, q)$ above, of the shape of `t`.

    Raises:
        ValueError: for an unknown kind.
    """
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    if kind == "x0":
        return one, zero, zero, one
    if kind == "flow":
        return one, zero, one, -one
    if kind == "i2sb":
        alpha_t, r, _ = bridge.levels(t)
        return one, 1 / alpha_t, zero, -bridge.end * r
    if kind == "ddbm":
        (a, b, c), (sigma_0, sigma_T, sigma_0T) = bridge(t), moments
        n = (a**2 * sigma_T**2 + b**2 * sigma_0**2 + 2 * a * b * sigma_0T + c**2).sqrt()
        w = (a**2 * (sigma_T**2 * sigma_0**2 - sigma_0T**2) + c**2 * sigma_0**2).sqrt()
        return 1 / n, (b * sigma_0**2 + a * sigma_0T) / n**2, zero, w / n
    raise ValueError(f"unknown prediction kind {kind!r} of a bridge: expected one of {', '.join(get_args(BridgeKind))}")


class BridgePrediction(nn.Module):
    r"""A network with a stated convention as a bridge's denoiser, called as `(x_t, t, {"start": x_T, ...})`.

    Arguments:
        net: Called as `net(s x_t, t, cond)` with t (B,); returns shape (B, *shape).
        bridge: The bridge it was trained on.
        kind: What the network predicts.
        moments: Of the pairs; the kind `ddbm` reads them.
        clip: Bound on $|\hat x_0|$, or None.
        shape: The shape of one sample, where it is known.

    Raises:
        ValueError: for an unknown kind, moments that are none, or when called without `start`.
    """

    def __init__(
        self,
        net: nn.Module,
        bridge: Bridge,
        kind: BridgeKind = "ddbm",
        moments: Sequence[float] = (0.5, 0.5, 0.125),
        clip: float | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        sigma_0, sigma_T, sigma_0T = moments
        if not (sigma_0 > 0 and sigma_T > 0 and abs(sigma_0T) < sigma_0 * sigma_T):
            raise ValueError(
                "the moments of pairs are two positive deviations and a covariance below their product, "
                f"got {tuple(moments)}"
            )
        if kind not in get_args(BridgeKind):
            reading(bridge, kind, torch.ones(()), (sigma_0, sigma_T, sigma_0T))
        self.net, self.bridge, self.kind, self.clip = net, bridge, kind, clip
        self.moments: Moments = (float(sigma_0), float(sigma_T), float(sigma_0T))
        self.shape = None if shape is None else tuple(shape)

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        if cond is None or isinstance(cond, Tensor) or "start" not in cond:
            raise ValueError(
                'a bridge is told where it comes from, cond={"start": x_T}: sample it with BridgeSampler, which does'
            )
        # Of one time of all rows the coefficients are numbers, in float64 of the host.
        time = torch.tensor(t, dtype=torch.float64, device="cpu") if isinstance(t, float) else each_row(t, x_t)
        found = reading(self.bridge, self.kind, time, self.moments)
        s, p, e, q = (float(c) if isinstance(t, float) else expand_like(c, x_t) for c in found)
        F = self.net(s * x_t, each_row(t, x_t), cond)
        x0_hat = p * x_t + e * cond["start"] + q * F
        return x0_hat if self.clip is None else x0_hat.clamp(-self.clip, self.clip)
