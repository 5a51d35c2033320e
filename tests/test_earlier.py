"""What version 0.1 wrote opens, samples as it did, and goes on where it was cut off.

The files under `fixtures/v0_1` were written by its code; `expected.json` holds what it made of them, to six digits.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsno.checkpoint import read_json, read_tensors
from dsno.data.load import load_data
from dsno.distillation.run import distill
from dsno.grids import uniform
from dsno.measure.results import load_results
from dsno.nets.features import load_feature_net
from dsno.runs.recipes import Recipe
from dsno.runs.teach import teach
from dsno.seeds import noise
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student, notes_of
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import sampler_of
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig
from dsno.trajectories.sets import TrajectorySet

HELD = Path(__file__).parent / "fixtures" / "v0_1"
EXPECTED = read_json(HELD / "expected.json")
SHAPE = tuple(EXPECTED["about"]["shape"])


def condition(named: dict[str, list[float]] | None) -> Tensor | dict[str, Tensor] | None:
    if named is None:
        return None
    tensors = {name: torch.tensor(values) for name, values in named.items()}
    return tensors["label"] if [*tensors] == ["label"] else tensors


def alike(found: Tensor, expected: object) -> None:
    """To what other processors round differently."""
    torch.testing.assert_close(
        found.double().flatten(), torch.tensor(expected).double().flatten(), atol=2e-4, rtol=2e-4
    )


@pytest.mark.parametrize("name", EXPECTED["teachers"])
def test_teachers(name: str) -> None:
    teacher, expected = load_teacher(HELD / name), EXPECTED["teachers"][name]
    sampler = SolverSampler(teacher, teacher.schedule, uniform(8))
    alike(sampler(noise(expected["seeds"], SHAPE), condition(expected["cond"])).sample, expected["rows"])


@pytest.mark.parametrize("name", EXPECTED["students"])
def test_students(name: str) -> None:
    expected, folder = EXPECTED["students"][name], HELD / "students" / name
    student = load_student(folder, teacher=load_teacher(HELD / "teacher") if "teacher" in expected else None)
    assert isinstance(student, TrajectoryStudent) == (expected["type"] == "operator")
    z, cond, seeds = noise(expected["seeds"], SHAPE), condition(expected["cond"]), torch.tensor(expected["seeds"])
    for passes, made in expected["passes"].items():
        found = sampler_of(student, None if passes == "default" else int(passes))(z, cond, seeds)
        assert found.nfe == made["nfe"]
        alike(found.sample[0], made["first"])
    if "default" in expected["passes"] and expected["passes"]["default"]["nfe"] == 1:
        alike(student.sample(z, cond)[0], expected["passes"]["default"]["first"])
    assert notes_of(folder) == read_json(folder / "config.json")["notes"]


@pytest.mark.parametrize("name", EXPECTED["sets"])
def test_sets(name: str) -> None:
    expected = EXPECTED["sets"][name]
    data = TrajectorySet(HELD / name, verify=True)
    assert data.manifest["fingerprint"] == expected["fingerprint"] and data.manifest["format"] == expected["format"]
    assert len(data) == expected["count"] and [*data.targets] == expected["targets"]
    rows = data.__getitems__(list(range(len(data))))
    for target, total in expected["sum"].items():
        assert float(rows[target].double().sum()) == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("name", ["teach", "operator", "consistency", "progressive"])
def test_runs_that_were_cut_off_go_on(name: str, tmp_path: Path) -> None:
    """From the checkpoint of 0.1 to the weights that its code reaches without a break."""
    out, expected = tmp_path / "out", EXPECTED["runs"][name]
    shutil.copytree(HELD / "runs" / name, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("step-*/model.safetensors")}
    config = TrainConfig(**{**expected["train"], "halve_at": tuple(expected["train"]["halve_at"])})
    steps: list[tuple[str, int]] = []

    def report(stage: str, done: int, total: int, text: str) -> None:
        if done:
            steps.append((stage, done))

    if name == "teach":
        net: dict[str, Any] = expected["net"]
        channels = tuple(net.pop("channels"))
        teach(load_data("digits"), out, channels, config, expected["batch"], resume=True, report=report, **net)
    else:
        teacher, data = load_teacher(HELD / "teacher"), TrajectorySet(HELD / "trajectories")
        options = {"others": 0.25} if name == "operator" else {}
        batch = expected.get("batch") or expected["given"]["batch"]
        distill(teacher, data, out, name, config, batch=batch, resume=True, report=report, **options)
    assert min(done for stage, done in steps if stage == steps[0][0]) == 9 and len(before) > 0, "it began anew"
    found, final = (read_tensors(p) for p in (out / "model.safetensors", HELD / "runs" / f"{name}.final.safetensors"))
    assert found.keys() == final.keys()
    for key, value in final.items():
        torch.testing.assert_close(found[key], value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "other"), [("operator", {"weights": "snr"}), ("consistency", {"intervals": 20})])
def test_a_run_of_other_settings_does_not_go_on(name: str, other: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(HELD / "runs" / name, tmp_path / "out")
    teacher, data = load_teacher(HELD / "teacher"), TrajectorySet(HELD / "trajectories")
    config = TrainConfig(**{**EXPECTED["runs"][name]["train"], "halve_at": ()})
    options = {"others": 0.25, **other} if name == "operator" else other
    with pytest.raises(ValueError, match=r"was trained with .* resume alike"):
        distill(teacher, data, tmp_path / "out", name, config, batch=8, resume=True, **options)


def test_a_complete_recipe_is_not_run_again(tmp_path: Path) -> None:
    out, expected = tmp_path / "out", EXPECTED["recipe"]
    shutil.copytree(HELD / "recipe", out)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in expected["settings"].items()}
    for stage in ("teach", "distill"):
        settings[stage] = TrainConfig(**{**settings[stage], "halve_at": tuple(settings[stage]["halve_at"])})
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    Recipe(**settings).run(out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    alike(load_student(out / "student").sample(noise(expected["seeds"], SHAPE)), expected["student"])


def test_features_and_results() -> None:
    expected = EXPECTED["results"]
    for result in load_results(HELD / "results.json"):
        assert result.quality is not None and result.cost.nfe == expected[result.name]["nfe"]
        assert result.quality.frechet == pytest.approx(expected[result.name]["quality"]["frechet"], abs=1e-6)
    net = load_feature_net(HELD / "features")
    with torch.no_grad():
        alike(net.features(load_data("digits").x[:2]), EXPECTED["features"]["rows"])
