r"""Noise from per-sample seeds: sample $i$ is the same array in any batch, on any rank, on any device.

A stateful generator gives the noise of sample $i$ only after the noise of all samples before it. Here it is a function,

$$ (\text{seed}, \text{stream}, \text{index}) \mapsto z \sim \mathcal N(0, 1), $$

by the counter-based generator Philox-4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3")
followed by Box-Muller. The stream separates independent uses of one seed: stream 0 is the initial noise, stream $n + 1$
the noise of step $n$ of a stochastic chain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import psutil
import torch
from torch import Tensor

__all__ = [
    "AT_ONCE",
    "as_seeds",
    "check_noise",
    "generator",
    "mixed",
    "noise",
    "noise_tape",
    "rows_at_once",
    "seed_range",
    "strata",
]

LAST = 2**63 - 1

AT_ONCE = 2**20
"""Numbers that are drawn at once: on the way, each takes some twenty times the room that it has at the end."""


def as_seeds(seeds: Sequence[int] | Tensor) -> Tensor:
    r"""Seeds as an int64 tensor (B,), each an integer in $[0, 2^{63})$.

    Raises:
        ValueError: for what is no integer, or does not fit; shows the first one.
    """
    if not isinstance(seeds, Tensor | np.ndarray):
        if isinstance(seeds, str | bytes) or not isinstance(seeds, Iterable):
            raise ValueError(f"seeds must be a sequence of integers in [0, 2^63), got {seeds!r:.40}")
        listed = [*seeds]
        for seed in listed:
            whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
            whole |= isinstance(seed, Tensor) and seed.ndim == 0 and _is_whole(seed.dtype)
            if not whole or not 0 <= int(seed) <= LAST:
                raise ValueError(f"seeds must be integers in [0, 2^63), got {seed!r:.40}")
        return torch.tensor([int(seed) for seed in listed], dtype=torch.int64)
    held = torch.as_tensor(seeds)
    if held.ndim != 1 or (not _is_whole(held.dtype) and held.numel()):
        kind = str(held.dtype).removeprefix("torch.")
        raise ValueError(f"seeds must be integers in [0, 2^63), (B,), got {kind} of shape {tuple(held.shape)}")
    held = held.to(torch.int64)
    if len(held) and int(held.min()) < 0:
        raise ValueError(f"seeds must be integers in [0, 2^63), got {int(held.min())}")
    return held


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def check_noise(z: Tensor, shape: Sequence[int] | None = None) -> None:
    """Refuse what is no noise (B, *shape) to start from; a `shape` of None is any.

    Raises:
        ValueError: for no tensor, another shape, integers, or numbers that are not finite.
    """
    wanted = "(B, *shape)" if shape is None else f"(B, {', '.join(map(str, shape))})"
    if not isinstance(z, Tensor):
        raise ValueError(f"noise must be a tensor {wanted}, got a {type(z).__name__}: `noise(seeds, shape)` makes it")
    if z.ndim < 1 or (shape is not None and z.shape[1:] != tuple(shape)):
        raise ValueError(f"noise must have the shape {wanted}, got {tuple(z.shape)}: `noise(seeds, shape)` makes it")
    if not z.is_floating_point():
        raise ValueError(f"noise must be of floating point numbers, got {str(z.dtype).removeprefix('torch.')}")
    # A program that is compiled looks at no values.
    if not torch.compiler.is_compiling() and not bool(z.isfinite().all()):
        raise ValueError("noise must be finite, and holds NaN or infinity")


def _room(numbers: int, dtype: torch.dtype, device: torch.device | str) -> None:
    """Refuse noise that does not fit into memory."""
    needed = numbers * dtype.itemsize
    free = psutil.virtual_memory().available if torch.device(device).type == "cpu" else math.inf
    if needed > free:
        raise ValueError(
            f"noise of {needed / 2**30:.3g} GB does not fit into the {free / 2**30:.3g} GB that are free: draw it in "
            "batches of seeds, a row is the same in any"
        )


def strata(count: int, g: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in [0, 1), (count,), one in each of as many equal parts, all at the same random place of theirs: evenly
    spaced, and each of them uniform."""
    return (torch.rand(1, generator=g, dtype=dtype) + torch.arange(count) / count) % 1


