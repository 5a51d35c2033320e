r"""The one training loop: any objective, one CPU or many GPUs (accelerate), resumable at every checkpoint.

An objective gives `batches(start, rank, world)`, each batch a function of the step alone, and `objective(model,
batch)`, a scalar loss. With the step, the seed determines everything random, so a resumed run equals an uninterrupted
one bit for bit on the CPU. What is saved is the exponential moving average of the weights, in float32:

$$ \bar\theta \leftarrow \beta_k \bar\theta + (1 - \beta_k) \theta, \qquad \beta_k = \min(\beta, (1 + k) / (r + k)), $$

where r is `TrainConfig.ramp`.

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
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dsno.borrow import parameters_of, state_of, unwrapped, without_wrappers
from dsno.checkpoint import CONFIG, check_weights, check_writable, fill, naming, read_json
from dsno.config import TrainConfig, learning_rate, settled
from dsno.engine import (
    accelerated,
    accumulating,
    as_like,
    autocast,
    is_sharded,
    local,
    loss_of,
    of_each,
    on_device,
    prepared,
    tf32,
    training_device,
    unprepare,
    whole,
)
from dsno.interrupt import Interrupted, Stop
from dsno.outputs import TRAINING, claimed
from dsno.seeds import mixed
from dsno.snapshots import LOG, Snapshot, continued, latest, newest, rewind, snapshots_in, write_snapshot

__all__ = [
    "Objective",
    "Report",
    "TrainConfig",
    "check_finished",
    "learning_rate",
    "quiet",
    "stage_progress",
    "train",
]

log = logging.getLogger(__name__)

ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What Adam holds of a parameter."""

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
        resume: Continue from the last checkpoint in `out`, if there is one: with the configuration it was written with,
            but for the learning rate and the clipping, which may be changed and are then noted in the checkpoints, and
            the number of steps, which may grow.
        overwrite: Throw away what an earlier run wrote to `out`.
        accelerator: An `accelerate.Accelerator`; made from `config` and accelerate's own configuration by default.
        progress: Called as `progress(step, steps, numbers)` at every log line, on the main process.
        settings: What else decides the updates, JSON-able: a checkpoint of other settings is not continued.

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set.
        FloatingPointError: if the loss is not finite on any process; names the step and the checkpoint kept.
        Interrupted: at Ctrl-C or SIGTERM to any process, behind a checkpoint of the step that was under way; a second
            one is not waited for.
        OSError: if a checkpoint cannot be written; the one before is kept.
        ValueError: if nothing is to be trained or the model cannot be saved, a checkpoint is damaged or belongs to
            another model or configuration, processes see different folders, or accelerate's configuration contradicts
            `config` or is not supported.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter of the model has requires_grad set: nothing to train")
    check_writable(state_of(model), f"the state of a {type(unwrapped(model)).__name__}")
    folder = Path(out)
    if accelerator is None:
        config, said = settled(config, training_device(model), *[folder] * resume)
        if said:
            log.info("%s", said)
        accelerator = accelerated(
            training_device(model),
            mixed_precision=None if config.precision == "no" else config.precision,
            log_with=config.tracker,
            project_dir=str(folder),
        )
    config = _agreed(config, accelerator)
    with claimed(folder, TRAINING, resume, overwrite):
        accelerator.wait_for_everyone()
        run = _Run(model, config, folder, accelerator, settings or {}, resume)
        with (
            accumulating(accelerator, config.accumulate),
            tf32(),
            contextlib.closing(run.batches(objective)) as source,
            Stop() as stop,
        ):
            for step in range(run.start, config.steps):
                run.step(step, objective, source)
                asked = stop.asked()
                run.account(step + 1, progress, save=asked > 0)
                if asked:
                    raise Interrupted(f"stopped after step {step + 1} of {config.steps}, saved in {folder}", asked)
        return run.finish(model)


# What the stages of a longer run share


