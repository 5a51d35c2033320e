r"""The subject of a check: what is known of a teacher, and what it is shown.

It is shown samples $x_0$ of mean $\mu$ (one for each pixel) and standard deviation $s$ about it, noised to

$$ x_t = \alpha_t x_0 + \sigma_t z, $$

with the same noise $z$ at every level. Levels are spread evenly in the log-SNR of the data,
$\log(\alpha_t^2 s^2 / \sigma_t^2)$, which counts for a schedule and data of any scale. The samples are the data, or the
teacher's own where there are none. A subject does not change: what it becomes is another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.condition import Cond, map_cond
from dsno.cost import Metered
from dsno.denoise import Around, Denoiser, Guided, Prediction, modules_of
from dsno.nets.backbone import sample_shape, tokens_of
from dsno.schedule import Schedule
from dsno.seeds import noise, seed_range
from dsno.teachers.check.verdict import Finding

__all__ = ["SPAN", "Subject", "rmse", "subject_of"]

SPAN = 7.0
"""The log-SNRs of the data that are looked at, from this to its negative: 3 % of noise to 3 % of signal."""


def rmse(a: Tensor, b: Tensor) -> float:
    """The root of the mean squared difference."""
    return float((a - b).square().mean().sqrt())


@dataclass(frozen=True)
class Subject:
    r"""A teacher on the bench; called as a denoiser, it is told the conditions of the first rows where none are given.

    Attributes:
        teacher: What is checked.
        inner: The teacher without meters and guidance.
        schedule: The noise levels that it is shown.
        classes: How many labels it knows, or None.
        x_0: Samples, (B, *shape); zeros while there are none.
        z: Noise, (B, *shape).
        cond: The condition of each row, or None.
        mean: $\mu$, (1, *shape).
        spread: $s$.
        limits: The least and the largest value of all samples.
        from_data: Whether the samples are data that was given, and not the teacher's own.
        cond_given: Whether the conditions are those of the data, and not drawn.
    """

    teacher: Denoiser
    inner: Any
    schedule: Schedule
    classes: int | None
    x_0: Tensor
    z: Tensor
    cond: Cond | None
    mean: Tensor
    spread: float
    limits: tuple[float, float]
    from_data: bool
    cond_given: bool

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.teacher(x_t, t, map_cond(lambda c: c[: len(x_t)], self.cond) if cond is None else cond)

    def __str__(self) -> str:
        inner = self.inner
        said = f" {inner.kind} of a {type(unwrapped(inner.net)).__name__}" if isinstance(inner, Prediction) else ""
        return f"{type(self.teacher).__name__}{said} on {inner.schedule!r}, samples {tuple(self.x_0.shape[1:])}"

    @property
    def source(self) -> str:
        """Where the samples are from, in words."""
        return "data" if self.from_data else "own samples"

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What the teacher is made of."""
        return tuple(modules_of(self.teacher).values())

    @property
    def middle(self) -> float:
        """The time at which signal and noise are equally strong."""
        log_snr = torch.tensor(-2 * math.log(self.spread), dtype=torch.float64)
        return min(max(float(self.schedule.time(log_snr)), 1e-3), 1 - 1e-3)

    def levels(self, count: int, span: float = SPAN) -> list[float]:
        """Times evenly spread in the log-SNR of the data, from little noise to much, as far as the schedule goes."""
        scale = 2 * math.log(self.spread)
        ends = self.schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)) + scale
        top, bottom = min(float(ends[0]), span), max(float(ends[1]), -span)
        wanted = torch.linspace(top, bottom, count, dtype=torch.float64)
        return [float(t) for t in self.schedule.time(wanted - scale)]

    def noised(self, t: float) -> tuple[Tensor, Tensor]:
        """$x_t$, (B, *shape), and t for each row, (B,)."""
        alpha_t, sigma_t = self.schedule.at(t)
        times = torch.full((len(self.x_0),), t, device=self.x_0.device, dtype=self.x_0.dtype)
        return alpha_t * self.x_0 + sigma_t * self.z, times

    def first(self, rows: int) -> Subject:
        """The same teacher, shown the first rows."""
        return replace(self, x_0=self.x_0[:rows], z=self.z[:rows], cond=map_cond(lambda c: c[:rows], self.cond))

    def rescaled(self, factor: float, offset: float) -> Subject:
        """The same teacher, shown factor * x_0 + offset."""
        x_0, mean = factor * self.x_0 + offset, factor * self.mean + offset
        return replace(self, x_0=x_0, mean=mean, spread=factor * self.spread)

    def showing(self, samples: Tensor) -> Subject:
        """The same teacher, shown samples of its own."""
        mean = samples.float().mean(0, keepdim=True)
        limits = float(samples.min()), float(samples.max())
        return replace(self, x_0=samples, mean=mean, spread=max(rmse(samples.float(), mean), 1e-6), limits=limits)


