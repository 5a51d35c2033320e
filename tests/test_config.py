"""A precision that was left open is settled once: a run keeps it, and says it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsno.checkpoint import read_json
from dsno.config import TrainConfig, settled
from dsno.precision import best_precision
from dsno.snapshots import latest
from dsno.train import train
from test_interrupt import Line, network

CPU = torch.device("cpu")
CONFIG = TrainConfig(steps=2, warmup=0, precision="auto")


def precision_in(folder: Path) -> str:
    found = latest(folder)
    assert found is not None
    return str(read_json(found / "state.json")["config"]["precision"])


def test_it_is_the_quicker_one_and_what_was_asked_for_stays() -> None:
    best, why = best_precision(CPU)
    config, said = settled(CONFIG, CPU)
    assert config == replace(CONFIG, precision=best)  # type: ignore[arg-type]
    assert said == f"training in {'fp32' if best == 'no' else best}: {why}"
    for precision in ("no", "bf16", "fp16"):
        assert settled(asked := replace(CONFIG, precision=precision), CPU) == (asked, "")  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides otherwise")
def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(tmp_path: Path) -> None:
    train(network(), Line(), CONFIG, tmp_path / "auto")
    assert precision_in(tmp_path / "auto") == best_precision(CPU)[0]
    for precision in ("no", "bf16"):
        out = tmp_path / precision
        train(network(), Line(), replace(CONFIG, precision=precision), out)  # type: ignore[arg-type]
        assert settled(CONFIG, CPU, tmp_path / "none", out)[1].endswith(": as it was begun")
        train(network(), Line(), replace(CONFIG, steps=4), out, resume=True)
        assert precision_in(out) == precision


def test_accelerate_s_configuration_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    config, said = settled(CONFIG, CPU)
    assert config.precision == "fp16" and said == "training in fp16: as accelerate is configured"


def test_beside_an_accelerator_of_one_s_own_nothing_is_open(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # What accelerate has kept of the run before.
    AcceleratorState._reset_state()
    train(network(), Line(), CONFIG, tmp_path, accelerator=Accelerator(cpu=True))
    assert precision_in(tmp_path) == "no"


def test_what_cannot_be_read_of_a_run_decides_nothing(tmp_path: Path) -> None:
    train(network(), Line(), replace(CONFIG, precision="no"), tmp_path)
    found = latest(tmp_path)
    assert found is not None
    for text in ("", "[]", '{"config": 1}', '{"config": {"precision": ["no"]}}'):
        (found / "state.json").write_text(text)
        assert settled(CONFIG, CPU, tmp_path) == settled(CONFIG, CPU)
