r"""Derivatives of a student, in a direction or along the flow, in one of three ways.

| name | derivative |
|---|---|
| `forward` | exact, by forward-mode differentiation |
| `difference` | central, over an angle of $\pm 10^{-3}$: for networks without a forward mode |
| `upwind` | along the flow, $(f(x_t, t) - f(x_r, r)) / (\theta_t - \theta_r)$ with $x_r$ DDIM's step from $x_t$ |

where r is the share w of the phase before t, $p_r = \max(p_t - w, p_s)$, but not nearer to t than $10^{-3}$, which
float32 can tell.

What a map is at t is known from the times before, down to $s$, where it is the identity, so the difference that looks
there is the one under which an error dies out and does not grow. It also passes over what a network's waves of t, which
turn a hundred times and more in [0, 1], do within the width w; the exact derivative of such a network is mostly theirs.
The residuals vanish at the exact map with exact derivatives, with `upwind` at one within O(w) of it, that of 1 / w
steps of DDIM.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dsno.denoise import expand_like
from dsno.schedule import Schedule
from dsno.solvers.first_order import ddim_step

__all__ = ["WIDTH", "Derivative", "Local", "check_derivative", "earlier", "jvp", "same_draws", "slope", "upwind"]

Derivative = Literal["forward", "difference", "upwind"]
Local = Literal["forward", "difference"]

WIDTH = 0.05
"""w of `upwind`: twenty steps to a path."""

LEAST = 1e-3
"""The least width of a difference, which float32 can tell."""


class _Full(TorchFunctionMode):
    """Every function runs in the precision of its arguments, whatever autocast is on or comes on inside."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Forward mode fails in convolutions whose arguments autocast has cast, and differences in bfloat16 are noise.
        with contextlib.ExitStack() as stack:
            for device in ("cuda", "cpu"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return func(*args, **(kwargs or {}))


def jvp(
    f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...], how: str = "forward"
) -> tuple[Tensor, Tensor]:
    r"""$f$ and its derivative in a direction, by forward-mode differentiation or a central difference of step
    $10^{-3}$.

    Runs without autocast, in the dtype of `at`, and forward mode with attention written out: fused kernels have none.

    Raises:
        NotImplementedError: if a layer has no forward mode; says what to do instead.
        ValueError: for another `how`.
    """
    if how == "difference":
        with _Full():
            with same_draws(at[0]):
                value = f(*at)
            return value, _difference(f, at, along)
    if how != "forward":
        raise ValueError(f"unknown derivative {how!r}: expected forward or difference")
    try:
        with _Full(), sdpa_kernel(SDPBackend.MATH):
            value, derivative = torch.func.jvp(f, at, along)  # type: ignore[misc]
    except (NotImplementedError, RuntimeError) as error:
        if not any(word in str(error).lower() for word in ("forward ad", "forward mode", "forward-mode", "functorch")):
            raise
        raise NotImplementedError(
            f"a layer of this network has no forward-mode derivative: pass derivative='difference' ({error})"
        ) from error
    return value, derivative


def _difference(f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    h = LEAST if at[0].dtype == torch.float32 else 1e-5
    with same_draws(at[0]):
        ahead = f(*(p + h * v for p, v in zip(at, along, strict=True)))
    return (ahead - f(*(p - h * v for p, v in zip(at, along, strict=True)))) / (2 * h)


def same_draws(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """What is drawn inside, dropout that is, is drawn once more behind it: for calls whose difference is wanted."""
    return torch.random.fork_rng([x.device] if x.is_cuda else [])


def slope(f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...], how: str) -> Tensor:
    """The derivative alone, as `jvp` takes it: a difference needs two calls, not three."""
    if how == "difference":
        with _Full():
            return _difference(f, at, along)
    return jvp(f, at, along, how)[1]


def upwind(
    f: Callable[..., Tensor], schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, width: float = WIDTH
) -> tuple[Tensor, Tensor]:
    r"""$f(x_t, t)$ and $(f(x_t, t) - f(x_r, r)) / (\theta_t - \theta_r)$, $x_r$ DDIM's step from $x_t$ by $\hat x_0$.

    x0, x_t, and both results are (B, *shape), t and s (B,); r is `earlier`. Runs without autocast.
    """
    r = earlier(schedule, t, s, width)
    with _Full():
        with same_draws(x_t):
            value = f(x_t, t)
        first, last = schedule.angle(t.new_tensor([0.0, 1.0]))
        # Both are at the end of a schedule that has no earlier time: nothing moves there.
        gap = (schedule.phase(t) - schedule.phase(r)).clamp_min(torch.finfo(t.dtype).tiny) * (last - first)
        return value, (value - f(ddim_step(schedule, x0, x_t, t, r), r)) / expand_like(gap, x_t)


def earlier(schedule: Schedule, t: Tensor, s: Tensor, width: float = WIDTH) -> Tensor:
    r"""r of `upwind`, (B,), where $p_r = \max(p_t - w, p_s)$, but at least 0.001 before t, if there is room to 0."""
    p_t, p_s = schedule.phase(t), schedule.phase(s)
    return schedule.from_phase(p_t - (p_t - p_s).clamp(LEAST, width))


def check_derivative(derivative: str, width: float, method: str, along: bool = True) -> None:
    """Make sure that a method takes such a derivative, and that w of `upwind` is a share of a path.

    Raises:
        ValueError: if not.
    """
    known = ("forward", "difference", *(["upwind"] if along else []))
    if derivative not in known:
        why = "takes none along the flow" if derivative == "upwind" else "knows no other"
        raise ValueError(f"derivative {derivative!r}: {method} {why}, expected one of {', '.join(known)}")
    if not LEAST <= width <= 1:
        raise ValueError(f"the width of a difference is a share of the path in [{LEAST:g}, 1], got {width:g}")