def noise(
    seeds: Sequence[int] | Tensor,
    shape: Sequence[int],
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Standard normal noise, one row per seed.

    Arguments:
        seeds: (B,) integers in $[0, 2^{63})$.
        shape: The shape of one sample.
        stream: Which of the seed's independent streams, in $[0, 2^{32})$.
        dtype: The dtype of the result; the draw itself is in float32 or better.
        device: Where to draw. Integers agree on every device bit for bit, the normals to the last bits of `log`, `cos`.

    Returns:
        Noise of shape (B, *shape).

    Raises:
        ValueError: if a seed, the stream or the shape is no integer, negative or too large; if the noise does not fit
            into the memory of the host.
    """
    keys = as_seeds(seeds).reshape(-1, 1)  # checked where they are: seeds of the host do not wait for the device
    keys = keys.to(device, non_blocking=True)
    if isinstance(stream, bool) or not isinstance(stream, int) or not 0 <= stream <= _MASK:
        raise ValueError(f"stream must be an integer in [0, 2^32), got {stream!r}")
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0 for n in shape):
        raise ValueError(f"the shape of a sample must be integers of 0 or more, got {tuple(shape)}")
    size = math.prod(shape)
    if size * len(keys) <= AT_ONCE:
        return _drawn(keys, size, stream).reshape(len(keys), *shape).to(dtype)
    _room(size * len(keys), dtype, device)
    z = torch.empty(len(keys), size, dtype=dtype, device=device)
    for part, rows in zip(z.split(rows_at_once(size)), keys.split(rows_at_once(size)), strict=True):
        part.copy_(_drawn(rows, size, stream))
    return z.reshape(len(keys), *shape)


def rows_at_once(size: int) -> int:
    """How many samples of `size` numbers are made at once, where more were asked for than fit in memory."""
    return max(1, AT_ONCE // max(1, size))


def _drawn(keys: Tensor, size: int, stream: int) -> Tensor:
    """Normal numbers (B, size), in float32 or better, for keys (B, 1)."""
    block = torch.arange(-(-size // 4), dtype=torch.int64, device=keys.device).expand(len(keys), -1)
    zero = torch.zeros_like(block)
    words = _philox([block & _MASK, block >> 32, zero + stream, zero], (keys & _MASK, keys >> 32))
    precision = torch.float32 if keys.device.type == "mps" else torch.float64
    u0, u1, u2, u3 = ((w.to(precision) + 0.5) * 2.0**-32 for w in words)
    r0, r1 = (-2 * u0.log()).sqrt(), (-2 * u2.log()).sqrt()
    a0, a1 = 2 * math.pi * u1, 2 * math.pi * u3
    z = torch.stack([r0 * a0.cos(), r0 * a0.sin(), r1 * a1.cos(), r1 * a1.sin()], dim=-1)
    return z.flatten(1)[:, :size]


def noise_tape(
    seeds: Sequence[int] | Tensor,
    shape: Sequence[int],
    steps: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The noise of a stochastic chain of `steps` steps, drawn once: shape (steps, B, *shape), streams 1 to `steps`."""
    return torch.stack([noise(seeds, shape, n + 1, dtype, device) for n in range(steps)])


def seed_range(start: int, count: int) -> Tensor:
    r"""Seeds `start`, ..., `start + count - 1` as an int64 tensor.

    Raises:
        ValueError: for no integers, less than none, or a seed outside $[0, 2^{63})$.
    """
    for name, number in (("start", start), ("count", count)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number <= LAST:
            raise ValueError(f"the {name} of seeds must be an integer in [0, 2^63), got {number!r:.40}")
    if start + count > LAST:
        raise ValueError(f"seeds must be less than 2^63: {count} of them from {start} on are not")
    _room(count, torch.int64, "cpu")
    return torch.arange(start, start + count, dtype=torch.int64)


def mixed(*key: int) -> int:
    r"""A seed in $[0, 2^{32})$ of its own for each key of integers $\ge 0$; zeros at the end of a key do not count.

    torch's generator on the CPU reads the low 32 bits of its seed alone: of `(seed << 32) + step` nothing but the step.
    """
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU that starts from `mixed(*key)`."""
    return torch.Generator().manual_seed(mixed(*key))


_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def _philox(counter: list[Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Ten rounds of Philox-4x32: four words of 32 bits, each in an int64, for a counter of four and a key of two."""
    # int64 products wrap modulo 2^64, which leaves all 64 bits of a 32 x 32 bit product right.
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]
