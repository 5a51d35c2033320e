"""A recipe run twice is run once, interrupted or not, and what does not belong together is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dsno
from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.data.samples import Samples
from dsno.denoise import Guided
from dsno.distillation.denoising import Denoising
from dsno.distillation.run import distill
from dsno.grids import quadratic
from dsno.nets.features import load_feature_net
from dsno.runs.features import train_features
from dsno.runs.recipes import RECIPES, Recipe
from dsno.runs.shipped import shipped
from dsno.runs.teach import teach
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.students.files import load_student
from dsno.students.operator import student_from_teacher
from dsno.teachers.load import load_teacher
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.sets import TrajectorySet

SMALL = {"warmup": 2, "checkpoint_every": 2, "log_every": 1}
TINY = replace(
    Recipe(),
    net={"channels": [8, 16]}, teach=replace(Recipe().teach, steps=4, **SMALL), teach_batch=16, features_steps=4, count=64,
    solver_steps=6, distance="l1+perceptual", distill=replace(Recipe().distill, steps=5, **SMALL), distill_batch=16,
)  # fmt: skip
STAGES = ["features", "loss_features", "teacher", "trajectories", "student"]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def stop_at(stage: str, step: int) -> Callable[[str, int, int, str], None]:
    def report(name: str, done: int, total: int, text: str) -> None:
        if (name, done) == (stage, step):
            raise KeyboardInterrupt

    return report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe run from nothing, in one piece."""
    return TINY.run(tmp_path_factory.mktemp("recipe") / "whole")


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


