"""A teacher's trajectories: the grid that suits it, refused or gone on with before it is measured."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsno.checkpoint import read_json, write_json
from dsno.cost import Meter
from dsno.denoise import Guided, Prediction
from dsno.grids import GRIDS, quadratic, through
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, Schedule
from dsno.seeds import noise
from dsno.solvers.fine import solver_errors
from dsno.solvers.named import SOLVERS
from dsno.teachers.closed import GaussianMixture
from dsno.trajectories.generate import generate, quadratic_frames
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.manifest import fingerprint
from dsno.trajectories.sets import TrajectorySet
from pretend import Rank


@pytest.fixture
def teacher() -> Prediction:
    return Prediction(UNet(1, 8, (8, 16)), Cosine(), "v").eval()


def test_by_default_the_frames_are_four_and_the_shape_is_the_teachers(teacher: Prediction, tmp_path: Path) -> None:
    data = generate(teacher, tmp_path / "set", 3, grid="quadratic", steps=6)
    assert data.times.tolist() == [0.5625, 0.25, 0.0625, 0.0]
    assert data.shape == (1, 8, 8) and data.targets == ("x0",) and len(data) == 3
    made = data.manifest
    assert made["solver"] == {"name": "UniPC", "order": 3} and len(made["grid"]) == 7
    plain = {"shape": (1, 8, 8), "times": quadratic(4)[1:], "solver": "unipc3", "grid": "quadratic", "steps": 6}
    again = generate(teacher, tmp_path / "again", 3, **plain)
    assert again.manifest == made and contents_of(again) == contents_of(data)


def test_the_frames_are_quadratic_in_the_phase(schedule: Schedule) -> None:
    frames = quadratic_frames(schedule, 5)
    assert frames.dtype == torch.float64 and float(frames[-1]) == 0
    torch.testing.assert_close(schedule.phase(frames), quadratic(5)[1:], rtol=0, atol=1e-9)
    assert torch.equal(frames, frames.round(decimals=12))
    assert len(quadratic_frames(schedule)) == 4


def test_a_guided_teacher_is_its_network_under_guidance(tmp_path: Path) -> None:
    net = Prediction(UNet(1, 8, (8,), classes=3, null=True), Cosine(), "v", classes=3).eval()
    label = uniform_labels(3)
    data = generate(Guided(net, torch.tensor(3), 1.0), tmp_path / "set", 4, grid="quadratic", steps=6, label=label)
    assert data.shape == (1, 8, 8) and data.manifest["teacher"]["class"] == "Guided"
    assert torch.equal(data.__getitems__(range(4))["cond"], label(torch.arange(4)))


def test_a_denoiser_that_does_not_say_its_schedule_is_sent_elsewhere(tmp_path: Path) -> None:
    mixture: Any = GaussianMixture(Cosine(), torch.zeros(2, 1, 4, 4), 0.3)
    with pytest.raises(ValueError, match=r"a GaussianMixture does not say its schedule: .*store\.store\(\)"):
        generate(mixture, tmp_path / "set", 4)
    with pytest.raises(ValueError, match="does not say what shape it makes"):
        generate(Prediction(torch.nn.Identity(), Cosine(), "v"), tmp_path / "set", 4)


def test_what_no_grid_solves_is_said(tmp_path: Path) -> None:
    class Infinite(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.full_like(x, math.inf)

    said: list[str] = []
    with pytest.raises(FloatingPointError, match="is not finite"):
        generate(
            Prediction(Infinite(), Cosine(), shape=(1, 2, 2)), tmp_path / "set", 4, report=lambda *a: said.append(a[3])
        )
    assert "neither the fine solution nor any grid's ends are finite: quadratic taken unmeasured" in said


@pytest.mark.parametrize(
    "options, message",
    [
        ({"times": [0.2, 0.6, 0.0]}, r"must decrease strictly, from noise to data, got \[1, 0\.2, 0\.6, 0\]"),
        ({"times": [0.5, 0.5, 0.0]}, "must decrease strictly"),
        ({"times": [1.0, 0.0]}, "must decrease strictly"),
        ({"times": [1.5, 0.0]}, r"must lie inside \[0, 1\] \(1 is noise\), got \[1, 1\.5, 0\]"),
        ({"times": [0.5, float("nan")]}, r"must lie inside \[0, 1\]"),
        ({"times": []}, "needs at least two times"),
        ({"solver": "ddmi"}, "unknown solver 'ddmi': expected one of ddim"),
        ({"grid": "fine"}, "unknown grid 'fine': expected one of best, quadratic, uniform, even, log-snr, karras"),
        ({"grid": "best", "steps": 2}, "a grid of 2 steps cannot pass through .*: use more steps"),
        ({"steps": 2}, "a grid of 2 steps cannot pass through .*: use more steps"),
        ({"steps": 0}, "a grid needs at least one step, got 0"),
    ],
)
def test_trajectories_that_cannot_be_made(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    teacher = Prediction(UNet(1, 8, (8, 8)), Cosine(), "v")
    asked = {"times": [0.5, 0.25, 0.0], "steps": 6, **options}
    with pytest.raises(ValueError, match=message):
        generate(teacher, tmp_path / "out", 4, **asked)
    assert not (tmp_path / "out").exists()


def generated(teacher: Prediction, out: Path, count: int = 8, **options: Any) -> tuple[TrajectorySet, list[str]]:
    """A set, and what was said on the way."""
    said: list[str] = []

    def report(stage: str, done: int, total: int, text: str) -> None:
        if text:
            said.append(text)

    asked = {"steps": 12, "shard": 4, "shape": (1, 8, 8), "times": quadratic(4)[1:], "report": report}
    data = generate(teacher, out, count, **{**asked, **options})
    return data, said


def errors_of(teacher: Prediction, cond: Tensor | None = None) -> dict[str, float]:
    """The solver's error by grid from the noises of `generated`."""
    grids = {name: through(make(Cosine(), 12), quadratic(4)[1:]) for name, make in GRIDS.items()}
    return solver_errors(teacher, Cosine(), noise(range(8), (1, 8, 8)), grids, SOLVERS["unipc3"](), cond=cond)


