r"""Schedulers of diffusers as conventions: schedule, kind of prediction, time and clipping; and as grids.

A scheduler's configuration says what the network was trained on; everything is read from it, nothing is guessed:

| scheduler | schedule | time told to the network |
|---|---|---|
| DDPM, DDIM, PNDM, DPM-Solver, UniPC, Euler, Heun, LMS | `Tabulated`($\bar\alpha_k$) | $k = K t - 1$ |
| FlowMatchEuler, and those with `use_flow_sigmas` | `RectifiedFlow` | $K t$ |
| EDM | `VE`($\sigma_{\max}$), kind `edm` with $\sigma_d$ = `sigma_data` | $\tfrac14 \log \sigma_t$ |

Training step $k$ of $K$ sits at $t = (k + 1) / K$; between the steps the network is told the fraction. A schedule with
zero terminal SNR has $\bar\alpha_{K-1} = 0$, which no finite log-SNR describes: it is raised to $10^{-12}$, or to half
of the level before where that is lower. The table is the scheduler's own, in float32; one that float32 does not tell
apart is computed from its $\beta_k$ in float64.

What a file says of the model counts although its class would drop it: `predict_epsilon: false`, which is how files from
before `prediction_type` say that the network gives $x_0$, and `rescale_betas_zero_snr` of PNDM, Heun and LMS.

The k-diffusion samplers (Euler, Heun, LMS) keep $x_t / \alpha_t$ and scale what the network sees back to $x_t$, so they
are the same models. A scheduler's way of choosing steps (`timestep_spacing`, `steps_offset`, the flow's `shift`, the
last noise level) is no part of the model: `grid_from_scheduler` turns it into a grid for our solvers.

Where $\hat x_0$ is clipped, our noise is the one that belongs to the clipped $\hat x_0$, as in DDPMScheduler, and in
DDIMScheduler with `use_clipped_model_output=True`. By default DDIMScheduler puts the clipped $\hat x_0$ and the noise
of the unclipped one together, which are no two parts of any $x_t$.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from dsno.checkpoint import read_json
from dsno.denoise import Kind, Threshold
from dsno.grids import check_grid
from dsno.hub import first_line, local_copy
from dsno.nets.diffusers import TimeUnit
from dsno.outside import Within, check, reading
from dsno.schedule import VE, RectifiedFlow, Schedule, Tabulated
from dsno.teachers.parts import scheduler_file

__all__ = ["SCHEDULERS", "Convention", "grid_from_scheduler", "load_scheduler", "read_convention"]


class _Sort(NamedTuple):
    """What a scheduler calls time, and whether it keeps its noise levels (`sigmas`) beside its time steps."""

    unit: TimeUnit
    sigmas: bool = True


SCHEDULERS = {
    "DDIMScheduler": _Sort("steps", sigmas=False),
    "DDPMScheduler": _Sort("steps", sigmas=False),
    "DPMSolverMultistepScheduler": _Sort("steps"),
    "EDMDPMSolverMultistepScheduler": _Sort("edm"),
    "EDMEulerScheduler": _Sort("edm"),
    "EulerAncestralDiscreteScheduler": _Sort("steps"),
    "EulerDiscreteScheduler": _Sort("steps"),
    "FlowMatchEulerDiscreteScheduler": _Sort("flow"),
    "HeunDiscreteScheduler": _Sort("steps"),
    "LMSDiscreteScheduler": _Sort("steps"),
    "PNDMScheduler": _Sort("steps", sigmas=False),
    "UniPCMultistepScheduler": _Sort("steps"),
}
"""The schedulers that we know; `use_flow_sigmas` makes a flow of any that tells steps."""

_DISTILLED = ("CMStochasticIterativeScheduler", "LCMScheduler", "TCDScheduler")

_KINDS: dict[str, Kind] = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
"""`original_sample` is what Euler's scheduler called `sample` at first."""

_MOST_STEPS = 100_000
"""More training steps than any model has."""

_FLOOR = 1e-12
r"""What stands for $\bar\alpha = 0$."""

_SENTINEL = 2.0**-24
r"""What Euler, DPM-Solver and UniPC write over $\bar\alpha = 0$, so that their $\sigma / \alpha$ is finite."""


