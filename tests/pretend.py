"""What tests pretend to have: another process, somebody at the keyboard, results that nobody measured."""

import re
from collections.abc import Callable

import torch

from dsno.measure.results import Cost, Fidelity, HeldOut, Protocol, Quality, Result


class Rank:
    """What `generate` needs of an accelerator: one of several processes, as `accelerate launch` would make it."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world: int = 2) -> None:
        self.process_index, self.num_processes = rank, world

    def wait_for_everyone(self) -> None: ...


def stop_at(stage: str, step: int) -> Callable[[str, int, int, str], None]:
    """A report at which whoever watches interrupts the run: after so many steps of a stage."""

    def report(name: str, done: int, total: int, text: str) -> None:
        if (name, done) == (stage, step):
            raise KeyboardInterrupt

    return report


def result(name: str, rounds: int, frechet: float, error: float | None = 0.1, **protocol: object) -> Result:
    """A sampler's numbers; those of a set that nothing sampled where there are no rounds."""
    quality = Quality(frechet, frechet / 10, 0.01, 0.9, 0.8, 1.0)
    cost = Cost(rounds, rounds, 10**6 * rounds, 1.0, 0.01, 0.002) if rounds else Cost()
    family = re.sub(r"-\d+$", "", name)
    held = Protocol(count=64, extractor="tiny_cnn", **protocol)
    beside = HeldOut(2 * frechet, frechet / 5, 1.0)
    return Result(name, family, cost, held, quality, error, error, Fidelity(20.0, 3.0, 0.1), beside, 0.9)
