r"""The one training loop: any objective, one CPU or many GPUs (accelerate), resumable at every checkpoint.

An objective gives `batches(start, rank, world)`, each batch a function of the step alone, and `objective(model, batch)`,
a scalar loss. With the step, the seed determines everything random, so a resumed run equals an uninterrupted one bit for
bit on the CPU. What is saved is the exponential moving average of the weights, in float32:

$$ \bar\theta \leftarrow \beta_k \bar\theta + (1 - \beta_k) \theta, \qquad \beta_k = \min(\beta, (1 + k) / (10 + k)). $$
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from dsno.checkpoint import (
    check_keys,
    compare,
    fill,
    prepare_folder,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)

__all__ = ["Objective", "TrainConfig", "learning_rate", "train"]

log = logging.getLogger(__name__)
Progress = Callable[[int, int, dict[str, float]], None]


class Objective(Protocol):
    """What is learned: stateless batches and a loss."""

    def batches(self, start: int, rank: int, world: int, /) -> Iterator[dict[str, Any]]: ...

    def __call__(self, model: nn.Module, batch: dict[str, Any], /) -> Tensor: ...


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    steps: int = 4000
    """Optimiser steps."""
    lr: float = 2e-4
    """Peak learning rate of Adam."""
    warmup: int = 100
    """Steps of linear warm-up."""
    decay: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up; cosine goes to zero."""
    ema: float = 0.999
    """Decay of the moving average that is saved."""
    clip: float | None = 1.0
    """Largest gradient norm, or None."""
    accumulate: int = 1
    """Batches per optimiser step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    seed: int = 0
    """Determines dropout; the objective has its own."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between log lines."""
    tracker: str | None = None
    """A tracker of accelerate's (`tensorboard`, `wandb`, ...), or None."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"unknown decay {self.decay!r}: expected constant or cosine")


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then constant or a half cosine to zero."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.lr
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    out: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    accelerator: Any = None,
    progress: Progress | None = None,
    settings: Mapping[str, object] | None = None,
) -> nn.Module:
    """Train `model` in place and return it with the averaged weights.

    Arguments:
        model: Only parameters with `requires_grad` are trained.
        objective: Batches and loss.
        config: How.
        out: Folder for checkpoints and `log.jsonl`; the last good checkpoint is kept.
        resume: Continue from the last checkpoint in `out`, if there is one.
        overwrite: Throw away what is in `out`.
        accelerator: An `accelerate.Accelerator`; made from `config` by default.
        progress: Called as `progress(step, steps, numbers)` at every log line.
        settings: What else decides the updates, JSON-able: a checkpoint of other settings is not continued.

    Raises:
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set.
        FloatingPointError: if the loss is not finite; names the step and the checkpoint kept.
        ValueError: if a checkpoint belongs to another model or configuration.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if accelerator is None:
        # One precision per process is all its state knows; a run of another one starts afresh.
        AcceleratorState._reset_state()
        cpu = next(model.parameters()).device.type == "cpu" and not torch.cuda.is_available()
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=config.precision,
            log_with=config.tracker,
            project_dir=str(out),
        )
    accelerator.gradient_accumulation_steps, accelerator.step = config.accumulate, 0
    folder = Path(out)
    if accelerator.is_main_process:
        prepare_folder(folder, resume, overwrite)
    accelerator.wait_for_everyone()
    if config.tracker:
        accelerator.init_trackers("dsno", config=asdict(config))

    _unprepare(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=config.lr)
    average = {n: p.detach().float().clone() for n, p in trained.items()}
    described = json.loads(json.dumps({"config": asdict(config), "settings": dict(settings or {})}))
    start = _restore(folder, model, optimizer, average, described) if resume else 0
    if accelerator.is_main_process:
        _rewind(folder / "log.jsonl", start)

    device = accelerator.device
    average = {n: v.to(device) for n, v in average.items()}
    wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
    stream = objective.batches(start * config.accumulate, accelerator.process_index, accelerator.num_processes)
    # Reading the loss back stalls a GPU, so there it is read at log lines only; on the CPU it is free.
    read_every = 1 if device.type == "cpu" else config.log_every
    losses: list[Tensor] = []
    began, recent = time.perf_counter(), 0.0

    for step in range(start, config.steps):
        torch.manual_seed((config.seed << 32) + step * accelerator.num_processes + accelerator.process_index)
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=device)
        for _ in range(config.accumulate):
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in next(stream).items()}
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    loss = objective(wrapped, batch)
                accelerator.backward(loss)
                total += loss.detach() / config.accumulate
                if config.clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
                optimizer.step()
                optimizer.zero_grad()
        losses.append(total)
        beta = min(config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach().float() for p in trained.values()], 1 - beta)

        done = step + 1
        save_now = done % config.checkpoint_every == 0 or done == config.steps
        if done % read_every == 0 or save_now:
            recent = _read(losses, done, folder)
        if done % config.log_every == 0 or done == config.steps:
            losses.clear()
            rate_now = (done - start) / (time.perf_counter() - began)
            numbers = {"loss": recent, "lr": rate, "steps_per_second": rate_now}
            if accelerator.is_main_process:
                with (folder / "log.jsonl").open("a") as file:
                    file.write(json.dumps({"step": done, **numbers}) + "\n")
                accelerator.log(numbers, step=done)
                if progress is not None:
                    progress(done, config.steps, numbers)
        if save_now:
            _must_be_finite(average, done, folder)
        if accelerator.is_main_process and save_now:
            _save(folder, done, accelerator.unwrap_model(wrapped), optimizer, average, described)
        if done % config.checkpoint_every == 0:
            accelerator.wait_for_everyone()

    if config.tracker:
        accelerator.end_training()
    _unprepare(model)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(average[name])
    return model.eval()