@dataclass(frozen=True)
class Convention:
    r"""What a scheduler says of its model.

    Attributes:
        schedule: The noise levels.
        kind: What the network predicts.
        clip: The bound on $|\hat x_0|$, a `Threshold`, or None.
        unit: What the network calls time.
        steps: $K$.
        data_std: $\sigma_d$ of the kind `edm`.
        sigma_min: The least noise level that EDM's network knows.
        sigma_max: The largest; a flow's is 1.
        negate: Whether the network's output is $-F$ (EDM's `v_prediction`).
    """

    schedule: Schedule
    kind: Kind
    clip: float | Threshold | None
    unit: TimeUnit
    steps: int
    data_std: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float = 1.0
    negate: bool = False


def load_scheduler(ref: Any) -> Any:
    """A fresh diffusers scheduler from a scheduler, a pipeline, a configuration, or the folder or Hub id of a model.

    Raises:
        FileNotFoundError: if there is no such folder, or no `scheduler_config.json` in it.
        ValueError: for a scheduler that we do not know, or one of a distilled model; lists those we know. For one that
            says twice what the network predicts, and not the same.
    """
    source: object = "the scheduler"
    if isinstance(ref, Path | str):
        source = scheduler_file(local_copy(ref))
        check(config := read_json(source), dict[str, Any], f"{source}")
    elif isinstance(ref, Mapping):
        config = dict(ref)
    else:
        held = getattr(ref, "scheduler", ref)
        config = {**held.config, "_class_name": type(held).__name__}
    name = str(config.get("_class_name"))
    if name in _DISTILLED:
        raise ValueError(
            f"{name} samples a distilled model, which is a student and no teacher: give the model it is of"
        )
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name}: expected one of {', '.join(SCHEDULERS)}")
    check(
        config.get("num_train_timesteps", 1000), Annotated[int, Within(1, _MOST_STEPS)], f"{source}: its training steps"
    )
    import diffusers

    with reading(source, "is of no scheduler that diffusers can make"):
        return getattr(diffusers, name).from_config(_with_prediction_type(config))


