r"""Is this network the denoiser it is said to be? Asked before hours are spent on its trajectories.

A teacher is a network and a convention: a schedule, a prediction kind, units of time, a range of values, labels. A wrong
convention raises no error: the solver runs, and the samples are noise. But it cannot denoise. On data $x_0$ of mean
$\mu$ and standard deviation $s$, noised to $x_t = \alpha_t x_0 + \sigma_t \epsilon$, a denoiser has to beat what anybody
can do who knows nothing but $\mu$ and $s$,

| baseline | estimate of $x_0$ |
|---|---|
| the mean | $\mu$ |
| the input | $x_t / \alpha_t$ |
| Wiener | $\mu + \alpha_t s^2 (x_t - \alpha_t \mu) / (\alpha_t^2 s^2 + \sigma_t^2)$ |

at every noise level; levels are spread evenly in the log-SNR of the data, $\log(\alpha_t^2 s^2 / \sigma_t^2)$. A wrong
convention loses to them at most levels, and the right one is found by trying: the network's output is read as every other
kind, with either sign, with its time reversed or in other units, on other schedules, for data of another range; where one of
these readings denoises clearly better than the stated one, the verdict names it.

Without data the teacher's own samples take their place. That is weaker: a teacher may denoise its own nonsense well.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from dsno.condition import Cond, map_cond
from dsno.cost import Meter, Metered, flops, latency
from dsno.denoise import KINDS, Denoiser, Guided, Kind, Prediction, x0_from
from dsno.denoise import scale_input as shown_to
from dsno.grids import quadratic
from dsno.nets.backbone import Backbone
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear, linear_beta
from dsno.seeds import noise, seed_range
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import SolverSampler
from dsno.teachers.check.verdict import STATES, Finding, Level, State, Verdict
from dsno.teachers.native import sample_shape

__all__ = ["check_teacher"]

SPAN = 7.0
"""The log-SNRs of the data that are looked at, from this to its negative: 3 % of noise to 3 % of signal."""

SOLVE_STEPS = 12


@torch.no_grad()
def check_teacher(
    teacher: Denoiser,
    data: Tensor | None = None,
    cond: Cond | None = None,
    seed: int = 0,
    levels: int = 12,
    rows: int | None = None,
    patience: float = 60.0,
) -> Verdict:
    """Look at a teacher from all sides; it is left as it was, its mode, buffers and the random state included.

    Arguments:
        teacher: A `Prediction`, or any denoiser that has a `schedule`. Other readings are tried of a `Prediction` only.
        data: Samples of what it was trained on, (N, *shape) with N of 16 or more, in the range it is to be used with.
        cond: The condition of each row of `data` (or of `rows` samples), first dimension N; labels are drawn by default.
        seed: Determines which rows and which noise.
        levels: Noise levels.
        rows: Rows at each level; 64 by default, 16 where a call takes long.
        patience: Seconds after which no further reading is begun.

    Raises:
        ValueError: if the teacher has no schedule, says no shape while there is no data, or sizes do not fit.
    """
    if levels < 2 or (rows is not None and rows < 4):
        raise ValueError(f"a check needs 2 or more levels and 4 or more rows, got {levels} and {rows}")
    if data is not None and (len(data) < 16 or data.ndim < 2 or not bool(data.isfinite().all())):
        raise ValueError(f"the data must be (N, *shape) with N of 16 or more, all finite, got {tuple(data.shape)}")
    if data is not None and cond is not None:
        map_cond(lambda c: _as_many(c, len(data)), cond)
    subject = _Subject(teacher, data, cond, seed, rows or 64)
    findings = [*subject.findings]
    with _untouched(teacher):
        began = time.perf_counter()
        findings += _check_call(subject)
        if findings[-1].state == STATES[-1]:
            return Verdict(subject.name, subject.source, tuple(findings))
        if rows is None and time.perf_counter() - began > 2:
            subject.shorten(16)
        findings += _check_repeats(subject)
        for part in _parts(teacher):
            part.eval()
        findings += _check_ends(subject) + _check_labels(subject) + _check_schedule(subject)
        own, sampled = _check_sampling(subject)
        findings += sampled
        found: list[Level] = []
        beaten = data is None and own is None
        if not beaten:
            if own is not None and data is None:
                subject.adopt(own)
            found = _denoise(subject, subject.levels(subject.schedule, levels))
            findings += _check_denoising(subject, found)
            beaten = findings[-1].state == "failure"
        findings += _check_readings(subject, beaten, patience) + _check_range(subject)
        seconds, cost = _cost(subject)
    return Verdict(subject.name, subject.source, (*findings, seconds), tuple(found), cost)


def _as_many(c: Tensor, count: int) -> Tensor:
    if len(c) != count:
        raise ValueError(f"the condition has {len(c)} rows, the data {count}")
    return c


class _Subject:
    """The teacher on the bench: with data, conditions and noise of its own."""

    def __init__(self, teacher: Denoiser, data: Tensor | None, cond: Cond | None, seed: int, rows: int) -> None:
        inner: Any = teacher
        while isinstance(inner, Metered | Guided):
            inner = inner.denoiser
        if not isinstance(getattr(inner, "schedule", None), Schedule):
            raise ValueError(
                f"a {type(inner).__name__} does not say which schedule it was trained on: wrap the network in "
                "Prediction(net, schedule, kind)"
            )
        self.teacher, self.inner = teacher, inner
        self.schedule: Schedule = inner.schedule
        held = next((p for part in _parts(teacher) for p in part.parameters()), torch.empty(0))
        self.device, self.dtype = held.device, torch.float32  # As trajectories are solved.
        net = getattr(inner, "net", None)
        self.classes: int | None = getattr(inner, "classes", None) or getattr(net, "classes", None)
        self.tokens: Mapping[str, tuple[int, ...]] = net.tokens if isinstance(net, Backbone) else {}
        if data is None and not isinstance(inner, Prediction) and getattr(inner, "shape", None) is None:
            raise ValueError(f"a {type(inner).__name__} does not say what shape it makes: give samples as data")
        shape = sample_shape(inner) if data is None and isinstance(inner, Prediction) else getattr(inner, "shape", None)
        self.shape = tuple(data.shape[1:]) if data is not None else tuple(shape)  # type: ignore[arg-type]
        said = f" {inner.kind} of a {type(net).__name__}" if isinstance(inner, Prediction) else ""
        self.name = f"{type(teacher).__name__}{said} on {self.schedule!r}, samples {self.shape}"
        self.source = "own samples" if data is None else "data"
        self.given = cond is not None
        self.generator = torch.Generator().manual_seed(seed)
        self.findings: list[Finding] = []
        self.mean, self.spread, self.all = torch.zeros(1, *self.shape), 1.0, data
        if data is not None:
            self.mean = data.float().mean(0, keepdim=True)
            self.spread = float((data.float() - self.mean).square().mean().sqrt())
            pick = torch.randperm(len(data), generator=self.generator)[:rows]
            self.x_0 = data[pick].to(self.device, self.dtype)
            self.cond = None if cond is None else map_cond(lambda c: c[pick].to(self.device), cond)
            if self.spread == 0:
                raise ValueError("the data are constant: there is nothing to denoise")
        else:
            self.x_0 = torch.zeros(rows, *self.shape, device=self.device, dtype=self.dtype)
            self.cond = None if cond is None else map_cond(lambda c: _as_many(c, rows).to(self.device), cond)
        if self.cond is None:
            self.cond = self.drawn(len(self.x_0))
        self.z = noise(seed_range(seed, len(self.x_0)), self.shape).to(self.x_0)

    def drawn(self, count: int) -> Cond | None:
        """Random labels, and zeros for embeddings, where the teacher wants them."""
        named = {k: torch.zeros(count, *size, device=self.device, dtype=self.dtype) for k, size in self.tokens.items()}
        if named:
            text = f"no condition was given: the network is told zeros for {', '.join(named)}"
            self.findings.append(Finding("condition", "warning", text, "give real embeddings as cond"))
        if self.classes:
            labels = torch.randint(self.classes, (count,), generator=self.generator)
            named["label"] = labels.to(self.device)
            if self.source == "data":
                text = "the labels of the data were not given: the teacher is told random ones"
                self.findings.append(Finding("condition", "warning", text, "give the labels of the data as cond"))
        if isinstance(self.teacher, Guided) and self.teacher.weight is None and named:
            named["weight"] = torch.ones(count, device=self.device)
        if not named:
            return None
        return next(iter(named.values())) if len(named) == 1 else named

    def shorten(self, rows: int) -> None:
        self.x_0, self.z, self.cond = self.x_0[:rows], self.z[:rows], self.told(rows)

    def adopt(self, samples: Tensor) -> None:
        """Take the teacher's own samples for data."""
        self.x_0, self.mean = samples, samples.float().mean(0, keepdim=True).cpu()
        self.spread = max(float((samples.float().cpu() - self.mean).square().mean().sqrt()), 1e-6)

    def levels(self, schedule: Schedule, count: int, span: float = SPAN) -> list[float]:
        """Times evenly spread in the log-SNR of the data, from little noise to much, as far as the schedule goes."""
        scale = 2 * math.log(self.spread)
        ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)) + scale
        top, bottom = min(float(ends[0]), span), max(float(ends[1]), -span)
        wanted = torch.linspace(top, bottom, count, dtype=torch.float64)
        return [float(t) for t in schedule.time(wanted - scale)]

    def noised(self, t: float, schedule: Schedule | None = None, rows: int | None = None) -> tuple[Tensor, Tensor]:
        """The data at time t, and t for each row."""
        alpha_t, sigma_t = (schedule or self.schedule).at(t)
        x_0, z = self.x_0[:rows], self.z[:rows]
        time_dtype = torch.promote_types(self.dtype, torch.float32)
        return alpha_t * x_0 + sigma_t * z, torch.full((len(x_0),), t, device=self.device, dtype=time_dtype)

    def told(self, rows: int | None) -> Cond | None:
        return map_cond(lambda c: c[:rows], self.cond)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.teacher(x_t, t, self.told(len(x_t)) if cond is None else cond)


