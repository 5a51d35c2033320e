"""`dsno export`: a student leaves."""

from pathlib import Path

import pytest

from dsno.checkpoint import read_json
from refusals import Spoil, refusals, refuses
from shell import dsno


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_a_student_leaves_without_a_word_of_the_libraries(
    form: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = dsno("export", "--student", "runs/student", "--out", f"student.{form}", at=here)
    assert ran.code == 0 and read_json(here / f"student.{form}.json")["shape"] == [1, 8, 8]
    said = f"sampler in student.{form}, described in student.{form}.json\nnext: dsno sample --student runs/student\n"
    assert (ran.out, ran.err, capfd.readouterr()) == (said, "", ("", ""))


def a_folder(here: Path) -> None:
    (here / "runs.pt2").mkdir()


@refusals(
    ("export --student runs/student --out student.txt", None, "student.txt is neither .onnx nor .pt2"),
    ("export --student runs/student --out new.pt2 --batch 0", None, "batch must be at least 1, got 0"),
    ("export --student runs/student --out runs.pt2", a_folder, "runs.pt2 is a folder: name a file"),
    ("export --student runs/teacher --out new.pt2", None, "runs/teacher holds a teacher, expected a student"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
