"""How a denoiser is evaluated while trajectories are made: precision, memory layout, compiled or not, and where.

A denoiser in another precision is another function, so all of this but the device is part of a set's manifest, where it
is not the default. What is done to a network for it is undone afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.cost import Metered
from dsno.denoise import Around, Denoiser, Prediction, evaluating, modules_of, tensors_of
from dsno.solvers.run import SolverSampler
from dsno.steer import Steered
from dsno.trajectories.manifest import Manifest, dtype_names

__all__ = ["PLAIN", "Compute"]


@dataclass(frozen=True)
class Compute:
    """How a denoiser is evaluated.

    Arguments:
        autocast: In mixed precision: `torch.bfloat16`, `torch.float16`, or None for none.
        channels_last: Keep images and the weights of their convolutions channels last, which tensor cores prefer.
        compile: Compile the denoiser's network with `torch.compile`: minutes at the start, faster steps.
        device: Where; the accelerator's device, else the denoiser's, else the CPU.

    Raises:
        ValueError: for another autocast.
    """

    autocast: torch.dtype | None = None
    channels_last: bool = False
    compile: bool = False
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be torch.bfloat16, torch.float16 or None, got {self.autocast}")

    def noted(self, denoiser: Denoiser) -> Manifest:
        """What is not the default, as a manifest says it.

        Raises:
            ValueError: if something is to be done to the network of a denoiser that has none.
        """
        if (self.channels_last or self.compile) and not _nets(denoiser):
            raise ValueError(
                f"channels_last and compile need a network, a torch module: {type(denoiser).__name__} has none"
            )
        autocast = self.autocast and dtype_names[self.autocast]
        asked = {"autocast": autocast, "channels_last": self.channels_last, "compile": self.compile}
        return {name: value for name, value in asked.items() if value}

    def place(self, denoiser: Denoiser, accelerator: Any = None) -> torch.device:
        """Where to solve."""
        if self.device is not None:
            return torch.device(self.device)
        held = next(iter(tensors_of(denoiser).values()), torch.empty(0))
        return held.device if accelerator is None else torch.device(accelerator.device)

    @contextlib.contextmanager
    def applied(self, sampler: SolverSampler, device: torch.device) -> Iterator[SolverSampler]:
        """The sampler as it runs on `device`, its denoiser in evaluation mode meanwhile."""
        denoiser, nets = sampler.denoiser, _nets(sampler.denoiser)
        compiled = [net for net in nets if self.compile and net._compiled_call_impl is None]
        laid_out = nets if self.channels_last else []
        try:
            for net in laid_out:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for net in compiled:
                net.compile()
            with evaluating(*modules_of(denoiser).values()):
                yield replace(sampler, denoiser=self._mixed(denoiser, device))
        finally:
            for net in laid_out:
                net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for net in compiled:
                net._compiled_call_impl = None

    def _mixed(self, denoiser: Denoiser, device: torch.device) -> Denoiser:
        """The denoiser in mixed precision; what it returns is in the precision of the state."""
        if self.autocast is None:
            return denoiser
        if isinstance(denoiser, Steered):  # its guide stays in full precision, and can be split off as before
            inner = self._mixed(denoiser.denoiser, device)
            return Steered(inner, denoiser.guide, denoiser.scale, denoiser.schedule, denoiser.project)

        def evaluate(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            with torch.autocast(device.type, dtype=self.autocast):
                return denoiser(x_t, t, cond).to(x_t.dtype)

        return evaluate


PLAIN = Compute()
"""As it is, where it is."""


def _nets(denoiser: Denoiser) -> list[nn.Module]:
    """The networks of a denoiser, without what is wrapped around them."""
    while isinstance(denoiser, Metered | Around):
        denoiser = denoiser.denoiser
    return [denoiser.net] if isinstance(denoiser, Prediction) else list(modules_of(denoiser).values())
