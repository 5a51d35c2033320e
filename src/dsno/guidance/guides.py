r"""Guides: gradients of $\log p(y \mid x_t)$ from a classifier, a loss or a conditional model.

A guide (`dsno.steer.Guide`) says which way a state has to move for the sample to become more like its target $y$.

| guide | $\log p(y \mid x_t)$ | asks |
|---|---|---|
| `DensityGuide` | any function of $(x_t, t, y)$ | the state |
| `NoisyClassifier` | a classifier that is told the noise level | the state |
| `CleanClassifier` | a classifier of clean samples, of $\hat x_0(x_t)$ | $\hat x_0$ |
| `LossGuide` | $-L(\hat x_0(x_t), y)$, any differentiable loss | $\hat x_0$ |
| `ClassifierFree` | $\log p(x_t \mid y) - \log p(x_t)$ by a conditional denoiser | $\hat x_0$ |
| `Sum` | a weighted sum of guides' | what they do |

**Through the denoiser or not.** A guide of $\hat x_0$ has by the chain rule the gradient

$$ \nabla_{x_t} = J^\top \nabla_{\hat x_0}, \qquad J = \frac{\partial \hat x_0}{\partial x_t}
   = \frac{\alpha_t}{\sigma_t^2} \operatorname{Cov}[x_0 \mid x_t] \text{ for an exact denoiser.} $$

With `through=True` $J^\top$ is exact, by a pass back through the network. A trained one's is off by a few hundredths,
which is nothing but towards pure noise, where J vanishes and the error is pulled by $\sigma_t^2 / \alpha_t$: there, at
$\alpha_t < 0.05 \, \sigma_t$, the guide is silent. With `through=False` $J$ is that of Gaussian data of standard
deviation $s$, a number,

$$ J \approx \frac{\alpha_t s^2}{\alpha_t^2 s^2 + \sigma_t^2} I : $$

no pass back, and the denoiser's answer moves by the posterior variance of such data times $\nabla_{\hat x_0}$. It is no
gradient of anything then, and what it costs in quality is to be measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.condition import Cond, named
from dsno.denoise import Denoiser, each_row
from dsno.nets.classifier import Classifier
from dsno.schedule import Schedule
from dsno.steer import TARGET, Guide, Reads, levels, target_of

__all__ = [
    "ClassifierFree",
    "CleanClassifier",
    "Counted",
    "DensityGuide",
    "LossGuide",
    "NoisyClassifier",
    "Sum",
    "Untold",
]

STD = 0.5
"""Standard deviation of images in [-1, 1], as EDM takes it."""

FAINT = 0.05
r"""$\alpha_t / \sigma_t$ below which a trained denoiser's Jacobian is none."""


class DensityGuide(nn.Module):
    r"""The gradient of a density that is told the noise level, $\nabla_{x_t} \log p(y \mid x_t, t)$.

    Arguments:
        log_density: `(x_t, t, y)` to log p, (B,), each row's of that row alone; `y` is the target, or None.
        name: What a manifest calls it.
    """

    reads: Reads = "x_t"

    def __init__(self, log_density: Callable[[Tensor, Tensor | float, Tensor | None], Tensor], name: str = "") -> None:
        super().__init__()
        self.log_density, self.config = log_density, {"density": name or _name_of(log_density)}

    def forward(self, x_t: Tensor, t: Tensor | float, x0_hat: Tensor | None, cond: Cond | None) -> Tensor:
        target = named(cond).get(TARGET)
        return _gradient(lambda x: self.log_density(x, t, target), x_t)


class NoisyClassifier(nn.Module):
    r"""A classifier that was trained on noised samples, $\nabla_{x_t} \log p_\phi(y \mid x_t)$; `y` are labels (B,).

    Arguments:
        net: Told the noise level, and nothing of the schedule.
        schedule: The denoiser's.

    Raises:
        ValueError: for a classifier of clean samples; when called, without labels.

    Source: Dhariwal & Nichol, 2021 (arXiv 2105.05233), section 4.
    """

    reads: Reads = "x_t"

    def __init__(self, net: Classifier, schedule: Schedule) -> None:
        super().__init__()
        if not net.noisy:
            raise ValueError("this classifier knows clean samples alone: take CleanClassifier, or train a noisy one")
        self.net, self.schedule, self.config = net, schedule, {"classes": net.classes}

    def forward(self, x_t: Tensor, t: Tensor | float, x0_hat: Tensor | None, cond: Cond | None) -> Tensor:
        label = target_of(cond)
        return _gradient(lambda x: _log_p(self.net(x, *levels(self.schedule, t, x)), label), x_t)


