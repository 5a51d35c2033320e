"""What a student of classes and its teacher are told: the same, and what the student was made for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsno.data.samples import Samples
from dsno.denoise import Guided, Prediction
from dsno.nets.unet import UNet
from dsno.report.told import Told, told_of
from dsno.schedule import Cosine
from dsno.seeds import seed_range
from dsno.students.files import save_student
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.teachers.native import save_teacher
from pretend import result

LABELS = torch.tensor([0, 0, 0, 1, 2, 2])
CPU = torch.device("cpu")


def teacher(classes: int | None = 3, null: bool = True) -> Prediction:
    torch.manual_seed(0)
    return Prediction(UNet(1, 8, (4, 8), attention=(), classes=classes, null=null), Cosine(), "v", classes=classes)


def images(labels: torch.Tensor | None = LABELS, names: tuple[str, ...] | None = None) -> Samples:
    return Samples(torch.zeros(6, 1, 8, 8), labels, "pics", names=names)


def told(
    out: Path,
    solved: Prediction,
    student: FlowMap,
    weight: float | None = None,
    data: Samples = images(),  # noqa: B008 (frozen)
    **notes: Any,
) -> Told:
    """Of a student whose folder says this."""
    save_student(out / "student", student, **notes)
    return told_of(student, out / "student", solved, "its teacher", data, weight)


def test_both_are_told_the_same_class_and_the_student_its_weight(tmp_path: Path) -> None:
    D, seeds = teacher(), seed_range(0, 600)
    both = told(tmp_path, D, flow_map_from_teacher(D, guidance=True), 1.5, null=3)
    labels = both.labels(seeds, CPU)
    assert labels is not None and torch.equal(labels[10:20], both.labels(seeds[10:20], CPU))
    cond = both.student(labels)
    assert isinstance(cond, dict) and cond["label"] is labels and cond["weight"].tolist() == [1.5] * 600
    assert isinstance(both.solved, Guided) and both.solved.denoiser is D
    assert both.solved.weight == 1.5 and int(both.solved.null) == 3
    assert both.noted(result("DSNO", 1, 2.0)).protocol.told == "classes as often as in pics, guidance weight 1.5"


def test_classes_are_drawn_as_often_as_in_the_data_and_the_null_label_never(tmp_path: Path) -> None:
    D, seeds = teacher(), seed_range(0, 6000)
    both = told(tmp_path, D, flow_map_from_teacher(D))
    counts = torch.bincount(both.labels(seeds, CPU), minlength=3)
    # Expected 3000, 1000 and 2000, with standard deviations of 39, 29 and 37.
    assert float((counts - torch.tensor([3000, 1000, 2000])).abs().max()) < 4 * 39
    assert both.classes == [0, 1, 2] and both.names == ("0", "1", "2") and both.solved is D and not both.weight
    without = told(tmp_path, D, flow_map_from_teacher(D), null=1)
    assert set(without.labels(seeds, CPU).tolist()) == {0, 2} == {*without.classes}
    even = told(tmp_path, D, flow_map_from_teacher(D), data=images(None), null=0)
    counts = torch.bincount(even.labels(seeds, CPU), minlength=3)
    assert counts[0] == 0 and abs(int(counts[1]) - 3000) < 4 * 39 and even.said == "classes evenly"


def test_the_weight_is_the_least_that_the_student_was_made_for(tmp_path: Path) -> None:
    D = teacher()
    ranged = flow_map_from_teacher(D, guidance=True)
    assert told(tmp_path, D, ranged, options={"guidance": [0.5, 4.0]}).weight == 0.5
    free = told(tmp_path, D, ranged)
    assert free.weight == 0 and free.solved is D and free.said == "classes as often as in pics, guidance weight 0"
    fixed = told(tmp_path, D, flow_map_from_teacher(D), guided=True, guidance=[2.0, 2.0])
    # Its teacher was guided, and it is told a class alone.
    assert fixed.weight == 2 and isinstance(fixed.solved, Guided)
    assert torch.equal(torch.as_tensor(fixed.student(LABELS)), LABELS)


def test_a_student_that_is_told_nothing_is_compared_as_it_is(tmp_path: Path) -> None:
    D = teacher(None, False)
    both = told(tmp_path, D, flow_map_from_teacher(D))
    assert both == Told(D) and both.labels(seed_range(0, 4), CPU) is None and both.student(None) is None
    assert both.solved is D and both.classes == []


def test_classes_are_called_as_in_the_data_or_by_the_teacher(tmp_path: Path) -> None:
    D = teacher()
    student, names = flow_map_from_teacher(D), ("ant", "bee", "cat")
    assert told(tmp_path, D, student, data=images(names=names)).names == names
    save_teacher(tmp_path / "teacher", D, class_names=["ape", "bat", "cow"])
    assert told_of(student, tmp_path / "student", D, str(tmp_path / "teacher"), images()).names == ("ape", "bat", "cow")
    with pytest.raises(ValueError, match=r"pics has the classes ant, bee, cat, and .*teacher was trained on ape, bat"):
        told_of(student, tmp_path / "student", D, str(tmp_path / "teacher"), images(names=names))


@pytest.mark.parametrize(
    "solved, guided, weight, data, notes, message",
    [
        (
            teacher(),
            True,
            5.0,
            images(),
            {"guidance": [0, 4]},
            "not trained for the guidance weight 5: expected 0 to 4",
        ),
        (teacher(), False, 1.0, images(), {"guidance": [2, 2]}, "not trained for the guidance weight 1: expected 2$"),
        (teacher(), True, -1.0, images(), {}, "not trained for the guidance weight -1: expected 0 or more"),
        (teacher(), False, None, images(), {"guided": True}, "does not note which: give it, guidance=1"),
        (teacher(), False, None, images(), {"guide": "NoisyClassifier"}, "a teacher that a guide steered"),
        (teacher(), False, None, images(LABELS + 1), {}, "pics has labels up to 3, and .* is told one of 3 classes"),
        (teacher(null=False), True, 1.0, images(), {}, "its teacher does not say which label stands for no class"),
        (teacher(), True, 1.0, images(), {"null": 4}, "the null label 4 is outside the labels of its teacher"),
        (teacher(None, False), False, 1.0, images(), {}, "is told no class, and only students of classes are compared"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    solved: Prediction,
    guided: bool,
    weight: float | None,
    data: Samples,
    notes: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=message):
        told(tmp_path, solved, flow_map_from_teacher(solved, guided), weight, data, **notes)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    student = flow_map_from_teacher(teacher())
    with pytest.raises(ValueError, match=r"its teacher is told no class, and .*student one of 3: give its own teacher"):
        told(tmp_path, teacher(None, False), student)
    with pytest.raises(ValueError, match=r"its teacher is told one of 4 classes, and .*student one of 3"):
        told(tmp_path, teacher(4), student)