def _parts(teacher: Any) -> list[nn.Module]:
    """The modules a denoiser is made of."""
    if isinstance(teacher, nn.Module):
        return [teacher]
    if isinstance(teacher, Meter):
        return _parts(teacher.denoiser)
    return [v for v in getattr(teacher, "__dict__", {}).values() if isinstance(v, nn.Module)]


@contextmanager
def _untouched(teacher: Denoiser) -> Iterator[None]:
    """Put modes, buffers (running statistics) and the random state back."""
    modules = [m for part in _parts(teacher) for m in part.modules()]
    modes = [(m, m.training) for m in modules]
    buffers = [(b, b.clone()) for m in modules for b in m.buffers(recurse=False)]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for m, mode in modes:
            m.training = mode
        for b, held in buffers:
            b.copy_(held)


def _middle(subject: _Subject) -> float:
    """The time at which signal and noise are equally strong."""
    log_snr = torch.tensor(-2 * math.log(subject.spread), dtype=torch.float64)
    return min(max(float(subject.schedule.time(log_snr)), 1e-3), 1 - 1e-3)


def _check_call(subject: _Subject) -> list[Finding]:
    x_t, t = subject.noised(_middle(subject))
    raw: list[tuple[int, ...]] = []
    hook = None
    if isinstance(subject.inner, Prediction):
        hook = subject.inner.net.register_forward_hook(lambda m, a, out: raw.append(tuple(getattr(out, "shape", ()))))
    try:
        output: Any = subject(x_t, t)
    except Exception as error:  # Whatever a stranger's network raises is the finding.
        said = " ".join(str(error).split())[:300]
        if not raw or raw[0][1:] == tuple(x_t.shape[1:]):
            mend = (
                "the network is called as net(x_t, t, cond) with t (B,) in [0, 1]: wrap it in a module that translates"
            )
            return [Finding("output", "failure", f"the call raises {type(error).__name__}: {said}", mend)]
        output = None
    finally:
        if hook is not None:
            hook.remove()
    # Before broadcasting hides it; guidance doubles the rows.
    seen = raw[0] if raw and raw[0][1:] != tuple(x_t.shape[1:]) else tuple(getattr(output, "shape", ()))
    if seen != tuple(x_t.shape):
        mend = "return one value per input value from the network"
        if len(seen) == x_t.ndim and seen[1] == 2 * x_t.shape[1]:
            mend = "drop the channels of the learned variance in the network: the first half is the prediction"
        return [Finding("output", "failure", f"input {tuple(x_t.shape)} gives output {seen or type(output)}", mend)]
    if not bool(output.isfinite().all()):
        return [Finding("output", "failure", f"not finite at t = {float(t[0]):.3g}", "look at weights and precision")]
    if output.dtype != x_t.dtype:
        text = f"input of {x_t.dtype} gives output of {output.dtype}"
        return [Finding("output", "warning", text, "return the dtype of the input")]
    return [Finding("output", "ok", f"{tuple(x_t.shape)} of {x_t.dtype} in and out")]