def subject_of(
    teacher: Denoiser, data: Tensor | None, cond: Cond | None, seed: int, rows: int, null: int | None = None
) -> tuple[Subject, list[Finding]]:
    """Put a teacher on the bench, with `rows` of the data and of the conditions (see `check_teacher`).

    Returns:
        The subject, and warnings of conditions that were drawn.

    Raises:
        ValueError: if the teacher has no schedule, says no shape while there is no data, or the data or the conditions
            do not fit.
    """
    inner = _inner(teacher)
    shape = _shape(inner) if data is None else _checked(data)
    if cond is not None:
        map_cond(lambda c: _as_many(c, rows if data is None else len(data)), cond)
    # In float32, as trajectories are solved; where the first parameter lies.
    held = next((p for module in modules_of(teacher).values() for p in module.parameters()), torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    if data is None:
        x_0 = torch.zeros(rows, *shape, device=held.device)
        mean, spread, limits = torch.zeros_like(x_0[:1]), 1.0, (0.0, 0.0)
    else:
        pick = torch.randperm(len(data), generator=generator)[:rows]
        x_0 = data[pick].to(held.device, torch.float32)
        mean = data.float().mean(0, keepdim=True)
        spread, limits = rmse(data.float(), mean), (float(data.min()), float(data.max()))
        if spread == 0:
            raise ValueError("the data are constant: there is nothing to denoise")
        cond = map_cond(lambda c: c[pick], cond)
    given = cond is not None
    findings: list[Finding] = []
    if not given:
        cond, findings = _drawn(teacher, inner, len(x_0), data is not None, generator, null)
    subject = Subject(
        teacher=teacher,
        inner=inner,
        schedule=inner.schedule,
        classes=_classes(inner),
        x_0=x_0,
        z=noise(seed_range(seed, len(x_0)), shape).to(x_0),
        cond=map_cond(lambda c: c.to(held.device), cond),
        mean=mean.to(x_0),
        spread=spread,
        limits=limits,
        from_data=data is not None,
        cond_given=given,
    )
    return subject, findings


def _inner(teacher: Denoiser) -> Any:
    inner: Any = teacher
    while isinstance(inner, Metered | Around):
        inner = inner.denoiser
    if not isinstance(getattr(inner, "schedule", None), Schedule):
        raise ValueError(
            f"a {type(inner).__name__} does not say which schedule it was trained on: wrap the network in "
            "Prediction(net, schedule, kind)"
        )
    return inner


def _shape(inner: Any) -> tuple[int, ...]:
    if isinstance(inner, Prediction):
        return sample_shape(inner)
    if (shape := getattr(inner, "shape", None)) is None:
        raise ValueError(f"a {type(inner).__name__} does not say what shape it makes: give samples as data")
    return tuple(shape)


def _checked(data: Tensor) -> tuple[int, ...]:
    if len(data) < 16 or data.ndim < 2 or not bool(data.isfinite().all()):
        raise ValueError(f"the data must be (N, *shape) with N of 16 or more, all finite, got {tuple(data.shape)}")
    return tuple(data.shape[1:])


def _as_many(c: Tensor, count: int) -> Tensor:
    if len(c) != count:
        raise ValueError(f"the condition has {len(c)} rows, the data {count}")
    return c


def _classes(inner: Any) -> int | None:
    return getattr(inner, "classes", None) or getattr(unwrapped(getattr(inner, "net", None)), "classes", None)


def _drawn(
    teacher: Denoiser, inner: Any, count: int, from_data: bool, generator: torch.Generator, null: int | None
) -> tuple[Cond | None, list[Finding]]:
    """Random labels, and zeros for embeddings, where the teacher wants them."""
    classes = _classes(inner)
    findings: list[Finding] = []
    tokens = tokens_of(getattr(inner, "net", None))
    cond: dict[str, Tensor] = {name: torch.zeros(count, *size) for name, size in tokens.items()}
    if cond:
        text = f"no condition was given: the network is told zeros for {', '.join(cond)}"
        findings.append(Finding("condition", "warning", text, "give real embeddings as cond"))
    if classes:
        known = [k for k in range(classes) if k != null]
        if not known:
            raise ValueError(f"there is no class to draw: {classes} in all, and the null label is {null}")
        cond["label"] = torch.tensor(known)[torch.randint(len(known), (count,), generator=generator)]
        if from_data:
            text = "the labels of the data were not given: the teacher is told random ones"
            findings.append(Finding("condition", "warning", text, "give the labels of the data as cond"))
    if isinstance(teacher, Guided) and teacher.weight is None and cond:
        cond["weight"] = torch.ones(count)
    if not cond:
        return None, findings
    return cond if len(cond) > 1 else next(iter(cond.values())), findings
