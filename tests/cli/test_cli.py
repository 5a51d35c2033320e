"""The whole road on the command line: every verb teaches, leads to the next one, and fails in one line."""

import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from dsno import cli
from dsno.checkpoint import read_json, read_tensors, write_json, write_tensors
from dsno.data.load import load_data
from dsno.distillation import run
from dsno.grids import GRIDS
from dsno.measure.results import load_results
from dsno.report import compare
from dsno.runs import teach
from dsno.runs.features import train_features
from dsno.students.files import load_student
from dsno.teachers.load import load_teacher
from dsno.trajectories.sets import TrajectorySet
from pretend import Rank
from shell import Ran, dsno

VERBS = cli.VERBS
SHIPPED = (Path(cli.__file__).parents[1] / "weights" / "digits").is_dir()
QUICK = ("--batch", "16", "--train.steps", "4", "--train.log-every", "2")


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Ran]]:
    """A folder in which every verb has run once, each as the one before it said."""
    root = tmp_path_factory.mktemp("road")
    torch.manual_seed(0)
    ran = {"teach": dsno("teach", "--channels", 8, 16, *QUICK, at=root)}
    ran["generate"] = dsno(*ran["teach"].following, "--count", 64, "--steps", 6, at=root)
    ran["distill"] = dsno(*ran["generate"].following, *QUICK, at=root)
    train_features(load_data("digits"), root / "runs" / "features", steps=4, width=4)
    ran["sample"] = dsno(*ran["distill"].following, "--count", 9, at=root)
    ran["evaluate"] = dsno(*ran["sample"].following, "--count", 8, at=root)
    return root, ran


@pytest.fixture
def here(road: tuple[Path, dict[str, Ran]], tmp_path: Path) -> Path:
    """A copy of that folder to break."""
    return shutil.copytree(road[0], tmp_path / "here")


def test_each_verb_leads_to_the_next(road: tuple[Path, dict[str, Ran]]) -> None:
    root, ran = road
    assert {verb: r.code for verb, r in ran.items()} == dict.fromkeys(ran, 0)
    assert [ran[verb].following[0] for verb in list(ran)[:-1]] == list(ran)[1:]
    runs = root / "runs"
    assert len(TrajectorySet(runs / "trajectories", verify=True)) == 64
    assert read_json(runs / "teacher" / "config.json")["notes"]["training"]["steps"] == 4
    assert load_student(runs / "student").frames == 4
    assert Image.open(root / "samples.png").size[0] > 100
    results = load_results(runs / "evaluation" / "results.json")
    assert results[0].name == "DSNO" and {r.protocol.count for r in results} == {8}
    assert all(r.name in ran["evaluate"].out for r in results) and "…" not in ran["evaluate"].out
    assert (runs / "evaluation" / "report.html").read_text().startswith("<!doctype html>")


def test_progress_goes_to_stderr_with_the_shares_of_the_loss(road: tuple[Path, dict[str, Ran]]) -> None:
    _, ran = road
    assert ran["teach"].err.splitlines()[-1].startswith("teach 4/4 ")
    assert re.fullmatch(
        r"(grid \S.*\n)+generate: RMSE of 6 steps to the fine solution by grid: \S+ \S+, taken; .*\ngenerate 64/64.*\n",
        ran["generate"].err,
    )
    assert ran["distill"].err.startswith("regression: loss shares by frame (snr5): t = 0.5625: ")
    assert "evaluate 1" in ran["evaluate"].err


def test_a_terminal_gets_bars(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    again = dsno("generate", "--count", 64, "--steps", 6, "--out", "bars", at=here)
    assert again.code == 0 and "━" in again.err and "64/64" in again.err


def test_generate_offers_every_grid() -> None:
    assert get_args(get_type_hints(VERBS["generate"])["grid"]) == ("best", *GRIDS)


# Teaching


def lines(verb: str) -> str:
    """The Python of a verb's docstring."""
    return textwrap.dedent((VERBS[verb].__doc__ or "").split("In Python:\n")[1])


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "reproduce"])
def test_help_teaches_the_python_as_well(verb: str, tmp_path: Path) -> None:
    ran = dsno(verb, "--help", at=tmp_path)
    assert ran.code == 0 and ("--out" in ran.out or verb in ("push", "methods", "cite"))
    assert (VERBS[verb].__doc__ or "").splitlines()[0] in ran.out
    assert all(line in ran.out for line in lines(verb).split("\n"))


