"""`dsno features`, and the road of pictures of one's own: from a folder to an evaluation, by the command line alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsno import cli
from dsno.measure.results import load_results
from dsno.nets.features import load_feature_net
from refusals import Spoil, refusals, refuses
from shell import QUICK, dsno

SMALL = ("--size", 16, "--crop", 12)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of two sizes, without labels, a teacher of them, and its student."""
    root, g = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    (root / "pics").mkdir()
    for i in range(24):
        pixels = g.integers(0, 256, (20 + 4 * (i % 2), 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pics" / f"{i}.png")
    assert dsno("teach", "--data", "pics", *SMALL, "--channels", 4, 8, *QUICK, at=root).code == 0
    assert dsno("generate", "--count", 16, "--steps", 6, "--grid", "quadratic", at=root).code == 0
    assert dsno("distill", *QUICK, at=root).code == 0
    return root


def test_pictures_of_one_s_own_are_measured(own: Path) -> None:
    evaluate = ("evaluate", "--student", "runs/student", "--data", "pics", *SMALL, "--count", 8, "--out", "e")
    ran = dsno(*evaluate, at=own)
    made = "`dsno features --data pics --size 16 --crop 12 --out runs/features`, and give them, --features"
    assert ran.code == 2 and f"there are no features of pics to measure in: train them, {made}" in ran.err
    assert not (own / "e").exists()
    ran = dsno("features", "--data", "pics", *SMALL, "--steps", 2, "--width", 4, at=own)
    assert ran.code == 0 and ran.following[:3] == ["evaluate", "--student", "runs/student"], ran.said
    assert ran.following[3:] == ["--data", "pics", *map(str, SMALL), "--features", "runs/features"]
    assert load_feature_net(own / "runs" / "features").name == "pics_turns"
    # Teacher and features are those that its folder notes, and that lie beside it.
    ran = dsno(*evaluate, at=own)
    assert ran.code == 0, ran.said
    assert load_results(own / "e" / "results.json")[0].name == "DSNO"
    page = (own / "e" / "report.html").read_text()
    assert "none of which the student was trained on (its trajectories are of 0 to 15)" in page
    ran = dsno("features", "--data", "pics", *SMALL, at=own)
    assert ran.code == 2 and "runs/features exists already: pass --resume to continue it or --overwrite" in ran.err


def test_what_does_not_fit_is_refused_before_any_work(own: Path) -> None:
    data = ("--data", "pics", *SMALL, "--count", 8, "--out", "none")
    for options, message in (
        (("--student", "runs/student", "--count", 8, "--out", "none"), "the student makes (3, 12, 12), digits has"),
        (("--student", "runs/student", "--teacher", "digits", *data), "the teacher digits makes (1, 8, 8), and the"),
        (("--teacher", "runs/teacher", *data), "the student makes (1, 8, 8), pics has (3, 12, 12)"),
    ):
        features = ("--features", Path(cli.__file__).parents[1] / "weights" / "digits" / "features")
        ran = dsno("evaluate", *options, *features, at=own)
        assert ran.code == 2 and message in ran.err and len(ran.err.splitlines()) == 1, ran.said
        assert not (own / "none").exists()


@refusals(
    ("features --data digits --out runs/teacher --overwrite", None, "runs/teacher holds a teacher, not a features"),
    ("features --data samples.png/x --out new", None, "no data 'samples.png/x'"),
    ("features --width 6 --out new", None, "a width that is a multiple of 4"),
    ("features --width 8 --resume", None, "was trained with"),
    ("features --resume --overwrite", None, "resume continues what is there and overwrite throws it away"),
    ("features --data runs --out runs --overwrite", None, "runs is read, and is runs"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
