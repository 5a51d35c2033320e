"""A recipe run twice is run once, interrupted or not, and what does not belong together is refused."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dsno
from dsno.checkpoint import read_json, write_json
from dsno.cost import Meter
from dsno.data.load import load_data
from dsno.data.samples import Samples
from dsno.denoise import Guided, Prediction
from dsno.distillation.denoising import Denoising
from dsno.distillation.run import distill
from dsno.grids import GRIDS, quadratic, through
from dsno.nets.features import load_feature_net
from dsno.nets.unet import UNet
from dsno.runs.features import train_features
from dsno.runs.recipes import RECIPES, Recipe
from dsno.runs.shipped import shipped
from dsno.runs.teach import teach
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.solvers.fine import solver_errors
from dsno.solvers.named import SOLVERS
from dsno.students.files import load_student
from dsno.students.operator import student_from_teacher
from dsno.teachers.load import load_teacher
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.make import make_trajectories
from dsno.trajectories.manifest import fingerprint
from dsno.trajectories.sets import TrajectorySet
from pretend import Rank

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
        distill(**{"student": student, "data": data, "out": tmp_path, "config": TINY.distill, "batch": 16, **change})

    with pytest.raises(KeyboardInterrupt):
        run(report=stop_at("distill", 3))
    for change, message in [
        ({"once": False}, r"with lift = .*'once': True.*, now .*'once': False"),
        ({"weights": "last"}, "with weights = snr5, now last"),
        ({"others": 0.5}, "with others = None, now 0.5"),
        ({"data": data.head(32)}, "with count = 64, now 32"),
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
def test_trajectories_that_cannot_be_made(options: dict, message: str, tmp_path: Path) -> None:
    teacher = Prediction(UNet(1, 8, (8, 8)), Cosine(), "v")
    asked = {"times": [0.5, 0.25, 0.0], "steps": 6, **options}
    asked["times"] = torch.tensor(asked["times"], dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        make_trajectories(teacher, (1, 8, 8), tmp_path / "out", 4, **asked)
    assert not (tmp_path / "out").exists()


def generated(teacher: Prediction, out: Path, count: int = 8, **options: Any) -> tuple[TrajectorySet, list[str]]:
    """A set, and what was said on the way."""
    said: list[str] = []
    data = make_trajectories(
        teacher, (1, 8, 8), out, count, quadratic(4)[1:], steps=12, shard=4,
        report=lambda stage, done, total, text: said.append(text) if text else None, **options,
    )  # fmt: skip
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


def test_trajectories_go_on_with_the_grid_they_were_begun_on(whole: Path, tmp_path: Path) -> None:
    teacher = load_teacher(whole / "teacher")
    worst = max(errors := errors_of(teacher), key=errors.__getitem__)
    done, _ = generated(teacher, tmp_path / "done", grid=worst)
    shutil.copytree(tmp_path / "done", tmp_path / "part")
    (tmp_path / "part" / "shard-00001.safetensors").unlink()
    part, said = generated(teacher, tmp_path / "part", resume=True)
    assert said == [] and part.manifest == done.manifest and contents_of(part) == contents_of(done)


def test_every_process_finds_the_same_grid(whole: Path, tmp_path: Path) -> None:
    teacher = load_teacher(whole / "teacher")
    one, _ = generated(teacher, tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="is incomplete"):
        generated(teacher, tmp_path / "two", accelerator=Rank(0))
    two, said = generated(teacher, tmp_path / "two", accelerator=Rank(1))
    assert len(said) == 1 and two.manifest == one.manifest and contents_of(two) == contents_of(one)


def test_another_machines_last_digits_do_not_keep_a_set_from_being_resumed(whole: Path, tmp_path: Path) -> None:
    teacher = load_teacher(whole / "teacher")
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
    lines = (out / "student" / "training" / "log.jsonl").read_text().splitlines()
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
