r"""What the training loop needs of accelerate and of devices: one process or many, weights replicated or sharded.

With FSDP2 (Zhao et al., 2023, arXiv 2304.11277) every process holds a shard of each parameter, a `DTensor`. `local`
is that shard, `whole` the tensor again on the host, as checkpoints hold it, and `as_like` the way back. The weights of
a block are gathered for as long as it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

__all__ = [
    "Undivided",
    "accelerated",
    "accumulating",
    "agreed",
    "as_like",
    "autocast",
    "is_sharded",
    "local",
    "loss_of",
    "mean_of_all",
    "of_each",
    "on_device",
    "prepared",
    "share_of",
    "tf32",
    "training_device",
    "unprepare",
    "whole",
]


def training_device(model: nn.Module) -> torch.device:
    """Where accelerate is going to train a model."""
    from accelerate import PartialState

    cpu = next(model.parameters()).device.type == "cpu" and not torch.cuda.is_available()
    return torch.device(PartialState(cpu=cpu).device)


def accelerated(device: torch.device, **told: Any) -> Any:
    """The `Accelerator` of one run on a device, as it is told and accelerate configured, whatever ran before.

    Accelerate passes over FSDP in silence on CPUs, which can do it: they shard, too, so that a configuration can be
    tried where there is no GPU.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env

    # Its state knows one precision per process, and no plugin for FSDP any more once there was FSDP.
    AcceleratorState._reset_state(reset_partial_state=True)
    made = Accelerator(cpu=device.type == "cpu", **told)
    if made.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # Each is made from the other at times.
        PartialState().distributed_type = made.state.distributed_type = DistributedType.FSDP
    return made


def share_of(batch: int, rank: int, world: int) -> slice:
    """The rows of process `rank` of `world` in a batch.

    Raises:
        ValueError: if the batch cannot be shared evenly.
    """
    if batch % world:
        raise ValueError(f"a batch of {batch} cannot be shared evenly by {world} processes: use a multiple")
    share = batch // world
    return slice(rank * share, (rank + 1) * share)


def agreed(make: Callable[[], T]) -> T:
    """What the first of the processes makes, in all of them; every process must call."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return make()
    held = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(held)
    return cast(T, held[0])


def of_each(value: T) -> list[T]:
    """The value of every one of the processes, in their order; every process must call."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    held = [value] * distributed.get_world_size()
    distributed.all_gather_object(held, value)
    return held


def is_sharded(accelerator: Any) -> bool:
    """Whether the weights are sharded (FSDP2) instead of replicated.

    Raises:
        ValueError: for an engine that replaces the optimiser, flattens or renames the parameters, or has processes that
            share a row.
    """
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "MEGATRON_LM") or (kind == "FSDP" and not accelerator.is_fsdp2):
        raise ValueError(
            f"accelerate is configured for {kind}, which train() does not support: "
            "use DDP, or FSDP with fsdp_version: 2"
        )
    # Earlier versions of accelerate have none.
    parallelism = getattr(accelerator, "parallelism_config", None)
    if parallelism is not None and (shared := parallelism.non_dp_dim_names):
        raise ValueError(
            f"accelerate is configured for processes that share a row of the batch ({', '.join(shared)}), which "
            "train() does not support: leave dp_replicate_size and dp_shard_size alone in parallelism_config"
        )
    if kind == "FSDP" and accelerator.state.fsdp_plugin.activation_checkpointing:
        raise ValueError(
            "accelerate is configured for fsdp_activation_checkpointing, which renames the weights: leave it out, and "
            "call student.net.enable_gradient_checkpointing() instead"
        )
    return kind == "FSDP"


class Undivided(nn.Module):
    """A module that calls a network with other weights than the network holds.

    All of them have to be gathered for it at once: FSDP gathers those that a block holds when the block is called, and
    they would take the place of the others.
    """


@runtime_checkable
class _Divided(Protocol):
    """A network that says which of its modules are blocks (`dsno.nets.backbone`)."""

    @property
    def blocks(self) -> tuple[type[nn.Module] | str, ...]:
        """Their classes, and names of others."""


def _divide(model: nn.Module, plugin: Any) -> None:
    """Tell FSDP to gather the weights of a model block by block, where its configuration names no classes.

    Raises:
        ValueError: if that divides what must not be.
    """
    modules = [*model.modules()]
    whole = [type(m).__name__ for m in modules if isinstance(m, Undivided)]
    if whole and (plugin.transformer_cls_names_to_wrap or plugin.min_num_params):
        raise ValueError(
            f"{whole[0]} calls a network with other weights than it holds, which FSDP must not gather part by part: "
            "leave out fsdp_transformer_layer_cls_to_wrap and fsdp_min_num_params"
        )
    said = [m.blocks for m in modules if isinstance(m, _Divided) and isinstance(m.blocks, tuple) and not whole]
    classes = tuple(c for blocks in said for c in blocks if isinstance(c, type))
    # Where accelerate looks for them.
    model._no_split_modules = sorted({type(m).__name__ for m in modules if isinstance(m, classes)})  # type: ignore[assignment]
    # Autocast casts what may be; a policy of FSDP's would round losses and gradients, too.
    plugin.mixed_precision_policy = None


