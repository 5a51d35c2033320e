r"""The one training loop: any objective, one CPU or many GPUs (accelerate), resumable at every checkpoint.

An objective gives `batches(start, rank, world)`, each batch a function of the step alone, and `objective(model, batch)`,
a scalar loss. With the step, the seed determines everything random, so a resumed run equals an uninterrupted one bit for
bit on the CPU. What is saved is the exponential moving average of the weights, in float32:

$$ \bar\theta \leftarrow \beta_k \bar\theta + (1 - \beta_k) \theta, \qquad \beta_k = \min(\beta, (1 + k) / (10 + k)). $$

Of W processes each takes its share of the batch, and the gradient and the logged loss are means over all of them,

$$ \frac1B \sum_{b = 1}^{B} \nabla \ell_b = \frac1W \sum_{r = 1}^{W} \frac{W}{B} \sum_{b \in \text{share}_r} \nabla \ell_b, $$

so W processes take the steps of one. Weights may be replicated (DDP) or sharded (FSDP2: Zhao et al., 2023, arXiv
2304.11277); a checkpoint holds whole tensors and looks the same in either case, so a run may go on with another W.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
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
from dsno.seeds import mixed

__all__ = ["Objective", "Report", "TrainConfig", "learning_rate", "prepare_run", "quiet", "stage_progress", "train"]

Report = Callable[[str, int, int, str], None]
"""Progress of a stage: `report(stage, done, total, text)`."""


def quiet(stage: str, done: int, total: int, text: str) -> None:
    log.debug("%s %d/%d %s", stage, done, total, text)


def prepare_run(out: Path | str, resume: bool, overwrite: bool) -> None:
    """Make a model's folder ready; of several processes the first does this, and the others wait for it in `train`."""
    if os.environ.get("RANK", "0") == "0":
        prepare_folder(out, resume, overwrite)