def _with_prediction_type(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration states, with `predict_epsilon: false` of old files as the `prediction_type` that it means.

    Raises:
        ValueError: if it states another one, too, or is neither true nor false.
    """
    unstated = {*config.get("_use_default_values", ()), "_use_default_values"}
    stated = {k: v for k, v in config.items() if k not in unstated}
    if (epsilon := stated.pop("predict_epsilon", None)) not in (None, True, False):
        raise ValueError(f"the scheduler says predict_epsilon = {epsilon!r}: expected true or false")
    if epsilon is None or epsilon:
        return stated
    if _KINDS.get(kind := stated.setdefault("prediction_type", "sample")) != "x0":
        raise ValueError(
            f"the scheduler says predict_epsilon = false, so that the network gives x0, and prediction_type = "
            f"{kind!r}: leave in its configuration the one that the network was trained with"
        )
    return stated


def read_convention(scheduler: Any) -> Convention:
    """The schedule, prediction, clipping and time units that a scheduler (see `load_scheduler`) states.

    Raises:
        ValueError: for a scheduler or a setting of one that we do not know.
    """
    scheduler = load_scheduler(scheduler)
    name, config = type(scheduler).__name__, scheduler.config
    K = int(config.num_train_timesteps)
    stated = config.get("prediction_type", "flow_prediction")
    if stated not in _KINDS:
        raise ValueError(f"unknown prediction_type {stated!r} of {name}: expected one of {', '.join(_KINDS)}")
    kind, clip, unit = _KINDS[stated], _clip(config), SCHEDULERS[name].unit
    if unit == "edm":
        if kind not in ("eps", "v"):
            raise ValueError(f"unknown prediction_type {stated!r} of {name}: expected epsilon or v_prediction")
        low, high = float(config.sigma_min), float(config.sigma_max)
        return Convention(VE(high), "edm", clip, "edm", K, float(config.sigma_data), low, high, negate=kind == "v")
    if unit == "flow" or config.get("use_flow_sigmas", False):
        if kind != "flow" or config.get("invert_sigmas", False):
            raise ValueError(f"{name} with {stated!r} or inverted sigmas is not supported: only noise minus data is")
        return Convention(RectifiedFlow(), "flow", clip, "flow", K)
    if kind == "flow" or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"{name} with prediction_type={stated!r} on continuous time steps is not supported")
    return Convention(Tabulated(_table(scheduler).tolist()), kind, clip, "steps", K)


def _table(scheduler: Any) -> Tensor:
    r"""$\bar\alpha_k$, float64 (K,): the scheduler's own, without zeros."""
    betas, abar = scheduler.betas, scheduler.alphas_cumprod
    if scheduler.config.get("rescale_betas_zero_snr", False) and float(betas[-1]) < 1:
        from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

        betas = rescale_zero_terminal_snr(betas)
        abar = (1 - betas).cumprod(0)
    zero = float(betas[-1]) == 1
    levels = torch.cat([abar.new_ones(1), abar[: len(abar) - zero]])
    told_apart = bool((levels[1:] < levels[:-1]).all() and levels[-1] >= torch.finfo(abar.dtype).tiny)
    abar = abar.double() if told_apart else (1 - betas.double()).cumprod(0)
    if zero:
        before = float(abar[-2]) if len(abar) > 1 else 1.0
        abar[-1] = min(_FLOOR, before / 2)
    return abar


def _clip(config: Any) -> float | Threshold | None:
    if config.get("thresholding", False):
        return Threshold(config.dynamic_thresholding_ratio, config.sample_max_value)
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None


def grid_from_scheduler(scheduler: Any, steps: int, **options: Any) -> Tensor:
    r"""The times at which a scheduler of diffusers would call the network in `steps` steps, and the one it ends at.

    DDIM on it takes the steps of DDIMScheduler, and of DPM-Solver, Euler and FlowMatchEuler at first order. Two limits:

    - DDIMScheduler always steps $\lfloor K / N \rfloor$ training steps down, also where its next time step is further
      away: `linspace`, and `trailing` where N does not divide K. There the state has one noise level and the network is
      told another; a grid has one time for both, the one that the network is told.
    - A scheduler interpolates its noise levels between training steps linearly in $\sigma / \alpha$, `Tabulated`
      linearly in $\log \alpha$. At fractional steps the grid keeps the noise level.

    Arguments:
        scheduler: See `load_scheduler`.
        steps: N; a scheduler with a final level of its own may need one more, or one less where two coincide.
        options: For the scheduler's `set_timesteps`: `mu` for a flow with dynamic shifting, say.

    Returns:
        Decreasing times in [0, 1], float64.

    Raises:
        ValueError: for an unknown scheduler, or steps that it cannot take, or would take twice at a time.
    """
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    scheduler = load_scheduler(scheduler)
    convention, K = read_convention(scheduler), int(scheduler.config.num_train_timesteps)
    name = type(scheduler).__name__
    try:
        scheduler.set_timesteps(steps, **options)
    except ValueError as error:
        raise ValueError(f"a {name} of {K} training steps takes no {steps} steps: {first_line(error)}") from None
    if SCHEDULERS[name].sigmas:
        sigma = torch.as_tensor(scheduler.sigmas).double().cpu()
        # Heun's scheduler names inner times twice.
        visited = torch.cat([sigma[:1], sigma[1:-1:2]]) if name == "HeunDiscreteScheduler" else sigma[:-1]
        if convention.unit != "steps":
            t = sigma / convention.sigma_max
        else:
            t = convention.schedule.time(-2 * sigma.log())
            if float(scheduler.alphas_cumprod[-1]) == _SENTINEL:
                t[torch.isclose(sigma, torch.tensor(_SENTINEL**-0.5).to(sigma))] = 1.0
            t = torch.where((t * K - (t * K).round()).abs() < 1e-3, (t * K).round() / K, t)
    else:
        k = visited = torch.as_tensor(scheduler.timesteps).double().cpu().unique().flip(0)
        # The last step is to the data itself, or to the least noise that the model has seen.
        to_data = scheduler.config.get("set_alpha_to_one", True)
        t = torch.cat([(k + 1) / K, torch.tensor([0.0 if to_data else 1 / K], dtype=torch.float64)])
    if (distinct := len(visited.unique())) < max(steps, len(visited)):
        raise ValueError(
            f"{steps} steps of a {name} of {K} training steps are at {distinct} different times only, so some would be "
            "taken twice: take fewer steps"
        )
    # Heun's inner times are there twice, and a last level may be there already.
    return check_grid(torch.unique_consecutive(t))
