"""diffusers' scheduler files as conventions: schedule, kind of prediction, time, clipping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.checkpoint import read_json
from dsno.denoise import Kind, Threshold
from dsno.grids import check_grid
from dsno.hub import local_copy
from dsno.nets.diffusers import TimeUnit
from dsno.schedule import VE, RectifiedFlow, Schedule, Tabulated

__all__ = [
    "SCHEDULERS",
    "Convention",
    "grid_from_scheduler",
    "listing",
    "load_scheduler",
    "read_convention",
    "scheduler_file",
]

# Which schedulers keep their noise levels (`sigmas`) beside their time steps.
SCHEDULERS: dict[str, bool] = {
    "DDIMScheduler": False,
    "DDPMScheduler": False,
    "DPMSolverMultistepScheduler": True,
    "EDMDPMSolverMultistepScheduler": True,
    "EDMEulerScheduler": True,
    "EulerAncestralDiscreteScheduler": True,
    "EulerDiscreteScheduler": True,
    "FlowMatchEulerDiscreteScheduler": True,
    "HeunDiscreteScheduler": True,
    "LMSDiscreteScheduler": True,
    "PNDMScheduler": False,
    "UniPCMultistepScheduler": True,
}

_DISTILLED = ("CMStochasticIterativeScheduler", "LCMScheduler", "TCDScheduler")

_KINDS: dict[str, Kind] = {
    "epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow",
}  # fmt: skip

_FLOOR = 1e-12


@dataclass(frozen=True)
class Convention:
    r"""What a scheduler says of its model.

    `steps` is $K$ and `sigma_min`, `sigma_max` are the ends of EDM's range, all three in the units of `unit`; `negate` says
    that the network's output is $-F$ (EDM's `v_prediction`).
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
        ValueError: for a scheduler that we do not know, or one of a distilled model; lists those we know.
    """
    if isinstance(ref, Path | str):
        config = read_json(scheduler_file(local_copy(ref)))
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
    import diffusers

    return getattr(diffusers, name).from_config(config)


def read_convention(scheduler: Any) -> Convention:
    """The path, prediction, clipping and time units that a scheduler (see `load_scheduler`) states.

    Raises:
        ValueError: for a scheduler or a setting of one that we do not know.
    """
    scheduler = load_scheduler(scheduler)
    name, config = type(scheduler).__name__, scheduler.config
    K = int(config.num_train_timesteps)
    stated = config.get("prediction_type", "flow_prediction")
    if stated not in _KINDS:
        raise ValueError(f"unknown prediction_type {stated!r} of {name}: expected one of {', '.join(_KINDS)}")
    kind = _KINDS[stated]
    clip: float | Threshold | None = None
    if config.get("thresholding", False):
        clip = Threshold(config.dynamic_thresholding_ratio, config.sample_max_value)
    elif config.get("clip_sample", False):
        clip = float(config.get("clip_sample_range", 1.0))
    if name.startswith("EDM"):
        if kind not in ("eps", "v"):
            raise ValueError(f"unknown prediction_type {stated!r} of {name}: expected epsilon or v_prediction")
        low, high = float(config.sigma_min), float(config.sigma_max)
        return Convention(VE(high), "edm", clip, "edm", K, float(config.sigma_data), low, high, negate=kind == "v")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas", False):
        if kind != "flow" or config.get("invert_sigmas", False):
            raise ValueError(f"{name} with {stated!r} or inverted sigmas is not supported: only noise minus data is")
        return Convention(RectifiedFlow(), "flow", clip, "flow", K)
    if kind == "flow" or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"{name} with prediction_type={stated!r} on continuous time steps is not supported")
    abar = scheduler.alphas_cumprod.double().clamp_min(_FLOOR)
    return Convention(Tabulated(abar.tolist()), kind, clip, "steps", K)


def grid_from_scheduler(scheduler: Any, steps: int, **options: Any) -> Tensor:
    r"""The times at which a scheduler of diffusers would call the network in `steps` steps, and the one it ends at.

    DDIM on it takes the steps of DDIMScheduler, and of DPM-Solver, Euler and FlowMatchEuler at first order. Two limits:

    - DDIMScheduler always steps $\lfloor K / N \rfloor$ training steps down, also where its next time step is further away:
      `linspace`, and `trailing` where N does not divide K. There the state has one noise level and the network is told another;
      a grid has one time for both, the one that the network is told.
    - A scheduler interpolates its noise levels between training steps linearly in $\sigma / \alpha$, `Tabulated` linearly in
      $\log \alpha$. At fractional steps the grid keeps the noise level.

    Arguments:
        scheduler: See `load_scheduler`.
        steps: N; a scheduler with a final level of its own may need one more, or one less where two coincide.
        options: For the scheduler's `set_timesteps`: `mu` for a flow with dynamic shifting, say.

    Returns:
        Decreasing times in [0, 1], float64.

    Raises:
        ValueError: for an unknown scheduler, or steps that it cannot take.
    """
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    scheduler = load_scheduler(scheduler)
    convention, K = read_convention(scheduler), int(scheduler.config.num_train_timesteps)
    scheduler.set_timesteps(steps, **options)
    if SCHEDULERS[type(scheduler).__name__]:
        sigma = torch.as_tensor(scheduler.sigmas).double().cpu()
        if convention.unit != "steps":
            t = sigma / convention.sigma_max
        else:
            t = convention.schedule.time(-2 * sigma.log())
            t = torch.where((t * K - (t * K).round()).abs() < 1e-3, (t * K).round() / K, t)
    else:
        k = torch.as_tensor(scheduler.timesteps).double().cpu().unique().flip(0)
        # The last step is to the data itself, or to the least noise that the model has seen.
        to_data = scheduler.config.get("set_alpha_to_one", True)
        t = torch.cat([(k + 1) / K, torch.tensor([0.0 if to_data else 1 / K], dtype=torch.float64)])
    # Heun's scheduler names inner times twice, and a last level may be there already.
    return check_grid(torch.unique_consecutive(t))


def scheduler_file(folder: Path) -> Path:
    name = "scheduler_config.json"
    for file in (folder / "scheduler" / name, folder / name, folder.absolute().parent / "scheduler" / name):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"{folder} has no scheduler/{name} (it has {listing(folder)}), which says what the network was trained on: "
        f"save its scheduler there, scheduler.save_pretrained({str(folder / 'scheduler')!r})"
    )


def listing(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
