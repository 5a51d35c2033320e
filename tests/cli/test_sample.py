"""`dsno sample` beyond one pass: from inner starts to several passes, and the teacher's exact samples."""

import re
from pathlib import Path

import pytest

import shell
from dsno.checkpoint import read_json
from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.students.files import load_student
from dsno.teachers.native import save_teacher


def dsno(*arguments: object, at: Path) -> tuple[int | str | None, str]:
    """What `dsno ARGUMENTS` does in the folder `at`: the exit code, and what it prints."""
    ran = shell.dsno(*arguments, at=at)
    return ran.code, ran.err + ran.out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and its trajectories."""
    root = tmp_path_factory.mktemp("passes")
    save_teacher(root / "runs" / "teacher", Prediction(UNet(1, 8, (4, 8), attention=()), Cosine(), "v"))
    code, _ = dsno("generate", "--targets", "x0", "state", "--count", 32, "--steps", 6, "--device", "cpu", at=root)
    assert code == 0
    return root


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_student_of_inner_starts_makes_several_passes(share: float, runs: Path) -> None:
    out = f"student-{share}"
    code, _ = dsno("distill", "--inner-starts", share, "--out", out, "--batch", 16, "--train.steps", 4, at=runs)
    assert code == 0 and load_student(runs / out).restarts == (share > 0)
    assert ("restarts" in read_json(runs / out / "config.json")) == (share > 0)
    sample = ("sample", "--student", out, "--count", 4, "--device", "cpu", "--overwrite")
    code, said = dsno(*sample, at=runs)
    assert code == 0 and "4 samples in one pass, " in said
    picture = (runs / "samples.png").read_bytes()
    code, said = dsno(*sample, "--passes", 3, at=runs)
    if share:
        assert code == 0 and "4 samples in 3 passes, " in said
        assert (runs / "samples.png").read_bytes() != picture
    else:
        assert code == 2 and "from noise alone, in one pass" in said


@pytest.mark.parametrize(
    "passes, message",
    [
        (
            2,
            "this student starts from noise alone, in one pass: for more, distil one with inner starts (`dsno distill",
        ),
        (5, "a student of 4 frames makes 1 to 4 passes, got 5"),
        (0, "a student of 4 frames makes 1 to 4 passes, got 0"),
    ],
)
def test_the_shipped_student_makes_one_pass(passes: int, message: str, tmp_path: Path) -> None:
    code, said = dsno("sample", "--passes", passes, "--count", 2, "--device", "cpu", at=tmp_path)
    assert code == 2 and message in said and len(said.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


# Exact samples


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("picard", ("--window", 4), ["Picard, chain of 8 steps, eta 0", "RMS over pixels to the sequential chain"]),
        ("taa", ("--order", 3, "--memory", 3, "--draft", "shipped"), ["; and 1.0 passes of the draft", "worst"]),
        ("srds", ("--blocks", 4, "--eta", 1), ["SRDS, chain of 8 steps, eta 1", "error"]),
        ("speculative", ("--window", 3), ["eta 1", "% of a window on average; the law is the chain's"]),
        ("taa", ("--limit", 7, "--no-verify"), ["rounds", "rows"]),
    ],
)
def test_exact_samples_say_what_they_cost(
    method: str, options: tuple[object, ...], said: list[str], tmp_path: Path
) -> None:
    common = ("--steps", 8, "--count", 3, "--device", "cpu")
    code, text = dsno("sample", "--exact", method, *common, *options, at=tmp_path)
    assert code == 0 and (tmp_path / "samples.png").is_file(), text
    assert all(part in text for part in (*said, "network evaluations a sample (8 sequentially)"))
    assert ("RMS over pixels" in text) == (method != "speculative" and "--no-verify" not in options)


def test_more_samples_than_a_batch(tmp_path: Path) -> None:
    options = ("--exact", "speculative", "--steps", 4, "--count", 66, "--device", "cpu")
    code, text = dsno("sample", *options, at=tmp_path)
    assert code == 0 and "66 samples" in text, text


def test_the_default_tolerance_holds_on_the_shipped_teacher(tmp_path: Path) -> None:
    code, text = dsno("sample", "--exact", "taa", "--steps", 12, "--count", 4, "--device", "cpu", at=tmp_path)
    worst = re.search(r"worst ([\d.e-]+), RMS", text)
    assert code == 0 and worst is not None and float(worst[1]) <= 1e-3


def test_a_receding_draft_needs_a_student_that_restarts(runs: Path) -> None:
    code, _ = dsno("distill", "--inner-starts", 0.5, "--out", "again", "--batch", 16, "--train.steps", 2, at=runs)
    receding = ("sample", "--exact", "receding", "--steps", 6, "--count", 2, "--overwrite", "--device", "cpu")
    code, text = dsno(*receding, "--teacher", "runs/teacher", "--draft", "again", at=runs)
    assert code == 0 and "Receding, chain of 6 steps" in text
    code, text = dsno(*receding, at=runs)
    assert code == 2 and "give the folder of one with inner starts, --draft FOLDER" in text
    code, text = dsno(*receding, "--draft", "shipped", at=runs)
    assert code == 2 and "this student starts from noise alone" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--exact", "taa", "--tolerance", 0), "tolerance must be positive"),
        (("--exact", "picard", "--window", 0), "the window must be at least 1 step"),
        (("--exact", "taa", "--order", 9, "--steps", 8), "order must be from 1 to the chain's 8 steps, got 9"),
        (("--exact", "srds", "--blocks", 3, "--steps", 8), "3"),
        (("--exact", "speculative", "--eta", 0), "speculative sampling needs a chain with noise, got eta = 0"),
        (("--exact", "taa", "--blocks", 4), "--blocks is no option of taa, which takes --tolerance, --window, --order"),
        (("--tolerance", 0.1), "--tolerance is an option of exact samplers: say which, --exact taa for example"),
        (("--exact", "taa", "--guidance", 1), "--guidance needs a condition"),
        (("--exact", "taa", "--draft", "nowhere"), "nowhere"),
        (("--exact", "taa", "--limit", 0), "limit must be at least 1"),
        (("--exact", "taa", "--passes", 3), "--passes is of a student's own samples"),
        (("--exact", "taa", "--student", "x"), "--student is of a student's own samples"),
        (("--steps", 50), "--steps is an option of exact samplers"),
    ],
)
def test_bad_input_of_exact_samplers(options: tuple[object, ...], message: str, tmp_path: Path) -> None:
    code, text = dsno("sample", "--count", 2, "--device", "cpu", *options, at=tmp_path)
    assert code == 2 and message in text, text
    assert not [*tmp_path.iterdir()]
