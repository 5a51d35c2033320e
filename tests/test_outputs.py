"""A run overwrites what it wrote itself, and writes where nobody else does."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dsno.checkpoint import TEMPORARY, temporary_name, write_json
from dsno.outputs import (
    LOCK,
    STUDENT,
    TEACHER,
    TRAINING,
    check_apart,
    claimed,
    held,
    locked,
    prepare_folder,
    sweep,
    tidy,
    writable,
)


def student_in(folder: Path, stage: str = "operator") -> Path:
    """A student's folder, as `distill` writes it; what it holds is not looked at."""
    checkpoint = folder / "training" / stage / "step-00000020"
    checkpoint.mkdir(parents=True)
    for name in ("model", "average", "optimizer"):
        (checkpoint / f"{name}.safetensors").write_text("")
    write_json(checkpoint / "state.json", {"step": 20, "settings": {"stage": stage}})
    (folder / "training" / stage / "log.jsonl").write_text("")
    write_json(folder / "config.json", {"type": "student"})
    (folder / "model.safetensors").write_text("")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def test_an_output_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    out = prepare_folder(tmp_path / "a" / "out")
    assert list(out.iterdir()) == []
    student_in(out)
    with pytest.raises(FileExistsError, match="exists already: pass resume=True to continue it or overwrite=True"):
        prepare_folder(out)
    prepare_folder(out, resume=True)
    assert len(files(out)) == 7
    prepare_folder(out, overwrite=True)
    assert list(out.iterdir()) == []
    with pytest.raises(ValueError, match="resume continues what is there and overwrite throws it away"):
        prepare_folder(out, resume=True, overwrite=True)


def test_what_others_put_there_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = student_in(tmp_path / "out")
    foreign = (
        "README.md",
        "training/operator/step-best/model.safetensors",
        "training/operator/step-00000003-keep/state.json",
        "training/operator/notes.txt",
        "training/operator-copy/step-00000020/model.safetensors",
        "training/mine/log.jsonl.gz",
        "step-00000001/model.safetensors",
    )
    for name in foreign:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("precious")
    prepare_folder(out, overwrite=True, kind=STUDENT)
    assert files(out) == sorted(foreign)
    assert "kept what is not of a student: README.md, step-00000001, training" in caplog.text


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    student_in(runs / "student")
    (runs / "notes.txt").write_text("precious")
    before = files(runs)
    with pytest.raises(FileExistsError, match=r"holds other files \(notes.txt, student\) and not a student: choose an"):
        prepare_folder(runs, overwrite=True, kind=STUDENT)
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="holds a student, not a teacher: choose another folder"):
            prepare_folder(runs / "student", kind=TEACHER, **how)
    write_json(runs / "config.json", {"_class_name": "UNet2DModel"})
    with pytest.raises(FileExistsError, match="holds a foreign model, not a student"):
        prepare_folder(runs, overwrite=True, kind=STUDENT)
    (runs / "config.json").write_text("{")
    with pytest.raises(FileExistsError, match=r"config\.json is not valid JSON .*remove it, or choose another"):
        prepare_folder(runs, overwrite=True, kind=STUDENT)
    (runs / "config.json").unlink()
    assert files(runs) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_is_overwritten(tmp_path: Path) -> None:
    stage = tmp_path / "training" / "operator"
    stage.mkdir(parents=True)
    for begin in (lambda: None, (stage / ".step-00000002.tmp").mkdir, (stage / "log.jsonl").touch):
        begin()
        prepare_folder(tmp_path, overwrite=True, kind=STUDENT)
    assert not (stage / "log.jsonl").exists()


