"""A recipe run twice is run once, interrupted or not, and what does not belong together is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsno.checkpoint import read_json
from dsno.data.samples import Samples
from dsno.distillation.run import distill
from dsno.grids import quadratic
from dsno.nets.features import load_feature_net
from dsno.runs.counts import teacher_to_count
from dsno.runs.recipes import RECIPES, Recipe
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.students.files import load_student
from dsno.students.operator import student_from_teacher
from dsno.teachers.load import load_teacher
from dsno.trajectories.sets import TrajectorySet
from pretend import stop_at

SMALL = {"warmup": 2, "checkpoint_every": 2, "log_every": 1}
TINY = replace(
    Recipe(),
    net={"channels": [8, 16]},
    teach=replace(Recipe().teach, steps=4, **SMALL),
    teach_batch=16,
    features_steps=4,
    count=64,
    solver_steps=6,
    distance="l1+perceptual",
    distill=replace(Recipe().distill, steps=5, **SMALL),
    distill_batch=16,
)
STAGES = ["features", "loss_features", "teacher", "trajectories", "student"]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe run from nothing, in one piece."""
    return TINY.run(tmp_path_factory.mktemp("recipe") / "whole")


def test_a_folder_of_something_else_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "recipe.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"recipe\.json is of no recipe"):
        TINY.run(tmp_path)
    with pytest.raises(FileExistsError, match="is read, and lies in"):
        TINY.run(tmp_path, teacher=str(tmp_path / "teacher"))


def test_a_recipe_runs_from_nothing(whole: Path) -> None:
    assert sorted(p.name for p in whole.iterdir()) == sorted([*STAGES, "recipe.json", "timings.json"])
    student, teacher = load_student(whole / "student"), load_teacher(whole / "teacher")
    assert torch.equal(student.times, quadratic(4)[1:]) and student.schedule == teacher.schedule == Cosine()
    assert bool(student.sample(noise([0, 1], (1, 8, 8))).isfinite().all())
    data = TrajectorySet(whole / "trajectories", verify=True)
    assert len(data) == 64 and data.targets == ("x0",)
    data.check_teacher(teacher)
    # What is optimised is not what is measured.
    assert load_feature_net(whole / "features").config != load_feature_net(whole / "loss_features").config
    timings = read_json(whole / "timings.json")
    assert list(timings) == STAGES and all(seconds > 0 for seconds in timings.values())


def test_a_second_run_does_nothing(whole: Path) -> None:
    before = contents(whole)
    said: list[object] = []
    assert TINY.run(whole, lambda *line: said.append(line)) == whole
    assert contents(whole) == before and said == []


@pytest.mark.parametrize("stage, step", [("teach", 3), ("regression", 3), ("regression", 5)])
def test_an_interrupted_run_goes_on_bit_for_bit(stage: str, step: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        TINY.run(out, stop_at(stage, step))
    interrupted = {"teach": "teacher", "regression": "student"}[stage]
    assert not (out / interrupted / "config.json").exists()
    first = read_json(out / "timings.json")
    TINY.run(out)
    timings = read_json(out / "timings.json")
    assert timings[interrupted] > first[interrupted] > 0 and timings["features"] == first["features"]
    for name in STAGES:
        for path in (whole / name).glob("*.safetensors"):
            assert path.read_bytes() == (out / name / path.name).read_bytes()


def test_a_lost_stage_is_made_again(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(out / "student")
    before = contents(out)
    TINY.run(out)
    after = contents(out)
    assert {name for name in before if before[name] != after[name]} == {"timings.json"}
    weights = "student/model.safetensors"
    assert after[weights][1] == contents(whole)[weights][1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": 65}, "with count = 64, this one has 65: choose another folder"),
        ({"net": {"channels": [8, 8]}}, r"with net.channels = \[8, 16\], this one has \[8, 8\]"),
        ({"distill": replace(TINY.distill, lr=0.5)}, r"with distill\.lr = 0\.001, this one has 0\.5"),
        ({"teach": replace(TINY.teach, steps=9)}, r"with teach\.steps = 4, this one has 9"),
    ],
)
def test_a_run_of_other_settings_names_what_differs(change: dict[str, object], message: str, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change).run(whole)
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change).prepare(whole)
    assert contents(whole) == before


