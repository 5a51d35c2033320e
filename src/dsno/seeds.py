r"""Noise from per-sample seeds: sample $i$ is the same array in any batch, on any rank, on any device.

A stateful generator gives the noise of sample $i$ only after the noise of all samples before it. Here it is a function,

$$ (\text{seed}, \text{stream}, \text{index}) \mapsto z \sim \mathcal N(0, 1), $$

by the counter-based generator Philox-4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3")
followed by Box-Muller. The stream separates independent uses of one seed: stream 0 is the initial noise, stream $n + 1$
the noise of step $n$ of a stochastic chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["generator", "mixed", "noise", "noise_tape", "seed_range"]


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
        ValueError: if a seed or the stream is negative or too large.
    """
    keys = torch.as_tensor(seeds, dtype=torch.int64).reshape(-1, 1)
    if len(keys) and int(keys.min()) < 0:
        raise ValueError(f"seeds must be integers in [0, 2^63), got {int(keys.min())}")
    keys = keys.to(device, non_blocking=True)  # checked where they are: seeds of the host do not wait for the device
    if not 0 <= stream <= _MASK:
        raise ValueError(f"stream must be an integer in [0, 2^32), got {stream}")
    size = math.prod(shape)
    block = torch.arange(-(-size // 4), dtype=torch.int64, device=device).expand(len(keys), -1)
    zero = torch.zeros_like(block)
    words = _philox([block & _MASK, block >> 32, zero + stream, zero], (keys & _MASK, keys >> 32))
    precision = torch.float32 if torch.device(device).type == "mps" else torch.float64
    u0, u1, u2, u3 = ((w.to(precision) + 0.5) * 2.0**-32 for w in words)
    r0, r1 = (-2 * u0.log()).sqrt(), (-2 * u2.log()).sqrt()
    a0, a1 = 2 * math.pi * u1, 2 * math.pi * u3
    z = torch.stack([r0 * a0.cos(), r0 * a0.sin(), r1 * a1.cos(), r1 * a1.sin()], dim=-1)
    return z.flatten(1)[:, :size].reshape(len(keys), *shape).to(dtype)


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
    """Seeds `start`, ..., `start + count - 1` as an int64 tensor."""
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
