"""A student's teacher is found where it was or beside the student, and another one is not taken for it."""

import shutil
from pathlib import Path

import pytest
import torch

from dsno.denoise import Guided, Prediction
from dsno.distillation.run import distill
from dsno.grids import quadratic
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.students.files import load_student, save_student
from dsno.students.operator import student_from_teacher
from dsno.students.origin import Origin, find_teacher, open_student, origin_of, origin_to_note, sha_of
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate


def teacher(seed: int = 0, side: int = 8) -> Prediction:
    torch.manual_seed(seed)
    return Prediction(UNet(1, side, (4, 8), attention=()), Cosine(), "v", shape=(1, side, side))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a teacher, its trajectories of seeds 5 to 12, and a student of them."""
    save_teacher(tmp_path / "runs" / "teacher", teacher())
    held = load_teacher(tmp_path / "runs" / "teacher")
    data = generate(held, tmp_path / "runs" / "data", 8, times=quadratic(2)[1:], steps=2, first_seed=5, grid="uniform")
    sources = {"teacher": str(tmp_path / "runs" / "teacher")}
    distill(held, data, tmp_path / "runs" / "student", config=TrainConfig(steps=1, warmup=0), batch=4, sources=sources)
    return tmp_path / "runs"


def test_a_student_notes_its_teacher_and_its_seeds(made: Path) -> None:
    origin = origin_of(made / "student")
    assert origin.sha == sha_of(load_teacher(made / "teacher")) and origin.seeds == (5, 13)
    assert origin.places[0] == str(made / "teacher")
    origin.check_unseen(13, 100)
    origin.check_unseen(0, 5)
    for first, count in ((0, 6), (12, 1), (7, 2), (0, 100)):
        with pytest.raises(ValueError, match=r"was trained on the noises of 5 to 12; take others"):
            origin.check_unseen(first, count)
    Origin(made / "student").check_unseen(0, 100)


def test_its_teacher_is_found_where_it_was_or_where_both_went(made: Path, tmp_path: Path) -> None:
    assert Path(find_teacher(made / "student")).resolve() == made / "teacher"
    shutil.copytree(made / "student", tmp_path / "alone")
    assert find_teacher(tmp_path / "alone") == str(made / "teacher")
    shutil.move(made, tmp_path / "moved")
    assert Path(find_teacher(tmp_path / "moved" / "student")).resolve() == tmp_path / "moved" / "teacher"
    with pytest.raises(
        FileNotFoundError, match=r"the teacher of .*alone is needed, and .*teacher is not there any more: "
    ):
        find_teacher(tmp_path / "alone")


def test_its_teacher_is_looked_for_only_where_that_is_allowed(made: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the teacher of .*student is needed"):
        find_teacher(made / "student", allowed=lambda place: False)
    shutil.copytree(made / "teacher", made.parent / "teacher")
    shutil.move(made / "student", made.parent / "student")
    found = find_teacher(made.parent / "student", allowed=lambda place: not Path(place).is_relative_to(made))
    assert found == str(made.parent / "teacher")


def test_another_teacher_in_its_place_is_not_taken_for_it(made: Path, tmp_path: Path) -> None:
    shutil.move(made / "teacher", tmp_path / "kept")
    save_teacher(made / "teacher", teacher(seed=1))
    with pytest.raises(FileNotFoundError, match="has other weights than the teacher that .*: give that one, --teacher"):
        find_teacher(made / "student")


def test_an_older_student_has_what_lies_beside_it(tmp_path: Path) -> None:
    save_teacher(tmp_path / "teacher", teacher())
    save_student(tmp_path / "student", student_from_teacher(teacher(), (0.5, 0.0)))
    assert origin_of(tmp_path / "student").seeds is None
    assert find_teacher(tmp_path / "student") == str(tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(FileNotFoundError, match="its folder does not say which: give it, --teacher"):
        find_teacher(tmp_path / "student")


def test_an_adapter_opens_with_the_teacher_that_it_notes(tmp_path: Path) -> None:
    save_teacher(tmp_path / "own", teacher())
    student = student_from_teacher(teacher(), (0.5, 0.0))
    student.net.freeze_backbone()
    note = origin_to_note(tmp_path / "adapter", teacher(), str(tmp_path / "own"), None)
    save_student(tmp_path / "adapter", student, adapter_only=True, origin=note)
    z = torch.randn(2, 1, 8, 8)
    assert torch.equal(open_student(tmp_path / "adapter").sample(z), student.eval().sample(z))
    with pytest.raises(ValueError, match="the weights of the one given differ"):
        save_teacher(tmp_path / "other", teacher(seed=1))
        open_student(tmp_path / "adapter", str(tmp_path / "other"))


def test_a_teacher_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_student(tmp_path / "student", student_from_teacher(teacher(), (0.5, 0.0)))
    save_teacher(tmp_path / "wide", teacher(side=16))
    assert open_student(tmp_path / "student").shape == load_student(tmp_path / "student").shape == (1, 8, 8)
    with pytest.raises(
        ValueError, match=r"wide makes \(1, 16, 16\), and the student \(1, 8, 8\): give its own teacher"
    ):
        open_student(tmp_path / "student", str(tmp_path / "wide"))
    pipeline = tmp_path / "pipeline"
    (pipeline / "unet").mkdir(parents=True)
    (pipeline / "model_index.json").write_text("{}")
    (pipeline / "unet" / "config.json").write_text('{"in_channels": 4}')
    with pytest.raises(ValueError, match=r"makes \(4, 8, 8\), and the student \(1, 8, 8\)"):
        open_student(tmp_path / "student", str(pipeline))


def test_the_checksum_is_that_of_the_weights_under_guidance(tmp_path: Path) -> None:
    assert sha_of(Guided(teacher(), torch.tensor(0), 1.0)) == sha_of(teacher()) != sha_of(teacher(seed=1))
    assert sha_of(lambda x, t, cond=None: x) is None
    note = origin_to_note(tmp_path, None, "org/name", None)
    assert note == {"teacher": {"name": "org/name", "sha256": None}}


def test_code_that_a_note_names_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nteacher = None\n")
    for name in (f"{tmp_path / 'theirs.py'}:teacher", "os.path:abspath"):
        note = {"teacher": {"name": name, "path": name, "sha256": None}}
        save_student(tmp_path / "student", student_from_teacher(teacher(), (0.5, 0.0)), origin=note)
        with pytest.raises(FileNotFoundError, match="is code, which is run if you name it: give it, --teacher"):
            find_teacher(tmp_path / "student")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("origin", [[], {"teacher": 1}, {"teacher": {"path": []}}, {"seeds": [1]}, {"seeds": ["a", 2]}])
def test_notes_of_another_form_are_refused(origin: object, tmp_path: Path) -> None:
    save_student(tmp_path, student_from_teacher(teacher(), (0.5, 0.0)), origin=origin)
    with pytest.raises(ValueError, match=r"the notes of .* must be "):
        origin_of(tmp_path)
