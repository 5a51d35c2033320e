r"""What the exact samplers share: the chain as equations for all its states, and the batched calls that solve them.

The affine chain (`dsno.solvers.chain.Chain`) with its noise drawn once is a triangular system,

$$ x_{n+1} = a_n x_n + b_n D(x_n, t_n) + s_n z_n, \qquad n = 0, \dots, N - 1, $$

with one unknown state per time. A *round* is one call of the denoiser at any number of states and times; the samplers
differ in which states they guess, and in what they make of the answers. On a machine that is not full a round costs
what one evaluation costs, so rounds are the latency and rows the bill; on a full one the bill is what counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsno.condition import Cond, map_cond
from dsno.cost import Meter, Metered
from dsno.denoise import Denoiser, Prediction, expand_like, modules_of
from dsno.seeds import as_seeds, check_noise, noise_tape
from dsno.solvers.chain import Chain
from dsno.solvers.run import initial_state
from dsno.trajectory import Trace, Trajectory

__all__ = ["Exact", "Rounds", "System", "rms", "wide"]


def rms(x: Tensor) -> Tensor:
    """Root mean square over the coordinates of each row, (R, *shape) to (R,)."""
    return x.flatten(1).square().mean(1).sqrt()


def wide(value: Tensor, x: Tensor) -> Tensor:
    """View (A,) or (A, L) so that it broadcasts against (A, *shape) or (A, L, *shape)."""
    return value.reshape(*value.shape, *[1] * (x.ndim - value.ndim))


class System:
    r"""The chain as equations for the states of B samples.

    Arguments:
        chain: The chain, N steps.
        x: The states at its start, (B, *shape); gives dtype and device.
        tape: The noise of the steps, (N, B, *shape), or None of a deterministic chain.

    Raises:
        ValueError: if the chain is stochastic and there is no tape, or the tape has another shape.
    """

    def __init__(self, chain: Chain, x: Tensor, tape: Tensor | None) -> None:
        if chain.eta > 0 and tape is None:
            raise ValueError(f"a chain with eta = {chain.eta:g} needs `seeds` (one per sample) or a noise `tape`")
        if tape is not None and tape.shape != (len(chain), *x.shape):
            raise ValueError(f"the tape has shape {tuple(tape.shape)}, expected {(len(chain), *x.shape)}")
        self.chain, self.tape = chain, None if chain.eta == 0 or tape is None else tape.to(x)
        self.a, self.b, self.s = chain.coefficients().to(x).unbind(1)

    def __len__(self) -> int:
        return len(self.chain)

    def step(self, x: Tensor, x0_hat: Tensor, n: int | Tensor, sample: Tensor) -> Tensor:
        r"""$a_n x + b_n \hat x_0 + s_n z_n$ for rows (R, *shape) of samples `sample` (R,) at steps `n` () or (R,)."""
        x_next = expand_like(self.a[n], x) * x + expand_like(self.b[n], x) * x0_hat
        return x_next if self.tape is None else x_next + expand_like(self.s[n], x) * self.tape[n, sample]


class Rounds:
    """The denoiser as exact samplers call it: many (sample, time) pairs in one call; every call is a round.

    Arguments:
        denoiser: The teacher.
        chain: Its chain.
        cond: The condition of the B samples.
        x: Their states at the chain's start, (B, *shape).

    Raises:
        ValueError: if a layer of the denoiser that is random in training mode (dropout, batch statistics) is in it.
    """

    def __init__(self, denoiser: Denoiser, chain: Chain, cond: Cond | None, x: Tensor) -> None:
        self.meter, self.cond = Meter(denoiser), cond
        # Half precision tells only a few hundred times apart.
        self.times = chain.grid.to(x.device, torch.promote_types(x.dtype, torch.float32))
        zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.rounds, self.rows, self.draft_rounds, self.draft_rows = (zeros.clone() for _ in range(4))
        self.history: list[Tensor] = []
        self.draft_calls = 0
        # Closed forms have nothing random in them; a network is asked one question twice in its first call.
        self.unproved = _refuse_random_layers(denoiser)

    @property
    def calls(self) -> int:
        """Rounds of the batch as a whole."""
        return self.meter.rounds

    def __call__(self, x: Tensor, n: Tensor, sample: Tensor, known: Tensor | None = None) -> Tensor:
        r"""One round: $\hat x_0$ (R, *shape) of the rows `x` (R, *shape) of samples `sample` (R,) at steps `n` (R,).

        Rows that are not `known` (R,) are guesses: a guess at which the network overflows is answered with 0.

        Raises:
            FloatingPointError: if the denoiser returns values that are not finite; names the sample and the time.
            ValueError: if it returns two values for one question.
        """
        asked, who = self._twice(n, sample) if self.unproved else (n, sample)
        x = torch.cat([x, x[:1]]) if self.unproved else x
        x0_hat = self.meter(x, self.times[asked], map_cond(lambda c: c[who.to(c.device)], self.cond))
        self.rows += torch.bincount(who, minlength=len(self.rows)) * self.meter.evaluations
        self.rounds += torch.bincount(who, minlength=len(self.rows)).clamp_max(1)
        if self.unproved:
            x0_hat = self._proved(x0_hat)
        finite = self.finite = torch.isfinite(x0_hat).flatten(1).all(1)  # of the last round's rows (R,)
        if not bool(finite.all()):
            broken = ~finite if known is None else ~finite & known
            if bool(broken.any()):
                i = int(broken.nonzero()[0])
                raise FloatingPointError(
                    f"the denoiser returned values that are not finite for sample {int(sample[i])} "
                    f"at t = {float(self.times[n[i]]):g}"
                )
            x0_hat = torch.where(wide(finite, x0_hat), x0_hat, torch.zeros_like(x0_hat))
        # The network may answer in another precision; the states keep theirs.
        return x0_hat.to(x.dtype)

    def watch(self, value: Tensor, sample: Tensor) -> None:
        """Add a round to the history: a number for each of the samples `sample` (A,)."""
        row = torch.full((len(self.rows),), torch.nan, dtype=torch.float64)
        row[sample.cpu()] = value.cpu().double()
        self.history.append(row)

    def tally(self, sample: Tensor, rounds: int, rows: int) -> None:
        """Count calls of a draft's network, for all of the samples `sample` (A,) at once."""
        self.draft_calls += rounds
        self.draft_rounds[sample] += rounds
        self.draft_rows[sample] += rows

    def trajectory(self, x: Tensor, times: Tensor, seeds: Tensor | None, x0: Tensor | None = None) -> Trajectory:
        """The states (B, T, *shape) at `times` (T,) with what they cost."""
        history = torch.stack(self.history) if self.history else torch.zeros(0, len(x), dtype=torch.float64)
        trace = Trace(self.rounds, self.rows, self.draft_rounds, self.draft_rows, history)
        evaluations = int(self.rows.sum() + self.draft_rows.sum())
        rounds = self.calls + self.draft_calls
        return Trajectory(x, times, x0, self.cond, seeds, -(-evaluations // max(len(x), 1)), rounds, trace)

    @staticmethod
    def _twice(n: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([n, n[:1]]), torch.cat([sample, sample[:1]])

    def _proved(self, x0_hat: Tensor) -> Tensor:
        """The answers without the last, which repeats the first."""
        self.unproved, first, again = False, x0_hat[0].double(), x0_hat[-1].double()
        difference = float((first - again).square().mean().sqrt())
        if difference > 0.01 * float(first.square().mean().sqrt()):
            raise ValueError(
                f"the denoiser is not deterministic: one state at one time gave two answers, {difference:.3g} apart. "
                "Switch off what is random in it (dropout): no chain can be solved exactly with it"
            )
        return x0_hat[:-1]


def _refuse_random_layers(denoiser: Denoiser) -> bool:
    """Whether the denoiser holds modules, none of which may be random."""
    while isinstance(denoiser, Metered):
        denoiser = denoiser.denoiser
    random = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    modules = modules_of(denoiser)
    for prefix, root in modules.items():
        for name, module in root.named_modules():
            drops = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
            if module.training and (drops or isinstance(module, random)):
                raise ValueError(
                    f"{prefix}{name} ({type(module).__name__}) of the denoiser is in training mode, where it does not "
                    "give one answer to one question: call `.eval()` on the teacher"
                )
    return bool(modules)


@dataclass(frozen=True)
class Exact(ABC):
    r"""A sampler whose result is the chain's, whatever it guesses on the way.

    Arguments:
        denoiser: The teacher, $D$.
        chain: The chain to be solved; its `run` is the reference.
    """

    denoiser: Denoiser
    chain: Chain

    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        """From standard normal noise (B, *shape); the noise of a stochastic chain is streams 1 to N of the `seeds`.

        Raises:
            ValueError: for what is no noise or no seeds, if the chain is stochastic and there are none, or as `solve`
                does.
        """
        check_noise(z, self.denoiser.shape if isinstance(self.denoiser, Prediction) else None)
        seeds = None if seeds is None else as_seeds(seeds)
        tape = None
        if self.chain.eta > 0 and seeds is not None:
            tape = noise_tape(seeds, z.shape[1:], len(self.chain), z.dtype, z.device)
        return self.solve(initial_state(self.chain.schedule, z, float(self.chain.grid[0])), tape, cond, seeds)

    @abstractmethod
    def solve(
        self, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None, seeds: Tensor | None = None
    ) -> Trajectory:
        """From the states `x` (B, *shape) at the chain's start, with the noise of its steps (N, B, *shape)."""