def _check_repeats(subject: _Subject) -> list[Finding]:
    """Bit equality of two calls, and of a row among other rows, in the mode the teacher was given in."""
    x_t, t = subject.noised(_middle(subject))
    training = any(m.training for part in _parts(subject.teacher) for m in part.modules())
    mode = "it is in training mode, " if training else ""
    torch.manual_seed(0)
    first = subject(x_t, t)
    torch.manual_seed(1)
    scale = float(first.std()) or 1.0
    again = float((subject(x_t, t) - first).abs().max()) / scale
    found = []
    if again > 1e-4:
        text = f"two calls with the same input differ by {again:.1e} of the output: {mode}with dropout or noise inside"
        found.append(
            Finding("determinism", "failure", text, "call teacher.eval(), or remove what draws random numbers")
        )
    elif again > 0:
        text = f"two calls with the same input differ by {again:.1e} of the output, in the last bits"
        found.append(Finding("determinism", "warning", text, "torch.use_deterministic_algorithms(True), if it matters"))
    else:
        found.append(Finding("determinism", "ok", "two calls with the same input are equal, bit for bit"))
    # The others change, the shapes do not, so equal rows must stay equal; and dropout draws the same numbers.
    torch.manual_seed(0)
    half = len(x_t) // 2
    other = torch.cat([x_t[:half], 3 * x_t[half:].flip(0) + 1])
    beside = float((subject(other, t)[:half] - first[:half]).abs().max()) / scale
    if beside > 1e-3:
        text = f"a row changes by {beside:.1e} of the output when the other rows do: {mode}with batch statistics inside"
        found.append(Finding("batch", "failure", text, "call teacher.eval(), or normalise each sample alone"))
    else:
        found.append(Finding("batch", "ok", f"a row does not depend on the others (difference {beside:.1e})"))
    return found


