"""A bridge by command: trained on pairs, sampled from pictures; and what is refused."""

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from dsno.bridge.files import load_bridge
from dsno.bridge.sampler import BRIDGE_STEPS
from dsno.checkpoint import read_json
from dsno.cli.bridges import BRIDGES, BridgeName, SamplerName
from dsno.denoise import Prediction
from dsno.measure.results import load_results
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.teachers.native import save_teacher
from refusals import Spoil, refusals, refuses
from shell import QUICK, dsno


@pytest.fixture(scope="session")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs of pictures, and a bridge between them."""
    root, rng = tmp_path_factory.mktemp("bridge"), np.random.default_rng(0)
    for folder in ("rough", "fine"):
        (root / folder).mkdir()
        for n in range(4):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / folder / f"{n}.png")
    ran = dsno("teach", "--pairs", "rough", "fine", "--channels", 4, 8, "--out", "own", *QUICK, at=root)
    assert ran.code == 0, ran.said
    assert ran.following == ["sample", "--bridge", "own", "--input", "rough", "--calls", "13", "--samples", "4"]
    return root


def test_names_are_those_of_the_library() -> None:
    assert get_args(SamplerName) == tuple(BRIDGE_STEPS)
    assert get_args(BridgeName) == tuple(BRIDGES)


def test_what_was_asked_for_is_what_is_taught(crossed: Path) -> None:
    made = load_bridge(crossed / "own")
    assert (made.kind, type(made.bridge).__name__, made.shape) == ("ddbm", "BrownianBridge", (1, 8, 8))
    asked = ("--bridge-type", "vp", "--kind", "x0", "--size", 4, "--channels", 4, "--out", "other")
    assert dsno("teach", "--pairs", "rough", "fine", *asked, *QUICK, at=crossed).code == 0
    made = load_bridge(crossed / "other")
    assert (made.kind, type(made.bridge).__name__, made.shape) == ("x0", "DDBMVP", (1, 4, 4))


def test_each_picture_has_a_row_of_samples(crossed: Path, tmp_path: Path) -> None:
    ran = dsno("sample", "--bridge", "own", "--input", "rough", "--out", tmp_path / "a.png", at=crossed)
    assert ran.code == 0 and "4 samples of each of 4 pictures in 13 calls of dbim2" in ran.out, ran.said
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > sheet.height
    one = ("sample", "--bridge", "own", "--input", "rough/0.png", "--samples", 3, "--sampler", "odes3", "--calls", 6)
    assert dsno(*one, "--out", tmp_path / "a.npy", "--seed", 7, at=crossed).code == 0
    made = np.load(tmp_path / "a.npy")
    assert made.shape == (3, 1, 8, 8) and np.abs(made[0] - made[1]).max() > 0.01
    assert dsno(*one, "--out", tmp_path / "folder", "--t-1", 0.7, "--exponent", 3, at=crossed).code == 0
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [f"seed-0000000{n}.png" for n in range(3)]


def test_a_problem_makes_the_pairs_and_is_known_from_then_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, side in (("clean", 16), ("held", 16), ("small", 8)):
        (tmp_path / folder).mkdir()
        for n in range(3):
            Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(tmp_path / folder / f"{n}.png")
    asked = ("--pairs", "clean", "--problem", "super", "--factor", 2, "--noise", 0.1, "--channels", 4, 8)
    ran = dsno("teach", *asked, "--out", "own", *QUICK, at=tmp_path)
    assert ran.code == 0 and ran.following == ["evaluate", "--teacher", "own", "--pairs", "clean"], ran.said
    notes = read_json(tmp_path / "own" / "config.json")["notes"]
    assert notes["problem"] == {"name": "super", "noise": 0.1, "factor": 2, "resize": "average"}
    # What the user has is a smaller picture, and may be one at full size.
    for pictures in ("small", "clean"):
        few = ("--input", pictures, "--samples", 1, "--calls", 2, "--out", f"{pictures}.npy")
        assert dsno("sample", "--bridge", "own", *few, at=tmp_path).code == 0
        assert np.load(tmp_path / f"{pictures}.npy").shape == (3, 1, 16, 16)
    ran = dsno("generate", "--teacher", "own", "--input", "small", "--count", 16, "--out", "set", at=tmp_path)
    assert dsno(*ran.following, *QUICK, "--out", "student", at=tmp_path).code == 0
    one = ("sample", "--student", "student", "--input", "small", "--count", 3, "--out", "one.npy")
    assert dsno(*one, at=tmp_path).code == 0 and np.load(tmp_path / "one.npy").shape == (3, 1, 16, 16)
    few = ("--calls", 2, "--sampler", "dbim2", "--samples", 2, "--out", "measured")
    ran = dsno("evaluate", "--teacher", "own", "--pairs", "held", *few, at=tmp_path)
    assert ran.code == 0 and "dbim2-2" in ran.out, ran.said
    assert notes["pairs"] == "clean under super, noise 0.1, factor 2, resize average"


def test_a_dataset_of_two_columns_is_one_of_pairs(crossed: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {name: [Image.open(crossed / name / f"{n}.png") for n in range(4)] for name in ("rough", "fine")}
    kinds = datasets.Features({name: datasets.Image() for name in rows})
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "set")
    pairs = ("--pairs", "set", "--columns", "rough", "fine")
    ran = dsno("teach", *pairs, "--channels", 4, 8, "--out", "own", *QUICK, at=tmp_path)
    # The same pairs make the same bridge.
    assert ran.code == 0, ran.said
    assert (tmp_path / "own/model.safetensors").read_bytes() == (crossed / "own/model.safetensors").read_bytes()
    assert ran.following == ["evaluate", "--teacher", "own", *pairs]


def large(here: Path) -> None:
    Image.fromarray(np.arange(81, dtype=np.uint8).reshape(9, 9)).save(here / "large.png")


def fewer(here: Path) -> None:
    (here / "fine" / "2.png").unlink()


def noisy(here: Path) -> None:
    save_teacher(here / "noisy", Prediction(UNet(1, 8, (4,), attention=()), Cosine(), "v"))


SAMPLE = "sample --bridge own --out new.png"


def test_the_end_of_the_start_is_measured(crossed: Path, tmp_path: Path) -> None:
    asked = ("--data", "rough", "--calls", 4, "--rows", 1, "--out", tmp_path / "verdict.json")
    ran = dsno("check-teacher", "own", *asked, at=crossed)
    assert ran.code == 0 and "dbim2 with 4 calls is nearest with t_1 = " in " ".join(ran.out.split()), ran.said
    assert read_json(tmp_path / "verdict.json")["findings"][0]["check"] == "start"


def test_a_student_of_one_pass_is_made_of_it(crossed: Path, tmp_path: Path) -> None:
    here = shutil.copytree(crossed, tmp_path / "here")
    ran = dsno("generate", "--teacher", "own", "--input", "rough", "--count", 16, "--out", "set", at=here)
    assert ran.code == 0, ran.said
    ran = dsno(*ran.following, "--out", "student", *QUICK, at=here)
    assert ran.code == 0, ran.said
    following = [word.replace("PICTURES", "rough") for word in ran.following]
    ran = dsno(*following, "--count", 5, "--out", "a.npy", at=here)
    assert ran.code == 0 and "5 samples in one pass" in ran.out, ran.said
    assert np.load(here / "a.npy").shape == (5, 1, 8, 8)
    pairs = ("--pairs", "rough", "fine", "--calls", 3, 4, "--sampler", "odes3", "euler", "--count", 2)
    ran = dsno("evaluate", "--teacher", "own", "--student", "student", *pairs, "--out", "measured", at=here)
    assert ran.code == 0 and "measured/report.html" in ran.out and (here / "measured/report.html").is_file(), ran.said
    results = load_results(here / "measured" / "results.json")
    assert [r.name for r in results] == ["odes3-2", "odes3-4", "euler-3", "euler-4", "one pass", "input"]
    assert results[0].protocol.count == 2 and results[0].fidelity.spread > 0
    for command, said in (
        ("sample --student student --out b.png", "student starts from pictures: give --input"),
        ("sample --input rough --out b.png", "starts from noise alone: leave out --input"),
        ("distill --teacher own --data rough --method knowledge --out new", "and there are none in rough"),
        ("distill --teacher other --data set --method knowledge --out new", "holds trajectories of another teacher"),
        (
            "distill --teacher own --data set --method progressive --out new",
            "which progressive does not: take --met",
        ),
        ("distill --teacher own --data set --student student --out new", "--student does not go with a bridge"),
        ("evaluate --student student --out new", "starts from pictures, as a bridge does, and is measured on pairs"),
        ("generate --teacher own --out new", "a bridge starts from pictures: give the degraded ones, --input FOLDER"),
    ):
        ran = dsno(*command.split(), at=here)
        assert ran.code == 2 and said in ran.err, ran.said


@refusals(
    (f"{SAMPLE} --input rough --sampler odes3", None, "odes3 makes 1, 2, 4, 6, ... calls, got 13: take 12 or 14"),
    (f"{SAMPLE} --input rough --t-1 1", None, "--t-1 is where the start ends, inside (0, 1), got 1"),
    (f"{SAMPLE} --input rough --samples 0", None, "--samples must be at least 1, got 0"),
    (f"{SAMPLE} --input large.png", large, "the pictures have the shape (1, 9, 9), own takes (1, 8, 8)"),
    ("generate --teacher own --input large.png --out new", large, "the pictures have the shape (1, 9, 9), own takes"),
    (f"{SAMPLE} --input nowhere", None, "no data 'nowhere'"),
    (f"{SAMPLE}", None, "--bridge needs --input, the picture or the folder of pictures that it starts from"),
    (f"{SAMPLE} --input rough --label 3", None, "--label does not go with --bridge: leave it out"),
    ("sample --calls 4", None, "--calls is an option of bridges: say which, --bridge FOLDER"),
    (f"{SAMPLE} --input rough --count 3", None, "--count does not go with --bridge: leave it out"),
    (f"{SAMPLE} --input rough --calls -3", None, "dbim2 makes 1, 2, 3, 4, ... calls, got -3: take 1"),
    (f"{SAMPLE} --input rough --eta 0.5", None, "--eta is of dbim1, whose steps may be stochastic, and those of dbim2"),
    ("sample --bridge digits --input rough --out new.png", None, "no folder digits: expected a model folder"),
    (
        "sample --bridge noisy --input rough --out new.png",
        noisy,
        "noisy holds a teacher, expected a bridge, as `dsno",
    ),
    (
        "generate --teacher noisy --input rough --out new",
        noisy,
        "noisy is none: give a bridge's folder, or leave",
    ),
    ("generate --teacher own --input rough --frames 3 --out new", None, "--frames does not go with a bridge"),
    ("check-teacher own --data rough --null 3", None, "--null does not go with a bridge: leave it out"),
    (
        "restore rough --teacher own --half right --out new",
        None,
        "own holds a bridge, expected a teacher, as `dsno",
    ),
    ("export --student own --out new.pt2", None, "own holds a bridge, expected a student, as `dsno distill` writes it"),
    ("push file:///new --data own", None, "no own/manifest.json: expected a folder that `dsno generate` wrote"),
    (
        "evaluate --teacher own --out new",
        None,
        "own is a bridge, which is measured on pairs: give --pairs DEGRADED",
    ),
    ("evaluate --teacher noisy --pairs rough fine --out new", noisy, "measured on, and noisy is none: give its folder"),
    ("evaluate --calls 3 --out new", None, "--calls is of bridges: give --pairs, too, or leave it out"),
    ("evaluate --teacher own --pairs rough fine --passes 2 --out new", None, "--passes does not go with --pairs"),
    ("evaluate --teacher own --pairs rough fine --samples 0 --out new", None, "--samples must be at least 1, got 0"),
    ("sample --exact taa --teacher own --out new.png", None, "own holds a bridge, expected a teacher"),
    ("check-teacher own", None, "a bridge starts from pictures: give some degraded ones, --data FOLDER"),
    ("check-teacher own --data rough --calls 3 --sampler odes3", None, "odes3 makes 1, 2, 4, 6, ... calls, got 3"),
    ("check-teacher nowhere --calls 3", None, "--calls is of bridges, and nowhere is none: give a bridge's folder"),
    ("teach --pairs rough fine --out new", fewer, "rough and fine do not pair by name: 2 (not in fine)"),
    ("teach --pairs rough fine --out new --kind eps", None, "--kind eps is of teachers that start from noise"),
    ("teach --kind ddbm --out new", None, "--kind ddbm is of bridges: give --pairs, or one of x0, eps, v, flow"),
    ("teach --pairs rough fine rough --out new", None, "--pairs are two sources, degraded and clean, or one"),
    ("teach --pairs rough fine --conditional --out new", None, "--conditional does not go with --pairs"),
    ("teach --pairs rough fine --key x --out new", None, "--key does not go with --pairs: leave it out"),
    (
        "teach --pairs rough fine --factor 2 --out new",
        None,
        "--factor makes pairs of one clean set, and these are",
    ),
    ("teach --pairs fine --factor 3 --out new", None, "a factor of 3 does not divide samples of 8 x 8"),
    (
        "teach --pairs fine --problem gray --out new",
        None,
        "gray takes the colours of clean pictures away, and these",
    ),
    ("teach --pairs fine --features f --out new", None, "--features is of learned starts: give --start TEACHER"),
    ("teach --pairs rough fine --out rough", None, "rough is read, and is rough, which is written to"),
)
def test_a_failure_is_one_line_and_touches_nothing(
    command: str, spoil: Spoil, message: str, crossed: Path, tmp_path: Path
) -> None:
    refuses(command, spoil, message, at=shutil.copytree(crossed, tmp_path / "here"))
