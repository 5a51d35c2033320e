"""Networks that denoise four stripes without an error, in any convention: what teachers are tested with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsno.denoise import Kind, Prediction, convert, scale_input
from dsno.schedule import Cosine, Schedule
from dsno.teachers.check.verdict import Verdict
from dsno.teachers.closed import GaussianMixture

SHAPE = (1, 4, 4)


def mixture(schedule: Schedule, low: float = -0.9, high: float = 0.9, labels: Tensor | None = None) -> GaussianMixture:
    """Four stripes, of values between `low` and `high`."""
    rows = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]], dtype=torch.float32)
    means = low + (high - low) * rows[:, None, :, None].expand(4, 1, 4, 4)
    return GaussianMixture(schedule, means, 0.1 * (high - low) / 2, labels=labels)


class Exact(nn.Module):
    """A network that predicts `kind` without an error; `seen` translates what it is told for t."""

    def __init__(
        self,
        kind: Kind,
        schedule: Schedule,
        seen: Callable[[Tensor], Tensor] = lambda t: t,
        denoiser: GaussianMixture | None = None,
        sign: int = 1,
    ) -> None:
        super().__init__()
        self.kind, self.schedule, self.seen, self.sign = kind, schedule, seen, sign
        self.D = mixture(schedule) if denoiser is None else denoiser

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        t = self.seen(t).clamp(1e-4, 1)
        x_t = x
        if self.kind == "edm":
            x_t = x / scale_input("edm", torch.ones_like(x), t, self.schedule)
        return self.sign * convert(self.kind, self.D(x_t, t, cond), x_t, t, self.schedule)


def stated(net: nn.Module, kind: Kind = "v", schedule: Schedule | None = None, **options: object) -> Prediction:
    options = {"shape": SHAPE, **options}
    return Prediction(net, Cosine() if schedule is None else schedule, kind, **options).eval()  # type: ignore[arg-type]


def broken(change: Callable[[Tensor, Tensor], Tensor]) -> Prediction:
    """An exact teacher whose network returns `change(output, t)`."""

    class Changed(Exact):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return change(super().forward(x, t, cond), t)

    return stated(Changed("v", Cosine()))


def data(count: int = 256, low: float = -0.9, high: float = 0.9) -> Tensor:
    return mixture(Cosine(), low, high).sample(count, torch.Generator().manual_seed(1))


def worst_of(verdict: Verdict, check: str) -> str:
    """The state of a check, the worst of its findings."""
    states = [f.state for f in verdict.findings if f.check == check]
    return max(states, key=["ok", "warning", "failure"].index)


def said(verdict: Verdict) -> str:
    return " | ".join(f"{f.check}: {f.text} -> {f.mend}" for f in verdict.findings if f.state != "ok")
