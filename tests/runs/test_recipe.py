"""A recipe run twice is run once, interrupted or not, and what does not belong together is refused."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dsno.checkpoint import read_json
from dsno.config import settled
from dsno.data.load import load_data
from dsno.distillation.run import distill
from dsno.grids import quadratic
from dsno.nets.features import load_feature_net
from dsno.precision import best_precision, wished
from dsno.runs import recipe
from dsno.runs.recipe import Recipe
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.snapshots import latest
from dsno.students.files import load_student, notes_of
from dsno.students.operator import student_from_teacher
from dsno.students.origin import find_teacher, origin_of
from dsno.teachers.load import load_teacher
from dsno.train import quiet
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
    finish=replace(Recipe().distill, steps=4, **SMALL),
    finish_batch=8,
    finish_inner=0.5,
)
SAMPLES = load_data("digits")
STAGES = ["features", "loss_features", "teacher", "trajectories", "regressed", "student"]


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
    # bf16 was a wish, and the machine says whether it is granted.
    held = [
        read_json(whole / name / "config.json")["notes"]["training"]["precision"] for name in ("teacher", "student")
    ]
    assert TINY.teach.precision == "bf16" and held == [best_precision(torch.device("cpu"))[0]] * 2
    assert find_teacher(whole / "student") == str(whole / "teacher")
    timings = read_json(whole / "timings.json")
    assert list(timings) == STAGES and all(seconds > 0 for seconds in timings.values())


def test_a_second_run_does_nothing(whole: Path) -> None:
    before = contents(whole)
    said: list[object] = []
    assert TINY.run(whole, lambda *line: said.append(line)) == whole
    assert contents(whole) == before and said == []


@pytest.mark.parametrize("stage, step", [("teach", 3), ("regression", 3), ("regression", 5), ("identity", 3)])
def test_an_interrupted_run_goes_on_bit_for_bit(stage: str, step: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        TINY.run(out, stop_at(stage, step))
    interrupted = {"teach": "teacher", "regression": "regressed", "identity": "student"}[stage]
    assert not (out / interrupted / "config.json").exists()
    first = read_json(out / "timings.json")
    TINY.run(out)
    timings = read_json(out / "timings.json")
    assert timings[interrupted] > first[interrupted] > 0 and timings["features"] == first["features"]
    for name in STAGES:
        for path in (whole / name).glob("*.safetensors"):
            assert path.read_bytes() == (out / name / path.name).read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides otherwise")
@pytest.mark.parametrize("begun", ["no", "bf16"])
def test_a_stage_keeps_the_precision_that_it_was_begun_in(begun: str, tmp_path: Path) -> None:
    given = replace(TINY, teach=replace(TINY.teach, precision=begun))
    with pytest.raises(KeyboardInterrupt):
        given._teach(SAMPLES, tmp_path / "teacher", stop_at("teach", 3))
    config = given._here(given.teach, tmp_path / "teacher")
    assert config.precision == "auto" and given._here(given.teach).precision == wished(given.teach.precision)
    state = latest(tmp_path / "teacher" / "training")
    assert state is not None
    held = settled(config, torch.device("cpu"), tmp_path / "teacher" / "training")[0].precision
    assert held == read_json(state / "state.json")["config"]["precision"]
    given._teach(SAMPLES, tmp_path / "teacher", quiet)
    assert read_json(tmp_path / "teacher" / "config.json")["notes"]["training"]["precision"] == held


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


def test_a_guided_recipe_makes_a_student_that_is_told_a_class_and_a_weight(tmp_path: Path) -> None:
    recipe = replace(TINY, conditional=True, guidance=(0.0, 2.0), distance="l1", once=True)
    out = recipe.run(tmp_path / "run", data=SAMPLES)
    for name in ("regressed", "student"):
        made = load_student(out / name)
        assert made.classes == 10 and made.guided
    rows = TrajectorySet(out / "trajectories").__getitems__([*range(64)])["cond"]
    assert set(rows) == {"label", "weight"} and rows["label"].max() == 9
    assert 0 <= float(rows["weight"].min()) < 0.3 and 1.7 < float(rows["weight"].max()) <= 2
    assert notes_of(out / "regressed")["guidance"] == notes_of(out / "student")["guidance"]
    z, cond = noise([0, 1], (1, 8, 8)), {"label": torch.tensor([3, 4]), "weight": torch.tensor([0.5, 1.0])}
    assert not torch.equal(
        load_student(out / "student").sample(z, cond), load_student(out / "regressed").sample(z, cond)
    )


def test_the_seeds_that_a_finished_student_has_seen_are_those_of_the_one_before(whole: Path) -> None:
    for name in ("regressed", "student"):
        with pytest.raises(ValueError, match="was trained on the noises of 0 to 63"):
            origin_of(whole / name).check_unseen(60, 8)


def test_a_finished_student_makes_more_passes(whole: Path) -> None:
    assert load_student(whole / "student").restarts and not load_student(whole / "regressed").restarts


def test_a_finish_is_looked_at_and_its_best_student_is_kept(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "distance_to", partial(recipe.distance_to, count=64))
    steady = replace(TINY, finish=replace(Recipe().distill, steps=4, decay="constant", **{**SMALL, "warmup": 0}))
    looked = replace(steady, finish_looks=2)
    for name in ("at once", "looked", "cut off"):
        shutil.copytree(whole, tmp_path / name, ignore=shutil.ignore_patterns("student"))
    steady.finished(tmp_path / "at once", tmp_path / "at once" / "student", 0)
    looked.finished(tmp_path / "looked", tmp_path / "looked" / "student", 0)
    with pytest.raises(KeyboardInterrupt):
        looked.finished(tmp_path / "cut off", tmp_path / "cut off" / "student", 0, stop_at("identity", 3))
    assert not (tmp_path / "cut off" / "student").exists()
    looked.finished(tmp_path / "cut off", tmp_path / "cut off" / "student", 0)
    looks = read_json(tmp_path / "looked" / "finish" / "looks.json")
    assert list(looks) == ["2", "4"] and looks["2"] != looks["4"]
    notes = notes_of(tmp_path / "looked" / "student")
    assert notes["looks"] == looks and str(notes["steps"]) == min(looks, key=looks.__getitem__)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("at once/student", "looked/finish")]
    assert weights[0] == weights[1]
    for name in ("finish", "student"):
        kept = [(tmp_path / run / name / "model.safetensors").read_bytes() for run in ("looked", "cut off")]
        assert kept[0] == kept[1]
    assert read_json(tmp_path / "looked" / "timings.json")["looks"] > 0
    with pytest.raises(ValueError, match=r"at most a tenth of a piece, 0 steps, got constant and 3"):
        replace(looked, finish=replace(looked.finish, warmup=3))  # type: ignore[type-var]
    with pytest.raises(ValueError, match="finish_looks is how often a finish is looked at, at least 1, got 0"):
        replace(looked, finish_looks=0)


def test_a_finish_may_be_shown_the_data(whole: Path, tmp_path: Path) -> None:
    shown = replace(TINY, finish_adversary=0.5)
    shown.finished(whole, tmp_path / "student", 0)
    notes = notes_of(tmp_path / "student")
    assert notes["options"]["adversary"] == 0.5 and notes["sources"]["data"] == "digits"
    assert notes_of(whole / "student")["options"]["adversary"] == 0.0
    z = noise([0, 1], (1, 8, 8))
    assert not torch.equal(load_student(tmp_path / "student").sample(z), load_student(whole / "student").sample(z))
    with pytest.raises(ValueError, match=r"leave finish_adversary at 0 under \(0\.0, 2\.0\)"):
        replace(shown, conditional=True, guidance=(0.0, 2.0))


def test_a_folder_of_before_there_was_a_finish_goes_on(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "copy")
    held = {k: v for k, v in read_json(out / "recipe.json").items() if not k.startswith("finish")}
    (out / "recipe.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"with finish\.steps = None, this one has 4"):
        TINY.run(out)
    before = replace(TINY, finish=None, finish_batch=Recipe().finish_batch, finish_inner=0.0)
    assert before.run(out) == out