def _check_ends(subject: _Subject) -> list[Finding]:
    found = []
    for t in (0.0, 1.0):
        x_t, times = subject.noised(t)
        output = subject(x_t, times)
        size = float(output.float().abs().max())
        if not bool(output.isfinite().all()):
            mend = "take the limit in the network: a solver asks for both ends"
            if t == 1 and getattr(subject.inner, "kind", "") in ("eps", "score"):
                mend = "on pure noise eps says nothing about x_0: stop the schedule short of alpha = 0"
            found.append(Finding("ends", "failure", f"not finite at t = {t:g}", mend))
        elif size > 50 * (subject.spread + float(subject.mean.abs().max())):
            alpha_t = subject.schedule.at(t)[0]
            text = f"at t = {t:g} predictions reach {size:.3g}"
            mend = "clip, or start the solver a little below t = 1" if t == 1 else ""
            if getattr(subject.inner, "kind", "") in ("eps", "score") and t == 1:
                text += f": an error of the noise is divided by alpha = {alpha_t:.1e}"
            found.append(Finding("ends", "warning", text, mend))
    return found or [Finding("ends", "ok", "finite at t = 0 and t = 1")]


def _with_label(cond: Cond, label: Tensor) -> Cond:
    return label if isinstance(cond, Tensor) else {**cond, "label": label}


def _check_labels(subject: _Subject) -> list[Finding]:
    cond, K = subject.cond, subject.classes
    if cond is None:
        return []
    label = cond if isinstance(cond, Tensor) else cond.get("label")
    if label is None or label.is_floating_point():
        return [_check_embedding(subject, cond)]
    found = []
    x_t, t = subject.noised(_middle(subject))
    K = K or int(label.max()) + 1
    if K < 2:
        return []
    right = subject(x_t, t)
    wrong = subject(x_t, t, _with_label(cond, (label + 1 + label.new_tensor(range(len(label))) % max(K - 1, 1)) % K))
    change = float((wrong - right).abs().max()) / subject.spread
    if change < 1e-6:
        text = f"its output is the same for all of {K} labels: the network ignores them"
        found.append(Finding("labels", "failure", text, "pass the label on to the network, or state classes=None"))
    else:
        error = [float((out - subject.x_0).square().mean().sqrt()) for out in (right, wrong)]
        text = f"other labels change predictions by up to {change:.2g} data deviations"
        if subject.source == "data" and subject.given:
            text += f"; the error is {error[0]:.3g} with the right ones, {error[1]:.3g} with others"
        if subject.source == "data" and subject.given and error[0] > 1.02 * error[1]:
            mend = "are the labels of the data numbered as in the teacher's training?"
            found.append(Finding("labels", "failure" if error[0] > 1.2 * error[1] else "warning", text, mend))
        else:
            found.append(Finding("labels", "ok", text))
    # On an accelerator an index out of range kills the process.
    if subject.device.type == "cpu":
        found += _check_range_of_labels(subject, x_t, t, cond, label, K)
    return found


def _check_embedding(subject: _Subject, cond: Cond) -> Finding:
    x_t, t = subject.noised(_middle(subject))
    other = map_cond(lambda c: torch.randn_like(c) if c.is_floating_point() and c.ndim > 1 else c, cond)
    change = float((subject(x_t, t, other) - subject(x_t, t)).abs().max()) / subject.spread
    if change < 1e-6:
        return Finding("condition", "failure", "its output is the same for any condition: the network ignores it")
    return Finding("condition", "ok", f"another condition changes predictions by up to {change:.2g} data deviations")