def test_what_is_prepared_is_not_made_again(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "copy")
    for name in ("trajectories", "student"):
        shutil.rmtree(out / name)
    before = contents(out)
    assert TINY.prepare(out).shape == (1, 8, 8)
    assert contents(out) == before


def test_a_student_is_resumed_alike(whole: Path, tmp_path: Path) -> None:
    teacher, data = load_teacher(whole / "teacher"), TrajectorySet(whole / "trajectories")

    def run(once: bool = True, **change: object) -> None:
        student = student_from_teacher(teacher, data.times, once=once)
        given = {"data": data, "out": tmp_path, "config": TINY.distill, "batch": 16, **change}
        distill(teacher, student=student, **given)

    with pytest.raises(KeyboardInterrupt):
        run(report=stop_at("regression", 3))
    for change, message in [
        ({"once": False}, r"with student.lift = .*'once': True.*, now .*'once': False"),
        ({"weights": "last"}, "with options.weights = snr5, now last"),
        ({"others": 0.5}, "with options.others = None, now 0.5"),
        ({"data": data.head(32)}, r"with trajectories = .*, 64\], now .*, 32\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(**change, resume=True)
    run(resume=True)


@pytest.mark.parametrize(
    "name, small, size, steps",
    [("cifar10", {"channels": 16}, 32, 10), ("imagenet64", {"channels": 8, "head_dim": 4, "classes": 7}, 64, 3)],
)
def test_the_papers_recipes_take_steps(name: str, small: dict, size: int, steps: int, tmp_path: Path) -> None:
    """The exact settings on random data of the right shape; only the widths, the sizes and the lengths are reduced."""
    recipe = RECIPES[name]
    tiny = replace(
        recipe,
        net={**recipe.net, **small},
        teach=replace(recipe.teach, steps=1, precision="no", **SMALL),
        teach_batch=2,
        count=4,
        features_steps=1,
        distill=replace(recipe.distill, steps=steps, precision="no", accumulate=1, **SMALL),
        distill_batch=1,
        solver_steps=16,
    )
    x = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = tiny.run(tmp_path / name, data=Samples(x, torch.arange(8) % 7, "random"))
    student = load_student(out / "student")
    assert student.times.tolist() == list(recipe.times) and student.kind == "x0"
    assert len(student.net.temporal_layers()) == {"cifar10": 22, "imagenet64": 29}[name]
    lines = (out / "student" / "training" / "regression" / "log.jsonl").read_text().splitlines()
    assert len(lines) == steps
    data = TrajectorySet(out / "trajectories")
    assert ("cond" in data[0]) == (name == "imagenet64")
    cond = torch.tensor([0, 6]) if name == "imagenet64" else None
    assert bool(student.sample(noise([0, 1], (3, size, size)), cond).isfinite().all())


def test_the_patches_of_the_recipes_pass_through_their_channels() -> None:
    for name, numbers in (("fashion", 1), ("fashion-gpu", 1), ("sprites", 3), ("sprites-gpu", 3)):
        net = RECIPES[name].net
        assert numbers * net.get("patch", 1) ** 2 <= net["channels"][0]


@pytest.mark.parametrize("name, layers", [("cifar10", 22), ("imagenet64", 29)])
def test_a_plan_counts_the_student_that_the_recipe_would_train(name: str, layers: int) -> None:
    work = RECIPES[name].workload()
    student = work.student_of(teacher_to_count(work))
    assert len(student.net.temporal_layers()) == layers and student.net.told == "output" and not student.net.once