def test_weights_alone_are_not_taken_for_a_students(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(FileExistsError, match=r"holds other files \(model\.safetensors\) and not a student"):
        prepare_folder(tmp_path, overwrite=True, kind=STUDENT)
    assert files(tmp_path) == ["model.safetensors"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    student_in(tmp_path / "disk")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    prepare_folder(tmp_path / "run", overwrite=True, kind=STUDENT)
    assert (tmp_path / "run").is_symlink() and list((tmp_path / "disk").iterdir()) == []


def test_the_working_directory_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (student_in(tmp_path) / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    before = files(tmp_path)
    for path in ("..", tmp_path):
        with pytest.raises(FileExistsError, match="holds the working directory"):
            prepare_folder(path, overwrite=True)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file: expected a folder"):
        writable(tmp_path / "file")
    # A path through a file: even root cannot write there.
    with pytest.raises(PermissionError, match=r"cannot write to .*: choose another output folder"):
        writable(tmp_path / "file" / "out")


def test_an_output_that_is_or_holds_an_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/teacher", "runs/images"):
        Path(name).mkdir(parents=True)
    Path("runs/net.py").write_text("")
    Path("link").symlink_to("runs")
    for out, given, where in [
        ("runs", "runs/teacher", "lies in runs"),
        ("runs/", tmp_path / "runs", "is runs"),
        ("link", "runs/images", "lies in link"),
        ("runs", "link/images", "lies in runs"),
        ("runs", "runs/net.py:make", "lies in runs"),
        ("runs", f"file://{tmp_path}/runs/images", "lies in runs"),
    ]:
        with pytest.raises(FileExistsError, match=f"is read, and {where}"):
            check_apart(out, "nowhere", given)
    Path("digits").mkdir()
    check_apart("runs/student", "runs/teacher", "runs", None, "org/name", "hf://datasets/org/name", "")
    check_apart("digits", "digits")  # the data set of that name


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", TRAINING):
        assert files(tmp_path / "out") == [LOCK]
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with (
                pytest.raises(BlockingIOError, match=r"another run is writing to .*out: wait for its end"),
                claimed(tmp_path / "out", TRAINING, **how),
            ):
                pass
        with claimed(tmp_path / "out" / "below", TRAINING):
            pass
    assert not (tmp_path / "out" / LOCK).exists()
    with claimed(tmp_path / "out", TRAINING, resume=True):
        pass


def test_the_lock_of_a_run_that_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from dsno.outputs import claimed\n"
        "with claimed(sys.argv[1]): print(flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "out" / LOCK).exists()
    with claimed(tmp_path / "out"):
        pass


def test_who_waits_for_a_lock_gets_it_when_it_is_given_back(tmp_path: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with locked(tmp_path / LOCK, "it", timeout=-1):
            order.append("second")

    with locked(tmp_path / LOCK, "it"):
        thread = threading.Thread(target=wait)
        thread.start()
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"] and not (tmp_path / LOCK).exists()


def test_what_a_killed_run_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    left = [temporary_name(name) for name in ("model.safetensors", "config.json", "probe")]
    kept = [".model.safetensors.tmp", ".hidden.tmp", "a.0123.tmp", f".x.{'0' * 31}g.tmp", ".step-best.tmp"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("")
    (tmp_path / ".step-00000015.tmp").mkdir()
    (tmp_path / ".step-00000015.tmp" / "model.safetensors").write_text("")
    assert held(tmp_path) == ["a.0123.tmp"]
    with claimed(tmp_path, resume=True):
        assert files(tmp_path) == sorted([*kept, LOCK])
    # A killed run that wrote nothing else does not stop the next one.
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / left[0]).write_text("")
    with claimed(tmp_path / "new"):
        pass
    assert files(tmp_path / "new") == [] and all(TEMPORARY.fullmatch(name) for name in left)


def test_only_the_temporaries_of_one_file_are_swept_beside_others(tmp_path: Path) -> None:
    own, other = temporary_name("a.pt2"), temporary_name("b.pt2")
    for name in (own, other):
        (tmp_path / name).mkdir()
    sweep(tmp_path, "a.pt2.")
    assert [p.name for p in tmp_path.iterdir()] == [other]


def test_the_other_processes_of_a_run_leave_the_folder_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student_in(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with claimed(tmp_path, STUDENT, overwrite=True):
        assert (tmp_path / "config.json").exists() and not (tmp_path / LOCK).exists()


# What a failure leaves


def test_a_run_that_fails_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    for out in ("a/b/c", "before/d", "before"):
        with pytest.raises(ZeroDivisionError), tidy():
            writable(tmp_path / out)
            1 / 0  # noqa: B018
    assert [p.name for p in tmp_path.rglob("*")] == ["before"]
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "e" / "f"):
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), tidy():
        with tidy():
            writable(tmp_path / "g")
        1 / 0  # noqa: B018
    assert [p.name for p in tmp_path.rglob("*")] == ["before"]


def test_what_a_run_wrote_before_it_failed_stays(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), tidy():
        (writable(tmp_path / "a" / "b") / "file").write_text("kept")
        writable(tmp_path / "a" / "c")
        1 / 0  # noqa: B018
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "file"]
    with tidy():
        writable(tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()