def _check_range_of_labels(
    subject: _Subject, x_t: Tensor, t: Tensor, cond: Cond, label: Tensor, K: int
) -> list[Finding]:
    taken = []
    for k in (K, K + 1):
        try:
            subject(x_t, t, _with_label(cond, torch.full_like(label, k)))
            taken.append(k)
        except Exception:  # Any refusal will do.
            break
    if len(taken) == 2:
        return [Finding("labels", "warning", f"labels {K} and {K + 1} of {K} classes are taken without an error")]
    extra = (
        f"label {K} is taken, too (no condition, for guidance?), and {K + 1} refused" if taken else f"{K} is refused"
    )
    return [Finding("labels", "ok", f"labels run from 0 to {K - 1}; {extra}")]


def _check_schedule(subject: _Subject) -> list[Finding]:
    schedule = subject.schedule
    t = torch.linspace(0, 1, 257, dtype=torch.float64)
    alpha, sigma = schedule(t)
    log_snr = schedule.log_snr(t)
    found = []
    if not bool((log_snr[1:] < log_snr[:-1]).all()):
        n = int((log_snr[1:] >= log_snr[:-1]).nonzero()[0])
        text = f"log-SNR does not fall from t = {float(t[n]):.3g} to {float(t[n + 1]):.3g}"
        found.append(Finding("schedule", "failure", text, "t = 0 is the data and t = 1 the noise"))
    (alpha_0, sigma_0), (alpha_1, sigma_1) = schedule.at(0.0), schedule.at(1.0)
    kept = alpha_1 * subject.spread / max(sigma_1, 1e-30)
    vp = float((alpha**2 + sigma**2 - 1).abs().max())
    path = "variance preserving" if vp < 1e-3 else f"alpha^2 + sigma^2 from {float((alpha**2 + sigma**2).min()):.3g}"
    text = (
        f"{path}, log-SNR {float(log_snr[0]):.3g} at t = 0 and {float(log_snr[-1]):.3g} at t = 1; noise holds "
        f"{100 * kept:.2g} % of signal"
    )
    if kept > 0.2:
        mend = "t = 1 has to be noise: is the schedule, or the range of the data, another?"
        found.append(Finding("schedule", "failure", text, mend))
    elif kept > 0.05:
        mend = (
            "the start sigma_1 z lacks this signal (Lin et al., 2023, arXiv 2305.08891): expect samples nearer to grey"
        )
        found.append(Finding("schedule", "warning", text, mend))
    if sigma_0 > 0.05 * alpha_0 * subject.spread:
        left = f"at t = 0 noise of {sigma_0:.3g} is left, the data's deviation is {subject.spread:.3g}"
        found.append(Finding("schedule", "warning", left, "samples stay noisy: the schedule should reach sigma = 0"))
    return found or [Finding("schedule", "ok", text)]


def _gauge(subject: _Subject, x_0: Tensor, x_t: Tensor, alpha_t: float, sigma_t: float, mean: Tensor) -> list[float]:
    """RMSE of the mean, the input and the Wiener estimate."""
    s2 = float((x_0 - mean).square().mean())
    gain = alpha_t * s2 / (alpha_t**2 * s2 + sigma_t**2)
    trivial = (mean.expand_as(x_0), x_t / max(alpha_t, 1e-30), mean + gain * (x_t - alpha_t * mean))
    return [float((guess - x_0).square().mean().sqrt()) for guess in trivial]


def _denoise(subject: _Subject, times: list[float]) -> list[Level]:
    found = []
    mean = subject.mean.to(subject.x_0)
    for t in times:
        (alpha_t, sigma_t), (x_t, rows) = subject.schedule.at(t), subject.noised(t)
        error = float((subject(x_t, rows) - subject.x_0).square().mean().sqrt())
        log_snr = 2 * math.log(max(alpha_t, 1e-30) / max(sigma_t, 1e-30))
        found.append(Level(t, log_snr, error, *_gauge(subject, subject.x_0, x_t, alpha_t, sigma_t, mean)))
    return found