def _unprepare(model: nn.Module) -> None:
    """Take off what accelerate put on in this run or one that failed: autocast, and the mark that it has been there."""
    if model.__dict__.pop("_original_forward", None) is not None:
        del model.forward
    model.__dict__.pop("_is_accelerate_prepared", None)


def _read(losses: list[Tensor], done: int, folder: Path) -> float:
    values = torch.stack(losses).float().cpu()
    if not bool(torch.isfinite(values).all()):
        step = done - len(values) + int((~torch.isfinite(values)).nonzero()[0])
        raise _diverged(f"the loss of step {step} is {float(values[~torch.isfinite(values)][0])}", folder)
    return float(values.mean())


def _must_be_finite(average: dict[str, Tensor], done: int, folder: Path) -> None:
    # A finite loss can have gradients that are not: what it leaves behind must not replace the last good checkpoint.
    for name, value in average.items():
        if not bool(value.isfinite().all()):
            raise _diverged(f"the weights {name} are not finite after step {done - 1}", folder)


def _diverged(what: str, folder: Path) -> FloatingPointError:
    kept = _latest(folder) or "none (none was due yet)"
    return FloatingPointError(
        f"{what}: lower the learning rate or clip the gradients; the last good checkpoint is {kept}"
    )


def _rewind(path: Path, step: int) -> None:
    """Drop the log lines of steps that will be taken again, and one that a kill cut short."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_atomically(path, lambda p: p.write_text("".join(kept)))


def _latest(folder: Path) -> Path | None:
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def _save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    described: dict[str, Any],
) -> None:
    final = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write_tensors(temporary / "model.safetensors", model.state_dict())
    write_tensors(temporary / "average.safetensors", average)
    moments = {
        f"{i}.{key}": value if value.ndim else value.reshape(1)
        for i, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    write_tensors(temporary / "optimizer.safetensors", moments)
    write_json(temporary / "state.json", {"step": step, **described})
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(old)


def _restore(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    described: dict[str, Any],
) -> int:
    latest = _latest(folder)
    if latest is None:
        return 0
    state = read_json(latest / "state.json")
    check_keys(state["config"], list(described["config"]), f"{latest / 'state.json'}")
    # The length of the run and what is printed may change between pieces; what decides the updates may not.
    decisive = ("lr", "warmup", "decay", "ema", "clip", "accumulate", "precision", "seed")
    held = state.get("settings", {}) | state["config"]
    for key, value in (described["settings"] | {key: described["config"][key] for key in decisive}).items():
        if held.get(key) != value:
            raise ValueError(f"{latest} was trained with {key} = {held.get(key)}, now {value}: resume alike")
    fill(model, read_tensors(latest / "model.safetensors"), latest)
    saved = read_tensors(latest / "average.safetensors")
    compare(average, saved, latest / "average.safetensors")
    average.update(saved)
    held = optimizer.state_dict()
    held["state"] = {}
    for name, value in read_tensors(latest / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        held["state"].setdefault(int(index), {})[key] = value.reshape(()) if key == "step" else value
    optimizer.load_state_dict(held)
    log.info("resumed from %s", latest)
    return int(state["step"])
