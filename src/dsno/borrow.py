"""Modules that belong to somebody else: what is wrapped around them, and how to use one without changing it.

`torch.compile`, data parallelism and averaging put a module of their own around a network, which hides what the network
says of itself, and lengthens the names of its weights,

| wrapper | the network is its |
|---|---|
| `torch.compile(net)` | `_orig_mod` |
| `DistributedDataParallel`, `DataParallel`, `AveragedModel` | `module` |

at the top (`torch.compile(net)`) or anywhere inside (`net.model = torch.compile(net.model)`). Weights that are stored
have the names of the network alone, and so they load with or without wrappers.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

__all__ = [
    "borrowed",
    "called_with",
    "own_copy",
    "parameters_of",
    "plain_names",
    "state_of",
    "unwrapped",
    "without_wrappers",
]

M = TypeVar("M", bound=nn.Module)


def unwrapped(module: Any) -> Any:
    """The module inside the wrappers, if it has any; anything else is itself."""
    while (attribute := _inside(module)) is not None:
        module = module._modules[attribute]
    return module


def _inside(module: Any) -> str | None:
    """The attribute of a wrapper that holds the module, or None: it is no wrapper."""
    if isinstance(module, DistributedDataParallel | DataParallel | AveragedModel):
        return "module"
    # A compiled module exists only where dynamo was imported, so nobody waits for it here.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return "_orig_mod" if dynamo is not None and isinstance(module, dynamo.OptimizedModule) else None


def borrowed(module: M) -> M:
    """A copy without wrappers at any depth, whose weights lie in the memory of the original's.

    Its mode, settings, dtype and device are its own: a cast or a move gives the copy tensors of its own, and leaves the
    original where it is. What is written into the weights of one, as an optimiser does, is seen by the other.
    """
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        # What subclasses hold beside their data, quantised ones say, stays with the one tensor.
        alias: torch.Tensor = tensor
        if type(tensor) is nn.Parameter:
            alias = nn.Parameter(tensor.detach(), tensor.requires_grad)
        elif type(tensor) is torch.Tensor:
            alias = tensor.detach()
        memo[id(tensor)] = alias
    return _copied(module, memo)


def own_copy(module: M) -> M:
    """A copy without wrappers at any depth, and with weights of its own."""
    return _copied(module, {})


def _copied(module: M, memo: dict[int, Any]) -> M:
    """A deep copy; what was copied before is in `memo` by its identity."""
    for inner in reversed(list(module.modules())):
        if _inside(inner) is not None:
            memo[id(inner)] = copy.deepcopy(unwrapped(inner), memo)
    copied: M = copy.deepcopy(unwrapped(module), memo)
    return copied


def called_with(weights: Mapping[str, torch.Tensor], module: nn.Module, *arguments: Any) -> Any:
    """What a module answers with other weights than it holds.

    Raises:
        RuntimeError: if FSDP gathers the weights of its parts when they are called, in the place of these.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.tensor import DTensor

        if any(isinstance(value, DTensor) for value in weights.values()):
            raise RuntimeError(
                f"a {type(module).__name__} is called with other weights than it holds, and FSDP gathers part by part: "
                "make what is trained a dsno.engine.Undivided"
            )
    return torch.func.functional_call(module, dict(weights), arguments)


def plain_names(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The names of a module's tensors, each with the one it has where nothing is wrapped; those of a wrapper's own
    tensors are left out."""
    wrappers = {
        f"{path}." if path else "": attribute
        for path, inner in module.named_modules(remove_duplicate=False)
        if (attribute := _inside(inner)) is not None
    }
    plain = {}
    for name in names:
        short: str | None = name
        # From the inside out, so that a path is still in the name.
        for path in sorted(wrappers, key=len, reverse=True):
            if short is not None and short.startswith(path):
                rest = short.removeprefix(path)
                held = f"{wrappers[path]}."
                short = path + rest.removeprefix(held) if rest.startswith(held) else None
        if short is not None:
            plain[name] = short
    return plain


def state_of(module: nn.Module) -> dict[str, Any]:
    """The state dict, with the names it has where nothing is wrapped."""
    state = module.state_dict()
    return {short: state[name] for name, short in plain_names(module, state).items()}


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters, by the names they have where nothing is wrapped."""
    own = dict(module.named_parameters())
    return {short: own[name] for name, short in plain_names(module, own).items()}


def without_wrappers(tensors: Mapping[str, torch.Tensor], own: Collection[str]) -> dict[str, torch.Tensor]:
    """Tensors of a file by a module's `own` names, where a wrapper lengthened them; other names stay as they are."""
    short = {name: _WRAPPERS.sub("", name) for name in tensors}
    plain = {name: s if name not in own and s in own else name for name, s in short.items()}
    if len({*plain.values()}) < len(plain):
        return dict(tensors)
    return {plain[name]: tensor for name, tensor in tensors.items()}


_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module)\.")