def _check_denoising(subject: _Subject, levels: list[Level]) -> list[Finding]:
    s = subject.spread

    def state(level: Level) -> State:
        # A hundredth of the data's deviation is no error; and what a mean or deviation of few rows gets wrong.
        best = min(level.mean, level.input, level.wiener)
        if level.error <= 1.03 * best + 0.01 * s:
            return "ok"
        outer = abs(level.log_snr + 2 * math.log(s)) > 0.65 * SPAN
        return "warning" if outer and level.error <= 2 * best + 0.01 * s else "failure"

    states = [state(level) for level in levels]
    worst = max(states, key=STATES.index)
    ratio = math.exp(
        statistics.fmean(math.log(max(level.ratio, 1e-9)) if math.isfinite(level.ratio) else 9 for level in levels)
    )
    on = (
        "its own samples (no data were given: weaker)"
        if subject.source == "own samples"
        else f"{len(subject.x_0)} samples"
    )
    text = f"error {ratio:.2f} x the best trivial estimate in the mean over {len(levels)} noise levels, on {on}"
    if worst == "ok" and min(level.ratio for level in levels) > 0.97:
        text += "; nowhere better than a linear estimate, which is right for Gaussian data alone"
        return [Finding("denoising", "warning", text, "is it trained, and told the time?")]
    if worst == "ok":
        return [Finding("denoising", "ok", text)]
    bad = [level for level, found in zip(levels, states, strict=True) if found != "ok"]
    shown = ", ".join(f"{level.ratio:.2f} x at t = {level.t:.3g}" for level in bad[:4])
    text += f"; worse than trivial at {len(bad)} of them: {shown}{', ...' if len(bad) > 4 else ''}"
    mend = "its convention is wrong, or it is not trained for this" if worst == "failure" else ""
    return [Finding("denoising", worst, text, mend)]


def _check_sampling(subject: _Subject) -> tuple[Tensor | None, list[Finding]]:
    """A few steps of a solver: are the samples finite, and like the data?"""
    sampler = SolverSampler(subject, subject.schedule, quadratic(SOLVE_STEPS), DPMSolverPP(2))
    samples = sampler(subject.z).x[:, -1]
    if not bool(samples.isfinite().all()):
        return None, [Finding("sampling", "failure", f"samples of {SOLVE_STEPS} solver steps are not finite")]
    mean, std = float(samples.mean()), float(samples.std())
    low, high = float(samples.min()), float(samples.max())
    text = f"samples of {SOLVE_STEPS} solver steps: mean {mean:.3g}, deviation {std:.3g}, in [{low:.3g}, {high:.3g}]"
    if subject.source != "data":
        return samples, [Finding("sampling", "ok" if std > 0 else "failure", text)]
    total, center = float(subject.x_0.std()), float(subject.x_0.mean())
    text += f"; the data: mean {center:.3g}, deviation {total:.3g}"
    ratio, shift = std / total, abs(mean - center) / total
    if 0.7 < ratio < 1.4 and shift < 0.3:
        return samples, [Finding("sampling", "ok", text)]
    bad = not 0.2 < ratio < 5 or shift > 2
    return samples, [Finding("sampling", "failure" if bad else "warning", text, "samples are unlike the data")]


@dataclass(frozen=True)
class _Reading:
    """A convention to try: kind and sign of the output, what the network is told for t, the schedule, the data's range."""

    kind: Kind
    sign: int = 1
    time: str = ""
    schedule: Schedule | None = None
    values: str = ""

    @property
    def changes(self) -> int:
        return sum([self.sign < 0, bool(self.time), self.schedule is not None, bool(self.values)])

    def describe(self, stated: Kind) -> str:
        """`v, told 1000 t`, or the like."""
        words = [f"{'minus ' * (self.sign < 0)}{self.kind}"] if self.kind != stated or self.sign < 0 else []
        words += [f"told {self.time}"] * bool(self.time)
        words += [f"on {self.schedule!r}"] if self.schedule is not None else []
        words += [f"for data in {self.values}"] * bool(self.values)
        return ", ".join(words)


_TIMES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "": lambda base, t: base(t),
    "1 - t": lambda base, t: base(1 - t),
    "1000 t": lambda base, t: 1000 * base(t),
    "t / 1000": lambda base, t: base(t) / 1000,
}

_RANGES = {"[-1, 1]": (-1.0, 1.0), "[0, 1]": (0.0, 1.0), "[0, 255]": (0.0, 255.0)}


def _ranges(low: float, high: float) -> dict[str, tuple[float, float]]:
    """The other usual ranges, as (factor, offset) from the one that data in [low, high] are nearest to."""
    held = min(_RANGES.values(), key=lambda r: (abs(low - r[0]) + abs(high - r[1])) / (r[1] - r[0]))
    factors = {name: (r[1] - r[0]) / (held[1] - held[0]) for name, r in _RANGES.items() if r != held}
    return {name: (f, _RANGES[name][0] - f * held[0]) for name, f in factors.items()}


