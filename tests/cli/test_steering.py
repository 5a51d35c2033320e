"""`dsno sample --guide`: samples of the shipped teacher, which knows no class, of a class."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.nets.classifier import Classifier, save_classifier
from dsno.nets.features import load_feature_net
from dsno.runs.classifier import train_classifier
from dsno.runs.shipped import shipped
from refusals import Spoil, refusals, refuses
from shell import QUICK, dsno


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier of digits that has learnt a little, and others that do not fit."""
    root = tmp_path_factory.mktemp("steering")
    train_classifier(load_data("digits"), root / "c", channels=(16, 32), steps=300, batch=64)
    save_classifier(root / "large", Classifier(1, 16, 10))
    save_classifier(root / "clean", Classifier(1, 8, 10, noisy=False))
    return root


@pytest.mark.parametrize("solver", ["stsp4", "ltsp2", "ddim"])
def test_samples_are_of_the_class_that_was_asked_for(solver: str, here: Path) -> None:
    guided = ("--guide", "classifier:c", "--label", 3, "--scale", 30, "--solver", solver)
    ran = dsno("sample", *guided, "--count", 24, "--out", f"{solver}.npy", "--device", "cpu", at=here)
    assert ran.code == 0 and "24 samples of 20 network calls each, scale 30" in ran.said, ran.said
    x = torch.from_numpy(np.load(here / f"{solver}.npy"))
    with torch.no_grad():
        read = load_feature_net(shipped() / "features")(x.float()).argmax(1)
    # Another network says so, which did not guide; a tenth would be by chance.
    assert float((read == 3).float().mean()) > 0.6


def test_classes_are_drawn_from_the_seeds_and_clean_classifiers_look_through_the_denoiser(here: Path) -> None:
    guided = ("sample", "--guide", "classifier:clean", "--steps", 4, "--count", 4, "--device", "cpu")
    ran = dsno(*guided, "--out", "drawn.png", at=here)
    assert ran.code == 0 and "4 samples of 12 network calls each" in ran.said, ran.said


def test_guided_trajectories_are_generated_distilled_and_sampled_by_class(here: Path) -> None:
    teacher = str(shipped() / "teacher")
    guided = ("--guide", "classifier:c", "--scale", 2, "--solver", "ltsp2", "--grid", "even", "--times", 0)
    ran = dsno("generate", "--teacher", teacher, *guided, "--count", 32, "--steps", 4, "--out", "set", at=here)
    assert ran.code == 0, ran.said
    manifest = read_json(here / "set" / "manifest.json")
    assert manifest["teacher"]["scale"] == 2 and [*manifest["cond"]] == ["guide"]
    made = ("--teacher", teacher, "--data", "set", "--method", "knowledge", "--out", "student")
    ran = dsno("distill", *made, *QUICK, at=here)
    assert ran.code == 0, ran.said
    ran = dsno(
        "sample", "--student", "student", "--label", 3, "--count", 4, "--out", "one.png", "--device", "cpu", at=here
    )
    assert ran.code == 0 and "4 samples in one pass" in ran.said, ran.said


@refusals(
    (
        "generate --teacher digits --solver stsp4 --out new",
        None,
        "the solver stsp4 splits a guide off, and this teacher",
    ),
    ("generate --teacher digits --scale 2 --out new", None, "--scale goes with --guide: give that, too"),
    ("generate --teacher digits --guide classifier:c --guidance 1 --out new", None, "--guidance is no option of traj"),
    ("sample --guide classifer:c --label 3", None, "unknown guide 'classifer:c': expected classifier:FOLDER"),
    ("sample --guide classifier:", None, "unknown guide 'classifier:'"),
    ("sample --guide classifier:none", None, "no folder none of a classifier: train one, `dsno classifier --out none`"),
    ("sample --guide classifier:large", None, "reads samples of shape (1, 16, 16), and the teacher"),
    (
        "sample --guide classifier:c --label 10",
        None,
        "label 10 is outside the classes of classifier:c: expected 0 to 9",
    ),
    ("sample --guide classifier:c --scale -1", None, "the scale of a guide is a finite number of 0 or more"),
    ("sample --guide classifier:c --scale inf", None, "the scale of a guide is a finite number of 0 or more"),
    ("sample --guide classifier:c --steps 0", None, "a grid needs at least one step, got 0"),
    ("sample --guide classifier:c --exact taa", None, "--exact is no option of samples under --guide"),
    ("sample --scale 2", None, "--scale goes with --guide: give that, too, or leave it out"),
    ("sample --exact taa --solver stsp4", None, "--solver goes with --guide: give that, too, or leave it out"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)


def test_an_unknown_solver_is_refused_with_the_list(here: Path) -> None:
    ran = dsno("sample", "--guide", "classifier:c", "--solver", "stps4", at=here)
    assert ran.code == 2 and "stsp4" in ran.err and not (here / "samples.png").exists()
