"""`dsno sample --exact`: the teacher's own samples in few rounds."""

import re
from pathlib import Path

import pytest

from shell import dsno


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("picard", ("--window", 4), ["Picard, chain of 8 steps, eta 0", "RMS over pixels to the sequential chain"]),
        ("taa", ("--order", 3, "--memory", 3, "--draft", "digits"), ["; and 1.0 passes of the draft", "worst"]),
        ("srds", ("--blocks", 4, "--eta", 1), ["SRDS, chain of 8 steps, eta 1", "error"]),
        ("speculative", ("--window", 3), ["eta 1", "% of a window on average; the law is the chain's"]),
        ("taa", ("--limit", 7, "--no-verify"), ["rounds", "rows"]),
    ],
)
def test_exact_samples_say_what_they_cost(
    method: str, options: tuple[object, ...], said: list[str], tmp_path: Path
) -> None:
    common = ("--steps", 8, "--count", 3, "--device", "cpu")
    ran = dsno("sample", "--exact", method, *common, *options, at=tmp_path)
    assert ran.code == 0 and (tmp_path / "samples.png").is_file(), ran.said
    assert all(part in ran.said for part in (*said, "network evaluations a sample (8 sequentially)"))
    assert ("RMS over pixels" in ran.said) == (method != "speculative" and "--no-verify" not in options)


def test_more_samples_than_a_batch(tmp_path: Path) -> None:
    options = ("--exact", "speculative", "--steps", 4, "--count", 66, "--device", "cpu")
    ran = dsno("sample", *options, at=tmp_path)
    assert ran.code == 0 and "66 samples" in ran.said, ran.said


def test_the_default_tolerance_holds_on_the_shipped_teacher(tmp_path: Path) -> None:
    ran = dsno("sample", "--exact", "taa", "--steps", 12, "--count", 4, "--device", "cpu", at=tmp_path)
    worst = re.search(r"worst ([\d.e-]+), RMS", ran.said)
    assert ran.code == 0 and worst is not None and float(worst[1]) <= 1e-3


def test_a_receding_draft_needs_a_student_that_restarts(runs: Path) -> None:
    ran = dsno("distill", "--inner-starts", 0.5, "--out", "again", "--batch", 16, "--train.steps", 2, at=runs)
    assert ran.code == 0, ran.said
    receding = ("sample", "--exact", "receding", "--steps", 6, "--count", 2, "--overwrite", "--device", "cpu")
    ran = dsno(*receding, "--teacher", "runs/teacher", "--draft", "again", at=runs)
    assert ran.code == 0 and "Receding, chain of 6 steps" in ran.said
    ran = dsno(*receding, at=runs)
    assert ran.code == 2 and "give the folder of one with inner starts, --draft FOLDER" in ran.said
    ran = dsno(*receding, "--draft", "digits", at=runs)
    assert ran.code == 0 and "Receding, chain of 6 steps" in ran.said
    assert dsno("distill", "--out", "once", "--batch", 16, "--train.steps", 2, at=runs).code == 0
    ran = dsno(*receding, "--teacher", "runs/teacher", "--draft", "once", at=runs)
    assert ran.code == 2 and "this student starts from noise alone" in ran.said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--exact", "taa", "--tolerance", 0), "tolerance must be positive"),
        (("--exact", "picard", "--window", 0), "--window must be at least 1 step"),
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
    ran = dsno("sample", "--count", 2, "--device", "cpu", *options, at=tmp_path)
    assert ran.code == 2 and message in ran.said, ran.said
    assert not [*tmp_path.iterdir()]
