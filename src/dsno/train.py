r"""The one training loop: any objective, one CPU or many GPUs (accelerate), resumable at every checkpoint.

An objective gives `batches(start, rank, world)`, each batch a function of the step alone, and `objective(model,
batch)`, a scalar loss. With the step, the seed determines everything random, so a resumed run equals an uninterrupted
one bit for bit on the CPU. What is saved is the exponential moving average of the weights, in float32:

$$ \bar\theta \leftarrow \beta_k \bar\theta + (1 - \beta_k) \theta, \qquad \beta_k = \min(\beta, (1 + k) / (10 + k)). $$

Of W processes each takes its share of the batch, and the gradient and the logged loss are means over all of them,

$$ \frac1B \sum_{b = 1}^{B} \nabla \ell_b
   = \frac1W \sum_{r = 1}^{W} \frac{W}{B} \sum_{b \in \text{share}_r} \nabla \ell_b, $$

so W processes take the steps of one. Weights may be replicated (DDP) or sharded (FSDP2); a checkpoint holds whole
tensors and looks the same in either case, so a run may go on with another W.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from dsno.checkpoint import (
    check_keys,
    check_weights,
    fill,
    prepare_folder,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)
from dsno.engine import accumulating, as_like, is_sharded, local, on_device, tf32, unprepare, whole
from dsno.seeds import mixed

__all__ = [
    "Objective",
    "Report",
    "TrainConfig",
    "latest",
    "learning_rate",
    "prepare_run",
    "quiet",
    "stage_progress",
    "train",
]

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, float]], object]
"""Told of every log line: `progress(step, steps, numbers)` with the numbers `loss`, `lr` and `steps_per_second`."""

Report = Callable[[str, int, int, str], None]
"""Told how far the stages of a longer run are: `report(stage, done, total, text)`."""


class Objective(Protocol):
    """What is learned: stateless batches and a loss."""

    def batches(self, start: int, rank: int, world: int, /) -> Iterator[dict[str, Any]]:
        """Without end, the batches from number `start` on: of each the share of process `rank` of `world`."""

    def __call__(self, model: nn.Module, batch: dict[str, Any], /) -> Tensor:
        """The loss of a batch, a scalar: its mean over the batch's rows."""


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
    halve_at: tuple[int, ...] = ()
    """Steps from which the learning rate is halved, each once more."""
    ema: float = 0.999
    """Decay of the moving average that is saved."""
    clip: float | None = 1.0
    """Largest gradient norm, or None."""
    accumulate: int = 1
    """Batches per optimiser step; 1 leaves it to accelerate's configuration."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; `no` leaves it to accelerate's configuration. float32 products use TF32 on GPUs that have it."""
    compile: bool = False
    """Compile the model with `torch.compile`: minutes at the start, faster steps."""
    channels_last: bool = False
    """Keep images and the weights of their convolutions channels last, which tensor cores prefer."""
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
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"unknown decay {self.decay!r}: expected constant or cosine")


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or a half cosine to zero, and halvings."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    lr = config.lr * 0.5 ** sum(step >= milestone for milestone in config.halve_at)
    if config.decay == "constant":
        return lr
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * progress))


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
    """Train `model` in place and return it with the averaged weights, the same on every process.

    Under `accelerate launch` every process calls this with the same arguments and a folder all of them see. With FSDP2
    a sharded copy is trained, and the averaged weights are gathered into `model` on the device it was on.

    Arguments:
        model: Only parameters with `requires_grad` are trained.
        objective: Batches and loss.
        config: How.
        out: Folder for checkpoints and `log.jsonl`; the last good checkpoint is kept.
        resume: Continue from the last checkpoint in `out`, if there is one.
        overwrite: Throw away what is in `out`.
        accelerator: An `accelerate.Accelerator`; made from `config` and accelerate's own configuration by default.
        progress: Called as `progress(step, steps, numbers)` at every log line, on the main process.
        settings: What else decides the updates, JSON-able: a checkpoint of other settings is not continued.

    Raises:
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set.
        FloatingPointError: if the loss is not finite on any process; names the step and the checkpoint kept.
        ValueError: if nothing is to be trained, a checkpoint belongs to another model or configuration, or accelerate's
            configuration contradicts `config` or is of a kind that is not supported.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter of the model has requires_grad set: nothing to train")
    folder = Path(out)
    accelerator = _accelerator(model, config, folder) if accelerator is None else accelerator
    config = _agreed(config, accelerator)
    if accelerator.is_main_process:
        prepare_folder(folder, resume, overwrite)
    accelerator.wait_for_everyone()
    run = _Run(model, config, folder, accelerator, settings or {}, resume)
    with accumulating(accelerator, config.accumulate), tf32(), contextlib.closing(run.batches(objective)) as batches:
        for step in range(run.start, config.steps):
            run.step(step, objective, batches)
            run.account(step + 1, progress)
    return run.finish(model)


# What the stages of a longer run share


def prepare_run(out: Path | str, resume: bool, overwrite: bool) -> None:
    """Make the folder of a model ready whose training is written below it.

    Of several processes the first does this, and the others wait for it in `train`.

    Raises:
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set.
        PermissionError: if it cannot be written to.
    """
    if os.environ.get("RANK", "0") == "0":
        prepare_folder(out, resume, overwrite)


def quiet(stage: str, done: int, total: int, text: str) -> None:
    """The `Report` that is heard in the log alone."""
    log.debug("%s %d/%d %s", stage, done, total, text)


def stage_progress(stage: str, report: Report) -> Progress:
    """The `progress` of a `train` that is one stage: it reports the loss."""
    return lambda done, total, numbers: report(stage, done, total, f"loss {numbers['loss']:.4f}")


# A run


class _Run:
    """A run under way, on this process: the model, what is saved of it, and the losses since the last log line.

    Attributes:
        start: The first step to take: 0, or the one behind the checkpoint.
        model: What is trained: the caller's module, or a copy of it whose parameters are sharded.
        wrapped: The same as accelerate wraps it, which the objective calls.
        trained: Its parameters that are trained, by name.
        average: Their moving averages.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        folder: Path,
        accelerator: Any,
        settings: Mapping[str, object],
        resume: bool,
    ) -> None:
        self.config, self.folder, self.accelerator = config, folder, accelerator
        # As a checkpoint says it, where a tuple is a list.
        self.described = json.loads(json.dumps({"config": asdict(config), "settings": dict(settings)}))
        checkpoint = latest(folder) if resume else None
        self.start = 0 if checkpoint is None else _step_of(checkpoint, self.described)
        unprepare(model)
        self.model = copy.deepcopy(model) if is_sharded(accelerator) else model
        if checkpoint is not None:
            fill(self.model, read_tensors(checkpoint / "model.safetensors"), checkpoint)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            self.model.compile()
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=config.lr)
        self.wrapped, self.optimizer = accelerator.prepare(self.model.train(), optimizer)
        # Sharding replaces the parameters, so they are looked up behind it.
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().float().clone() for n, p in self.trained.items()}
        if checkpoint is not None:
            self._restore(checkpoint)
            log.info("resumed from %s", checkpoint)
        if accelerator.is_main_process:
            _rewind(folder / "log.jsonl", self.start)
        if config.tracker:
            # Trackers take plain values only.
            plain = {k: str(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
            accelerator.init_trackers("dsno", config=plain)
        self.losses: list[Tensor] = []
        self.began = time.perf_counter()

    def batches(self, objective: Objective) -> Generator[dict[str, Any]]:
        """This process's batches of the steps to take, where they are needed."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        source = objective.batches(self.start * self.config.accumulate, rank, world)
        device = self.accelerator.device
        return on_device(source, device, self.config.channels_last, ahead=device.type == "cuda")

    def step(self, step: int, objective: Objective, batches: Iterator[dict[str, Any]]) -> None:
        """Take step `step` (from 0)."""
        config, accelerator = self.config, self.accelerator
        # A fourth number, which no batch has in its key: dropout must not be drawn like the noise.
        torch.manual_seed(mixed(config.seed, step, accelerator.process_index, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        total = torch.zeros((), device=accelerator.device)
        for _ in range(config.accumulate):
            batch = next(batches)
            with accelerator.accumulate(self.wrapped):
                with accelerator.autocast():
                    loss = objective(self.wrapped, batch)
                accelerator.backward(loss)
                total += loss.detach() / config.accumulate
                if config.clip is not None and accelerator.sync_gradients:
                    accelerator.unscale_gradients(self.optimizer)
                    nn.utils.clip_grad_norm_(self.trained.values(), config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.losses.append(total)
        beta = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            # On what this process holds: sharded tensors would go through the dispatcher one by one.
            now = [local(p).float() for p in self.trained.values()]
            torch._foreach_lerp_([local(v) for v in self.average.values()], now, 1 - beta)

    def account(self, done: int, progress: Progress | None) -> None:
        """What is due when `done` steps are: look at the losses, write a line of the log, save a checkpoint."""
        config, last = self.config, done == self.config.steps
        log_now, save_now = last or done % config.log_every == 0, last or done % config.checkpoint_every == 0
        # Reading the loss back stalls a GPU, so there it is read where it is needed; on the CPU it is free.
        if log_now or save_now or self.accelerator.device.type == "cpu":
            loss = self._mean_loss(done)
        if log_now:
            self._log(done, loss, progress)
        if save_now:
            self._save(done)

    def finish(self, model: nn.Module) -> nn.Module:
        """The caller's `model` with the averaged weights, as it was before accelerate."""
        average = self.average
        if self.config.tracker:
            self.accelerator.end_training()
        if self.model is not model:
            model.load_state_dict(whole(self.model.state_dict()))
            average = whole(average)
        unprepare(model)
        if self.config.channels_last:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        with torch.no_grad():
            own = dict(model.named_parameters())
            for name, value in average.items():
                own[name].copy_(value)
        return model.eval()

    def _mean_loss(self, done: int) -> float:
        """The mean of the losses since the last log line, over all processes, so that they also stop together."""
        values = self.accelerator.reduce(torch.stack(self.losses).float(), "mean").cpu()
        if len(bad := (~torch.isfinite(values)).nonzero()):
            step, loss = done - len(values) + int(bad[0]), float(values[bad[0]])
            raise _diverged(f"the loss of step {step} is {loss}", self.folder)
        return float(values.mean())

    def _log(self, done: int, loss: float, progress: Progress | None) -> None:
        self.losses.clear()
        pace = (done - self.start) / (time.perf_counter() - self.began)
        numbers = {"loss": loss, "lr": learning_rate(self.config, done - 1), "steps_per_second": pace}
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": done, **numbers}) + "\n")
            self.accelerator.log(numbers, step=done)
            if progress is not None:
                progress(done, self.config.steps, numbers)

    def _save(self, done: int) -> None:
        """Write a checkpoint and remove the one before; every process must call, the main one writes."""
        self._check_average(done)
        state: dict[str, Any] = {"step": done, **self.described}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        moments = {
            f"{i}.{key}": value if value.ndim else value.reshape(1)
            for i, held in self.optimizer.state_dict()["state"].items()
            for key, value in held.items()
        }
        held = {"model": self.model.state_dict(), "average": self.average, "optimizer": moments}
        main = self.accelerator.is_main_process
        files = {name: whole(tensors, keep=main) for name, tensors in held.items()}
        if main:
            _write_checkpoint(self.folder, state, files)
        self.accelerator.wait_for_everyone()

    def _check_average(self, done: int) -> None:
        # A finite loss can have gradients that are not: what it leaves must not replace the last good checkpoint.
        good = torch.stack([local(value).isfinite().all() for value in self.average.values()]).float()
        if len(bad := (self.accelerator.reduce(good, "mean") < 1).nonzero()):
            name = list(self.average)[int(bad[0])]
            raise _diverged(f"the weights {name} are not finite after step {done - 1}", self.folder)

    def _restore(self, checkpoint: Path) -> None:
        """Put back what a checkpoint holds beside the weights: their average, Adam's moments and the loss scale."""
        saved = read_tensors(checkpoint / "average.safetensors")
        check_weights(self.average, saved, checkpoint / "average.safetensors")
        for name, value in saved.items():
            self.average[name].copy_(as_like(self.average[name], value))
        like = list(self.trained.values())
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in read_tensors(checkpoint / "optimizer.safetensors").items():
            index, key = name.split(".", 1)
            held = value.reshape(()) if key == "step" else as_like(like[int(index)], value)
            moments.setdefault(int(index), {})[key] = held
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        scale = read_json(checkpoint / "state.json").get("scaler")
        if self.accelerator.scaler is not None and scale:
            self.accelerator.scaler.load_state_dict(scale)


# Files


def latest(folder: Path) -> Path | None:
    """The last checkpoint in a folder that `train` wrote to, or None."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def _step_of(checkpoint: Path, described: dict[str, Any]) -> int:
    """The step of a checkpoint, after checking that it is of this run."""
    state = read_json(checkpoint / "state.json")
    check_keys(state["config"], list(described["config"]), f"{checkpoint / 'state.json'}")
    # The length of the run and what is printed may change between pieces; what decides the updates may not.
    decisive = ("lr", "warmup", "decay", "halve_at", "ema", "clip", "accumulate", "precision", "seed")
    held = state.get("settings", {}) | state["config"]
    for key, value in (described["settings"] | {key: described["config"][key] for key in decisive}).items():
        if held.get(key) != value:
            raise ValueError(f"{checkpoint} was trained with {key} = {held.get(key)}, now {value}: resume alike")
    return int(state["step"])


def _write_checkpoint(folder: Path, state: dict[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> None:
    final = folder / f"step-{state['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, tensors in files.items():
        write_tensors(temporary / f"{name}.safetensors", tensors)
    write_json(temporary / "state.json", state)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(old)


def _rewind(path: Path, step: int) -> None:
    """Drop the log lines of steps that will be taken again, and one that a kill cut short."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_atomically(path, lambda p: p.write_text("".join(kept), encoding="utf-8"))


def _diverged(what: str, folder: Path) -> FloatingPointError:
    kept = latest(folder) or "none (none was due yet)"
    return FloatingPointError(
        f"{what}: lower the learning rate or clip the gradients; the last good checkpoint is {kept}"
    )


# The engine


def _accelerator(model: nn.Module, config: TrainConfig, folder: Path) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # One precision per process is all its state knows; a run of another one starts afresh.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=next(model.parameters()).device.type == "cpu" and not torch.cuda.is_available(),
        mixed_precision=None if config.precision == "no" else config.precision,
        log_with=config.tracker,
        project_dir=str(folder),
    )


def _agreed(config: TrainConfig, accelerator: Any) -> TrainConfig:
    """`config` with what accelerate's configuration says where `config` leaves it open.

    Raises:
        ValueError: if the two contradict each other, or the machine.
    """
    given, precision = accelerator.gradient_accumulation_steps, accelerator.mixed_precision
    for name, own, default, found in (
        ("accumulate", config.accumulate, 1, given),
        ("precision", config.precision, "no", precision),
    ):
        # An accelerator of one's own can be told the accumulation, not another precision.
        if own not in (default, found) and (name == "precision" or found != default):
            raise ValueError(
                f"{name} is {own}, but {found} in accelerate's configuration: set one of them, or both alike"
            )
    if precision == "fp16" and accelerator.scaler is None:
        raise ValueError(f"precision fp16 needs a GPU, this is a {accelerator.device.type}: use bf16 or no")
    if is_sharded(accelerator) and config.channels_last:
        raise ValueError(
            "channels_last does not go with FSDP, which stores weights in its own order: leave one of them"
        )
    return replace(config, accumulate=max(config.accumulate, given), precision=precision)
