"""What a student is given is what it takes, or is refused in a line that says what it takes."""

import pytest
import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.inputs import check_inputs, in_parts
from dsno.students.operator import student_from_teacher
from dsno.students.samplers import Student, sampler_of

SHAPE = (1, 8, 8)


def students(classes: int | None = None, guidance: bool = False) -> list[Student]:
    """A student of either kind."""
    net = UNet(1, 8, (4, 8), attention=(), classes=classes)
    teacher = Prediction(net, Cosine(), "v")
    times = (0.5, 0.0)
    return [
        student_from_teacher(teacher, times, guidance=guidance).eval(),
        flow_map_from_teacher(teacher, guidance).eval(),
    ]


Z, LABELS, W = noise(range(3), SHAPE), torch.tensor([0, 1, 1]), torch.ones(3)


@pytest.mark.parametrize(
    "z, message",
    [
        (Z.tolist(), "noise must be a tensor (B, 1, 8, 8), got a list"),
        (Z[0], "noise must have the shape (B, 1, 8, 8), got (1, 8, 8)"),
        (Z.expand(3, 3, 8, 8), "noise must have the shape (B, 1, 8, 8), got (3, 3, 8, 8)"),
        (noise(range(3), (1, 16, 16)), "noise must have the shape (B, 1, 8, 8), got (3, 1, 16, 16)"),
        (Z.long(), "noise must be of floating point numbers, got int64"),
        (Z * torch.nan, "noise must be finite"),
        (Z.double(), "noise of float64 was given to a network of float32: pass it as such, z.to(torch.float32)"),
    ],
)
def test_other_noise_is_refused_by_every_entry(z: Tensor, message: str) -> None:
    for student in students():
        for entry in (student.sample, sampler_of(student)):
            with pytest.raises(ValueError) as refused:
                entry(z)
            assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "classes, guidance, cond, message",
    [
        (
            None,
            False,
            LABELS,
            "this student is told nothing, and nobody would read one tensor without a name: leave it",
        ),
        (None, False, {"label": LABELS}, "this student is told nothing, and nobody would read `label`: leave it out"),
        (2, False, {"text": W}, "this student is told `label`, got `text`"),
        (2, False, {"label": LABELS, "text": W}, "this student is told `label`, got `label` and `text`"),
        (2, False, LABELS[:2], "the condition must be a tensor with a row for each of the 3 of noise, got shape (2,)"),
        (2, False, 1, "the condition must be a tensor, or tensors by name, got a int"),
        (2, False, W, "labels must be integers of shape (B,), got float32 of shape (3,)"),
        (2, False, LABELS[:, None], "labels must be integers of shape (B,), got int64 of shape (3, 1)"),
        (2, False, {"label": LABELS, "weight": W}, "this student takes no guidance weight"),
        (2, True, LABELS, "this student is told a guidance weight"),
        (2, True, {"label": LABELS, "weight": W * torch.nan}, "the condition 'weight' must be finite"),
    ],
)
def test_a_condition_that_nobody_reads_is_refused(
    classes: int | None, guidance: bool, cond: Cond, message: str
) -> None:
    for student in students(classes, guidance):
        for entry in (student.sample, sampler_of(student)):
            with pytest.raises(ValueError) as refused:
                entry(Z, cond)
            assert message in str(refused.value)


def test_no_rows_make_no_samples() -> None:
    for plain, told in zip(students(), students(2), strict=True):
        for student, cond in ((plain, None), (told, LABELS[:0])):
            assert student.sample(Z[:0], cond).shape == (0, *SHAPE)
            assert sampler_of(student)(Z[:0], cond).sample.shape == (0, *SHAPE)


def test_many_rows_are_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsno.students.inputs.AT_ONCE", 64)
    monkeypatch.setattr("dsno.seeds.AT_ONCE", 64)
    rows: list[int] = []

    def run(z: Tensor, cond: Cond | None) -> Tensor:
        rows.append(len(z))
        assert isinstance(cond, dict) and torch.equal(cond["label"], z[:, 0, 0, 0])
        return 2 * z

    z = noise(range(3), (1, 4, 8))
    assert torch.equal(in_parts(run, z, {"label": z[:, 0, 0, 0]}), 2 * z) and rows == [3]
    z = noise(range(5), (1, 4, 8))
    assert torch.equal(in_parts(run, z, {"label": z[:, 0, 0, 0]}), 2 * z) and rows == [3, 2, 2, 1]


def test_of_a_network_that_says_nothing_only_the_noise_is_looked_at() -> None:
    check_inputs(noise(range(2), (5,)), {"anything": torch.ones(2)}, torch.nn.Identity(), False)
    with pytest.raises(ValueError, match=r"the shape \(B, \*shape\), got \(\)"):
        check_inputs(torch.ones(()), None, torch.nn.Identity(), False)
