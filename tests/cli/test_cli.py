"""The whole command line: every verb teaches, leads to the next one, and is told apart from what is none."""

import shlex
import shutil
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsno import cli
from dsno.checkpoint import read_json
from dsno.distillation import run
from dsno.measure.results import load_results
from dsno.report import compare
from dsno.runs import teach
from dsno.students.files import load_student
from dsno.teachers.load import load_teacher
from dsno.trajectories.sets import TrajectorySet
from shell import Ran, dsno

VERBS = cli.VERBS
SHIPPED = (Path(cli.__file__).parents[1] / "weights" / "digits").is_dir()


def test_each_verb_leads_to_the_next(road: tuple[Path, dict[str, Ran]]) -> None:
    root, ran = road
    assert {verb: r.code for verb, r in ran.items()} == dict.fromkeys(ran, 0)
    assert [ran[verb].following[0] for verb in list(ran)[:-1]] == list(ran)[1:]
    runs = root / "runs"
    assert len(TrajectorySet(runs / "trajectories", verify=True)) == 64
    assert read_json(runs / "teacher" / "config.json")["notes"]["training"]["steps"] == 6
    assert load_student(runs / "student").frames == 4
    assert Image.open(root / "samples.png").size[0] > 100
    results = load_results(runs / "evaluation" / "results.json")
    assert results[0].name == "DSNO" and {r.protocol.count for r in results} == {8}
    assert all(r.name in ran["evaluate"].out for r in results) and "…" not in ran["evaluate"].out
    assert (runs / "evaluation" / "report.html").read_text().startswith("<!doctype html>")


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


def as_it_is(model: torch.nn.Module, *arguments: object, **options: object) -> torch.nn.Module:
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
    elif verb == "sample":
        assert names["images"].shape == (64, 1, 8, 8) and bool(names["images"].isfinite().all())
    else:
        assert {"teach": load_teacher, "convert": load_teacher, "generate": TrajectorySet, "distill": load_student}[
            verb
        ](here / "runs" / made)


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
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsno.cli.teach.teach", interrupted)
    ran = dsno("teach", at=tmp_path)
    assert ran.code == 130 and ran.err.strip().splitlines() == [
        "dsno: stopped; run the same command again, with --resume where it has one"
    ]