def check_finished(out: Path, config: TrainConfig, steps: int) -> None:
    """Refuse to resume a model in `out` that is complete, if that would replace it by another or misstate its making.

    Raises:
        ValueError: if it was trained by checkpoints that are not there, or `config` has another learning rate or
            clipping and no more `steps`.
    """
    if not (out / CONFIG).is_file():
        return
    places = [out / "training", *(out / "training").glob("*")]
    if not any(snapshots_in(place) for place in places):
        raise ValueError(
            f"{out} holds a finished model and no checkpoint to go on from: choose another folder, or overwrite it"
        )
    notes = read_json(out / CONFIG).get("notes", {})
    held = notes.get("training", {})
    if steps <= notes.get("steps", held.get("steps", 0)):
        for key, value in (("lr", config.lr), ("clip", config.clip)):
            if held.get(key, value) != value:
                raise ValueError(
                    f"{out} is complete, trained with {key} = {held[key]}, now {value}: resume alike, or for more steps"
                )


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
        wrapped: The same as accelerate wraps it, for `loss_of`.
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
        snapshot = newest(folder) if resume else None
        self.start, self.changes = (0, []) if snapshot is None else continued(snapshot, self.described)
        if len({*(starts := of_each(self.start))}) > 1:
            raise ValueError(
                f"the processes would go on from the steps {', '.join(map(str, starts))}: {folder} has to be a folder "
                "that all of them see, on every machine"
            )
        unprepare(model)
        self.model = copy.deepcopy(model) if is_sharded(accelerator) else model
        if snapshot is not None:
            fill(self.model, snapshot.parts["model"], snapshot.path)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            self.model.compile()
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=config.lr)
        self.wrapped, self.optimizer = prepared(accelerator, self.model.train(), optimizer)
        # Sharding replaces the parameters, so they are looked up behind it.
        self.trained = {n: p for n, p in parameters_of(self.model).items() if p.requires_grad}
        self.average = {n: p.detach().float().clone() for n, p in self.trained.items()}
        # A line of the log is the mean since the line before, which a checkpoint may lie behind.
        self.losses: list[Tensor] = []
        if snapshot is not None:
            self._restore(snapshot)
            log.info("resumed from %s", snapshot.path)
        if accelerator.is_main_process:
            rewind(folder / LOG, self.start)
        if config.tracker:
            # Trackers take plain values only.
            plain = {k: str(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
            accelerator.init_trackers("dsno", config=plain)
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
                with autocast(accelerator):
                    loss = loss_of(self.wrapped, objective, batch)
                accelerator.backward(loss)
                total += loss.detach() / config.accumulate
                if config.clip is not None and accelerator.sync_gradients:
                    accelerator.unscale_gradients(self.optimizer)
                    nn.utils.clip_grad_norm_(self.trained.values(), config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.losses.append(total)
        beta = min(config.ema, (1 + step) / (config.ramp + step))
        with torch.no_grad():
            # On what this process holds: sharded tensors would go through the dispatcher one by one.
            now = [local(p).float() for p in self.trained.values()]
            torch._foreach_lerp_([local(v) for v in self.average.values()], now, 1 - beta)

    def account(self, done: int, progress: Progress | None, save: bool = False) -> None:
        """What is due when `done` steps are: look at the losses, write a line of the log, save a checkpoint."""
        config, last = self.config, done == self.config.steps
        log_now, save_now = last or done % config.log_every == 0, last or save or done % config.checkpoint_every == 0
        # Reading the losses back stalls a GPU, so there they are read where they are needed; on the CPU it is free.
        if log_now or save_now or self.accelerator.device.type == "cpu":
            losses = self._mean_losses(done)
        if log_now:
            self._log(done, float(losses.mean()), progress)
        if save_now:
            self._save(done, [] if log_now else losses.tolist())

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
            own = parameters_of(model)
            for name, value in average.items():
                own[name].copy_(value)
        return model.eval()

    def _mean_losses(self, done: int) -> Tensor:
        """The losses since the last log line, each the mean over all processes, so that they also stop together."""
        values = self.accelerator.reduce(torch.stack(self.losses).float(), "mean").cpu()
        if len(bad := (~torch.isfinite(values)).nonzero()):
            step, loss = done - len(values) + int(bad[0]), float(values[bad[0]])
            raise _diverged(f"the loss of step {step} is {loss}", self.folder)
        return values

    def _log(self, done: int, loss: float, progress: Progress | None) -> None:
        self.losses.clear()
        pace = (done - self.start) / (time.perf_counter() - self.began)
        numbers = {"loss": loss, "lr": learning_rate(self.config, done - 1), "steps_per_second": pace}
        if self.accelerator.is_main_process:
            with naming(self.folder / LOG), (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": done, **numbers}) + "\n")
            self.accelerator.log(numbers, step=done)
            if progress is not None:
                progress(done, self.config.steps, numbers)

    def _save(self, done: int, losses: list[float]) -> None:
        """Write a checkpoint and remove the one before; every process must call, the main one writes."""
        self._check_average(done)
        state: dict[str, Any] = {"step": done, **self.described}
        if losses:
            state["losses"] = losses
        if self.changes:
            state["changes"] = self.changes
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        moments = {
            f"{i}.{key}": value if value.ndim else value.reshape(1)
            for i, held in self.optimizer.state_dict()["state"].items()
            for key, value in held.items()
        }
        held = {"model": state_of(self.model), "average": self.average, "optimizer": moments}
        main = self.accelerator.is_main_process
        files = {name: whole(tensors, keep=main) for name, tensors in held.items()}
        if main:
            write_snapshot(self.folder, state, files)
        self.accelerator.wait_for_everyone()

    def _check_average(self, done: int) -> None:
        # A finite loss can have gradients that are not: what it leaves must not replace the last good checkpoint.
        good = torch.stack([local(value).isfinite().all() for value in self.average.values()]).float()
        if len(bad := (self.accelerator.reduce(good, "mean") < 1).nonzero()):
            name = list(self.average)[int(bad[0])]
            raise _diverged(f"the weights {name} are not finite after step {done - 1}", self.folder)

    def _restore(self, snapshot: Snapshot) -> None:
        """Put back what a checkpoint holds beside the weights: their average, Adam's moments, the loss scale, losses.

        Raises:
            ValueError: if average or moments are not those of the model; names the file.
        """
        source, saved = snapshot.path / "average.safetensors", without_wrappers(snapshot.parts["average"], self.average)
        check_weights(self.average, saved, source)
        for name, value in saved.items():
            self.average[name].copy_(as_like(self.average[name], value))
        like = list(self.trained.values())
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in snapshot.parts["optimizer"].items():
            index, _, key = name.partition(".")
            of = like[int(index)] if index.isdecimal() and int(index) < len(like) else None
            if of is None or key not in ADAM or value.shape != ((1,) if key == "step" else of.shape):
                shape = tuple(value.shape)
                raise ValueError(
                    f"{snapshot.path / 'optimizer.safetensors'} holds {name} of shape {shape}, which is no moment of "
                    "this model: it is damaged, or of another run"
                )
            held = value.reshape(()) if key == "step" else as_like(of, value)
            moments.setdefault(int(index), {})[key] = held
        if lacking := [f"{i}.{key}" for i, held in moments.items() for key in ADAM if key not in held]:
            raise ValueError(f"{snapshot.path / 'optimizer.safetensors'} is damaged: it lacks {lacking[0]}")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        scale = snapshot.state.get("scaler")
        if self.accelerator.scaler is not None and scale:
            self.accelerator.scaler.load_state_dict(scale)
        self.losses = list(torch.tensor(snapshot.state.get("losses", []), device=self.accelerator.device))


def _diverged(what: str, folder: Path) -> FloatingPointError:
    kept = latest(folder) or "none (none was due yet)"
    return FloatingPointError(
        f"{what}: resume with a lower learning rate (lr) or gradients clipped to less (clip); the last good checkpoint "
        f"is {kept}"
    )


# The engine


def _agreed(config: TrainConfig, accelerator: Any) -> TrainConfig:
    """`config` with what accelerate's configuration says where `config` leaves it open.

    Raises:
        ValueError: if the two contradict each other, or the machine.
    """
    given, precision = accelerator.gradient_accumulation_steps, accelerator.mixed_precision
    for name, own, default, found in (
        ("accumulate", config.accumulate, 1, given),
        # Beside an accelerator of one's own nothing is open.
        ("precision", "no" if config.precision == "auto" else config.precision, "no", precision),
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
