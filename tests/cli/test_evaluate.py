"""`dsno evaluate` and `dsno demo`: students and flow maps beside their teachers."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dsno.app.export import load_program
from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.measure.results import load_results
from dsno.report.compare import compare
from dsno.runs.features import train_features
from dsno.students.files import load_student
from refusals import Spoil, edit, refusals, refuses
from shell import QUICK, dsno


def test_a_flow_map_is_measured_and_exported(runs: Path, tmp_path: Path) -> None:
    ran = dsno("distill", "--method", "shortcut", "--out", "runs/map", *QUICK, at=runs)
    assert ran.code == 0, ran.said
    parts = ("--teacher", "runs/teacher", "--features", "runs/features", "--count", 8)
    ran = dsno("evaluate", "--student", "runs/map", *parts, "--passes", 1, 2, "--out", tmp_path / "e", at=runs)
    assert ran.code == 0, ran.said
    results = {result.name: result for result in load_results(tmp_path / "e" / "results.json")}
    assert [name for name in results if name.startswith("flow map")] == ["flow map-1", "flow map-2"]
    one, two = results["flow map-1"].cost, results["flow map-2"].cost
    assert (one.rounds, two.rounds) == (1, 2) and one.flops is not None and two.flops == 2 * one.flops
    assert "Few passes beside its teacher" in (tmp_path / "e" / "report.html").read_text()
    ran = dsno("cite", tmp_path / "e", at=runs)
    assert ran.code == 0 and "heusel2017gans" in ran.said and "lu2022dpmpp" in ran.said
    ran = dsno("export", "--student", "runs/map", "--out", tmp_path / "map.pt2", at=runs)
    assert ran.code == 0, ran.said
    made, z = load_student(runs / "runs" / "map"), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(load_program(tmp_path / "map.pt2")(z), made.sample(z), rtol=1e-4, atol=1e-4)
    assert read_json(tmp_path / "map.pt2.json")["times"] == [0.0]


def test_an_operator_is_measured_at_several_passes_and_against_what_was_held_out(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    distil = ("distill", "--inner-starts", 0.5, "--out", tmp_path / "student")
    assert dsno(*distil, *QUICK, at=runs).code == 0
    x = load_data("digits").x.numpy()
    np.savez(tmp_path / "some.npz", x[:1600])
    np.savez(tmp_path / "held.npz", x[1590:])
    data = ("--data", tmp_path / "some.npz", "--held-out", tmp_path / "held.npz", "--range", -1, 1)
    parts = ("--teacher", "runs/teacher", "--features", "runs/features", "--count", 8, "--out", tmp_path / "e")
    ran = dsno("evaluate", "--student", tmp_path / "student", *parts, *data, "--passes", 1, 2, at=runs)
    assert ran.code == 0, ran.said
    results = load_results(tmp_path / "e" / "results.json")
    assert [r.cost.rounds for r in results[:2]] == [1, 2]
    assert {(r.protocol.held_out_count, r.protocol.held_out_shared) for r in results} == {(207, 10)}
    assert "10 of the 207 held-out images are in the reference set, too" in caplog.text
    assert "copying" in ran.out and "meehan2020nonparametric" in dsno("cite", tmp_path / "e", at=runs).said
    # What cannot be measured takes the place of nothing.
    again = ("evaluate", "--student", tmp_path / "student", *parts, "--overwrite")
    ran = dsno(*again, "--held-out", 0.7, at=runs)
    assert ran.code == 2 and "--held-out must be an image set or a share of the data in (0, 0.5], got 0.7" in ran.err
    assert load_results(tmp_path / "e" / "results.json") == results
    ran = dsno(*again, "--passes", 9, at=runs)
    assert ran.code == 2 and "a student of 4 frames makes 1 to 4 passes, got 9" in ran.said


def test_a_student_of_classes_is_measured_under_guidance(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsno.cli.evaluate.compare", partial(compare, ddim=(1,), multistep=(), fine_steps=8, repeats=0))
    train_features(load_data("digits"), classes / "runs" / "features", steps=2, width=4)
    ran = dsno("sample", "--student", "runs/student", "--guidance", 1.5, "--count", 2, at=classes)
    assert ran.code == 0 and ran.following == ["evaluate", "--student", "runs/student", "--guidance", "1.5"]
    ran = dsno(*ran.following, "--count", 8, at=classes)
    assert ran.code == 0, ran.said
    student, ddim, *_ = load_results(classes / "runs" / "evaluation" / "results.json")
    assert student.protocol.told == "classes as often as in digits, guidance weight 1.5"
    assert (student.cost.nfe, ddim.cost.nfe, ddim.cost.rounds) == (1, 2, 1) and student.accuracy is not None
    written = (classes / "runs" / "evaluation" / "results.json").read_bytes()
    ran = dsno("evaluate", "--student", "runs/student", "--guidance", 9, "--overwrite", at=classes)
    assert ran.code == 2 and "runs/student was not trained for the guidance weight 9: expected 0" in ran.err
    assert (classes / "runs" / "evaluation" / "results.json").read_bytes() == written


# Refusals


@pytest.mark.parametrize("model", ["teacher", "student", "features"])
def test_an_unknown_key_of_any_model_is_named_with_the_nearest(model: str, here: Path) -> None:
    key, value = {"teacher": ("kind", "v"), "student": ("times", [0.0]), "features": ("net", {})}[model]
    edit(here / "runs" / model / "config.json", **{f"{key}s": value})
    parts = ("--teacher", "runs/teacher", "--student", "runs/student", "--features", "runs/features")
    ran = dsno("evaluate", *parts, "--out", "new", at=here)
    assert ran.code == 2 and len(ran.err.splitlines()) == 1
    assert f"unknown key '{key}s' in the configuration of" in ran.err and f"did you mean '{key}'?" in ran.err


@refusals(
    ("evaluate --count 8", None, "runs/evaluation exists already"),
    (
        "evaluate --student runs/student --guidance 1 --out new",
        None,
        "runs/student is told no class, and only students of classes are compared under guidance",
    ),
    ("evaluate --pairs a b --guidance 1 --out new", None, "--guidance does not go with --pairs: leave it out"),
    ("evaluate --out samples.png/evaluation", None, "cannot write to samples.png/evaluation"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