class _Losses(nn.Module):
    """What takes losses of a model, however often and through whichever parts of it they call it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable[[nn.Module], Tensor]) -> Tensor:
        return loss(self.model)


def prepared(accelerator: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """A model for `loss_of`, and its optimiser, as accelerate wraps them.

    Of processes that hold all of the weights each may reach other parameters, or none of some: DDP is told to find
    them, behind the loss, on top of what the accelerator was told of DDP.
    """
    if is_sharded(accelerator):
        losses = _Losses(model)
        _divide(losses, accelerator.state.fsdp_plugin)
        return cast(tuple[nn.Module, Any], accelerator.prepare(losses, optimizer))
    if not accelerator.distributed_type.value.startswith("MULTI_"):
        return cast(tuple[nn.Module, Any], accelerator.prepare(model, optimizer))
    from accelerate import DistributedDataParallelKwargs

    told = accelerator.ddp_handler or DistributedDataParallelKwargs()
    losses = _Losses(accelerator.prepare_model(model, evaluation_mode=True)).train()
    # DDP warns where it finds none that is not reached, so there is one.
    like = next(p for p in model.parameters() if p.requires_grad)
    losses.unreached = nn.Parameter(like.new_zeros(1))
    devices = None if accelerator.device.type == "cpu" else [accelerator.device]
    wrapped = DistributedDataParallel(losses, devices, **{"find_unused_parameters": True, **told.to_kwargs()})
    told.register_comm_hook(wrapped)
    return wrapped, accelerator.prepare_optimizer(optimizer)


def loss_of(wrapped: nn.Module, objective: Callable[[nn.Module, Any], Tensor], batch: Any) -> Tensor:
    """The loss of a batch, of a model that was `prepared`."""
    if isinstance(wrapped, DistributedDataParallel | _Losses):
        found: Tensor = wrapped(lambda model: objective(model, batch))
        return found
    return objective(wrapped, batch)


def autocast(accelerator: Any) -> contextlib.AbstractContextManager[None]:
    """Accelerate's autocast. Of sharded weights it keeps no casts: they would outlive the block that gathered them, and
    one made without gradients would serve the call that needs them.
    """
    from accelerate.utils import AutocastKwargs

    told = accelerator.autocast_handler
    if is_sharded(accelerator):
        told = replace(told or AutocastKwargs(), cache_enabled=False)
    made: contextlib.AbstractContextManager[None] = accelerator.autocast(told)
    return made


def unprepare(model: nn.Module) -> None:
    """Take off a model what a run, or one that failed, put on: autocast, accelerate's mark, and the compiled call."""
    if model.__dict__.pop("_original_forward", None) is not None:
        del model.forward
    for name in ("_is_accelerate_prepared", "_compiled_call_impl"):
        model.__dict__.pop(name, None)


@contextlib.contextmanager
def accumulating(accelerator: Any, steps: int) -> Iterator[None]:
    """Let accelerate count `steps` batches as one step, from the first on; its own number comes back."""
    before = accelerator.gradient_accumulation_steps
    accelerator.gradient_accumulation_steps, accelerator.step = steps, 0
    try:
        yield
    finally:
        accelerator.gradient_accumulation_steps = before


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Let GPUs multiply float32 matrices in TF32; the precision that was set comes back."""
    before = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor: its shard, or all of it."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The whole of each tensor, on the host of the processes that `keep` it; every process must call."""
    from torch.distributed.tensor import DTensor

    held = {}
    for name, value in tensors.items():
        gathered = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            held[name] = gathered.detach().cpu()
    return held


def as_like(like: Tensor, value: Tensor) -> Tensor:
    """A whole tensor as `like` is: on its device, with its strides, and sharded if it is; in its own dtype."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def mean_of_all(value: Tensor) -> Tensor:
    """The mean of a number over the processes that train together, each of which must call; in one, itself."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def on_device(
    source: Iterator[dict[str, Any]], device: torch.device, channels_last: bool = False, ahead: bool = False
) -> Generator[dict[str, Any]]:
    """The batches of `source` with their tensors on `device`, images channels last if told so.

    With `ahead` a thread makes the next batch while this one is worked on; it ends when the generator is closed. Copies
    from pinned memory are queued like kernels: the host does not wait for them.
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
