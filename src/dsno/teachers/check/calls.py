"""How a teacher answers when it is called: shapes and dtypes, repetition, both ends of time, conditions, and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsno.condition import Cond, map_cond, named
from dsno.denoise import Prediction
from dsno.teachers.check.subject import Subject, rmse
from dsno.teachers.check.verdict import Finding

__all__ = ["check_call", "check_ends", "check_labels", "check_range", "check_repeats"]


def check_call(subject: Subject) -> list[Finding]:
    """One call in the middle of time: does it give one finite value for each, of the same dtype?"""
    x_t, t = subject.noised(subject.middle)
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


def check_repeats(subject: Subject) -> list[Finding]:
    """Bit equality of two calls, and of a row among other rows, in the mode the teacher was given in."""
    x_t, t = subject.noised(subject.middle)
    training = any(m.training for part in subject.modules for m in part.modules())
    mode = "it is in training mode, " if training else ""
    torch.manual_seed(0)
    first = subject(x_t, t)
    torch.manual_seed(1)
    scale = float(first.std()) or 1.0
    again = float((subject(x_t, t) - first).abs().max()) / scale
    if again > 1e-4:
        text = f"two calls with the same input differ by {again:.1e} of the output: {mode}with dropout or noise inside"
        mend = "call teacher.eval(), or remove what draws random numbers"
        repeated = Finding("determinism", "failure", text, mend)
    elif again > 0:
        text = f"two calls with the same input differ by {again:.1e} of the output, in the last bits"
        repeated = Finding("determinism", "warning", text, "torch.use_deterministic_algorithms(True), if it matters")
    else:
        repeated = Finding("determinism", "ok", "two calls with the same input are equal, bit for bit")
    # The others change, the shapes do not, so equal rows must stay equal; and dropout draws the same numbers.
    torch.manual_seed(0)
    half = len(x_t) // 2
    other = torch.cat([x_t[:half], 3 * x_t[half:].flip(0) + 1])
    beside = float((subject(other, t)[:half] - first[:half]).abs().max()) / scale
    if beside > 1e-3:
        text = f"a row changes by {beside:.1e} of the output when the other rows do: {mode}with batch statistics inside"
        return [repeated, Finding("batch", "failure", text, "call teacher.eval(), or normalise each sample alone")]
    return [repeated, Finding("batch", "ok", f"a row does not depend on the others (difference {beside:.1e})")]


def check_ends(subject: Subject) -> list[Finding]:
    """Both ends of time, where solvers start and stop: finite, and of the size of the data?"""
    found = []
    for t in (0.0, 1.0):
        output = subject(*subject.noised(t))
        size = float(output.float().abs().max())
        # On pure noise these say nothing about x_0, which is divided by alpha.
        blind = t == 1 and getattr(subject.inner, "kind", "") in ("eps", "score")
        if not bool(output.isfinite().all()):
            mend = "take the limit in the network: a solver asks for both ends"
            if blind:
                mend = "on pure noise eps says nothing about x_0: stop the schedule short of alpha = 0"
            found.append(Finding("ends", "failure", f"not finite at t = {t:g}", mend))
        elif size > 50 * (subject.spread + float(subject.mean.abs().max())):
            text = f"at t = {t:g} predictions reach {size:.3g}"
            if blind:
                text += f": an error of the noise is divided by alpha = {subject.schedule.at(t)[0]:.1e}"
            mend = "clip, or start the solver a little below t = 1" if t == 1 else ""
            found.append(Finding("ends", "warning", text, mend))
    return found or [Finding("ends", "ok", "finite at t = 0 and t = 1")]


def check_labels(subject: Subject) -> list[Finding]:
    """Do other labels give other predictions, worse ones, and is a label out of range refused? Likewise embeddings."""
    cond = subject.cond
    if cond is None:
        return []
    label = cond if isinstance(cond, Tensor) else cond.get("label")
    if label is None or label.is_floating_point():
        return [_check_embedding(subject, cond)]
    K = subject.classes or int(label.max()) + 1
    if K < 2:
        return []
    x_t, t = subject.noised(subject.middle)
    right = subject(x_t, t)
    others = (label + 1 + label.new_tensor(range(len(label))) % max(K - 1, 1)) % K
    wrong = subject(x_t, t, _with_label(cond, others))
    change = float((wrong - right).abs().max()) / subject.spread
    if change < 1e-6:
        text = f"its output is the same for all of {K} labels: the network ignores them"
        mend = "pass the label on to the network, or state classes=None"
        found = [Finding("labels", "failure", text, mend)]
    else:
        found = [_judge_labels(subject, change, rmse(right, subject.x_0), rmse(wrong, subject.x_0))]
    # On an accelerator an index out of range kills the process.
    if x_t.device.type == "cpu":
        found.append(_check_range_of_labels(subject, cond, label, K))
    return found


def _judge_labels(subject: Subject, change: float, right: float, wrong: float) -> Finding:
    text = f"other labels change predictions by up to {change:.2g} data deviations"
    if not (subject.from_data and subject.cond_given):
        return Finding("labels", "ok", text)
    text += f"; the error is {right:.3g} with the right ones, {wrong:.3g} with others"
    if right <= 1.02 * wrong:
        return Finding("labels", "ok", text)
    mend = "are the labels of the data numbered as in the teacher's training?"
    return Finding("labels", "failure" if right > 1.2 * wrong else "warning", text, mend)


def _check_range_of_labels(subject: Subject, cond: Cond, label: Tensor, K: int) -> Finding:
    taken = 0
    for k in (K, K + 1):
        try:
            subject(*subject.noised(subject.middle), _with_label(cond, torch.full_like(label, k)))
        except Exception:  # Any refusal will do.
            break
        taken += 1
    if taken == 2:
        return Finding("labels", "warning", f"labels {K} and {K + 1} of {K} classes are taken without an error")
    extra = f"label {K} is taken, too (no condition, for guidance?), and {K + 1} refused"
    return Finding("labels", "ok", f"labels run from 0 to {K - 1}; {extra if taken else f'{K} is refused'}")


def _with_label(cond: Cond, label: Tensor) -> Cond:
    return label if isinstance(cond, Tensor) else {**named(cond), "label": label}


def _check_embedding(subject: Subject, cond: Cond) -> Finding:
    x_t, t = subject.noised(subject.middle)
    other = map_cond(lambda c: torch.randn_like(c) if c.is_floating_point() and c.ndim > 1 else c, cond)
    change = float((subject(x_t, t, other) - subject(x_t, t)).abs().max()) / subject.spread
    if change < 1e-6:
        return Finding("condition", "failure", "its output is the same for any condition: the network ignores it")
    return Finding("condition", "ok", f"another condition changes predictions by up to {change:.2g} data deviations")


def check_range(subject: Subject) -> list[Finding]:
    """Do the samples lie where predictions are not clipped, and are they not pixels of another range?"""
    low, high = subject.limits
    what = f"{'the data' if subject.from_data else 'its samples'} lie in [{low:.3g}, {high:.3g}]"
    found = []
    clip = getattr(subject.inner, "clip", None)
    if isinstance(clip, int | float) and max(-low, high) > 1.01 * clip and subject.from_data:
        text = f"predictions are clipped to {clip:g}, {what}"
        found.append(Finding("range", "failure", text, "rescale the data, or state another clip"))
    if low > -0.05 and high > 0.3 and (0.9 < high < 1.1 or 100 < high < 300):
        found.append(Finding("range", "warning", what, "images lie in [-1, 1] here: map them, in and out"))
    if found:
        return found
    made = subject(*subject.noised(subject.middle))
    text = f"{what}, predictions in [{float(made.min()):.3g}, {float(made.max()):.3g}]"
    return [Finding("range", "ok", text)]
