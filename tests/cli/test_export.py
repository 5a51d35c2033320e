"""`dsno export`: a student leaves."""

from pathlib import Path

from dsno.checkpoint import read_json
from refusals import Spoil, refusals, refuses
from shell import dsno


def test_a_student_leaves(here: Path) -> None:
    ran = dsno("export", "--student", "runs/student", "--out", "student.pt2", at=here)
    assert ran.code == 0 and read_json(here / "student.pt2.json")["shape"] == [1, 8, 8]


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
