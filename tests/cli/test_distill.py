"""`dsno distill`: students by any method, with the options that the method declares."""

import re
import shutil
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image

from dsno.checkpoint import read_json, read_tensors
from dsno.cli.distill import Distill, with_options
from dsno.cli.options import Reading
from dsno.distillation.registry import METHODS, Method
from dsno.distillation.run import distill
from dsno.students.files import load_student, notes_of
from dsno.students.flowmap import FlowMap
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig
from dsno.trajectories.sets import TrajectorySet
from refusals import Spoil, another_schedule, another_teacher, edit, refusals, refuses
from shell import QUICK, dsno


@pytest.mark.parametrize("data", ["runs/trajectories", "digits"])
def test_a_flow_map_is_distilled_drawn_from_and_cited(data: str, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    ran = dsno("distill", "--method", "consistency", "--data", data, "--out", out, *QUICK, at=runs)
    assert ran.code == 0 and f"flow map in {out}" in ran.said and "consistency 6/6" in ran.said
    notes = read_json(out / "config.json")["notes"]
    assert notes["sources"] == {"teacher": "runs/teacher", "data": data} and notes["steps"] == 6
    pictures = []
    for passes in (1, 3):
        ran = dsno(
            "sample", "--student", out, "--count", 4, "--passes", passes, "--overwrite", "--device", "cpu", at=runs
        )
        assert ran.code == 0 and f"4 samples in {'one pass' if passes == 1 else '3 passes'}, " in ran.said
        pictures.append((runs / "samples.png").read_bytes())
    assert pictures[0] != pictures[1]
    ran = dsno("cite", out, at=runs)
    assert ran.code == 0 and ran.out.startswith("@inproceedings{song2023consistency,\n")
    assert "@software{dsno," in ran.out and ("@inproceedings{zhao2023unipc," in ran.out) == (data != "digits")


def test_a_number_of_passes_is_chosen_beforehand(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    ran = dsno("distill", "--method", "progressive", "--passes", 4, "--out", out, *QUICK, at=runs)
    assert ran.code == 0 and f"next: dsno sample --student {out} --passes 4" in ran.said
    assert load_student(out).steps == 4
    sample = ("sample", "--student", out, "--count", 2, "--overwrite", "--device", "cpu")
    ran = dsno(*sample, at=runs)
    assert ran.code == 0 and "2 samples in 4 passes" in ran.said
    ran = dsno(*sample, "--passes", 1, at=runs)
    assert ran.code == 2 and "trained for the grid of 4 step(s) alone" in ran.said
    ran = dsno("export", "--student", out, "--out", "map.pt2", at=runs)
    assert ran.code == 2 and "trained for the grid of 4 step(s) alone" in ran.said and not (runs / "map.pt2").exists()


def test_a_range_of_guidance_is_distilled_into_one_student(runs: Path, tmp_path: Path) -> None:
    common = ("--teacher", "classes/teacher", "--data", "classes/trajectories", "--out", tmp_path / "map")
    ran = dsno(
        "distill", "--method", "guided", "--guidance", 0, 3, "--null", 10, "--stochastic", *common, *QUICK, at=runs
    )
    assert ran.code == 0 and f"next: dsno sample --student {tmp_path / 'map'} --guidance 1.5\n" in ran.said
    assert notes_of(tmp_path / "map")["options"]["guidance"] == [0, 3]
    sample = ("sample", "--student", tmp_path / "map", "--count", 2, "--overwrite", "--device", "cpu")
    ran = dsno(*sample, "--guidance", 2, "--label", 7, at=runs)
    assert ran.code == 0, ran.said
    ran = dsno(*sample, at=runs)
    assert ran.code == 2 and "is told a guidance weight: give --guidance" in ran.said
    for weight in (3.5, -1, "inf", "nan"):
        ran = dsno(*sample, "--guidance", weight, at=runs)
        assert ran.code == 2 and f"was not trained for the guidance weight {weight}: expected 0 to 3" in ran.said


def test_matching_is_told_the_weights_that_its_trajectories_are(runs: Path, tmp_path: Path) -> None:
    made = ("generate", "--teacher", "classes/teacher", "--out", tmp_path / "weighted", "--count", 16, "--steps", 6)
    assert dsno(*made, "--guidance", 0, 4, "--null", 10, "--device", "cpu", at=runs).code == 0
    common = ("--teacher", "classes/teacher", "--data", tmp_path / "weighted", "--out", tmp_path / "student")
    looks = ("--distance", "l1+perceptual", "--features", "runs/features")
    ran = dsno("distill", "--method", "matching", *common, *looks, *QUICK, at=runs)
    assert ran.code == 0 and f"next: dsno sample --student {tmp_path / 'student'} --guidance " in ran.said, ran.said
    following = ran.said.splitlines()[-1].removeprefix("next: dsno ").split()
    ran = dsno(*following, "--count", 2, "--overwrite", "--device", "cpu", at=runs)
    assert ran.code == 0, ran.said
    ran = dsno("sample", "--student", tmp_path / "student", "--overwrite", "--guidance", -1, at=runs)
    assert ran.code == 2 and "was not trained for the guidance weight -1: expected 0." in ran.said
    assert "zhang2018unreasonable" in dsno("cite", tmp_path / "student", at=runs).said


@pytest.mark.parametrize("method", ["shortcut", "continuous-consistency"])
def test_the_velocity_of_the_data_is_learned_on_request(method: str, runs: Path, tmp_path: Path) -> None:
    distil = ("distill", "--method", method, "--from-data", "--data", "digits", "--out", tmp_path / "map", *QUICK)
    ran = dsno(*distil, at=runs)
    assert ran.code == 0, ran.said
    (state,) = (tmp_path / "map" / "training" / method).glob("step-*/state.json")
    assert read_json(state)["settings"]["options.from_data"] is True


def test_knowledge_is_one_frame_of_those_stored(runs: Path, tmp_path: Path) -> None:
    ran = dsno("distill", "--method", "knowledge", "--out", tmp_path / "one", *QUICK, at=runs)
    assert ran.code == 0, ran.said
    student = load_student(tmp_path / "one")
    assert not isinstance(student, FlowMap) and student.times.tolist() == [0.0]
    ran = dsno("sample", "--student", tmp_path / "one", "--passes", 2, "--overwrite", at=runs)
    assert ran.code == 2
    assert "a student of one frame makes one pass alone, got 2: for more, distil one of several" in ran.said
    ran = dsno("cite", tmp_path / "one", at=runs)
    assert "luhman2021knowledge" in ran.said and "zheng2023fast" not in ran.said and "zhao2023unipc" in ran.said


@pytest.mark.parametrize("method", ["knowledge", "shortcut"])
def test_a_student_goes_on_from_where_another_method_left_it(method: str, runs: Path, tmp_path: Path) -> None:
    ran = dsno("distill", "--method", method, "--out", tmp_path / "first", *QUICK, at=runs)
    assert ran.code == 0, ran.said
    before = read_tensors(tmp_path / "first" / "model.safetensors")
    distil = ("distill", "--method", "identity", "--student", tmp_path / "first", "--data", "nowhere")
    ran = dsno(*distil, "--out", tmp_path / "second", *QUICK, at=runs)
    assert ran.code == 0 and f"student in {tmp_path / 'second'}" in ran.said, ran.said
    after = read_tensors(tmp_path / "second" / "model.safetensors")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    again = read_tensors(tmp_path / "first" / "model.safetensors")
    assert all(torch.equal(before[name], again[name]) for name in before)
    assert notes_of(tmp_path / "second")["sources"] == {"teacher": "runs/teacher", "student": str(tmp_path / "first")}
    following = ran.said.splitlines()[-1].removeprefix("next: dsno ").split()
    assert dsno(*following, "--count", 2, "--overwrite", "--device", "cpu", at=runs).code == 0
    assert "zhou2024score" in dsno("cite", tmp_path / "second", at=runs).said
    ran = dsno("distill", "--method", "identity", "--out", tmp_path / "third", *QUICK, at=runs)
    assert (
        ran.code == 2 and "identity goes on from a student that another method trained: give it, --student" in ran.said
    )
    assert not (tmp_path / "third").exists()


def test_a_decoder_needs_no_data_and_draws_in_any_of_its_passes(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoder"
    ran = dsno("distill", "--method", "decoding", "--data", "nowhere", "--heads", 8, "--out", out, *QUICK, at=runs)
    assert ran.code == 0 and f"decoder in {out}" in ran.said, ran.said
    assert notes_of(out)["sources"] == {"teacher": "runs/teacher"}
    drawn = ("sample", "--student", out, "--count", 2, "--device", "cpu", "--overwrite", "--out", tmp_path / "drawn")
    for passes in (1, 2, 4):
        ran = dsno(*drawn, "--passes", passes, at=runs)
        assert ran.code == 0, ran.said
    ran = dsno(*drawn, "--passes", 8, at=runs)
    assert ran.code == 2 and "this decoder makes 1, 2, 4 pass(es), got 8" in ran.said
    assert "shaul2026parallel" in dsno("cite", out, at=runs).said
    # Noised samples are the ends of the trajectories, whose states give the grid to those that begin there.
    begin = ("distill", "--method", "decoding", "--out", tmp_path / "noised", *QUICK, "--begin")
    ran = dsno(*begin, "samples", at=runs)
    assert ran.code == 0 and notes_of(tmp_path / "noised")["sources"]["data"] == "runs/trajectories", ran.said
    ran = dsno(*begin, "trajectories", "--overwrite", at=runs)
    assert ran.code == 0 and len(read_json(tmp_path / "noised" / "config.json")["grid"]) == 5, ran.said


@pytest.mark.parametrize("method", ["operator", "matching"])
def test_an_operator_of_some_of_the_stored_times(method: str, runs: Path, tmp_path: Path) -> None:
    distil = ("distill", "--method", method, "--times", 0.0, 0.25, "--out", tmp_path / "student")
    ran = dsno(*distil, *QUICK, at=runs)
    assert ran.code == 0, ran.said
    assert load_student(tmp_path / "student").times.tolist() == [0.25, 0.0]


def test_one_weight_makes_a_set_of_one_teacher_that_its_student_knows(classes: Path) -> None:
    ran = dsno("generate", "--guidance", 1.5, "--null", 9, "--count", 16, "--steps", 6, "--out", "one", at=classes)
    assert ran.code == 0
    assert TrajectorySet(classes / "one").manifest["teacher"]["weight"] == 1.5
    assert dsno("distill", "--data", "one", "--out", "student", *QUICK, at=classes).code == 0
    assert not load_student(classes / "student").guided


# Options


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_the_options_of_the_command_are_those_that_the_method_declares(method: Method, tmp_path: Path) -> None:
    """In both directions: none unreachable, none invented."""
    ran = dsno("distill", "--method", method.name, "--help", at=tmp_path)
    assert ran.code == 0
    words = [word for word in ran.said.split() if word.startswith("--") and "train." not in word]
    shown = {word.split("|")[0].rstrip(",") for word in words}
    shown = {name for name in shown if re.fullmatch(r"--[a-z][a-z0-9-]*", name)}
    common = {f"--{f.name.replace('_', '-')}" for f in fields(Distill) if f.name not in ("options", "train")}
    common |= {f"--{no}{f.name.replace('_', '-')}" for f in fields(Reading) for no in ("", "no-")}
    flags = {"--help", "--no-resume", "--no-overwrite", "--no-dynamic"}
    declared = {f"--{option.name.replace('_', '-')}" for option in method.described()}
    negated = {f"--no-{name[2:]}" for name in declared}
    mentioned = shown - common - flags - declared - negated
    # What a help text mentions of other verbs.
    assert declared <= shown and mentioned <= {"--passes", "--method"}, mentioned


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_option_can_be_set_from_the_shell(method: Method) -> None:
    """Each to another value than its default and than those of its neighbours, as far as they exclude each other."""
    given: dict[str, tuple[list[str], object]] = {}
    for option in method.described():
        words, value = OWN.get((method.name, option.name), OTHER[option.name])
        given[option.name] = words.replace("NAME", option.name.replace("_", "-")).split(), value
        assert value != option.default
    for names in _compatible(method, {name: value for name, (_, value) in given.items()}):
        arguments = ["--method", method.name, *(word for name in names for word in given[name][0])]
        made = tyro.cli(with_options(arguments), args=arguments)
        assert made.options == method.configured(**{name: given[name][1] for name in names})


def _compatible(method: Method, values: dict[str, object]) -> list[list[str]]:
    """The names in as few groups as go together."""
    groups: list[list[str]] = []
    for name in values:
        for group in groups:
            with suppress(ValueError):
                method.configured(**{n: values[n] for n in [*group, name]})
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


OTHER: dict[str, tuple[str, object]] = {
    "target": ("--NAME state", "state"),
    "times": ("--NAME 0.25 0", (0.25, 0.0)),
    "where": ("--NAME every", "every"),
    "told": ("--NAME output", "output"),
    "once": ("--no-NAME", False),
    "modes": ("--NAME 3", 3),
    "activation": ("--NAME leaky_relu", "leaky_relu"),
    "init": ("--NAME uniform", "uniform"),
    "train_only": ("--NAME temporal", "temporal"),
    "weights": ("--NAME snr", "snr"),
    "distance": ("--NAME l2", "l2"),
    "features": ("--NAME runs/features", Path("runs/features")),
    "others": ("--NAME 0.5", 0.5),
    "inner_starts": ("--NAME 0.5", 0.5),
    "fine_tuning": ("--NAME 0.3", 0.3),
    "anchor": ("--NAME 0.5", 0.5),
    "pace": ("--NAME 5", 5.0),
    "rate": ("--NAME 0.2", 0.2),
    "a": ("--NAME 0.8", 0.8),
    "adversary": ("--NAME 0.1", 0.1),
    "r1": ("--NAME 0.1", 0.1),
    "frozen": ("--NAME", True),
    "passes": ("--NAME 4", 4),
    "heads": ("--NAME 8", 8),
    "least": ("--NAME 2", 2),
    "most": ("--NAME 8", 8),
    "step": ("--NAME euler", "euler"),
    "begin": ("--NAME samples", "samples"),
    "start": ("--NAME 16", 16),
    "stochastic": ("--NAME", True),
    "guidance": ("--NAME 0 3", (0.0, 3.0)),
    "null": ("--NAME 10", 10),
    "share": ("--NAME 0.5", 0.5),
    "levels": ("--NAME -1 1.4", (-1.0, 1.4)),
    "c": ("--NAME 0.01", 0.01),
    "adaptive": ("--NAME", True),
    "drop": ("--NAME 0.2", 0.2),
    "intervals": ("--NAME 18", 18),
    "solver": ("--NAME heun", "heun"),
    "first": ("--NAME 5", 5),
    "last": ("--NAME 640", 640),
    "stages": ("--NAME 4", 4),
    "q": ("--NAME 3", 3.0),
    "from_data": ("--NAME", True),
    "warmup": ("--NAME 0.2", 0.2),
    "derivative": ("--NAME difference", "difference"),
    "width": ("--NAME 0.1", 0.1),
    "rest": ("--NAME 0.5", 0.5),
    "power": ("--NAME 0.5", 0.5),
    "span": ("--NAME 0.25", 0.25),
}


OWN: dict[tuple[str, str], tuple[str, object]] = {
    (name, "weights"): ("--NAME gap", "gap") for name in ("consistency", "consistency-training", "easy-consistency")
}


def test_an_operator_is_the_same_from_the_shell_and_from_python(runs: Path, tmp_path: Path) -> None:
    options = ("--others", 0.5, "--weights", "snr", "--where", "every")
    assert dsno("distill", "--out", tmp_path / "shell", *options, *QUICK, at=runs).code == 0
    teacher, data = load_teacher(runs / "runs" / "teacher"), TrajectorySet(runs / "runs" / "trajectories")
    config = TrainConfig(steps=6, lr=1e-3, warmup=0, log_every=2)
    distill(teacher, data, tmp_path / "python", config=config, batch=16, others=0.5, weights="snr", where="every")
    shell, python = (read_tensors(tmp_path / name / "model.safetensors") for name in ("shell", "python"))
    assert shell.keys() == python.keys() and all(torch.equal(shell[key], python[key]) for key in shell)
    notes = [notes_of(tmp_path / name) for name in ("shell", "python")]
    assert notes[0].pop("sources") and notes[1].pop("sources") == {}
    origins = [n.pop("origin") for n in notes]
    assert notes[0] == notes[1] and origins[0]["seeds"] == origins[1]["seeds"] == [0, len(data)]
    assert origins[0]["teacher"]["sha256"] == origins[1]["teacher"]["sha256"] and origins[1]["teacher"]["name"] is None
    assert notes[0]["options"]["others"] == 0.5 and notes[0]["batch"] == 16
    assert [p.name for p in (tmp_path / "shell" / "training").iterdir()] == ["regression"]


# Refusals


def a_changed_manifest(here: Path) -> None:
    edit(here / "runs" / "trajectories" / "manifest.json", count=32)


def without_trajectories(here: Path) -> None:
    shutil.rmtree(here / "runs" / "trajectories")


@refusals(
    ("distill --batch 16", None, "runs/student exists already: pass --resume"),
    ("distill --batch 32 --resume", None, "was trained with batch = 16, now 32: resume alike"),
    ("distill --batch 16 --out samples.png/student", None, "cannot write to samples.png/student"),
    (
        "distill --out new",
        without_trajectories,
        "operator learns from the teacher's trajectories and there are none in runs/trajectories: make them",
    ),
    ("distill --out new", a_changed_manifest, "was changed after it was written: its fingerprint does not match"),
    ("distill --out new", another_teacher, "runs/trajectories holds trajectories of another teacher: teacher.sha256"),
    ("distill --out new", another_schedule, "the trajectories are of Cosine(log_snr_min=-20.0, log_snr_max=20.0), the"),
    ("distill --out new --batch 16 --target state", None, "the student needs 'state': generate it"),
    ("distill --out new", None, "64 rows do not fill one batch of 256: use a smaller batch or more rows"),
    (
        "distill --out new --modes 9",
        None,
        "4 frames have 3 Fourier modes (M // 2 + 1), so modes must be in [1, 3], got 9",
    ),
    ("distill --out new --batch 0", None, "batch must be at least 1, got 0"),
    ("distill --out new --train.clip -1", None, "--train.clip must be positive and finite, got -1"),
    (
        "distill --out new --batch 16 --weights snrinf",
        None,
        "unknown frame weighting 'snrinf': expected snr, snr<clamp>",
    ),
    ("distill --out new --batch 16 --distance l3", None, "unknown distance 'l3': expected l1, l2, huber, perceptual"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--times 0.3 0", "0.3 is not stored"),
        (
            "--times 0.5625 0.25",
            "--times must end with 0, the last that is stored: a student's last frame is its sample; got 0.5625 0.25",
        ),
        (
            "--method matching --times 0.25",
            "--times must end with 0, the last that is stored: a student's last frame is its sample; got 0.25",
        ),
        ("--method knowledge --times 0", "--times is no option of the method knowledge"),
        (
            "--method knowledge --data digits",
            "knowledge learns from the teacher's trajectories and there are none in digits: ma",
        ),
        ("--data digits", "operator learns from the teacher's trajectories and there are none in digits: make"),
        (
            "--method matching --data digits",
            "matching learns from the teacher's trajectories and there are none in digits: make",
        ),
        ("--method consistency --data nowhere", "consistency needs clean samples: no data 'nowhere'"),
        (
            "--method consistency --data nowhere",
            "or trajectories of the teacher, whose ends are samples (`dsno generate",
        ),
        (
            "--method guided --guidance 4 0",
            "LOW HIGH with 0 <= LOW < HIGH, got 4 0: that of the paper is --guidance 0 4",
        ),
        (
            "--method guided",
            "guided needs a class-conditional teacher, and runs/teacher is told no class: take progressive",
        ),
        ("--method guided --guidance 2 2", "LOW HIGH with 0 <= LOW < HIGH, got 2 2"),
        ("--method lagrangian --from-data", "--from-data is no option of the method lagrangian"),
        ("--method consistency --stochastic", "--stochastic is no option of the method consistency"),
        ("--method consistency --passes 4", "consistency is not trained for a number of passes: leave --passes out"),
        ("--method knowledge --passes 4", "knowledge makes one pass: leave --passes out"),
        (
            "--passes 4",
            "operator is not trained for a number of passes: leave --passes out, and train it with --inner",
        ),
        ("--method progressive --passes 3", "halving the teacher's 32 steps gives 16, 8, 4, 2, 1, not 3 passes"),
        ("--method consistency --distance perceptual", "the perceptual distance needs a feature network: "),
        (
            "--method lagrangian --distance l2",
            "--distance is no option of the method lagrangian, which takes --derivative",
        ),
        ("--method consistency --where every", "--where is no option of the method consistency, which takes --levels"),
        (
            "--method lagrangian --weights snr",
            "--weights is no option of the method lagrangian, which takes --derivative",
        ),
        ("--derivative difference", "--derivative is no option of the method operator, which takes --target, --times"),
        (
            "--method knowledge --inner-starts 0.5",
            "--inner-starts is no option of the method knowledge, which takes --target",
        ),
        ("--guidance 0 4", "--guidance is no option of the method operator"),
        (
            "--method consistency --size 16 --data digits",
            "digits has samples of shape (1, 16, 16), the teacher makes (1, 8, 8)",
        ),
        ("--method consistency --size 16", "--size is of images, and runs/trajectories holds trajectories"),
        (
            "--method consistency --data classes/trajectories",
            "classes/trajectories holds trajectories of another teacher",
        ),
        ("--method consistency --train.steps 6 --out runs", "runs/teacher is read, and lies in runs"),
    ],
)
def test_bad_input_is_one_line_before_any_work(options: str, message: str, runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    ran = dsno("distill", *(() if "--out" in options else ("--out", "new")), *options.split(), at=runs)
    assert ran.code == 2 and message in ran.said and len(ran.said.splitlines()) == 1, ran.said
    assert sorted(runs.rglob("*")) == before


def test_an_image_set_without_labels_does_not_teach_classes(runs: Path) -> None:
    (runs / "pictures").mkdir()
    Image.new("L", (8, 8)).save(runs / "pictures" / "a.png")
    Image.new("L", (8, 8), 255).save(runs / "pictures" / "b.png")
    parts = ("--teacher", "classes/teacher", "--data", "pictures", "--out", "new")
    ran = dsno("distill", "--method", "consistency", *parts, at=runs)
    assert ran.code == 2 and "has no labels, and classes/teacher is told one of 10 classes: give the data" in ran.said
