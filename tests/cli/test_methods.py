"""`dsno distill --method`, `dsno methods`, `dsno cite`, and flow maps wherever students go."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image

import shell
from dsno.app.export import load_program
from dsno.checkpoint import read_json, read_tensors
from dsno.cli.distill import Distill, with_options
from dsno.data.load import load_data
from dsno.denoise import Prediction
from dsno.distillation.registry import METHODS, Method
from dsno.distillation.run import distill
from dsno.measure.results import load_results
from dsno.nets.unet import UNet
from dsno.runs.features import train_features
from dsno.schedule import Cosine
from dsno.students.files import load_student, notes_of
from dsno.students.flowmap import FlowMap
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.train import TrainConfig
from dsno.trajectories.sets import TrajectorySet


def dsno(*arguments: object, at: Path) -> tuple[int | str | None, str]:
    """What `dsno ARGUMENTS` does in the folder `at`: the exit code, and what it prints."""
    ran = shell.dsno(*arguments, at=at)
    return ran.code, ran.err + ran.out


QUICK = ("--batch", 8, "--train.steps", 6, "--train.warmup", 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teachers of digits, one of them told classes, and trajectories of both."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("methods")
    for folder, classes in (("runs", None), ("classes", 10)):
        net = UNet(1, 8, (4, 8), attention=(), classes=classes, null=classes is not None)
        save_teacher(root / folder / "teacher", Prediction(net, Cosine(), "v"))
        made = ("generate", "--teacher", f"{folder}/teacher", "--out", f"{folder}/trajectories", "--device", "cpu")
        assert dsno(*made, "--count", 24, "--steps", 6, at=root)[0] == 0
    return root


def test_the_methods_are_listed_with_what_they_need(tmp_path: Path) -> None:
    code, said = dsno("methods", at=tmp_path)
    assert code == 0 and all(f"\n{name} " in said for name in METHODS)
    assert all(text in said for text in ("2211.13449", "trajectories", "1 to M", "next: dsno distill --method NAME"))


@pytest.mark.parametrize("data", ["runs/trajectories", "digits"])
def test_a_flow_map_is_distilled_drawn_from_and_cited(data: str, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    code, said = dsno("distill", "--method", "consistency", "--data", data, "--out", out, *QUICK, at=runs)
    assert code == 0 and f"flow map in {out}" in said and "consistency 6/6" in said
    notes = read_json(out / "config.json")["notes"]
    assert notes["sources"] == {"teacher": "runs/teacher", "data": data} and notes["steps"] == 6
    pictures = []
    for passes in (1, 3):
        code, said = dsno(
            "sample", "--student", out, "--count", 4, "--passes", passes, "--overwrite", "--device", "cpu", at=runs
        )
        assert code == 0 and f"4 samples in {'one pass' if passes == 1 else '3 passes'}, " in said
        pictures.append((runs / "samples.png").read_bytes())
    assert pictures[0] != pictures[1]
    code, said = dsno("cite", out, at=runs)
    assert code == 0 and said.startswith("@inproceedings{song2023consistency,\n") and "@software{dsno," in said
    assert ("@inproceedings{zhao2023unipc," in said) == (data != "digits")


def test_a_number_of_passes_is_chosen_beforehand(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    code, said = dsno("distill", "--method", "progressive", "--passes", 4, "--out", out, *QUICK, at=runs)
    assert code == 0 and f"next: dsno sample --student {out} --passes 4" in said
    assert load_student(out).steps == 4
    sample = ("sample", "--student", out, "--count", 2, "--overwrite", "--device", "cpu")
    code, said = dsno(*sample, at=runs)
    assert code == 0 and "2 samples in 4 passes" in said
    code, said = dsno(*sample, "--passes", 1, at=runs)
    assert code == 2 and "trained for the grid of 4 step(s) alone" in said
    code, said = dsno("export", "--student", out, "--out", "map.pt2", at=runs)
    assert code == 2 and "trained for the grid of 4 step(s) alone" in said and not (runs / "map.pt2").exists()


def test_a_range_of_guidance_is_distilled_into_one_student(runs: Path, tmp_path: Path) -> None:
    common = ("--teacher", "classes/teacher", "--data", "classes/trajectories", "--out", tmp_path / "map")
    code, said = dsno(
        "distill", "--method", "guided", "--guidance", 0, 3, "--null", 10, "--stochastic", *common, *QUICK, at=runs
    )
    assert code == 0 and f"next: dsno sample --student {tmp_path / 'map'} --guidance 1.5\n" in said
    assert notes_of(tmp_path / "map")["options"]["guidance"] == [0, 3]
    sample = ("sample", "--student", tmp_path / "map", "--count", 2, "--overwrite", "--device", "cpu")
    code, said = dsno(*sample, "--guidance", 2, "--label", 7, at=runs)
    assert code == 0, said
    code, said = dsno(*sample, at=runs)
    assert code == 2 and "is told a guidance weight: give --guidance" in said
    for weight in (3.5, -1, "inf", "nan"):
        code, said = dsno(*sample, "--guidance", weight, at=runs)
        assert code == 2 and f"was not trained for the guidance weight {weight}: expected 0 to 3" in said
    code, said = dsno("evaluate", "--student", tmp_path / "map", "--out", tmp_path / "e", at=runs)
    assert code == 2 and "is told a class and a guidance weight, and evaluate measures unconditional students" in said
    assert not (tmp_path / "e").exists()


def test_matching_is_told_the_weights_that_its_trajectories_are(runs: Path, tmp_path: Path) -> None:
    made = ("generate", "--teacher", "classes/teacher", "--out", tmp_path / "weighted", "--count", 16, "--steps", 6)
    assert dsno(*made, "--guidance", 0, 4, "--null", 10, "--device", "cpu", at=runs)[0] == 0
    train_features(load_data("digits"), tmp_path / "features", steps=2, width=4)
    common = ("--teacher", "classes/teacher", "--data", tmp_path / "weighted", "--out", tmp_path / "student")
    looks = ("--distance", "l1+perceptual", "--features", tmp_path / "features")
    code, said = dsno("distill", "--method", "matching", *common, *looks, *QUICK, at=runs)
    assert code == 0 and f"next: dsno sample --student {tmp_path / 'student'} --guidance " in said, said
    following = said.splitlines()[-1].removeprefix("next: dsno ").split()
    code, said = dsno(*following, "--count", 2, "--overwrite", "--device", "cpu", at=runs)
    assert code == 0, said
    code, said = dsno("sample", "--student", tmp_path / "student", "--overwrite", "--guidance", -1, at=runs)
    assert code == 2 and "was not trained for the guidance weight -1: expected 0 or more" in said
    assert "zhang2018unreasonable" in dsno("cite", tmp_path / "student", at=runs)[1]


@pytest.mark.parametrize("method", ["shortcut", "continuous-consistency"])
def test_the_velocity_of_the_data_is_learned_on_request(method: str, runs: Path, tmp_path: Path) -> None:
    distil = ("distill", "--method", method, "--from-data", "--data", "digits", "--out", tmp_path / "map", *QUICK)
    code, said = dsno(*distil, at=runs)
    assert code == 0, said
    (state,) = (tmp_path / "map" / "training" / method).glob("step-*/state.json")
    assert read_json(state)["settings"]["options.from_data"] is True


def test_knowledge_is_one_frame_of_those_stored(runs: Path, tmp_path: Path) -> None:
    code, said = dsno("distill", "--method", "knowledge", "--out", tmp_path / "one", *QUICK, at=runs)
    assert code == 0, said
    student = load_student(tmp_path / "one")
    assert not isinstance(student, FlowMap) and student.times.tolist() == [0.0]
    code, said = dsno("sample", "--student", tmp_path / "one", "--passes", 2, "--overwrite", at=runs)
    assert code == 2 and "a student of one frame makes one pass alone, got 2: for more, distil one of several" in said
    code, said = dsno("cite", tmp_path / "one", at=runs)
    assert "luhman2021knowledge" in said and "zheng2023fast" not in said and "zhao2023unipc" in said


def test_a_flow_map_is_measured_and_exported(runs: Path, tmp_path: Path) -> None:
    code, _ = dsno("distill", "--method", "shortcut", "--out", "runs/map", *QUICK, at=runs)
    train_features(load_data("digits"), runs / "runs" / "features", steps=2, width=4)
    parts = ("--teacher", "runs/teacher", "--features", "runs/features", "--count", 8)
    code, said = dsno("evaluate", "--student", "runs/map", *parts, "--passes", 1, 2, "--out", tmp_path / "e", at=runs)
    assert code == 0, said
    results = {result.name: result for result in load_results(tmp_path / "e" / "results.json")}
    assert [name for name in results if name.startswith("flow map")] == ["flow map-1", "flow map-2"]
    one, two = results["flow map-1"].cost, results["flow map-2"].cost
    assert (one.rounds, two.rounds) == (1, 2) and one.flops is not None and two.flops == 2 * one.flops
    assert "Few passes beside its teacher" in (tmp_path / "e" / "report.html").read_text()
    code, said = dsno("cite", tmp_path / "e", at=runs)
    assert code == 0 and "heusel2017gans" in said and "lu2022dpmpp" in said
    code, said = dsno("export", "--student", "runs/map", "--out", tmp_path / "map.pt2", at=runs)
    assert code == 0, said
    made, z = load_student(runs / "runs" / "map"), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(load_program(tmp_path / "map.pt2")(z), made.sample(z), rtol=1e-4, atol=1e-4)
    assert read_json(tmp_path / "map.json")["times"] == [0.0]


def test_an_operator_is_measured_at_several_passes(runs: Path, tmp_path: Path) -> None:
    made = ("generate", "--targets", "x0", "state", "--count", 16, "--steps", 6, "--out", "both", "--device", "cpu")
    assert dsno(*made, at=runs)[0] == 0
    distil = ("distill", "--data", "both", "--inner-starts", 0.5, "--out", tmp_path / "student")
    assert dsno(*distil, *QUICK, at=runs)[0] == 0
    if not (runs / "runs" / "features").is_dir():
        train_features(load_data("digits"), runs / "runs" / "features", steps=2, width=4)
    parts = ("--teacher", "runs/teacher", "--features", "runs/features", "--count", 8, "--out", tmp_path / "e")
    code, said = dsno("evaluate", "--student", tmp_path / "student", *parts, "--passes", 1, 2, at=runs)
    assert code == 0, said
    assert [r.cost.rounds for r in load_results(tmp_path / "e" / "results.json")[:2]] == [1, 2]
    code, said = dsno("evaluate", "--student", tmp_path / "student", *parts, "--passes", 9, "--overwrite", at=runs)
    assert code == 2 and "a student of 4 frames makes 1 to 4 passes, got 9" in said


@pytest.mark.parametrize("method", ["operator", "matching"])
def test_an_operator_of_some_of_the_stored_times(method: str, runs: Path, tmp_path: Path) -> None:
    distil = ("distill", "--method", method, "--times", 0.0, 0.25, "--out", tmp_path / "student")
    code, said = dsno(*distil, *QUICK, at=runs)
    assert code == 0, said
    assert load_student(tmp_path / "student").times.tolist() == [0.25, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--times 0.3 0", "0.3 is not stored"),
        ("--times 0.5625 0.25", "last frame is its sample: --times needs 0, the last that is stored, got 0.5625 0.25"),
        ("--method matching --times 0.25", "--times needs 0, the last that is stored, got 0.25"),
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
        ("--method guided --guidance 4 0", "LOW HIGH with 0 <= LOW < HIGH, got 4 0: the range of the paper is 0 4"),
        (
            "--method guided",
            "guided needs a class-conditional teacher, and runs/teacher is told no class: take progressive",
        ),
        ("--method guided --guidance 2 2", "LOW HIGH with 0 <= LOW < HIGH, got 2 2"),
        ("--method lagrangian --from-data", "--from-data is no option of the method lagrangian"),
        ("--method consistency --stochastic", "--stochastic is no option of the method consistency"),
        ("--method consistency --passes 4", "consistency is not trained for a number of passes: leave `--passes` out"),
        ("--method knowledge --passes 4", "knowledge makes one pass: leave `--passes` out"),
        (
            "--passes 4",
            "operator is not trained for a number of passes: leave `--passes` out, and train it with `--inner",
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
        ("--method consistency --size 16", "--size resizes images, and runs/trajectories holds trajectories"),
        (
            "--method consistency --data classes/trajectories",
            "classes/trajectories holds trajectories of another teacher",
        ),
        ("--method consistency --train.steps 6 --out runs", "runs exists already: pass --resume"),
    ],
)
def test_bad_input_is_one_line_before_any_work(options: str, message: str, runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    code, said = dsno("distill", *(() if "--out" in options else ("--out", "new")), *options.split(), at=runs)
    assert code == 2 and message in said and len(said.splitlines()) == 1, said
    assert sorted(runs.rglob("*")) == before


def test_an_image_set_without_labels_does_not_teach_classes(runs: Path) -> None:
    (runs / "pictures").mkdir()
    Image.new("L", (8, 8)).save(runs / "pictures" / "a.png")
    Image.new("L", (8, 8), 255).save(runs / "pictures" / "b.png")
    distil = (
        "distill",
        "--method",
        "consistency",
        "--teacher",
        "classes/teacher",
        "--data",
        "pictures",
        "--out",
        "new",
    )
    code, said = dsno(*distil, at=runs)
    assert code == 2 and "has no labels, and classes/teacher is told one of 10 classes: give the data" in said


def test_what_cannot_be_cited_is_said(runs: Path, tmp_path: Path) -> None:
    code, said = dsno("cite", "nowhere", at=runs)
    assert code == 2 and "no folder nowhere: name one of a student" in said
    code, said = dsno("cite", tmp_path, at=runs)
    assert code == 2 and "nothing to cite" in said


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_the_options_of_the_command_are_those_that_the_method_declares(method: Method, tmp_path: Path) -> None:
    """In both directions: none unreachable, none invented."""
    code, said = dsno("distill", "--method", method.name, "--help", at=tmp_path)
    assert code == 0
    shown = {word.split("|")[0].rstrip(",") for word in said.split() if word.startswith("--") and "train." not in word}
    shown = {name for name in shown if re.fullmatch(r"--[a-z][a-z0-9-]*", name)}
    common = {f"--{f.name.replace('_', '-')}" for f in fields(Distill) if f.name not in ("options", "train")}
    flags = {"--help", "--no-resume", "--no-overwrite", "--no-dynamic"}
    declared = {f"--{option.name.replace('_', '-')}" for option in method.described()}
    negated = {f"--no-{name[2:]}" for name in declared}
    mentioned = shown - common - flags - declared - negated
    # What a help text mentions of other verbs.
    assert declared <= shown and mentioned <= {"--passes", "--method"}, mentioned


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_option_can_be_set_from_the_shell(method: Method) -> None:
    """Each to another value than its default, all at once; what the command makes of them is what was said."""
    for option in method.described():
        words, value = OTHER[option.name]
        if (method.name, option.name) in OWN:
            words, value = OWN[method.name, option.name]
        name = option.name.replace("_", "-")
        arguments = words.replace("NAME", name).split()
        made = tyro.cli(with_options(["--method", method.name, *arguments]), args=["--method", method.name, *arguments])
        found = getattr(made.options, option.name)
        assert found == value != option.default and made.options == method.configured(**{option.name: value})


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
    "passes": ("--NAME 4", 4),
    "start": ("--NAME 16", 16),
    "stochastic": ("--NAME", True),
    "guidance": ("--NAME 0 3", (0.0, 3.0)),
    "null": ("--NAME 10", 10),
    "share": ("--NAME 0.5", 0.5),
    "levels": ("--NAME -1 1.4", (-1.0, 1.4)),
    "c": ("--NAME 0.01", 0.01),
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
"""Of every option: how the shell says another value than the default, and that value."""
OWN: dict[tuple[str, str], tuple[str, object]] = {
    (name, "weights"): ("--NAME gap", "gap") for name in ("consistency", "consistency-training", "easy-consistency")
}


def test_an_operator_is_the_same_from_the_shell_and_from_python(runs: Path, tmp_path: Path) -> None:
    options = ("--others", 0.5, "--weights", "snr", "--where", "every")
    assert dsno("distill", "--out", tmp_path / "shell", *options, *QUICK, at=runs)[0] == 0
    teacher, data = load_teacher(runs / "runs" / "teacher"), TrajectorySet(runs / "runs" / "trajectories")
    config = TrainConfig(steps=6, lr=1e-3, warmup=0)
    distill(teacher, data, tmp_path / "python", config=config, batch=8, others=0.5, weights="snr", where="every")
    shell, python = (read_tensors(tmp_path / name / "model.safetensors") for name in ("shell", "python"))
    assert shell.keys() == python.keys() and all(torch.equal(shell[key], python[key]) for key in shell)
    notes = [notes_of(tmp_path / name) for name in ("shell", "python")]
    assert notes[0].pop("sources") and notes[1].pop("sources") == {} and notes[0] == notes[1]
    assert notes[0]["options"]["others"] == 0.5 and notes[0]["batch"] == 8
    assert [p.name for p in (tmp_path / "shell" / "training").iterdir()] == ["regression"]