def _scores(subject: _Subject, at: _Reading, scaled: bool, rows: int) -> dict[_Reading, float]:
    r"""The mean over levels of log(error / best baseline), of every kind and sign of one evaluation of the network.

    `scaled` reads the kind `edm`, whose network is shown another input.
    """
    inner: Prediction = subject.inner
    schedule = at.schedule or subject.schedule
    factor, offset = _ranges(*_limits(subject)).get(at.values, (1.0, 0.0))
    bench = copy.copy(subject)
    bench.x_0, bench.spread = factor * subject.x_0[:rows] + offset, factor * subject.spread
    mean = (factor * subject.mean + offset).to(subject.x_0)
    base = inner.time or (lambda t: t)
    kinds: list[Kind] = ["edm"] if scaled else [k for k in KINDS if k != "edm"]
    logs: dict[_Reading, list[float]] = {}
    for t in bench.levels(schedule, 4, 4.0):
        x_t, times = bench.noised(t, schedule, rows)
        shown = shown_to("edm", x_t, times, schedule, inner.data_std) if scaled else x_t
        told, cond = _TIMES[at.time](base, times), subject.told(rows)
        raw = inner.net(shown, told) if cond is None else inner.net(shown, told, cond)
        best = min(_gauge(bench, bench.x_0, x_t, *schedule.at(t), mean))
        for kind, sign in product(kinds, (1, -1)):
            x0_hat = x0_from(kind, sign * raw, x_t, times, schedule, inner.data_std)
            error = float((x0_hat - bench.x_0).square().mean().sqrt())
            ratio = error / max(best, 1e-12)
            logs.setdefault(replace(at, kind=kind, sign=sign), []).append(
                min(math.log(max(ratio, 1e-9)), 5.0) if math.isfinite(ratio) else 5.0
            )
    return {reading: statistics.fmean(values) for reading, values in logs.items()}


def _limits(subject: _Subject) -> tuple[float, float]:
    held = subject.x_0 if subject.all is None else subject.all
    return float(held.min()), float(held.max())


def _check_readings(subject: _Subject, beaten: bool, patience: float) -> list[Finding]:
    inner = subject.inner
    if not isinstance(inner, Prediction):
        return []
    stated = _Reading(inner.kind)
    if subject.source == "own samples":
        # Samples made by a wrong reading tell nothing of the others.
        return _check_readings_without_data(subject, stated, beaten, patience)
    schedules = [
        None,
        *(s for s in (Cosine(), linear_beta(), RectifiedFlow(), VPLinear(), VE()) if s != inner.schedule),
    ]
    tried: list[_Reading] = [
        replace(stated, time=time, schedule=schedule)
        for schedule, time in product(schedules, _TIMES)
        if beaten or not (time and schedule)
    ]
    tried += [replace(stated, values=values) for values in _ranges(*_limits(subject))]
    tried.sort(key=lambda reading: reading.changes)
    rows, began = min(16, len(subject.x_0)), time.perf_counter()
    scores: dict[_Reading, float] = {}
    for n, (reading, scaled) in enumerate((r, s) for r in tried for s in (inner.kind == "edm", inner.kind != "edm")):
        if n > 1 and time.perf_counter() - began > patience:
            break
        try:
            scores |= _scores(subject, reading, scaled, rows)
        except Exception:  # A network may refuse times or values that are none of its own.
            continue
    return [_judge(stated, scores, beaten, 0.2)]


def _check_readings_without_data(subject: _Subject, stated: _Reading, beaten: bool, patience: float) -> list[Finding]:
    inner: Prediction = subject.inner
    schedules = [s for s in (Cosine(), linear_beta(), RectifiedFlow(), VPLinear(), VE()) if s != inner.schedule]
    tried = [
        stated,
        *(replace(stated, kind=k, sign=s) for k, s in product(KINDS, (1, -1)) if (k, s) != (stated.kind, 1)),
    ]
    tried += [replace(stated, time=t) for t in _TIMES if t] + [replace(stated, schedule=s) for s in schedules]
    scores: dict[_Reading, float] = {}
    began = time.perf_counter()
    rows = min(16, len(subject.x_0))
    for reading in tried:
        if len(scores) > 0 and time.perf_counter() - began > patience:
            break
        try:
            if (score := _own_score(subject, reading, rows)) is not None:
                scores[reading] = score
        except Exception:  # As above.
            continue
    if stated not in scores:
        scores[stated] = 5.0
    return [_judge(stated, scores, beaten, 0.5)]


