r"""EDM's networks as backbones: the architectures of `edm` and `edm2` with what they are told of time and class.

Karras et al., 2022 (arXiv 2206.00364, table 1) put their own networks and those that others had trained into one form,

$$ D(x; \sigma) = c_{\text{skip}} \, x + c_{\text{out}} \, F(c_{\text{in}} \, x; c_{\text{noise}}), $$

with four functions of $\sigma$. Three of them are the *kind* of a prediction on its schedule (`denoise`); what is
left is $c_{\text{noise}}$, the noise label, and the sign or the half of the output that counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.checkpoint import build
from dsno.condition import Cond
from dsno.nets.edm import DhariwalUNet, SongUNet
from dsno.nets.edm2 import MagnitudeUNet
from dsno.outside import Within
from dsno.schedule import Tabulated

__all__ = ["PreconditionedUNet", "Steps", "iddpm_schedule", "iddpm_sigmas"]

Steps = Annotated[int, Within(1, 2**16)]
"""The M of a discrete model: it has a table of so many noise levels."""

_ARCHITECTURES: dict[str, type[SongUNet | DhariwalUNet | MagnitudeUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
    "MagnitudeUNet": MagnitudeUNet,
}


class PreconditionedUNet(nn.Module):
    r"""One of the architectures as a `Backbone`: told t in [0, 1] and integer labels.

    | `precond` | schedule | kind | noise label | raw output |
    |---|---|---|---|---|
    | `edm` | `VE(sigma_max)` | `edm` | $\tfrac14 \ln \sigma$ | $F$ |
    | `vp` | `VPLinear` | `eps` | $(M - 1)\, t$ | $F$ |
    | `ve` | `VE(sigma_max)` | `eps` | $\ln \tfrac12 \sigma$ | $-F$ |
    | `iddpm` | `iddpm_schedule` | `eps` | $M - 1 - j$ of the nearest level $u_j$ | the first half of $F$ |

    with $\sigma = \sigma_{\max} t$. Below its smallest level (`sigma_min`, or $u_{M-1}$) the network is told that one:
    $\ln 0$ is no number, smaller levels were hardly seen in training, and what it answers there counts for little
    ($\hat x_0 \approx x_t$).

    Arguments:
        net: Arguments of the architecture, and its name under `type`.
        precond: A row of the table.
        sigma_max: $\sigma_1$ (`edm`, `ve`).
        sigma_min: The smallest level told (`edm`, `ve`).
        steps: M (`vp`, `iddpm`).
        c_1: $C_1$ of `iddpm_sigmas`.
        c_2: $C_2$ of `iddpm_sigmas`.

    Call: `(x, t, cond)` with x (B, C, H, W), t (B,) in [0, 1] and cond (B,) integer labels, bare or under `label`; the
    label K (= `classes`) and no condition at all both mean "no class". Computes in the dtype of the weights and answers
    in that of x, (B, C, H, W).

    Raises:
        ValueError: for an unknown architecture, preconditioning or key; when called, for labels outside [0, K], of
            another dtype or shape, or where the network takes none.

    Source: Karras et al., 2022 (arXiv 2206.00364), table 1; Karras et al., 2023 (arXiv 2312.02696).
    """

    tokens: Mapping[str, tuple[int, ...]] = {}

    def __init__(
        self,
        net: Mapping[str, Any],
        precond: Literal["edm", "vp", "ve", "iddpm"] = "edm",
        sigma_max: float = 80.0,
        sigma_min: float = 0.002,
        steps: Steps = 1000,
        c_1: float = 0.001,
        c_2: float = 0.008,
    ) -> None:
        super().__init__()
        arguments = dict(net)
        kind = str(arguments.pop("type", None))
        if kind not in _ARCHITECTURES:
            raise ValueError(f"unknown architecture {kind!r}: expected one of {', '.join(_ARCHITECTURES)}")
        if precond not in ("edm", "vp", "ve", "iddpm"):
            raise ValueError(f"unknown precond {precond!r}: expected edm, vp, ve or iddpm")
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min must be positive and below sigma_max, got {sigma_min} and {sigma_max}")
        self.model: nn.Module = build(_ARCHITECTURES[kind], arguments, f"the arguments of {kind}")
        self.config: dict[str, Any] = {
            "name": "PreconditionedUNet",
            "net": dict(net),
            "precond": precond,
            "sigma_max": sigma_max,
            "sigma_min": sigma_min,
            "steps": steps,
            "c_1": c_1,
            "c_2": c_2,
        }
        self.precond, self.sigma_max, self.sigma_min, self.steps = precond, sigma_max, sigma_min, steps
        size = int(arguments["img_resolution"])
        self.shape = (int(arguments["img_channels" if kind == "MagnitudeUNet" else "in_channels"]), size, size)
        self.classes: int | None = arguments.get("label_dim") or None
        self.label_count = None if self.classes is None else self.classes + 1
        self.blocks = _ARCHITECTURES[kind].blocks
        self.embedding = tuple(f"model.{name}" for name in _ARCHITECTURES[kind].embedding)
        if precond == "iddpm":
            u = iddpm_sigmas(steps, c_1, c_2)
            half_way = (u[:-1] + u[1:]) / 2
            # Host numbers like a schedule's, not a buffer: they neither follow a cast nor belong to the weights.
            self.edges = iddpm_schedule(u).time(-2 * half_way.log()).flip(0)[1:]

    def noise_label(self, t: Tensor) -> Tensor:
        """What the architecture is told at the times `t` (B,)."""
        if self.precond == "vp":
            return (self.steps - 1) * t
        if self.precond == "iddpm":
            return torch.bucketize(t.contiguous(), self.edges.to(t)).to(t.dtype)
        sigma = (self.sigma_max * t).clamp_min(self.sigma_min)
        return sigma.log() / 4 if self.precond == "edm" else (sigma / 2).log()

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        label = self._one_hot(cond.get("label") if isinstance(cond, Mapping) else cond, x.shape[0], x.device)
        output = self.model(x.to(dtype), self.noise_label(t), label)[:, : self.shape[0]].to(x.dtype)
        return -output if self.precond == "ve" else output

    def _one_hot(self, label: Tensor | None, rows: int, device: torch.device) -> Tensor | None:
        if self.classes is None:
            if label is not None:
                raise ValueError("this network knows no classes: call it without a condition")
            return None
        if label is None:
            return torch.zeros(rows, self.classes, device=device)
        if label.shape != (rows,) or label.is_floating_point():
            raise ValueError(
                f"labels must be integers of shape ({rows},), got {label.dtype} of shape {tuple(label.shape)}"
            )
        # An accelerator is not made to wait for this; there the look-up itself stops at a label out of range.
        if label.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = label[(label < 0) | (label > self.classes)]
            if len(wrong):
                raise ValueError(
                    f"label {int(wrong[0])} is not a class: "
                    f"expected 0 to {self.classes - 1}, or {self.classes} for none"
                )
        return F.embedding(label.to(device, torch.int64), torch.eye(self.classes + 1, self.classes, device=device))


def iddpm_sigmas(steps: int = 1000, c_1: float = 0.001, c_2: float = 0.008) -> Tensor:
    r"""The noise levels $u_0 > \dots > u_M = 0$ of iDDPM (Karras et al., 2022, table 1), (M + 1,) float64.

    $$ u_{j-1}^2 + 1 = \frac{u_j^2 + 1}{\max(\bar\alpha_{j-1} / \bar\alpha_j, C_1)}, \qquad
       \bar\alpha_j = \sin^2 \Big( \frac{\pi}{2} \frac{j}{M (C_2 + 1)} \Big) $$
    """
    j = torch.arange(steps + 1, dtype=torch.float64, device="cpu")
    bar = torch.sin(torch.pi / 2 * j / (steps * (c_2 + 1))) ** 2
    ratio = (bar[:-1] / bar[1:]).clamp_min(c_1)
    rise = torch.cat([ratio.new_zeros(1), -ratio.flip(0).log().cumsum(0)])
    return torch.expm1(rise).sqrt().flip(0)


def iddpm_schedule(u: Tensor) -> Tabulated:
    r"""The schedule on which step $k = M - 1 - j$, at $t = (k + 1) / M$, has the noise level $u_j$, (M + 1,).

    $$ \bar\alpha_k = 1 / (1 + u_j^2) $$
    """
    return Tabulated((1 / (1 + u[:-1].flip(0) ** 2)).tolist())
