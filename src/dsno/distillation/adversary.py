r"""An adversary: how real a noised sample is, read from the middle of the denoiser that is trained beside a student.

A distribution loss with a teacher ends at the teacher. With real data the student can pass it: the denoiser $D_G$ of
the student's samples is asked for one number more, a logit $\ell(x_t, t)$ read linearly from the mean of its
bottleneck's features, and with the student's $x_t$ and real $y_t$, both noised to the same level,

$$ L_G = \mathbb E \, \zeta(-\ell(x_t, t)), \qquad
   L_\ell = \mathbb E \, \zeta(\ell([x_t], t)) + \mathbb E \, \zeta(-\ell(y_t, t))
          + \tfrac{\gamma}{2} \, \mathbb E \, \| \nabla_y \ell(y_t, t) \|^2, \qquad \zeta(u) = \log(1 + e^u),$$

where $[\cdot]$ passes no gradient. With the best logit, that of the odds of the two laws, $L_\ell$ is
$2 \log 2 - 2\,\mathrm{JS}$, so $2 \log 2$ where they are one. The slope is taken along one direction n of unit
variance, $\ell(y_t + \delta n) - \ell(y_t) \approx \delta \, n \cdot \nabla \ell$, whose square has the mean
$\delta^2 \| \nabla \ell \|^2$.

The noise on both sides is what keeps few real samples from being learned by heart, as far as it does: compare with
samples that were held out (`dsno.measure.copying`).

Source: Yin et al., 2024 (DMD2, arXiv 2405.14867), section 4.3; Zhou et al., 2024 (SiDA, arXiv 2410.14919), who take the
bottleneck without a reading of its own; R1: Mescheder et al., 2018 (arXiv 1801.04406), by a difference: Lin et al.,
2025 (arXiv 2501.08316).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.condition import Cond
from dsno.denoise import Prediction
from dsno.nets.backbone import Backbone, example
from dsno.seeds import generator
from dsno.students.blocks import find_blocks, pixels, site

__all__ = ["DELTA", "Judging", "Reals", "adversarial"]

DELTA = 0.01
"""The width of the difference that a slope is taken by, in units of the noise."""


class Judging(nn.Module):
    """A denoiser that also says how real its input is, from the features of its smallest block.

    Arguments:
        denoiser: Of a `Backbone`, which the judge takes over.

    Raises:
        ValueError: if the network does not say which of its modules are blocks.
    """

    def __init__(self, denoiser: Prediction) -> None:
        super().__init__()
        net = unwrapped(denoiser.net)
        if not isinstance(net, Backbone):
            raise ValueError(
                f"an adversary reads the middle of the teacher's network, and a {type(net).__name__} does not say what "
                "its blocks are: leave adversary at 0, or give it the attributes of a Backbone"
            )
        module = cast(nn.Module, net)
        like = next(module.parameters())
        found = find_blocks(module, example(net, like), net.blocks)
        dims = {name: -1 if len(block.shape) <= len(net.shape) else 1 for name, block in found.items()}
        shaped = [name for name, block in found.items() if block.shape]
        name = min(reversed(shaped), key=lambda name: pixels(found[name].shape, dims[name]))
        at = site(name, found, dims[name], None)
        self.denoiser, self.index, self.channel_dim = denoiser, at["index"], dims[name]
        self.block = [module.get_submodule(name)]  # in a list: it is a part of the denoiser already
        self.head = nn.Linear(cast(int, at["channels"]), 1).to(like)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        """$D_G$ (B, *shape) and the logit (B,)."""
        seen: list[Any] = []
        handle = self.block[0].register_forward_hook(lambda module, given, made: seen.append(made))
        try:
            D_G = self.denoiser(x_t, t, cond)
        finally:
            handle.remove()
        h = seen[-1] if self.index is None else seen[-1][self.index]
        h = h.movedim(self.channel_dim, -1).flatten(1, -2).mean(1)
        return D_G, self.head(nn.functional.layer_norm(h, h.shape[1:])).squeeze(1)


class Reals:
    """Samples of the data, noised to the levels of a batch.

    Arguments:
        x: (N, *shape).
        labels: (N,), or None.
        seed: With the step, determines which.
    """

    def __init__(self, x: Tensor, labels: Tensor | None = None, seed: int = 0) -> None:
        self.x, self.labels, self.seed = x, labels, seed

    def drawn(self, step: int, batch: int, mine: slice) -> dict[str, Any]:
        """Samples `real`, noise `real_eps` and directions `slope` (B, *shape), with the labels `real_cond`."""
        g = generator(self.seed, step, 2)
        i = torch.randint(len(self.x), (batch,), generator=g)
        eps, n = torch.randn(2, batch, *self.x.shape[1:], generator=g)
        made: dict[str, Any] = {"real": self.x[i[mine]], "real_eps": eps[mine], "slope": n[mine]}
        return made if self.labels is None else {**made, "real_cond": self.labels[i[mine]]}


def adversarial(
    judged: Tensor,
    made: Tensor,
    real: Tensor,
    beside: Tensor | None = None,
    *,
    r1: float = 0.0,
    weight: Tensor | float = 1.0,
) -> Tensor:
    r"""$L_G + L_\ell$ of logits (B,): of samples, with a gradient to them; of the same, without; of real ones; and of
    real ones $\delta n$ aside, where $\gamma$ is not 0. In $L_G$ a sample has its `weight` (B,)."""
    zeta = nn.functional.softplus
    loss = (weight * zeta(-judged)).mean() + zeta(made).mean() + zeta(-real).mean()
    return loss if beside is None else loss + 0.5 * r1 * ((beside - real) / DELTA).square().mean()