@pytest.mark.parametrize("classes", [None, 3])
def test_the_best_grid_has_the_least_error(classes: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8, 16), classes=classes, dropout=0.5), Cosine(), "v", classes=classes)
    label = uniform_labels(3) if classes else None
    errors = errors_of(teacher.eval(), label(torch.arange(8)) if label else None)
    best, worst = min(errors, key=errors.__getitem__), max(errors, key=errors.__getitem__)
    assert errors[worst] > 1.5 * errors[best]
    # Generated from a network that is being trained, whose dropout is not the teacher's.
    data, said = generated(teacher.train(), tmp_path / "best", label=label, batch=3)
    assert teacher.training
    named, _ = generated(teacher, tmp_path / "same", grid=best, label=label, batch=3)
    assert data.manifest == named.manifest and contents_of(data) == contents_of(named)
    assert len(said) == 1 and f"by grid: {best} {errors[best]:.2g}, taken; " in said[0]
    # On Cosine `even` is `uniform`.
    assert all(f"{name} {error:.2g}" in said[0] for name, error in errors.items() if name != "even")


def test_trajectories_go_on_with_the_grid_they_were_begun_on(teacher: Prediction, tmp_path: Path) -> None:
    worst = max(errors := errors_of(teacher), key=errors.__getitem__)
    done, _ = generated(teacher, tmp_path / "done", grid=worst)
    shutil.copytree(tmp_path / "done", tmp_path / "part")
    (tmp_path / "part" / "shard-00001.safetensors").unlink()
    part, said = generated(teacher, tmp_path / "part", resume=True)
    assert said == [] and part.manifest == done.manifest and contents_of(part) == contents_of(done)


def test_every_process_finds_the_same_grid(teacher: Prediction, tmp_path: Path) -> None:
    one, _ = generated(teacher, tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="is incomplete"):
        generated(teacher, tmp_path / "two", accelerator=Rank(0))
    two, said = generated(teacher, tmp_path / "two", accelerator=Rank(1))
    assert len(said) == 1 and two.manifest == one.manifest and contents_of(two) == contents_of(one)


def test_another_machines_last_digits_do_not_keep_a_set_from_being_resumed(teacher: Prediction, tmp_path: Path) -> None:
    generated(teacher, tmp_path / "set", grid="log-snr")
    manifest = read_json(tmp_path / "set" / "manifest.json")
    manifest["grid"][3] = math.nextafter(manifest["grid"][3], 1.0)
    write_json(tmp_path / "set" / "manifest.json", {**manifest, "fingerprint": fingerprint(manifest)})
    for shard in (tmp_path / "set").glob("shard-*"):
        shard.unlink()
    for grid in ("log-snr", "best"):
        resumed, _ = generated(teacher, tmp_path / "set", grid=grid, resume=True)
        assert resumed.manifest["grid"] == manifest["grid"] and len(resumed) == 8


@pytest.mark.parametrize(
    "options, error",
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"targets": "x1"}, "targets must be a selection of"),
        ({"resume": True, "overwrite": True}, "resume continues what is there and overwrite throws it away"),
        (
            {"solver": "ancestral"},
            "the grid best is that of a solver of the ODE, and ancestral draws noise: name a grid",
        ),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_grids_are_tried(
    options: dict[str, Any], error: str, tmp_path: Path
) -> None:
    teacher = Prediction(Meter(UNet(1, 8, (8, 8))), Cosine(), "v")
    with pytest.raises(ValueError, match=error):
        generated(teacher, tmp_path / "out", **options)
    assert teacher.net.rounds == 0 and not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_is_refused_before_the_grids_are_tried(tmp_path: Path) -> None:
    teacher = Prediction(Meter(UNet(1, 8, (8, 8))), Cosine(), "v")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds other files \(notes.txt\)"):
        generated(teacher, tmp_path / "other")
    generated(teacher, tmp_path / "set", grid="uniform")
    calls = teacher.net.rounds
    with pytest.raises(FileExistsError, match="holds 2 shards already"):
        generated(teacher, tmp_path / "set")
    with pytest.raises(ValueError, match="holds other trajectories than asked for: count: expected 4, found 8"):
        generated(teacher, tmp_path / "set", 4, resume=True)
    assert teacher.net.rounds == calls


def contents_of(data: TrajectorySet) -> list[bytes]:
    return [path.read_bytes() for path in sorted(data.folder.glob("shard-*"))]
