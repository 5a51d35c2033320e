"""The whole command line: every verb teaches, leads to the next one, and is told apart from what is none."""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno import cli
from dsno.checkpoint import read_json
from dsno.distillation import run
from dsno.measure.results import load_results
from dsno.report import compare
from dsno.runs import teach
from dsno.runs.shipped import shipped
from dsno.students.files import load_student
from dsno.teachers.load import load_teacher
from dsno.trajectories.sets import TrajectorySet
from processes import environment
from refusals import Spoil, edit, refusals, refuses
from shell import QUICK, Ran, dsno

ROAD, VERBS = cli.ROAD, cli.VERBS
SHIPPED = (Path(cli.__file__).parents[1] / "weights" / "digits").is_dir()


def test_each_verb_leads_to_the_next(road: tuple[Path, dict[str, Ran]]) -> None:
    root, ran = road
    assert {verb: r.code for verb, r in ran.items()} == dict.fromkeys(ran, 0)
    assert [ran[verb].following[0] for verb in ran] == [*list(ran)[1:], "export"]
    runs = root / "runs"
    assert len(TrajectorySet(runs / "trajectories", verify=True)) == 64
    assert read_json(runs / "teacher" / "config.json")["notes"]["training"]["steps"] == 6
    assert load_student(runs / "student").frames == 4
    assert Image.open(root / "samples.png").size[0] > 100
    results = load_results(runs / "evaluation" / "results.json")
    assert results[0].name == "DSNO" and {r.protocol.count for r in results} == {8}
    assert all(r.name in ran["evaluate"].out for r in results) and "…" not in ran["evaluate"].out
    assert (runs / "evaluation" / "report.html").read_text().startswith("<!doctype html>")


def test_every_verb_ends_with_the_next_command() -> None:
    """Each says it somewhere by the one helper; the tests of the verbs say that it is the last thing said."""
    for name, verb in VERBS.items():
        module = ast.parse(Path(sys.modules[verb.__module__].__file__ or "").read_text())
        (own,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == verb.__name__)
        called = [
            node.func.id for node in ast.walk(own) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert "say" in called, name


# Teaching


def lines(verb: str) -> str:
    """The Python of a verb's docstring."""
    return textwrap.dedent((VERBS[verb].__doc__ or "").split("In Python:\n")[1])


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "reproduce"])
def test_help_teaches_the_python_as_well(verb: str, tmp_path: Path) -> None:
    ran = dsno(verb, "--help", at=tmp_path)
    assert ran.code == 0 and ("--out" in ran.out or verb in ("app", "doctor", "push", "methods", "cite"))
    assert (VERBS[verb].__doc__ or "").splitlines()[0] in ran.out
    assert all(line in ran.out for line in lines(verb).split("\n"))


def test_the_overview_groups_the_verbs_by_the_road_and_leaves_their_help_alone(tmp_path: Path) -> None:
    (_, bare, err), (code, out, _) = ((r.code, r.out, r.err) for r in (dsno(at=tmp_path), dsno("--help", at=tmp_path)))
    assert (bare, code) == ("", 0) and err == out == dsno("-h", at=tmp_path).out and dsno(at=tmp_path).code == 2
    # Titles stand at the margin, verbs below the one that they belong to, and text further in.
    found = re.findall(r"^(  )?(\S.*?)(?:  .*)?$", out, re.M)
    expected = [
        ("", title) if verb is None else ("  ", verb) for title, verbs in ROAD.items() for verb in (None, *verbs)
    ]
    assert [row for row in found if row in expected] == expected
    assert "Run a recipe from nothing" in out and "In Python" not in out and "Run again to continue" not in out
    assert out.splitlines()[0].startswith("usage: dsno VERB") and out.splitlines()[-1].startswith("next: dsno demo ")
    assert "Run again to continue" in dsno("reproduce", "--help", at=tmp_path).out
    assert "from dsno import TrajectorySet, distill, load_teacher" in dsno("distill", "--help", at=tmp_path).out


def as_it_is(model: torch.nn.Module, *arguments: object, **options: object) -> torch.nn.Module:
    return model.eval()


