"""A start by command: trained for a problem, and restored from by the command that it says; and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.bridge.coefficients import BrownianBridge
from dsno.bridge.files import save_bridge
from dsno.bridge.prediction import BridgePrediction
from dsno.checkpoint import read_json
from dsno.grids import uniform
from dsno.inverse.operators import Downsample
from dsno.inverse.start import LearnedStart, OneJump
from dsno.inverse.start_net import PHASES, NoisePredictor, load_start, save_start, start_grid
from dsno.nets.paired import PairedUNet
from dsno.runs.start import fingerprint
from dsno.seeds import noise, seed_range
from dsno.students.files import load_student, save_student
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.operator import student_from_teacher
from dsno.teachers.load import load_teacher
from shell import QUICK, dsno


def test_a_start_is_trained_and_the_command_it_says_restores(tmp_path: Path) -> None:
    asked = ("--start", "digits", "--factor", 2, "--noise", 0.05, "--channels", 8, "--out", "begun")
    ran = dsno("teach", *asked, *QUICK, at=tmp_path)
    assert ran.code == 0, ran.said
    assert load_start(tmp_path / "begun").shape == (1, 8, 8)
    notes = read_json(tmp_path / "begun" / "config.json")["notes"]
    assert notes["problem"] == "Downsample(factor=2, kind='average', noise=0.05)"
    (tmp_path / "small").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)).save(tmp_path / "small/a.png")
    restoring = ["small" if word == "PICTURES" else word for word in ran.following]
    assert restoring[:2] == ["restore", "small"] and restoring[-2:] == ["--start", "begun"]
    assert dsno(*restoring, "--out", "out", "--device", "cpu", at=tmp_path).code == 0
    held = read_json(tmp_path / "out" / "restored.json")
    assert (held["method"], held["steps"], held["cost"]["rounds"]) == ("start", 1, 1)
    assert "yue2025arbitrary" in dsno("cite", "begun", at=tmp_path).said


def test_a_student_takes_the_place_of_the_teacher_and_restores_in_one_pass(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8))
    teacher = load_teacher("digits")
    save_student(tmp_path / "operator", student_from_teacher(teacher, [0.5, 0.0]))
    save_student(tmp_path / "map", flow_map_from_teacher(teacher))
    for name, phases in (("operator", (1.0,)), ("map", PHASES)):
        asked = ("--start", name, "--factor", 2, "--channels", 8, "--out", f"of-{name}")
        ran = dsno("teach", *asked, *QUICK, at=tmp_path)
        assert ran.code == 0, ran.said
        net = load_start(tmp_path / f"of-{name}")
        assert net.phases == phases
        restoring = ["small.npy" if word == "PICTURES" else word for word in ran.following]
        ran = dsno(*restoring, "--out", f"by-{name}", "--device", "cpu", at=tmp_path)
        assert ran.code == 0 and "was trained for" not in ran.said, ran.said
        held = read_json(tmp_path / f"by-{name}" / "restored.json")
        assert (held["cost"]["rounds"], held["cost"]["rows"], held["kind"]) == (1, 3, teacher.kind)
        y = torch.from_numpy(np.load(tmp_path / "small.npy").transpose(0, 3, 1, 2) / 127.5 - 1).float()
        grid = uniform(1) if name == "operator" else start_grid(teacher.schedule, 1)
        jump = OneJump(load_student(tmp_path / name))
        z = noise(seed_range(0, 1), (1, 8, 8)).expand(3, -1, -1, -1)
        made = LearnedStart(grid, net)(jump, teacher.schedule, Downsample(2), y, z)
        found = np.load(tmp_path / f"by-{name}" / "restored.npy")
        assert np.abs(found - made.x.clamp(-1, 1).numpy()).max() < 1e-5
    for arguments, message in (
        (("--teacher", "operator", "--start", "of-operator", "--steps", 2), "--steps must be 1: this student starts"),
        (("--teacher", "operator"), "operator is a student, which restores from a learned start: give --start"),
        (("--teacher", "map", "--start", "of-map", "--label", 1, "--guidance", 2), "label 1 is outside the classes of"),
    ):
        ran = dsno("restore", "small.npy", "--problem", "super", "--factor", 2, *arguments, "--out", "x", at=tmp_path)
        assert ran.code != 0 and message in ran.said and not (tmp_path / "x").exists(), ran.said


def test_a_start_for_another_problem_is_told_of_and_one_for_another_shape_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.random.default_rng(0).integers(0, 256, (1, 4, 4, 1), dtype=np.uint8))
    net = {"in_channels": 1, "channels": [8], "attention": []}
    save_start(tmp_path / "four", NoisePredictor({**net, "image_size": 8}), problem=fingerprint(Downsample(4)))
    save_start(tmp_path / "large", NoisePredictor({**net, "image_size": 16}))
    given = ("restore", "small.npy", "--problem", "super", "--factor", 2, "--device", "cpu")
    ran = dsno(*given, "--start", "four", "--out", "out", at=tmp_path)
    assert ran.code == 0 and "four was trained for Downsample(factor=4, " in ran.err, ran.said
    assert "and this is Downsample(factor=2, kind='average', noise=0.0)" in ran.err
    ran = dsno(*given, "--start", "large", "--out", "none", at=tmp_path)
    assert ran.code != 0 and "trained for samples (1, 16, 16), and the teacher makes (1, 8, 8)" in ran.said


def test_a_start_for_latents_and_a_text_restores_pictures_of_any_size(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from pipelines import write_pipelines

    write_pipelines(tmp_path)
    draw = np.random.default_rng(0)
    np.save(tmp_path / "set.npy", draw.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "small.npy", draw.integers(0, 256, (2, 6, 7, 3), dtype=np.uint8))
    (tmp_path / "one.txt").write_text("a cat\n")
    (tmp_path / "two.txt").write_text("a cat\na dog\n")
    asked = ("teach", "--start", "sd", "--data", "set.npy", "--factor", 2, "--channels", 8, "--out", "begun", *QUICK)
    for given, message in (
        ((), "sd is told a text: give --prompts"),
        (("--prompts", "two.txt"), "two.txt holds 2 prompts, and a start is trained under one"),
    ):
        ran = dsno(*asked, *given, at=tmp_path)
        assert ran.code != 0 and message in ran.said and not (tmp_path / "begun").exists(), ran.said
    ran = dsno(*asked, "--prompts", "one.txt", at=tmp_path)
    assert ran.code == 0, ran.said
    assert load_start(tmp_path / "begun").shape == (4, 8, 8)
    restoring = ["small.npy" if word == "PICTURES" else word for word in ran.following]
    ran = dsno(*restoring, "--out", "out", "--device", "cpu", at=tmp_path)
    assert ran.code == 0 and "was trained for" not in ran.said and "differentiated" not in ran.said, ran.said
    held = read_json(tmp_path / "out" / "restored.json")
    assert (held["tiled"], held["cost"]["vjps"], held["cost"]["gradients"]) == (True, 0, 0)
    assert np.load(tmp_path / "out" / "restored.npy").shape == (2, 3, 12, 14)


@pytest.mark.parametrize(
    "given, message",
    [
        ("--factor 2", "--factor is of learned starts and of bridges: give --start TEACHER or --pairs CLEAN"),
        ("--prompts words.txt", "--prompts is of a learned start: give --start TEACHER"),
        ("--start digits --prompts words.txt", "digits is told no text: leave out --prompts"),
        ("--start digits --kind v", "--kind does not go with --start"),
        ("--start digits --pairs a b", "--pairs does not go with --start"),
        ("--start digits --problem inpaint", "inpaint needs one of --mask FILE"),
        ("--start digits --box 0.5", "--box is no option of the problem super"),
        ("--start digits --data wide.npy", "wide.npy has samples of shape (1, 16, 16), digits makes (1, 8, 8)"),
        ("--start nowhere", "nowhere"),
        ("--start bridge", "bridge holds a bridge, expected a teacher"),
    ],
)
def test_a_failure_is_one_line_and_touches_nothing(given: str, message: str, tmp_path: Path) -> None:
    save_bridge(tmp_path / "bridge", BridgePrediction(PairedUNet({"image_size": 8, "channels": [8]}), BrownianBridge()))
    np.save(tmp_path / "wide.npy", np.arange(4 * 256, dtype=np.int64).reshape(4, 16, 16).astype(np.uint8))
    ran = dsno("teach", *given.split(), *QUICK, "--out", "new", at=tmp_path)
    assert ran.code != 0 and message in ran.said, ran.said
    assert not (tmp_path / "new").exists()