def _own_score(subject: _Subject, reading: _Reading, rows: int) -> float | None:
    """How well a reading denoises the samples that it makes itself."""
    inner: Prediction = subject.inner
    net = _Signed(inner.net, reading.sign)
    base = inner.time or (lambda t: t)
    schedule = reading.schedule or inner.schedule
    other = Prediction(net, schedule, reading.kind, lambda t: _TIMES[reading.time](base, t), inner.clip, inner.data_std)
    bench = copy.copy(subject)
    bench.teacher, bench.schedule, bench.z = other, schedule, subject.z[:rows]
    samples = SolverSampler(bench, schedule, quadratic(SOLVE_STEPS), DPMSolverPP(2))(bench.z).x[:, -1]
    if not bool(samples.isfinite().all()) or float(samples.abs().max()) > 1e3:
        return None
    bench.adopt(samples)
    levels = _denoise(bench, bench.levels(schedule, 4, 4.0))
    return statistics.fmean(min(math.log(max(x.ratio, 1e-9)), 5.0) if math.isfinite(x.ratio) else 5.0 for x in levels)


class _Signed(nn.Module):
    def __init__(self, net: nn.Module, sign: int) -> None:
        super().__init__()
        self.net, self.sign = net, sign

    def forward(self, x_t: Tensor, t: Tensor, *cond: Any) -> Tensor:
        return self.sign * self.net(x_t, t, *cond)


def _judge(stated: _Reading, scores: dict[_Reading, float], beaten: bool, margin: float) -> Finding:
    """Whether another reading denoises clearly better; a smaller `margin` will do where the stated one fails."""
    own = scores[stated]
    # A tie goes to the reading that changes least.
    best = min(scores, key=lambda r: scores[r] + 0.05 * (r.changes + (r.kind != stated.kind)))
    if scores[best] > own - (0.05 if beaten else margin) or scores[best] >= -0.05:
        text = f"of {len(scores)} readings none denoises clearly better than the stated one"
        if not beaten:
            return Finding("reading", "ok", text)
        mend = "another schedule, other units of time, other data, or not trained?"
        return Finding("reading", "warning", text, mend)
    check = "range" if best.values else "reading"
    text = (
        f"this network denoises much better read as {best.describe(stated.kind)}: error {math.exp(scores[best]):.2f} x the best "
        f"trivial estimate, as stated ({stated.kind}) {math.exp(own):.2f} x"
    )
    return Finding(check, "failure", text, _remedy(best, stated))


def _remedy(best: _Reading, stated: _Reading) -> str:
    steps = [f"kind={best.kind!r}"] if best.kind != stated.kind else []
    steps += ["a network that returns minus its output"] if best.sign < 0 else []
    steps += [f"tell it {best.time} for t"] if best.time else []
    steps += [f"schedule={best.schedule!r}"] if best.schedule is not None else []
    steps += (
        [f"use data in {best.values}, or a module around it that maps to this range and back"] if best.values else []
    )
    return ", ".join(steps)


def _check_range(subject: _Subject) -> list[Finding]:
    low, high = _limits(subject)
    what = "the data" if subject.source == "data" else "its samples"
    found = []
    clip = getattr(subject.inner, "clip", None)
    bound = clip if isinstance(clip, int | float) else None
    if bound is not None and max(-low, high) > 1.01 * bound and subject.source == "data":
        text = f"predictions are clipped to {bound:g}, the data lie in [{low:.3g}, {high:.3g}]"
        found.append(Finding("range", "failure", text, "rescale the data, or state another clip"))
    if low > -0.05 and high > 0.3 and (0.9 < high < 1.1 or 100 < high < 300):
        text = f"{what} lie in [{low:.3g}, {high:.3g}]"
        state: State = "warning"
        found.append(Finding("range", state, text, "images lie in [-1, 1] here: map them, in and out"))
    if found:
        return found
    x_t, t = subject.noised(_middle(subject))
    made = subject(x_t, t)
    text = f"{what} lie in [{low:.3g}, {high:.3g}], predictions in [{float(made.min()):.3g}, {float(made.max()):.3g}]"
    return [Finding("range", "ok", text)]


def _cost(subject: _Subject) -> tuple[Finding, dict[str, float]]:
    x_t, t = subject.noised(_middle(subject))

    def call(rows: int) -> Tensor:
        return subject(x_t[:rows], t[:rows])

    work = flops(call, 1)
    one = latency(call, 1, repeats=3, warmup=1)
    many = latency(call, len(x_t), repeats=1, warmup=0)
    text = f"{1e3 * one:.3g} ms alone, {1e3 * many:.3g} ms for {len(x_t)} rows ({len(x_t) / many:.3g} rows/s)"
    if work:
        text += f"; {work / 1e9:.3g} GFLOP a row"
    cost = {"flop_per_row": float(work), "rows": float(len(x_t)), "seconds_1": one, "seconds_rows": many}
    return Finding("cost", "ok", text), cost
