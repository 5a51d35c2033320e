"""A run that is asked to stop saves where it is, on every process alike, and goes on to the same bits."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsno.interrupt import Interrupted, Stop
from dsno.listing import entries
from dsno.snapshots import latest
from dsno.train import TrainConfig, train
from processes import spawn

CONFIG = TrainConfig(steps=12, lr=1e-2, warmup=3, checkpoint_every=100, log_every=3)


class Line:
    """Learn the identity; asks the process to stop while the batch of a step of a rank is made."""

    def __init__(self, at: tuple[int, int] | None = None, number: int = signal.SIGTERM) -> None:
        self.at, self.number = at, number

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        while True:
            if self.at == (start, rank):
                os.kill(os.getpid(), self.number)
            yield {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(start)).chunk(world)[rank]}
            start += 1

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return (model(batch["x"]) - batch["x"]).square().mean()


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_saves_the_step_under_way_and_goes_on_bit_for_bit(number: int, tmp_path: Path) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"stopped after step 8 of 12, saved in {tmp_path / 'cut'}") as stopped:
        train(network(), Line((7, 0), number), CONFIG, tmp_path / "cut")
    assert stopped.value.signal == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert {p.name for p in entries(tmp_path / "cut")} == {"step-00000008", "log.jsonl"}
    cut = train(network(), Line(), CONFIG, tmp_path / "cut", resume=True)
    whole = train(network(), Line(), CONFIG, tmp_path / "whole")
    assert torch.equal(cut[0].weight, whole[0].weight)
    logs = [[line.split(', "steps_per')[0] for line in (tmp_path / n / "log.jsonl").open()] for n in ("cut", "whole")]
    assert logs[0] == logs[1]


def test_what_is_asked_behind_the_last_step_is_not_lost(tmp_path: Path) -> None:
    def ask(done: int, total: int, numbers: dict[str, float]) -> None:
        if done == total:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(network(), Line(), CONFIG, tmp_path, progress=ask)
    assert latest(tmp_path) == tmp_path / "step-00000012"


def test_a_second_request_is_not_waited_for_and_what_others_handle_is_left_to_them() -> None:
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        assert stop.asked() == 0
        signal.raise_signal(signal.SIGINT)
        assert stop.asked() == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    before, seen = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked() == 0 and seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_caught(tmp_path: Path) -> None:
    made: list[nn.Module] = []
    worker = threading.Thread(target=lambda: made.append(train(network(), Line(), CONFIG, tmp_path)))
    worker.start()
    worker.join()
    assert made and latest(tmp_path) == tmp_path / "step-00000012"


def one_is_asked(folder: Path) -> None:
    config = replace(CONFIG, log_every=1, precision="auto")
    with pytest.raises(Interrupted, match="stopped after step 6 of 12"):
        train(network(), Line((5, 1)), config, folder / "cut")
    train(network(), Line(), config, folder / "cut", resume=True)
    train(network(), Line(), config, folder / "whole")


def test_processes_stop_together(tmp_path: Path) -> None:
    assert spawn(one_is_asked, tmp_path / "run") == [(0, "")] * 2
    read = [(tmp_path / "run" / name / "step-00000012/average.safetensors").read_bytes() for name in ("cut", "whole")]
    assert read[0] == read[1]