class _OfEstimate(nn.Module, ABC):
    r"""$\nabla_{x_t} \log p(y \mid \hat x_0(x_t))$, through the denoiser or not."""

    def __init__(self, schedule: Schedule, through: bool, data_std: float, config: Mapping[str, Any]) -> None:
        super().__init__()
        if not data_std > 0:
            raise ValueError(f"data_std must be positive, got {data_std}")
        self.schedule, self.through, self.data_std = schedule, through, data_std
        self.config = {**config, "through": through, **({} if through else {"data_std": data_std})}

    @property
    def reads(self) -> Reads:
        return "graph" if self.through else "x0_hat"

    @abstractmethod
    def log_density(self, x0_hat: Tensor, cond: Cond | None) -> Tensor:
        r"""$\log p(y \mid \hat x_0)$, (B,)."""

    def forward(self, x_t: Tensor, t: Tensor | float, x0_hat: Tensor | None, cond: Cond | None) -> Tensor:
        assert x0_hat is not None
        alpha_t, sigma_t = levels(self.schedule, t, x_t)
        if self.through:
            # Another guide may want the same graph.
            gradient = torch.autograd.grad(self.log_density(x0_hat, cond).sum(), x_t, retain_graph=True)[0]
            return gradient * (alpha_t >= FAINT * sigma_t)
        s2 = self.data_std**2
        J = alpha_t * s2 / (alpha_t**2 * s2 + sigma_t**2)
        return J * _gradient(lambda x: self.log_density(x, cond), x0_hat)


class LossGuide(_OfEstimate):
    r"""A loss of the clean sample, $\log p(y \mid x_t) = -L(\hat x_0(x_t), y)$ but for a constant.

    Arguments:
        loss: `(x0_hat, y)` to $L$, (B,), differentiable, each row's of that row alone; `y` is the target, (B, ...), or
            None where the condition has none.
        schedule: The denoiser's.
        through: Through the denoiser (above); without, $J$ is a number.
        data_std: $s$ of that number.
        name: What a manifest calls it; the weights of a loss that is a module are in its checksum.

    Raises:
        ValueError: for a `data_std` that is not positive.

    Source: Bansal et al., 2023 (arXiv 2302.07121), eq. 6.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor | None], Tensor],
        schedule: Schedule,
        through: bool = True,
        data_std: float = STD,
        name: str = "",
    ) -> None:
        super().__init__(schedule, through, data_std, {"loss": name or _name_of(loss)})
        self.loss = loss

    def log_density(self, x0_hat: Tensor, cond: Cond | None) -> Tensor:
        return -self.loss(x0_hat, named(cond).get(TARGET))


class CleanClassifier(_OfEstimate):
    r"""A classifier of clean samples shown the denoiser's, $\nabla_{x_t} \log p_\phi(y \mid \hat x_0(x_t))$.

    Arguments:
        net: (B, *shape) to logits (B, classes): any network, a `Classifier` or a feature network.
        schedule: The denoiser's.
        through: Through the denoiser (above); without, $J$ is a number.
        data_std: $s$ of that number.
        classes: How many the network knows, where it has no `classes` of its own.

    Raises:
        ValueError: for a `data_std` that is not positive; when called, without labels.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        through: bool = True,
        data_std: float = STD,
        classes: int | None = None,
    ) -> None:
        known = net.classes if isinstance(net, Classifier) else classes
        super().__init__(schedule, through, data_std, {} if known is None else {"classes": known})
        self.net = net

    def log_density(self, x0_hat: Tensor, cond: Cond | None) -> Tensor:
        return _log_p(self.net(x0_hat), target_of(cond))