@pytest.mark.parametrize(
    "verb", ["demo", "teach", "check-teacher", "convert", "generate", "distill", "sample", "restore", "evaluate"]
)
def test_the_python_lines_run(
    verb: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb in ("demo", "convert", "restore") and not SHIPPED:
        pytest.skip("no weights ship with this package")
    monkeypatch.chdir(here)
    made = {"teach": "teacher", "convert": "teacher", "generate": "trajectories", "distill": "student"}.get(verb)
    if made:
        shutil.rmtree(here / "runs" / made)
    if verb == "distill":
        assert dsno("generate", "--count", 256, "--steps", 6, "--overwrite", at=here).code == 0
    if verb == "restore":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(here / "digit.png")
    code = lines(verb)
    # As shown, but for the sizes and the loop of training.
    for size in ("20_000", "2048", "512", "50"):
        code = code.replace(size, "8")
    for module in (run, teach):
        monkeypatch.setattr(module, "train", as_it_is)
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
    elif verb == "restore":
        assert names["spread"].shape == (1, 8, 8) and names["mean"].startswith(b"\x89PNG")
    elif verb == "sample":
        assert names["images"].shape == (64, 1, 8, 8) and bool(names["images"].isfinite().all())
    else:
        assert {"teach": load_teacher, "convert": load_teacher, "generate": TrajectorySet, "distill": load_student}[
            verb
        ](here / "runs" / made)


def test_the_version_is_said(tmp_path: Path) -> None:
    ran = dsno("--version", at=tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, f"dsno {version('dsno')}\n", "")


def test_a_verb_without_options_is_a_verb(tmp_path: Path) -> None:
    ran = dsno("distill", at=tmp_path)
    assert ran.code == 2 and ran.err.startswith("dsno: operator learns from the teacher's trajectories")
    assert [*tmp_path.iterdir()] == []


def test_an_unknown_recipe_lists_the_recipes(tmp_path: Path) -> None:
    for verb in ("plan", "reproduce"):
        ran = dsno(verb, "nowhere", at=tmp_path)
        assert (
            ran.code == 2
            and "digits, digits-classes, fashion, fashion-classes, fashion-gpu, sprites" in ran.err
            and len(ran.err.splitlines()) == 1
        )


def test_a_warm_up_that_is_longer_than_the_run_is_said(tmp_path: Path) -> None:
    ran = dsno("teach", "--channels", 4, 8, "--train.steps", 2, "--train.warmup", 9, "--batch", 4, at=tmp_path)
    assert ran.code == 0 and "note: --train.warmup 9 is no shorter than the 2 steps" in ran.err


# Refusals


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
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsno.cli.teach.teach", interrupted)
    ran = dsno("teach", at=tmp_path)
    assert ran.code == 130 and ran.err.strip().splitlines() == [
        "dsno: stopped; run the same command again, with --resume where it has one"
    ]


@pytest.mark.parametrize("verb, number", [("teach", signal.SIGTERM), ("distill", signal.SIGINT)])
def test_training_that_is_asked_to_stop_saves_and_says_how_to_go_on(verb: str, number: int, runs: Path) -> None:
    out = runs / "stopped"
    command = f"{verb} --batch 16 --train.steps 9000 --train.log-every 2 --out stopped"
    command += " --channels 4 8" if verb == "teach" else " --others 0.5"

    def ask() -> None:
        while not [*out.glob("training/**/log.jsonl")]:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    ran = dsno(*command.split(), "--overwrite", at=runs)
    asking.join()
    assert ran.code == 128 + number
    said = ran.err.splitlines()[-1]
    assert re.fullmatch(
        rf"dsno: stopped after step \d+ of 9000, saved in stopped/.*; to go on: dsno {command} --resume", said
    )
    assert not (out / "config.json").exists() and len([*out.glob("training/**/state.json")]) == 1


# What may be overwritten


def others(here: Path) -> None:
    """Files of the user's where the verbs write theirs."""
    (here / "notes.txt").write_text("precious")
    (here / "runs" / "notes.txt").write_text("precious")
    (here / "new").mkdir()
    for name in ("results.json", "manifest.json", "recipe.json"):
        (here / "new" / name).write_text('{"mine": 1}')
    (here / "page.html").write_text("<!doctype html>\n<p>precious</p>")
    (here / "sampler.pt2.json").write_text('{"mine": 1}')


def without_checkpoints(here: Path) -> None:
    for name in ("teacher", "student"):
        shutil.rmtree(here / "runs" / name / "training")


QUICKLY = shlex.join(map(str, QUICK))


@refusals(
    (
        f"distill --out runs --overwrite {QUICKLY}",
        others,
        "runs/teacher is read, and lies in runs, which is written to",
    ),
    (f"distill --out runs --resume {QUICKLY}", others, "runs/teacher is read, and lies in runs, which is"),
    (f"distill --out runs/trajectories --overwrite {QUICKLY}", None, "is read, and is runs/trajectories"),
    (f"distill --out runs/teacher --overwrite {QUICKLY}", None, "runs/teacher is read, and is runs/teacher"),
    ("evaluate --student runs/student --out runs/teacher --overwrite", None, "runs/teacher is read, and is runs/"),
    ("evaluate --student runs/student --out runs/features --overwrite", None, "runs/features is read, and is runs/"),
    (f"distill --out runs/features --overwrite {QUICKLY}", None, "runs/features holds a features, not a student"),
    (f"distill --resume --overwrite {QUICKLY}", None, "resume continues what is there and overwrite throws it away"),
    (f"distill --method knowledge --resume {QUICKLY}", None, "runs/student holds a run of operator, not of knowledge"),
    (f"distill --resume --train.lr 0.5 {QUICKLY}", None, "runs/student is complete, trained with lr = 0.001, now 0.5"),
    (f"distill --resume {QUICKLY}", without_checkpoints, "holds a finished model and no checkpoint to go on from"),
    (f"teach --resume --channels 8 16 {QUICKLY}", without_checkpoints, "holds a finished model and no checkpoint to"),
    (f"teach --out runs/student --overwrite {QUICKLY}", None, "runs/student holds a student, not a teacher"),
    (f"teach --out runs/student --resume {QUICKLY}", None, "runs/student holds a student, not a teacher"),
    (f"teach --out runs --overwrite {QUICKLY}", others, "and not a teacher: choose an empty folder"),
    ("generate --out runs --overwrite", others, "runs/teacher is read, and lies in runs"),
    ("generate --out runs/student --overwrite", None, "runs/student holds other files (config.json, "),
    ("generate --out new --overwrite --count 8 --steps 6", others, "new/manifest.json is no manifest of trajectories"),
    ("convert runs/teacher --out runs/teacher --overwrite", None, "runs/teacher is read, and is runs/teacher"),
    ("convert runs/teacher --out runs/student --overwrite", None, "runs/student holds a student, not a teacher"),
    ("evaluate --student runs/student --out runs --overwrite", others, "runs/student is read, and lies in runs"),
    ("evaluate --count 8 --out new --overwrite", others, "new holds other files (manifest.json, recipe.json, "),
    ("demo --count 8 --out page.html", others, "page.html is of no evaluation: move it away"),
    ("sample --prompts notes.txt --out notes.txt --overwrite", others, "notes.txt is read, and is notes.txt"),
    ("export --out sampler.pt2 --overwrite", others, "sampler.pt2.json describes no export and would be replaced"),
    ("check-teacher runs/teacher --data page.html --out page.html --overwrite", others, "page.html is read, and is"),
    ("pull runs/trajectories --out runs --overwrite", others, "runs/trajectories is read, and lies in runs"),
    ("push runs --data runs/trajectories --overwrite", others, "runs/trajectories is read, and lies in "),
    ("reproduce digits --out new", others, "new holds a run with"),
    ("reproduce digits --out new --teacher new", others, "new is read, and is new"),
)
def test_nobody_loses_work(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)


def test_what_is_overwritten_is_what_the_verb_wrote(here: Path) -> None:
    out = here / "runs" / "student"
    before = (out / "model.safetensors").read_bytes()
    edit(out / "config.json", notes={"mine": 1})
    (out / "README.md").write_text("precious")
    kept = out / "training" / "regression" / "step-best"
    kept.mkdir()
    (here / "disk").mkdir()
    out.rename(here / "disk" / "student")
    out.symlink_to(here / "disk" / "student")
    ran = dsno("distill", "--overwrite", *QUICK, at=here)
    assert ran.code == 0 and out.is_symlink() and (out / "README.md").read_text() == "precious"
    assert (out / "model.safetensors").read_bytes() == before and (
        out / "training" / "regression" / "step-best"
    ).is_dir()
    assert read_json(out / "config.json")["notes"]["method"] == "operator"
    assert not [p.name for p in here.rglob("*.lock")]


# How it ends


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals of posix")
def test_a_reader_that_has_read_enough_and_an_interrupt_are_no_failures() -> None:
    python = [sys.executable, "-W", "ignore", "-m"]
    dsno_ = [*python, "dsno", "cite", shipped()] if SHIPPED else [*python, "dsno", "methods"]
    with subprocess.Popen(dsno_, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(120), process.stderr.read()) == (141, b"")
    dsno_ = [*python, "dsno.cli", "--help"]
    # Where it is when it is interrupted is not known; whatever it is, it says nothing.
    with subprocess.Popen(dsno_, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        assert b"Traceback" not in said and process.returncode in (0, 130, -signal.SIGINT)
