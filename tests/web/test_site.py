"""A site is complete or is not there, and is written over nothing else."""

import json
from pathlib import Path

import pytest
import torch

import planned
from dsno.denoise import Prediction, Threshold
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.web import site
from dsno.web.graphs import WEIGHTS
from dsno.web.plans import RESTORING, STEPS
from dsno.web.site import MANIFEST, SITE, unfit, write_site


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sites without what takes long: the runtime, and graphs."""
    (tmp_path / "ort.mjs").write_text("runtime")

    def written(folder: Path, networks: dict[str, object]) -> dict[str, float]:
        for name in (*(f"{name}.onnx" for name in networks), WEIGHTS):
            (folder / name).write_bytes(b"graph")
        return dict.fromkeys(networks, 1e-6)

    monkeypatch.setattr(site, "find_runtime", lambda folder: {"ort.mjs": tmp_path / "ort.mjs"})
    monkeypatch.setattr(site, "write_graphs", written)


def test_a_site_names_its_files_and_says_what_its_samplers_are(light: None, tmp_path: Path) -> None:
    student, teacher = planned.operator(classes=3, guidance=True), planned.teacher(classes=3, null=True, clip=2.0)
    out = write_site(tmp_path / "deep" / "site", student, teacher, "Tiny", weights=(0.0, float("inf")))
    held = json.loads((out / MANIFEST).read_text())
    names = sorted(path.name for path in out.iterdir())
    assert sorted([*held["files"], MANIFEST]) == names
    assert {"index.html", "main.js", "style.css", "ort.mjs", "student.onnx", "wall.onnx", "teacher.onnx"} <= {*names}
    assert (held["title"], held["shape"], held["classes"], held["guidance"]) == ("Tiny", [1, 4, 4], 3, [0.0, 8.0])
    assert [*held["student"]["passes"]] == ["1", "2", "3", "4"] and held["student"]["wall"] == held["student"]["passes"]
    assert held["teacher"]["null"] == 3 and held["teacher"]["clip"] == 2.0
    assert [(s["name"], [*map(int, s["steps"])]) for s in held["teacher"]["solvers"]] == [
        ("ddim", [*STEPS]),
        ("dpm2", [*STEPS]),
    ]
    assert [*map(int, held["teacher"]["restoring"])] == [*RESTORING] and len(held["teacher"]["restoring"]["5"]) == 5
    assert held["student"]["weights"] == sum(p.numel() for p in student.parameters())


def test_one_pass_alone_fills_the_wall_with_the_samples_output(light: None, tmp_path: Path) -> None:
    student = planned.operator().restarting(False).half()
    held = json.loads((write_site(tmp_path / "site", student) / MANIFEST).read_text())
    (one,), (wall,) = held["student"]["passes"]["1"], held["student"]["wall"]["1"]
    assert [len(row) for row in one["states"]] == [5] * 4 and [len(row) for row in wall["states"]] == [2]
    assert held["student"]["sample"] == [wall] and held["graphs"] == ["student", "wall", "sample"]
    assert held["teacher"] is None and "teacher.onnx" not in held["files"]
    assert next(student.parameters()).dtype == torch.float16


def test_a_site_is_replaced_when_asked_and_nothing_else_is(light: None, tmp_path: Path) -> None:
    out, student = tmp_path / "site", planned.decoder()
    write_site(out, student)
    with pytest.raises(FileExistsError, match="site exists already: pass overwrite=True to start again"):
        write_site(out, student)
    (out / "notes.txt").write_text("precious")
    (out / "old.js").write_text("of an earlier page")
    held = json.loads((out / MANIFEST).read_text())
    held["files"] += ["old.js", "../outside.txt"]
    (out / MANIFEST).write_text(json.dumps(held))
    (tmp_path / "outside.txt").write_text("precious")
    write_site(out, student, overwrite=True)
    assert (out / "notes.txt").exists() and (tmp_path / "outside.txt").exists() and not (out / "old.js").exists()
    (other := tmp_path / "other").mkdir()
    (other / MANIFEST).write_text('{"mine": 1}')
    assert SITE.own(other) == []
    with pytest.raises(FileExistsError, match=r"other holds other files \(model.json\) and not a site"):
        write_site(other, student, overwrite=True)


def test_what_fails_leaves_nothing(light: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path, networks: dict[str, object]) -> None:
        (folder / "student.onnx").write_bytes(b"half")
        raise ValueError("no graph")

    monkeypatch.setattr(site, "write_graphs", fails)
    with pytest.raises(ValueError, match="no graph"):
        write_site(tmp_path / "site", planned.flow_map())
    assert not (tmp_path / "site").exists()


def test_what_no_page_can_show_is_refused(light: None, tmp_path: Path) -> None:
    signals = Prediction(UNet(1, (8,), (4,), attention=()), Cosine(), "v")
    with pytest.raises(ValueError, match=r"a page shows pictures \(1 or 3, H, W\), and these samples are \(1, 8\)"):
        write_site(tmp_path / "site", planned.student_from_teacher(signals, [0.5, 0.0]))
    student, guided = planned.operator(), planned.operator(classes=3, guidance=True)
    assert unfit(student, planned.teacher()) == ""
    assert "makes (1, 8), and the student (1, 4, 4)" in unfit(student, signals)
    assert "is told one of 3 classes, the student of no" in unfit(student, planned.teacher(classes=3))
    assert "is not known: pass null" in unfit(guided, planned.teacher(classes=3))
    assert unfit(guided, planned.teacher(classes=3), 2) == ""
    clipped = planned.teacher()
    clipped.clip = Threshold()
    assert "thresholded by their quantiles" in unfit(student, clipped)
    with pytest.raises(ValueError, match="thresholded"):
        write_site(tmp_path / "site", student, clipped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "LARGEST", 100)
        assert "and a page loads 0 MB at most" in unfit(student, planned.teacher())
    assert not (tmp_path / "site").exists()