class ClassifierFree(nn.Module):
    r"""A conditional model as a guide of an unconditional one, $\log p(y \mid x_t) = \log p(x_t \mid y) - \log p(x_t)$.

    $$ \nabla_{x_t} \log p(y \mid x_t) = \frac{\alpha_t}{\sigma_t^2} \big( D(x_t, t, y) - \hat x_0 \big) $$

    with $\hat x_0$ the unconditional model's, the one that is steered: another network, or the same told that there is
    no condition (`Untold`). In noises the two halves are $A = \hat\epsilon_\varnothing$ and
    $B = w (\hat\epsilon_y - \hat\epsilon_\varnothing)$; `Guided` of a weight $w$ is the scale $1 + w$ here.

    Arguments:
        denoiser: $D$; it is told the target as its condition.
        schedule: Its schedule.

    Raises:
        ValueError: when called, without a target.

    Source: Ho & Salimans, 2022 (arXiv 2207.12598), eq. 6.
    """

    reads: Reads = "x0_hat"
    config: Mapping[str, Any] = {}

    def __init__(self, denoiser: Denoiser, schedule: Schedule) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, schedule

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor | float, x0_hat: Tensor | None, cond: Cond | None) -> Tensor:
        assert x0_hat is not None
        alpha_t, sigma_t = levels(self.schedule, t, x_t)
        return alpha_t / sigma_t**2 * (self.denoiser(x_t, each_row(t, x_t), target_of(cond)) - x0_hat)


class Untold(nn.Module):
    r"""A conditional denoiser that is told of no condition, $D(x_t, t, \varnothing)$.

    Arguments:
        denoiser: $D$.
        null: What stands for no condition, without a batch dimension: a label () or an embedding (...).
    """

    def __init__(self, denoiser: Denoiser, null: Tensor) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.register_buffer("null", null)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        null = cast(Tensor, self.null)
        return self.denoiser(x_t, t, null.to(x_t.device).expand(len(x_t), *null.shape))


class Sum(nn.Module):
    r"""$\sum_i w_i \nabla_{x_t} \log p_i(y \mid x_t)$: guides together, or one of them scaled.

    Arguments:
        guides: The guides; all have the same target.
        weights: $w_i$, of any sign; ones by default.

    Raises:
        ValueError: for no guide, or another number of weights.
    """

    def __init__(self, guides: Sequence[Guide], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not guides or (weights is not None and len(weights) != len(guides)):
            raise ValueError(f"a sum has a weight for each of one guide or more, got {len(guides)} and {weights}")
        self.guides, self.weights = tuple(guides), tuple(weights or [1.0] * len(guides))
        # Those that are modules are moved, stored and set to evaluation with this one.
        self.parts = nn.ModuleList(guide for guide in guides if isinstance(guide, nn.Module))

    @property
    def reads(self) -> Reads:
        order: list[Reads] = ["x_t", "x0_hat", "graph"]
        return max((guide.reads for guide in self.guides), key=order.index)

    @property
    def config(self) -> Mapping[str, Any]:
        parts = [{"class": type(guide).__name__, **guide.config} for guide in self.guides]
        classes = {part["classes"] for part in parts if "classes" in part}
        return {"weights": [*self.weights], "parts": parts, **({"classes": min(classes)} if classes else {})}

    def forward(self, x_t: Tensor, t: Tensor | float, x0_hat: Tensor | None, cond: Cond | None) -> Tensor:
        pulls = [w * guide(x_t, t, x0_hat, cond) for w, guide in zip(self.weights, self.guides, strict=True)]
        return torch.stack(pulls).sum(0)


class Counted(nn.Module):
    """A guide that counts what it costs, as `dsno.cost.Meter` does of a denoiser.

    Attributes:
        gradients: How often it was asked: calls, serial as rounds are.
        rows: The rows in them.
    """

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self.guide = guide
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self.gradients = self.rows = 0

    @property
    def reads(self) -> Reads:
        return self.guide.reads

    @property
    def config(self) -> Mapping[str, Any]:
        return self.guide.config

    def forward(self, x_t: Tensor, t: Tensor | float, x0_hat: Tensor | None, cond: Cond | None) -> Tensor:
        self.gradients += 1
        self.rows += len(x_t)
        return self.guide(x_t, t, x0_hat, cond)


def _gradient(log_density: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of each row's number, (B, *shape), also where gradients are switched off."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        return torch.autograd.grad(log_density(at).sum(), at)[0]


def _log_p(logits: Tensor, label: Tensor) -> Tensor:
    """$\\log p(y)$ of logits (B, classes) and labels (B,), (B,)."""
    return F.log_softmax(logits, -1).gather(-1, label.to(logits.device)[:, None]).squeeze(-1)


def _name_of(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)
