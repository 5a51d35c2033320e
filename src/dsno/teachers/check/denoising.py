r"""Does a teacher denoise, at noise levels that are those of its schedule, and do its samples look like the data?

On data of mean $\mu$ and standard deviation $s$ a denoiser has to beat what anybody can do who knows nothing but these,

| baseline | estimate of $x_0$ |
|---|---|
| the mean | $\mu$ |
| the input | $x_t / \alpha_t$ |
| Wiener | $\mu + \alpha_t s^2 (x_t - \alpha_t \mu) / (\alpha_t^2 s^2 + \sigma_t^2)$ |

at every level. Of Gaussian data with equal and independent pixels the Wiener estimate is the best there is.
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from dsno.grids import quadratic
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import SolverSampler
from dsno.teachers.check.subject import SPAN, Subject, rmse
from dsno.teachers.check.verdict import STATES, Finding, Level, State

__all__ = ["baselines", "check_denoising", "check_sampling", "check_schedule", "denoise", "sample"]

SOLVE_STEPS = 12


def baselines(subject: Subject, t: float, x_t: Tensor) -> tuple[float, float, float]:
    """The errors of the mean, the input and the Wiener estimate, each a root mean square."""
    x_0, mean = subject.x_0, subject.mean
    alpha_t, sigma_t = subject.schedule.at(t)
    s2 = float((x_0 - mean).square().mean())
    gain = alpha_t * s2 / (alpha_t**2 * s2 + sigma_t**2)
    wiener = mean + gain * (x_t - alpha_t * mean)
    return rmse(mean.expand_as(x_0), x_0), rmse(x_t / max(alpha_t, 1e-30), x_0), rmse(wiener, x_0)


def denoise(subject: Subject, times: list[float]) -> list[Level]:
    """The errors of the teacher and of the baselines at each time."""
    found = []
    for t in times:
        (alpha_t, sigma_t), (x_t, rows) = subject.schedule.at(t), subject.noised(t)
        error = rmse(subject(x_t, rows), subject.x_0)
        log_snr = 2 * math.log(max(alpha_t, 1e-30) / max(sigma_t, 1e-30))
        found.append(Level(t, log_snr, error, *baselines(subject, t, x_t)))
    return found


def check_denoising(subject: Subject, levels: list[Level]) -> list[Finding]:
    """Is the teacher better than trivial at every level?"""
    states = [_state(level, subject.spread) for level in levels]
    worst = max(states, key=STATES.index)
    logs = (math.log(max(level.ratio, 1e-9)) if math.isfinite(level.ratio) else 9.0 for level in levels)
    ratio = math.exp(statistics.fmean(logs))
    on = f"{len(subject.x_0)} samples" if subject.from_data else "its own samples (no data were given: weaker)"
    text = f"error {ratio:.2f} x the best trivial estimate in the mean over {len(levels)} noise levels, on {on}"
    if worst == "ok" and min(level.ratio for level in levels) > 0.97:
        text += "; nowhere better than a linear estimate, which is right for Gaussian data alone"
        return [Finding("denoising", "warning", text, "is it trained, and told the time?")]
    if worst == "ok":
        return [Finding("denoising", "ok", text)]
    bad = [level for level, state in zip(levels, states, strict=True) if state != "ok"]
    shown = ", ".join(f"{level.ratio:.2f} x at t = {level.t:.3g}" for level in bad[:4])
    text += f"; worse than trivial at {len(bad)} of them: {shown}{', ...' if len(bad) > 4 else ''}"
    mend = "its convention is wrong, or it is not trained for this" if worst == "failure" else ""
    return [Finding("denoising", worst, text, mend)]


def _state(level: Level, spread: float) -> State:
    # A hundredth of the data's deviation is no error; nor is what a mean or deviation of few rows gets wrong.
    best, slack = min(level.mean, level.input, level.wiener), 0.01 * spread
    if level.error <= 1.03 * best + slack:
        return "ok"
    outer = abs(level.log_snr + 2 * math.log(spread)) > 0.65 * SPAN
    return "warning" if outer and level.error <= 2 * best + slack else "failure"


def check_schedule(subject: Subject) -> list[Finding]:
    """Does the schedule lead from the data to noise?"""
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
    power = alpha**2 + sigma**2
    preserved = float((power - 1).abs().max()) < 1e-3
    text = (
        f"{'variance preserving' if preserved else f'alpha^2 + sigma^2 from {float(power.min()):.3g}'}, log-SNR "
        f"{float(log_snr[0]):.3g} at t = 0 and {float(log_snr[-1]):.3g} at t = 1; "
        f"noise holds {100 * kept:.2g} % of signal"
    )
    if kept > 0.2:
        mend = "t = 1 has to be noise: is the schedule, or the range of the data, another?"
        found.append(Finding("schedule", "failure", text, mend))
    elif kept > 0.05:
        lacks = "the start sigma_1 z lacks this signal (Lin et al., 2023, arXiv 2305.08891)"
        found.append(Finding("schedule", "warning", text, f"{lacks}: expect samples nearer to grey"))
    if sigma_0 > 0.05 * alpha_0 * subject.spread:
        left = f"at t = 0 noise of {sigma_0:.3g} is left, the data's deviation is {subject.spread:.3g}"
        found.append(Finding("schedule", "warning", left, "samples stay noisy: the schedule should reach sigma = 0"))
    return found or [Finding("schedule", "ok", text)]


def sample(subject: Subject) -> Tensor:
    """Samples of a few steps of a solver, (B, *shape)."""
    return SolverSampler(subject, subject.schedule, quadratic(SOLVE_STEPS), DPMSolverPP(2))(subject.z).x[:, -1]


def check_sampling(subject: Subject) -> tuple[Tensor | None, list[Finding]]:
    """Are the samples of a few steps finite, and like the data? None where they are not finite."""
    samples = sample(subject)
    if not bool(samples.isfinite().all()):
        return None, [Finding("sampling", "failure", f"samples of {SOLVE_STEPS} solver steps are not finite")]
    mean, std = float(samples.mean()), float(samples.std())
    low, high = float(samples.min()), float(samples.max())
    text = f"samples of {SOLVE_STEPS} solver steps: mean {mean:.3g}, deviation {std:.3g}, in [{low:.3g}, {high:.3g}]"
    if not subject.from_data:
        return samples, [Finding("sampling", "ok" if std > 0 else "failure", text)]
    total, center = float(subject.x_0.std()), float(subject.x_0.mean())
    text += f"; the data: mean {center:.3g}, deviation {total:.3g}"
    ratio, shift = std / total, abs(mean - center) / total
    if 0.7 < ratio < 1.4 and shift < 0.3:
        return samples, [Finding("sampling", "ok", text)]
    bad = not 0.2 < ratio < 5 or shift > 2
    return samples, [Finding("sampling", "failure" if bad else "warning", text, "samples are unlike the data")]
