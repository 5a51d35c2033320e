"""The worked examples run, resume, and say what is true of their data."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dsno import load_student, seed_range, shipped
from dsno.checkpoint import read_json
from dsno.data.samples import to_uint8
from dsno.grids import log_snr_uniform
from dsno.seeds import noise
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import SolverSampler
from processes import EXAMPLES, SHARDED


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    # Dataclasses look up the module that they are in.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name, sets", [("signals", 3), ("fields", 5)])
def test_an_example_runs_and_resumes(name: str, sets: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load(name).main
    errors = main(quick=True, out=tmp_path)
    assert len(errors) == sets and all(np.isfinite(error) for error in errors.values())
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    spatial, steps = {"signals": ([64], "8/8"), "fields": (32, "4/4")}[name]
    assert read_json(tmp_path / "teacher" / "config.json")["net"]["image_size"] == spatial
    first = capsys.readouterr().out
    assert all(f"{stage} {steps}" in first for stage in ("teach", "regression"))
    if name == "signals":
        assert main(quick=True, out=tmp_path) == errors
        assert steps not in capsys.readouterr().out  # nothing is trained twice


def test_one_pass_is_drawn_beside_its_teacher(tmp_path: Path) -> None:
    one_pass = load("one_pass")
    made = one_pass.paths(one_pass.HELD_OUT, one_pass.ROWS)
    # Noise is shown at half its size, samples as they are.
    z = noise(seed_range(one_pass.HELD_OUT, one_pass.ROWS), (1, 8, 8))
    torch.testing.assert_close(made.student[:, 0], z / 2, rtol=0, atol=1e-3)
    sample = load_student(shipped() / "student").sample(z)
    torch.testing.assert_close(made.student[:, -1], sample, rtol=0, atol=1e-3)
    torch.testing.assert_close(made.student[:, 0], made.teacher[:, 0])
    with Image.open(one_pass.main(tmp_path / "one.gif", sets=1)) as picture:
        assert picture.n_frames == one_pass.CALLS + 1
        tiles = [(one_pass.EDGE + m * (one_pass.TILE + one_pass.GAP), one_pass.HEAD) for m in range(5)]
        halves = (0, (picture.width - 2 * one_pass.EDGE + one_pass.BETWEEN) // 2)
        drawn = []
        for calls in (0, 1, 9, 16):
            picture.seek(calls)
            pixels = np.asarray(picture.convert("L"), dtype=int)
            side = one_pass.TILE
            drawn.append([[pixels[y : y + side, x + left : x + left + side] for x, y in tiles] for left in halves])
    # What is made: of the student all at once, of the teacher one time after another, the current one included.
    counts = [[sum(int(tile.std() > 20) for tile in half) for half in moment] for moment in drawn]
    assert counts == [[1, 1], [5, 2], [5, 4], [5, 5]]
    sample = to_uint8(sample[0, 0]).repeat_interleave(12, 0).repeat_interleave(12, 1).numpy().astype(int)
    assert np.abs(drawn[-1][0][-1] - sample).max() < 12


def test_one_machine_and_two_share_the_weights_alike() -> None:
    one, two = (yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()) for name in ("fsdp2", "fsdp2_nodes"))
    assert one["fsdp_config"] == two["fsdp_config"] and two["num_processes"] == 2 * one["num_processes"]
    said = {f"{key.upper()}": str(value) for key, value in one["fsdp_config"].items()}
    assert {**SHARDED, **said} == {**said, "ACCELERATE_USE_FSDP": "true"}  # what other tests take for it


def test_the_covariance_of_the_signals_is_the_formula() -> None:
    signals = load("signals")
    exact, measured = signals.covariance(), np.cov(signals.signals(40_000).T)
    assert np.linalg.norm(measured - exact) < 0.02 * np.linalg.norm(exact)
    assert np.allclose(exact, exact.T) and np.linalg.eigvalsh(exact).min() > -1e-9
    # All the power, once: Parseval over the frequencies and their negatives.
    power = signals.spectrum(exact)
    assert 2 * power.sum() - power[0] - power[-1] == pytest.approx(np.trace(exact))


def test_the_fields_and_their_denoiser_are_exact() -> None:
    fields = load("fields")
    z = noise(range(512), (1, fields.SIZE, fields.SIZE), dtype=torch.float64)
    exact = fields.ExactDenoiser(fields.Cosine(), fields.POWER)
    x, truth = exact.solution(z), fields.radial(fields.POWER)
    assert float((fields.spectrum(x) / truth - 1)[1:].abs().max()) < 0.1
    assert float(x.var()) == pytest.approx(1, abs=0.05)
    solver = SolverSampler(exact, exact.schedule, log_snr_uniform(exact.schedule, 64), DPMSolverPP(3))
    assert float((solver(z[:4]).sample - x[:4]).abs().max()) < 1e-3
    # A noisy field denoised is the mean of what it may have been: the error is orthogonal to the estimate.
    alpha_t, sigma_t = exact.schedule.at(0.5)
    guess = exact(alpha_t * x + sigma_t * noise(range(512), x.shape[1:], 1, dtype=torch.float64), torch.tensor(0.5))
    assert abs(float((guess * (x - guess)).mean())) < 0.01 * float(guess.square().mean())