@pytest.mark.parametrize("stage, step", [("teach", 3), ("distill", 3), ("distill", 5)])
def test_an_interrupted_run_goes_on_bit_for_bit(stage: str, step: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        TINY.run(out, stop_at(stage, step))
    interrupted = {"teach": "teacher", "distill": "student"}[stage]
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


# The stages alone


DIGITS = load_data("digits")
TEACH = replace(TINY.teach, precision="no")


def test_a_models_folder_is_not_touched_unasked(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already: pass --resume"):
        teach(DIGITS, tmp_path, (8, 8), TEACH, 16)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    teach(DIGITS, tmp_path, (8, 8), TEACH, 16, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "training"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": 8}, "was trained with batch = 16, now 8: resume alike"),
        ({"kind": "x0"}, "with kind = v, now x0"),
        ({"conditional": True}, "with conditional = False, now True"),
        ({"images": replace(DIGITS, name="others")}, "with images = digits, now others"),
        ({"channels": (8, 12)}, "holds another architecture"),
        ({"config": replace(TEACH, seed=1)}, "with seed = 0, now 1"),
    ],
)
def test_a_teacher_is_resumed_alike(change: dict[str, object], message: str, tmp_path: Path) -> None:
    alike = {"images": DIGITS, "out": tmp_path, "channels": (8, 8), "config": TEACH, "batch": 16}
    with pytest.raises(KeyboardInterrupt):
        teach(**alike, report=stop_at("teach", 3))
    with pytest.raises(ValueError, match=message):
        teach(**{**alike, **change}, resume=True)
    teach(**alike, resume=True)


def test_a_patch_passes_through_the_channels_or_is_refused(tmp_path: Path) -> None:
    """Noise that a network cannot represent stays in what it samples: a patch of 16 numbers in 8 channels."""
    config = replace(TEACH, steps=1)
    with pytest.raises(ValueError, match=r"a patch of 16 numbers does not pass through 8 channels.*: take 16 or more"):
        teach(DIGITS, tmp_path / "v", (8, 8), config, 16, patch=4)
    assert not (tmp_path / "v").exists()
    for kind, channels in (("v", (16, 8)), ("x0", (8, 8))):
        teach(DIGITS, tmp_path / kind, channels, config, 16, kind, patch=4)
    for name, numbers in (("fashion", 1), ("fashion-gpu", 1), ("sprites", 3), ("sprites-gpu", 3)):
        net = RECIPES[name].net
        assert numbers * net.get("patch", 1) ** 2 <= net["channels"][0]


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
    "images, options, message",
    [
        (DIGITS.x[:0], {}, "here is empty"),
        (torch.zeros(4, 1, 8, 8), {}, "here is constant"),
        (DIGITS.x * 200, {}, r"here has values in \[-200, 200\] with standard deviation .*, expected about 1"),
        (DIGITS.x[:, 0, 0], {}, r"here must have shape \(N, C, \*spatial\)"),
        (DIGITS.x[..., :7], {}, "images of 7 pixels cannot be halved 1 times"),
        (DIGITS.x, {"conditional": True}, "here has no labels: train an unconditional teacher"),
        (DIGITS.x, {"channels": (8, 8, 8, 8, 8)}, "images of 8 pixels cannot be halved 4 times"),
        (DIGITS.x, {"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_taught_is_refused(images: torch.Tensor, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        teach(Samples(images, None, "here"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_features_need_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="here has no labels to train a feature network on"):
        train_features(Samples(DIGITS.x, None, "here"), tmp_path)


# What ships


def test_missing_weights_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights named 'letters' ship .*weights/letters\): train them"):
        shipped("letters")


def test_the_shipped_digits() -> None:
    if not (Path(dsno.__file__).parent / "weights" / "digits").is_dir():
        with pytest.raises(
            FileNotFoundError, match="no weights named 'digits' ship with this package .*dsno reproduce"
        ):
            shipped()
        return
    teacher, student = load_teacher(shipped() / "teacher"), load_student(shipped() / "student")
    assert load_feature_net(shipped() / "features").features(DIGITS.x[:2]).isfinite().all()
    assert student.schedule == teacher.schedule
    calls: list[object] = []
    student.net.register_forward_hook(lambda *call: calls.append(call))
    images = student.sample(noise([*range(16)], (1, 8, 8)))
    assert len(calls) == 1 and images.shape == (16, 1, 8, 8) and bool(images.isfinite().all())


@pytest.mark.parametrize(
    "name, small, size",
    [("cifar10", {"channels": 16}, 32), ("imagenet64", {"channels": 8, "head_dim": 4, "classes": 7}, 64)],
)
def test_the_papers_recipes_take_ten_steps(name: str, small: dict, size: int, tmp_path: Path) -> None:
    """The exact settings on random data of the right shape; only the widths, the sizes and the lengths are reduced."""
    recipe = RECIPES[name]
    tiny = replace(
        recipe, net={**recipe.net, **small}, teach=replace(recipe.teach, steps=1, precision="no", **SMALL), teach_batch=2, count=4,
        features_steps=1, distill=replace(recipe.distill, steps=10, precision="no", accumulate=1, **SMALL), distill_batch=1,
        solver_steps=16,
    )  # fmt: skip
    x = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = tiny.run(tmp_path / name, data=Samples(x, torch.arange(8) % 7, "random"))
    student = load_student(out / "student")
    assert student.times.tolist() == list(recipe.times) and student.kind == "x0"
    assert len(student.net.temporal_layers()) == {"cifar10": 22, "imagenet64": 29}[name]
    lines = (out / "student" / "training" / "regression" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 10
    data = TrajectorySet(out / "trajectories")
    assert ("cond" in data[0]) == (name == "imagenet64")
    cond = torch.tensor([0, 6]) if name == "imagenet64" else None
    assert bool(student.sample(noise([0, 1], (3, size, size)), cond).isfinite().all())


def test_labels_depend_on_the_seed_alone_and_are_uniform() -> None:
    label = uniform_labels(10)
    seeds = torch.arange(20_000)
    drawn = label(seeds)
    assert torch.equal(drawn[[5, 17_000]], label(torch.tensor([5, 17_000])))
    counts = torch.bincount(drawn, minlength=10).double()
    assert len(counts) == 10 and float(((counts - 2000) ** 2 / 2000).sum()) < 27.9  # chi-squared, 9 dof, 0.1 %


def test_a_teacher_that_sometimes_is_not_told_can_be_guided(tmp_path: Path) -> None:
    images = load_data("digits")
    config = replace(Recipe().teach, steps=3, **SMALL)
    teacher = teach(images, tmp_path / "t", (8, 16), config, 16, conditional=True, drop=0.5)
    assert teacher.classes == 10 and teacher.net.label.num_embeddings == 11
    z, label = noise([0, 1], (1, 8, 8)), torch.tensor([3, 4])
    with torch.no_grad():
        teacher.net.label.weight.normal_()
        teacher.net.emb.requires_grad_(False)
        guided = Guided(teacher, torch.tensor(10), 1.0)(z, torch.tensor(0.5), label)
        told, untold = (teacher(z, torch.tensor(0.5), c) for c in (label, torch.full_like(label, 10)))
    torch.testing.assert_close(guided, 2 * told - untold)
    drawn = next(Denoising(images.x, Cosine(), labels=images.labels, batch=1000, null=10, drop=0.3).batches(0))["cond"]
    assert 230 < int((drawn == 10).sum()) < 370
    with pytest.raises(ValueError, match="labels can only be dropped where there are labels"):
        teach(images, tmp_path / "u", (8, 16), config, 16, drop=0.5)
