"""A bridge is trained into a folder of its own, learns, and is resumed alike."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsno.bridge.coefficients import I2SB
from dsno.bridge.files import load_bridge
from dsno.bridge.sampler import BridgeSampler
from dsno.data.load import load_data
from dsno.data.pairs import Pairs
from dsno.runs.bridge import teach_bridge
from dsno.seeds import seed_range
from dsno.train import TrainConfig
from pretend import stop_at

CLEAN = load_data("digits").x[:256]
PAIRS = Pairs(torch.nn.functional.avg_pool2d(CLEAN, 2).repeat_interleave(2, 2).repeat_interleave(2, 3), CLEAN, "halved")
TEACH = TrainConfig(steps=4, lr=1e-3, warmup=2, checkpoint_every=2, log_every=1)


def test_a_bridge_is_trained_and_read_back_and_sampled(tmp_path: Path) -> None:
    teach_bridge(PAIRS, tmp_path, (8, 8), TEACH, 16, "flow", I2SB(), attention=())
    made = load_bridge(tmp_path)
    assert (made.kind, made.bridge, made.shape) == ("flow", I2SB(), (1, 8, 8))
    sampler = BridgeSampler.of_calls(made, made.bridge, 4)
    assert sampler(PAIRS.start[:3], seeds=seed_range(0, 3)).sample.isfinite().all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "training"]


def test_it_learns_more_than_what_it_starts_from(tmp_path: Path) -> None:
    losses: list[float] = []
    config = replace(TEACH, steps=60, lr=3e-3, log_every=10, checkpoint_every=100, ema=0.9)

    def report(stage: str, done: int, total: int, text: str) -> None:
        losses.append(float(text.split()[-1]))

    teach_bridge(PAIRS, tmp_path, (16,), config, 64, attention=(), report=report)
    # Preconditioned, an answer of zero is the best linear guess: a loss of about one, which it beats.
    assert 0.7 < losses[0] < 1.1 and losses[-1] < 0.8 * losses[0]


def test_a_bridge_is_resumed_alike(tmp_path: Path) -> None:
    alike = {"pairs": PAIRS, "out": tmp_path, "channels": (8,), "config": TEACH, "batch": 16, "attention": ()}
    with pytest.raises(KeyboardInterrupt):
        teach_bridge(**alike, report=stop_at("teach", 3))
    for change, message in (
        ({"kind": "x0"}, "with kind = ddbm, now x0"),
        ({"bridge": I2SB()}, "was trained with bridge = "),
        ({"batch": 8}, "was trained with batch = 16, now 8: resume alike"),
    ):
        with pytest.raises(ValueError, match=message):
            teach_bridge(**{**alike, **change}, resume=True)
    resumed = teach_bridge(**alike, resume=True)
    whole = teach_bridge(**{**alike, "out": tmp_path / "whole"})
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FileExistsError, match="exists already: pass resume=True"):
        teach_bridge(**alike)
