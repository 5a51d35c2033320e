r"""Where should the start of a bridge end? Measured, for one bridge and one budget of network calls.

A later $t_1$ has less bias and leaves a stiffer ODE; which of the two counts depends on the bridge, its network and the
budget. So the law of a sampler's samples of some $x_T$ is held against that of the ancestral sampler in many calls, at
every $t_1$ and exponent of the grid that might do, by the sliced 2-Wasserstein distance

$$ W^2 = \frac1L \sum_{l=1}^{L} \frac1n \sum_{i=1}^{n}
         \big( \langle u_l, x \rangle_{(i)} - \langle u_l, y \rangle_{(i)} \big)^2, $$

over random directions $|u_l| = 1$ and the sorted projections of n samples each, root mean square over the $x_T$. Two
sets of samples of one law are apart, too: of the reference from itself that is the `floor`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.bridge.coefficients import Bridge
from dsno.bridge.sampler import BRIDGE_STEPS, EXPONENT, BridgeSampler, steps_of
from dsno.denoise import Denoiser
from dsno.seeds import noise, seed_range

__all__ = ["Starts", "compare_starts", "sliced_distance"]


@dataclass(frozen=True)
class Starts:
    r"""How far the samples are from the reference's, by $(t_1, p)$, nearest first.

    Attributes:
        distances: The distance of each setting, in units of the samples.
        usual: The setting that is taken where nothing is asked for.
        floor: The distance of the reference from itself with other seeds.
    """

    distances: dict[tuple[float, float], float]
    usual: tuple[float, float]
    floor: float

    @property
    def best(self) -> tuple[float, float]:
        """The nearest setting."""
        return next(iter(self.distances))


def compare_starts(
    denoiser: Denoiser,
    bridge: Bridge,
    start: Tensor,
    calls: int,
    name: str = "dbim2",
    shares: Sequence[float] = (0.7, 0.8, 0.9, 0.95, 0.98),
    exponents: Sequence[float] = (EXPONENT, 3.0),
    samples: int = 64,
    reference_calls: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Starts:
    r"""Try the ends of the start and the exponents of the grid for a sampler of so many calls.

    Arguments:
        denoiser: $D(x_t, t, \{\text{start}: x_T\})$.
        bridge: The bridge it was trained on.
        start: Some $x_T$, (B, *shape).
        calls: The budget.
        name: The sampler, of `BRIDGE_STEPS`.
        shares: $r_{t_1}^2$ to try; the default of the sampler is tried, too.
        exponents: $p$ to try.
        samples: Samples of each $x_T$.
        reference_calls: Calls of the ancestral sampler that is the reference.
        seed: The first of the samples' seeds.
        progress: Called with the settings done and their number, the two references among them.

    Raises:
        ValueError: for no $x_T$, or as `BridgeSampler.of_calls`.
    """
    if len(start) == 0:
        raise ValueError("there is no x_T to start from: give one or more")
    steps = steps_of(name, calls)
    usual = BRIDGE_STEPS[name].share(steps)
    times = {share: float(bridge.time(torch.tensor(share, dtype=torch.float64))) for share in sorted({*shares, usual})}
    tried = [(t_1, p) for t_1 in times.values() for p in exponents]
    # Whatever the sampler refuses it refuses before any work.
    samplers = {tried_: BridgeSampler.of_calls(denoiser, bridge, calls, name, *tried_) for tried_ in tried}
    rows = start.repeat_interleave(samples, 0)
    done = 0

    def drawn(sampler: BridgeSampler, first: int) -> Tensor:
        nonlocal done
        made = sampler(rows, seeds=seed_range(first, len(rows))).sample.unflatten(0, (len(start), samples))
        done += 1
        if progress is not None:
            progress(done, len(tried) + 2)
        return made

    reference = BridgeSampler.of_calls(denoiser, bridge, reference_calls, "ancestral", 1 - 1 / reference_calls)
    exact, again = (drawn(reference, seed + n * len(rows)) for n in (1, 2))
    found = {tried_: sliced_distance(drawn(sampler, seed), exact) for tried_, sampler in samplers.items()}
    ordered = dict(sorted(found.items(), key=lambda item: item[1]))
    return Starts(ordered, (times[usual], EXPONENT), sliced_distance(again, exact))


def sliced_distance(x: Tensor, y: Tensor, directions: int = 64) -> float:
    """The sliced distance above of two sets of samples (B, n, *shape) of the same B laws, over `directions` of them."""
    flat = [part.flatten(2).double() for part in (x, y)]
    u = noise(range(directions), (flat[0].shape[-1],), dtype=torch.float64, device=x.device)
    u = u / u.norm(dim=1, keepdim=True)
    a, b = ((part @ u.T).sort(1).values for part in flat)
    return float((a - b).square().mean().sqrt())