def stage_progress(stage: str, report: Report) -> Callable[[int, int, dict[str, float]], None]:
    return lambda done, total, numbers: report(stage, done, total, f"loss {numbers['loss']:.4f}")


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
    """The learning rate of step `step` (from 0): linear warm-up, then constant or a half cosine to zero, and halvings."""
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
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if accelerator is None:
        # One precision per process is all its state knows; a run of another one starts afresh.
        AcceleratorState._reset_state()
        cpu = next(model.parameters()).device.type == "cpu" and not torch.cuda.is_available()
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=None if config.precision == "no" else config.precision,
            log_with=config.tracker,
            project_dir=str(out),
        )
    config = _agreed(config, accelerator)
    sharded = _sharded(accelerator)
    if sharded and config.channels_last:
        raise ValueError(
            "channels_last does not go with FSDP, which stores weights in its own order: leave one of them"
        )
    folder = Path(out)
    if accelerator.is_main_process:
        prepare_folder(folder, resume, overwrite)
    accelerator.wait_for_everyone()
    if config.tracker:
        # Trackers take plain values only.
        plain = {k: str(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
        accelerator.init_trackers("dsno", config=plain)

    _unprepare(model)
    inner = copy.deepcopy(model) if sharded else model
    described = json.loads(json.dumps({"config": asdict(config), "settings": dict(settings or {})}))
    checkpoint = latest(folder) if resume else None
    start = 0
    if checkpoint is not None:
        start = _check_state(checkpoint, described)
        fill(inner, read_tensors(checkpoint / "model.safetensors"), checkpoint)
    if accelerator.is_main_process:
        _rewind(folder / "log.jsonl", start)

    if config.channels_last:
        inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile:
        inner.compile()
    if not any(p.requires_grad for p in inner.parameters()):
        raise ValueError("no parameter of the model has requires_grad set: nothing to train")
    optimizer = torch.optim.Adam([p for p in inner.parameters() if p.requires_grad], lr=config.lr)
    wrapped, optimizer = accelerator.prepare(inner.train(), optimizer)
    # Sharding replaces the parameters, so they are looked up behind it.
    trained = {n: p for n, p in inner.named_parameters() if p.requires_grad}
    average = {n: p.detach().float().clone() for n, p in trained.items()}
    if checkpoint is not None:
        _continue(checkpoint, trained, average, optimizer, accelerator.scaler)
        log.info("resumed from %s", checkpoint)

    device = accelerator.device
    # Reading the loss back stalls a GPU, so there it is read at log lines only; on the CPU it is free.
    read_every = 1 if device.type == "cpu" else config.log_every
    losses: list[Tensor] = []
    began, recent = time.perf_counter(), 0.0

    with contextlib.ExitStack() as stack:
        stack.enter_context(_accumulating(accelerator, config.accumulate))
        stack.enter_context(_tf32())
        source = objective.batches(start * config.accumulate, accelerator.process_index, accelerator.num_processes)
        stream = _on_device(source, device, config.channels_last, ahead=device.type == "cuda")
        stack.callback(stream.close)
        for step in range(start, config.steps):
            # A fourth number, which no batch has in its key: dropout must not be drawn like the noise.
            torch.manual_seed(mixed(config.seed, step, accelerator.process_index, 1))
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total = torch.zeros((), device=device)
            for _ in range(config.accumulate):
                batch = next(stream)
                with accelerator.accumulate(wrapped):
                    with accelerator.autocast():
                        loss = objective(wrapped, batch)
                    accelerator.backward(loss)
                    total += loss.detach() / config.accumulate
                    if config.clip is not None and accelerator.sync_gradients:
                        accelerator.unscale_gradients(optimizer)
                        nn.utils.clip_grad_norm_(trained.values(), config.clip)
                    optimizer.step()
                    optimizer.zero_grad()
            losses.append(total)
            beta = min(config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                # On what this process holds: sharded tensors would go through the dispatcher one by one.
                now = [_local(p).float() for p in trained.values()]
                torch._foreach_lerp_([_local(v) for v in average.values()], now, 1 - beta)

            done = step + 1
            save_now = done % config.checkpoint_every == 0 or done == config.steps
            if done % read_every == 0 or save_now:
                recent = _read(losses, done, folder, accelerator)
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
                _must_be_finite(average, done, folder, accelerator)
                state = {"step": done, **described}
                if accelerator.scaler is not None:
                    state["scaler"] = accelerator.scaler.state_dict()
                _save(folder, state, inner, average, optimizer, accelerator)

    if config.tracker:
        accelerator.end_training()
    if sharded:
        model.load_state_dict(_whole(inner.state_dict()))
        average = _whole(average)
    _unprepare(model)
    if config.channels_last:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with torch.no_grad():
        own = dict(model.named_parameters())
        for name, value in average.items():
            own[name].copy_(value)
    return model.eval()


def _agreed(config: TrainConfig, accelerator: Any) -> TrainConfig:
    """`config` with what accelerate's configuration says where `config` leaves it open."""
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
    return replace(config, accumulate=max(config.accumulate, given), precision=precision)


def _sharded(accelerator: Any) -> bool:
    """Whether the weights are sharded (FSDP2) instead of replicated.

    Raises:
        ValueError: for an engine that replaces the optimiser or flattens the parameters.
    """
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "MEGATRON_LM") or (kind == "FSDP" and not accelerator.is_fsdp2):
        raise ValueError(
            f"accelerate is configured for {kind}, which train() does not support: use DDP, or FSDP with fsdp_version: 2"
        )
    return kind == "FSDP"


@contextlib.contextmanager
def _accumulating(accelerator: Any, steps: int) -> Iterator[None]:
    before = accelerator.gradient_accumulation_steps
    accelerator.gradient_accumulation_steps, accelerator.step = steps, 0
    try:
        yield
    finally:
        accelerator.gradient_accumulation_steps = before


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _on_device(
    source: Iterator[dict[str, Any]], device: torch.device, channels_last: bool = False, ahead: bool = False
) -> Generator[dict[str, Any]]:
    """The batches of `source` on `device`; `ahead` makes the next one in a thread meanwhile.

    Copies from pinned memory are queued like kernels: the host does not wait for them.
    """

    def fetch() -> dict[str, Any]:
        return _each(Tensor.pin_memory, next(source)) if device.type == "cuda" else next(source)

    def move(value: Tensor) -> Tensor:
        if channels_last and value.ndim == 4:
            return value.to(device, non_blocking=True, memory_format=torch.channels_last)
        return value.to(device, non_blocking=True)

    if not ahead:
        while True:
            yield _each(move, fetch())
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(fetch)
        while True:
            batch = coming.result()
            coming = pool.submit(fetch)
            yield _each(move, batch)


def _each(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `fn` applied to its tensors, in nested mappings, too."""
    if isinstance(value, Tensor):
        return fn(value)
    return {k: _each(fn, v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _unprepare(model: nn.Module) -> None:
    """Take off what this run or one that failed put on: autocast, accelerate's mark, and the compiled call."""
    if model.__dict__.pop("_original_forward", None) is not None:
        del model.forward
    for name in ("_is_accelerate_prepared", "_compiled_call_impl"):
        model.__dict__.pop(name, None)


def _read(losses: list[Tensor], done: int, folder: Path, accelerator: Any) -> float:
    # The mean over all processes, so that they also stop together.
    values = accelerator.reduce(torch.stack(losses).float(), "mean").cpu()
    if not bool(torch.isfinite(values).all()):
        step = done - len(values) + int((~torch.isfinite(values)).nonzero()[0])
        raise _diverged(f"the loss of step {step} is {float(values[~torch.isfinite(values)][0])}", folder)
    return float(values.mean())


def _must_be_finite(average: dict[str, Tensor], done: int, folder: Path, accelerator: Any) -> None:
    # A finite loss can have gradients that are not: what it leaves behind must not replace the last good checkpoint.
    good = torch.stack([_local(value).isfinite().all() for value in average.values()]).float()
    if len(bad := (accelerator.reduce(good, "mean") < 1).nonzero()):
        raise _diverged(f"the weights {list(average)[int(bad[0])]} are not finite after step {done - 1}", folder)


def _diverged(what: str, folder: Path) -> FloatingPointError:
    kept = latest(folder) or "none (none was due yet)"
    return FloatingPointError(
        f"{what}: lower the learning rate or clip the gradients; the last good checkpoint is {kept}"
    )


def _rewind(path: Path, step: int) -> None:
    """Drop the log lines of steps that will be taken again, and one that a kill cut short."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_atomically(path, lambda p: p.write_text("".join(kept)))


def latest(folder: Path) -> Path | None:
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def _local(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def _whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The whole of each tensor, on the host of the processes that `keep` it; every process must call."""
    from torch.distributed.tensor import DTensor

    held = {}
    for name, value in tensors.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            held[name] = whole.detach().cpu()
    return held


def _as(like: Tensor, whole: Tensor) -> Tensor:
    """`whole` as `like` is: its device, its strides, and sharded if it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor):
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=whole.dtype).copy_(whole)


def _save(
    folder: Path,
    state: dict[str, Any],
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    accelerator: Any,
) -> None:
    """Write a checkpoint and remove the one before; every process must call, the main one writes."""
    moments = {
        f"{i}.{key}": value if value.ndim else value.reshape(1)
        for i, held in optimizer.state_dict()["state"].items()
        for key, value in held.items()
    }
    main = accelerator.is_main_process
    files = {
        name: _whole(tensors, keep=main)
        for name, tensors in (("model", model.state_dict()), ("average", average), ("optimizer", moments))
    }
    if main:
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
    accelerator.wait_for_everyone()


def _check_state(checkpoint: Path, described: dict[str, Any]) -> int:
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


def _continue(
    checkpoint: Path,
    trained: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: Any,
) -> None:
    """Put back what a checkpoint holds beside the weights: their average, Adam's moments and the loss scale."""
    saved = read_tensors(checkpoint / "average.safetensors")
    compare(average, saved, checkpoint / "average.safetensors")
    for name, value in saved.items():
        average[name].copy_(_as(average[name], value))
    like = list(trained.values())
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in read_tensors(checkpoint / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value.reshape(()) if key == "step" else _as(like[int(index)], value)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler is not None and (held := read_json(checkpoint / "state.json").get("scaler")):
        scaler.load_state_dict(held)