def test_the_overview_has_a_line_per_verb_and_leaves_their_help_alone(tmp_path: Path) -> None:
    for arguments, code in (((), 2), (("--help",), 0)):
        ran = dsno(*arguments, at=tmp_path)
        assert ran.code == code and all(verb in ran.out + ran.err for verb in VERBS)
    assert "Run a recipe from nothing" in ran.out and "In Python" not in ran.out
    assert "Run again to continue" in dsno("reproduce", "--help", at=tmp_path).out
    assert "from dsno import TrajectorySet, distill, load_teacher" in dsno("distill", "--help", at=tmp_path).out


def untrained(model: torch.nn.Module, *arguments: object, **options: object) -> torch.nn.Module:
    return model.eval()


@pytest.mark.parametrize(
    "verb", ["demo", "teach", "check-teacher", "convert", "generate", "distill", "sample", "evaluate"]
)
def test_the_python_lines_run(
    verb: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb in ("demo", "convert") and not SHIPPED:
        pytest.skip("no weights ship with this package")
    monkeypatch.chdir(here)
    made = {"teach": "teacher", "convert": "teacher", "generate": "trajectories", "distill": "student"}.get(verb)
    if made:
        shutil.rmtree(here / "runs" / made)
    if verb == "distill":
        assert dsno("generate", "--count", 256, "--steps", 6, "--overwrite", at=here).code == 0
    code = lines(verb)
    # As shown, but for the sizes and the loop of training.
    for size in ("20_000", "2048", "512"):
        code = code.replace(size, "8")
    for module in (run, teach):
        monkeypatch.setattr(module, "train", untrained)
    quick = partial(compare.compare, ddim=(1, 2), multistep=(2,), fine_steps=16, repeats=0)
    monkeypatch.setattr(compare, "compare", quick)
    names: dict[str, object] = {}
    exec(code, names)
    if verb == "demo":
        assert (here / "report.html").is_file()
    elif verb == "check-teacher":
        assert "this teacher" in capsys.readouterr().out
    elif verb == "evaluate":
        assert names["results"][0].name == "DSNO"
    elif verb == "sample":
        assert names["images"].shape == (64, 1, 8, 8) and bool(names["images"].isfinite().all())
    else:
        assert {"teach": load_teacher, "convert": load_teacher, "generate": TrajectorySet, "distill": load_student}[
            verb
        ](here / "runs" / made)


# Refusals


def edit(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def truncated(here: Path) -> None:
    weights = here / "runs" / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def diverged(here: Path) -> None:
    weights = here / "runs" / "teacher" / "model.safetensors"
    write_tensors(weights, {k: v * float("nan") for k, v in read_tensors(weights).items()})


def another_teacher(here: Path) -> None:
    weights = here / "runs" / "teacher" / "model.safetensors"
    write_tensors(weights, {k: v + 1 for k, v in read_tensors(weights).items()})


def another_schedule(here: Path) -> None:
    edit(here / "runs" / "teacher" / "config.json", schedule={"name": "RectifiedFlow"})


def another_architecture(here: Path) -> None:
    backbone = read_json(here / "runs" / "student" / "config.json")["backbone"]
    edit(here / "runs" / "student" / "config.json", backbone={**backbone, "channels": [8, 8]})


def a_changed_manifest(here: Path) -> None:
    edit(here / "runs" / "trajectories" / "manifest.json", count=32)


def without_trajectories(here: Path) -> None:
    shutil.rmtree(here / "runs" / "trajectories")


def without_student(here: Path) -> None:
    shutil.rmtree(here / "runs" / "student")


def foreign(here: Path) -> None:
    (here / "foreign").mkdir()
    write_json(here / "foreign" / "config.json", {"_class_name": "UNet2DModel"})
    write_json(here / "foreign" / "scheduler_config.json", {"_class_name": "NopeScheduler"})


def arrays(here: Path) -> None:
    np.save(here / "empty.npy", np.zeros((0, 8, 8), np.uint8))
    np.save(here / "constant.npy", np.full((4, 8, 8), 7, np.uint8))
    np.save(here / "range.npy", np.linspace(-300, 300, 4 * 64).reshape(4, 8, 8))
    np.save(here / "shape.npy", np.zeros((4, 8, 3), np.uint8))
    np.save(here / "tall.npy", np.arange(4 * 42, dtype=np.uint8).reshape(4, 6, 7))
    (here / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")


FAILURES: list[tuple[str, Callable[[Path], None] | None, str]] = [
    # What is there already is nobody's to throw away unasked.
    ("teach", None, "runs/teacher exists already: pass --resume to continue it or --overwrite to start again"),
    ("generate", None, "runs/trajectories holds 1 shards already"),
    ("distill --batch 16", None, "runs/student exists already: pass --resume"),
    ("sample --student runs/student", None, "samples.png exists already: pass --overwrite to replace it"),
    ("evaluate --count 8", None, "runs/evaluation exists already"),
    ("teach --kind eps --batch 16 --channels 8 16 --resume", None, "was trained with kind = v, now eps: resume alike"),
    ("distill --batch 32 --resume", None, "was trained with batch = 16, now 32: resume alike"),
    ("generate --count 32 --steps 6 --resume", None, "holds other trajectories than asked for: count: expected 32, found 64"),
    # A path through a file: not even root can write there.
    ("teach --out samples.png/teacher", None, "cannot write to samples.png/teacher (Not a directory): choose another"),
    ("generate --out samples.png/set", None, "cannot write to samples.png/set"),
    ("distill --batch 16 --out samples.png/student", None, "cannot write to samples.png/student"),
    ("sample --student runs/student --out samples.png/new.png", None, "samples.png is a file: expected a folder"),
    ("evaluate --out samples.png/evaluation", None, "cannot write to samples.png/evaluation"),
    # Images.
    ("teach --data nowhere", None, "no data 'nowhere': expected 'digits', a folder of PNG or JPEG files"),
    ("teach --data empty.npy --out new", arrays, "empty.npy is empty"),
    ("teach --data constant.npy --out new", arrays, "constant.npy is constant"),
    ("teach --data range.npy --out new", arrays, "range.npy has values in [-300, 300] with standard deviation"),
    ("teach --data shape.npy --out new", arrays, "shape.npy has shape (4, 8, 3), which does not tell where the channels are"),
    ("teach --data tall.npy --out new", arrays, "images of 7 pixels cannot be halved 1 times"),
    ("teach --data damaged.npz --out new", arrays, "damaged.npz is damaged or not an array file"),
    ("teach --batch 0 --out new", None, "batch must be at least 1, got 0"),
    # Teacher and trajectories.
    ("generate --teacher nowhere", None, "there is no folder nowhere, and no other teacher of that name"),
    ("generate --teacher runs/student", None, "runs/student holds a student, expected a teacher"),
    ("generate --out new --count 8", diverged, "of seeds 0, 1, 2, 3, and 4 more is not finite"),
    ("generate --out new --times 0.2 0.6 0", None, "a grid must decrease strictly, from noise to data, got [1, 0.2, 0.6, 0]"),
    ("generate --out new --times 1.5 0", None, "a grid must lie inside [0, 1] (1 is noise), got [1, 1.5, 0]"),
    ("generate --out new --times 0.5 -0.5", None, "a grid must lie inside [0, 1] (1 is noise), got [1, 0.5, -0.5]"),
    ("generate --out new --frames 0", None, "a grid needs at least one step, got 0"),
    ("generate --out new --frames 8 --steps 6", None, "a grid of 6 steps cannot pass through"),
    ("generate --count 64 --steps 6 --resume", another_teacher, "than asked for: teacher.sha256: expected"),
    ("generate --count 64 --steps 6 --resume", another_schedule, 'schedule.name: expected "RectifiedFlow", found "Cosine"'),
    ("distill --out new", without_trajectories, "operator learns from the teacher's trajectories and there are none in runs/trajectories: make them"),
    ("distill --out new", a_changed_manifest, "was changed after it was written: its fingerprint does not match"),
    ("distill --out new", another_teacher, "runs/trajectories holds trajectories of another teacher: teacher.sha256"),
    ("distill --out new", another_schedule, "the trajectories are of Cosine(log_snr_min=-20.0, log_snr_max=20.0), the"),
    ("distill --out new --batch 16 --target state", None, "the student needs 'state': generate it"),
    ("distill --out new", None, "64 rows do not fill one batch of 256: use a smaller batch or more rows"),
    ("distill --out new --modes 9", None, "4 frames have 3 Fourier modes (M // 2 + 1), so modes must be in [1, 3], got 9"),
    ("distill --out new --batch 16 --distance l3", None, "unknown distance 'l3': expected l1, l2, huber, perceptual"),
    ("generate --out new --labels 3", None, "--labels 3: runs/teacher has no classes"),
    ("generate --out new --guidance 1", None, "--guidance needs a condition, and runs/teacher is told none"),
    ("generate --out new --guidance 2 1", None, "--guidance is a weight of 0 or more, or LOW HIGH, got 2.0 1.0"),
    ("generate --out new --device nowhere", None, "unknown device 'nowhere': expected cpu, cuda"),
    ("generate --out new --device cuda:99", None, "this machine has no device cuda:99"),
    ("generate --out new --teacher foreign", foreign, "Nope"),
    ("generate --out new --teacher runs/trajectories", None, "runs/trajectories is no model"),
    ("generate --out new --prompts none.txt", None, "there is no file none.txt of prompts"),
    ("check-teacher runs/student", None, "runs/student holds a student, expected a teacher"),
    ("check-teacher runs/teacher --data tall.npy", arrays, "samples of shape (1, 6, 7), the teacher makes (1, 8, 8)"),
    ("check-teacher runs/teacher --dtype float9", None, "unknown dtype 'float9'"),
    ("check-teacher runs/teacher --out samples.png", None, "samples.png exists already: pass --overwrite"),
    ("convert runs/student --out new", None, "runs/student holds a student, expected a teacher"),
    ("convert runs/teacher --out runs/student", None, "runs/student exists already"),
    ("plan nowhere", None, "there is no folder nowhere, and no other teacher of that name"),
    ("plan --count -1", None, "a run has 0 or more trajectories"),
    ("reproduce nowhere", None, "unknown recipe 'nowhere': expected one of digits"),
    ("push nowhere://set --data runs/trajectories", None, "nowhere"),
    ("push file:///dev/null/set --data none", None, "none"),
    ("pull file:///nowhere/at/all --out new", None, "file:///nowhere/at/all"),
    # Student.
    ("export --student runs/student --out student.txt", None, "student.txt is neither .onnx nor .pt2"),
    ("sample --student runs/student --out n.png --label 3", None, "label 3 is outside the classes of runs/student: it has no"),
    ("sample --student runs/student --out n.png --guidance 1", None, "runs/student is told no guidance weight"),
    ("sample --student runs/student --out new.png", truncated, "model.safetensors is truncated or damaged"),
    ("sample --student runs/student --out new.png", another_architecture, "holds another architecture than its conf"),
    ("sample --student runs/student --out new.png", without_student, "no folder runs/student: expected a model folder"),
    ("sample --student runs/teacher --out new.png", None, "runs/teacher holds a teacher, expected a student"),
    ("sample --student runs/student --count 0", None, "count must be at least 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(
    "command, spoil, message", FAILURES, ids=[f"{c}{f' {s.__name__}' if s else ''}" for c, s, _ in FAILURES]
)
def test_a_failure_is_one_line_and_touches_nothing(
    command: str, spoil: Callable[[Path], None] | None, message: str, here: Path
) -> None:
    if spoil is not None:
        spoil(here)
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    ran = dsno(*shlex.split(command), at=here)
    kept = {p: p.read_bytes() for p in before if p.is_file()}
    assert ran.code == 2 and ran.out == ""
    last = ran.err.splitlines()[-1]
    assert last.startswith("dsno: ") and message in last
    # A run that is continued says first how its loss is shared, and one that diverges that no grid helps.
    known = ("loss shares", "grid ", "nor any grid's ends are finite")
    assert [line for line in ran.err.splitlines()[:-1] if not any(k in line for k in known)] == []
    assert kept == before


@pytest.mark.parametrize("model", ["teacher", "student", "features"])
def test_an_unknown_key_of_any_model_is_named_with_the_nearest(model: str, here: Path) -> None:
    key, value = {"teacher": ("kind", "v"), "student": ("times", [0.0]), "features": ("net", {})}[model]
    edit(here / "runs" / model / "config.json", **{f"{key}s": value})
    ran = dsno(
        "evaluate", "--teacher", "runs/teacher", "--student", "runs/student", "--features", "runs/features", "--out",
        "new", at=here,
    )  # fmt: skip
    assert ran.code == 2 and len(ran.err.splitlines()) == 1
    assert f"unknown key '{key}s' in the configuration of" in ran.err and f"did you mean '{key}'?" in ran.err


@pytest.mark.parametrize(
    "command, nearest",
    [("distill --mods 9", "--modes"), ("teach --train.step 9", "--train.steps"), ("sampel", "sample")],
)
def test_an_unknown_option_is_refused_with_the_nearest_one(command: str, nearest: str, tmp_path: Path) -> None:
    ran = dsno(*shlex.split(command), at=tmp_path)
    assert ran.code == 2 and "Unrecognized options" in ran.err and nearest in ran.err


def test_an_impossible_option_says_what_is_possible(tmp_path: Path) -> None:
    ran = dsno("teach", "--train.steps", 0, at=tmp_path)
    assert ran.code == 2 and "steps must be at least 1, got 0" in ran.err
    ran = dsno("generate", "--solver", "ddmi", at=tmp_path)
    assert ran.code == 2 and "ddmi" in ran.err and "ddim" in ran.err


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsno.cli.teach.teach", interrupted)
    ran = dsno("teach", at=tmp_path)
    assert ran.code == 130 and ran.err.strip().splitlines() == [
        "dsno: stopped; run the same command again, with --resume where it has one"
    ]


def test_a_hub_name_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", not_cached)
    ran = dsno("generate", "--teacher", "org/name", at=tmp_path)
    assert ran.code == 2 and len(ran.err.splitlines()) == 1 and "the Hub cannot be reached for org/name" in ran.err
    assert not [*tmp_path.iterdir()]


def not_cached(*arguments: object, **options: object) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("not there")


# Checking, planning, converting


def test_a_teacher_is_checked_and_the_verdict_is_the_exit_code(here: Path) -> None:
    quick = ("--data", "digits", "--rows", 8, "--levels", 3, "--patience", 0)
    ran = dsno("check-teacher", "digits", *quick, "--out", "verdict.json", at=here)
    assert ran.code == 0 and "this teacher is fit to use" in ran.out
    assert ran.following[:2] == ["generate", "--teacher"]
    assert read_json(here / "verdict.json")["verdict"] == "ok" and len(read_json(here / "verdict.json")["levels"]) == 3
    assert dsno("convert", "digits", "--out", "own", at=here).code == 0
    edit(here / "own" / "config.json", kind="x0")
    ran = dsno("check-teacher", "own", "--data", "digits", "--rows", 16, "--levels", 3, at=here)
    assert ran.code == 1 and "read as v" in " ".join(ran.out.split()) and "do not use this teacher" in ran.out


def test_converting_keeps_the_teacher(here: Path) -> None:
    ran = dsno("convert", "runs/teacher", "--out", "own", at=here)
    assert ran.code == 0 and ran.following == ["check-teacher", "own"]
    a, b = (read_tensors(here / folder / "model.safetensors") for folder in ("runs/teacher", "own"))
    assert all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_a_plan_of_a_recipe_and_of_a_teacher(here: Path) -> None:
    quick = ("--seconds", 0.1, "--device", "cpu", "--out", "plan.json", "--overwrite")
    before = set(here.rglob("*"))
    ran = dsno("plan", "digits", "--budget-hours", 1e-6, "--count", 1000, "--train-steps", 7, *quick, at=here)
    assert ran.code == 0 and "over the budget" in " ".join(ran.out.split())
    made = read_json(here / "plan.json")
    assert [s["evaluations"] for s in made["stages"]] == [3000 * 128, 16_000, 7 * 128]
    ran = dsno(
        "plan", "runs/teacher", "--frames", 2, "--solver", "heun", "--steps", 4, "--count", 10, "--guided", *quick, at=here
    )  # fmt: skip
    assert ran.code == 0 and read_json(here / "plan.json")["stages"][0]["evaluations"] == 10 * 7 * 2
    assert set(here.rglob("*")) - before == {here / "plan.json"}


# Conditions


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a class-conditional teacher, trajectories of many guidance weights, and their student."""
    root = tmp_path_factory.mktemp("classes")
    assert dsno("teach", "--conditional", "--channels", 8, 16, *QUICK, at=root).code == 0
    guided = ("--guidance", 0, 3, "--null", 9, "--count", 32, "--steps", 6, "--batch", 8)
    assert dsno("generate", *guided, at=root).code == 0
    assert dsno("distill", "--train-only", "temporal", *QUICK, at=root).code == 0
    return root


def test_labels_and_weights_are_drawn_by_seed_and_recorded(classes: Path) -> None:
    rows = TrajectorySet(classes / "runs" / "trajectories").__getitems__(list(range(32)))
    label, weight = rows["cond"]["label"], rows["cond"]["weight"]
    assert label.dtype == torch.int64 and 0 <= int(label.min()) < int(label.max()) <= 9
    assert 0 <= float(weight.min()) < float(weight.max()) <= 3 and len(weight.unique()) == 32
    command = ("generate", "--guidance", 0, 3, "--null", 9, "--steps", 6, "--batch", 3)
    assert dsno(*command, "--first-seed", 5, "--count", 7, "--out", "part", at=classes).code == 0
    part = TrajectorySet(classes / "part").__getitems__(list(range(7)))["cond"]
    assert torch.equal(part["label"], label[5:12]) and torch.equal(part["weight"], weight[5:12])


def test_labels_are_one_or_those_of_a_file(classes: Path) -> None:
    (classes / "labels.txt").write_text("3 1 4\n")
    for labels, wanted in (("7", [7, 7, 7, 7]), ("labels.txt", [3, 1, 4, 3])):
        out = f"of-{labels}"
        ran = dsno(
            "generate", "--labels", labels, "--count", 4, "--steps", 6, "--out", out, "--dtype", "bf16", at=classes
        )
        assert ran.code == 0
        data = TrajectorySet(classes / out)
        assert data.__getitems__([0, 1, 2, 3])["cond"].tolist() == wanted
        assert data.manifest["compute"] == {"autocast": "bfloat16"}


def test_one_weight_makes_a_set_of_one_teacher_that_its_student_knows(classes: Path) -> None:
    ran = dsno("generate", "--guidance", 1.5, "--null", 9, "--count", 16, "--steps", 6, "--out", "one", at=classes)
    assert ran.code == 0
    assert TrajectorySet(classes / "one").manifest["teacher"]["weight"] == 1.5
    assert dsno("distill", "--data", "one", "--out", "student", *QUICK, at=classes).code == 0
    assert not load_student(classes / "student").guided


def test_a_guided_student_is_trained_and_told_its_weight(classes: Path) -> None:
    student = load_student(classes / "runs" / "student")
    assert student.guided and student.classes == 10
    teacher = read_tensors(classes / "runs" / "teacher" / "model.safetensors")
    own = student.net.backbone.state_dict()
    assert all(torch.equal(own[k], v) for k, v in teacher.items())
    sample = ("sample", "--student", "runs/student", "--count", 4, "--out")
    assert dsno(*sample, "a.png", "--guidance", 1, "--label", 3, at=classes).code == 0
    ran = dsno(*sample, "b.png", "--label", 3, at=classes)
    assert ran.code == 2 and "is told a guidance weight: give --guidance" in ran.err
    ran = dsno(*sample, "b.png", "--guidance", 1, "--label", 10, at=classes)
    assert ran.code == 2 and "label 10 is outside the classes of runs/student: expected 0 to 9" in ran.err
    assert (classes / "a.png").is_file() and not (classes / "b.png").exists()


@pytest.mark.parametrize(
    "command, message",
    [
        ("--labels 10", "label 10 is outside the classes of runs/teacher: expected 0 to 9"),
        ("--labels -1", "label -1 is outside the classes of runs/teacher: expected 0 to 9"),
        ("--labels none.txt", "--labels none.txt: expected `uniform`, a label, or a file"),
        ("--guidance 1", "does not say which label stands for none: give it, --null 10"),
    ],
)
def test_a_wrong_condition_is_one_line_and_nothing_is_written(command: str, message: str, classes: Path) -> None:
    ran = dsno("generate", "--out", "new", *shlex.split(command), at=classes)
    assert ran.code == 2 and message in ran.err and not (classes / "new").exists()


# Elsewhere


def test_a_set_goes_and_comes_back_and_a_student_leaves(here: Path) -> None:
    url = (here / "there").as_uri()
    ran = dsno("push", url, at=here)
    assert ran.code == 0 and ran.following == ["pull", url]
    ran = dsno("pull", url, "--out", "back", at=here)
    assert ran.code == 0 and "64 trajectories in back" in ran.out
    names = sorted(p.name for p in (here / "back").iterdir() if not p.name.startswith("."))
    assert all((here / "back" / n).read_bytes() == (here / "runs" / "trajectories" / n).read_bytes() for n in names)
    ran = dsno("export", "--student", "runs/student", "--out", "student.pt2", at=here)
    assert ran.code == 0 and read_json(here / "student.json")["shape"] == [1, 8, 8]


# Several processes


def test_processes_share_the_trajectories(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["generate", "--count", 64, "--steps", 6, "--shard", 16, "--batch", 8]
    assert dsno(*command, "--out", "one", at=here).code == 0
    (here / "two").mkdir()
    shutil.copy(here / "one" / "manifest.json", here / "two")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in ((1, ""), (0, "64 trajectories in two")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr("accelerate.Accelerator", lambda cpu, rank=rank: Rank(rank))
        ran = dsno(*command, "--out", "two", "--resume", at=here)
        shards = sorted(p.name for p in (here / "two").glob("shard-*"))
        if rank == 1:
            # Its share alone, and not a word on the way; the set is not complete before the other's.
            assert shards == ["shard-00001.safetensors", "shard-00003.safetensors"]
            assert ran.err.splitlines() == [
                line for line in ran.err.splitlines() if line.startswith("dsno: two is inc")
            ]
        else:
            assert ran.code == 0 and said in ran.out and len(shards) == 4 and "generate" in ran.err
    manifests = [json.loads((here / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]
    assert all(p.read_bytes() == (here / "two" / p.name).read_bytes() for p in (here / "one").glob("shard-*"))
