"""Who restores, and what."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dsno.data.originals import Original
from dsno.grids import uniform
from dsno.inverse.blur import Blur
from dsno.inverse.decoded import Decoded
from dsno.inverse.kernels import gaussian
from dsno.inverse.named import RESTORERS
from dsno.inverse.operators import Downsample, Grey, Mask
from dsno.inverse.tiles import Tiled
from dsno.runs.task import Task, Worker, shown
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.teachers.closed import Gaussian

SCHEDULE = Cosine()
x = noise([0, 1], (3, 8, 12)).clamp(-1, 1)
PICTURES = [Original("a", x[0]), Original("b", x[1])]


class Twice(torch.nn.Module):
    """A decoder that doubles each side, of four channels to three."""

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)


def worker(shape: tuple[int, ...] = (3, 8, 8), **changes: Any) -> Worker:
    denoiser = Gaussian(SCHEDULE, torch.zeros(shape), 0.5)
    return Worker(
        **{
            "denoiser": denoiser,
            "schedule": SCHEDULE,
            "shape": shape,
            "method": RESTORERS["dps"],
            "steps": 2,
            **changes,
        }
    )


def task(problem: Any, **changes: Any) -> Task:
    given = {"pictures": PICTURES, "problem": lambda shape: problem, "whole": lambda measured: measured}
    return Task(**given | changes)


def test_a_canvas_is_what_decodes_to_a_picture() -> None:
    assert worker().canvas("a", (3, 8, 12)) == (3, 8, 12)
    latents = worker((4, 8, 8), latents=Twice())
    assert latents.picture == (3, 16, 16) and latents.canvas("a", (3, 16, 30)) == (4, 8, 15)
    assert isinstance(latents.stated(Grey()), Decoded) and isinstance(worker().stated(Grey()), Grey)


def test_what_is_larger_goes_through_tiles() -> None:
    own, rows = worker().on((3, 8, 8))
    assert isinstance(own, Gaussian) and rows == 1
    tiled, rows = worker().on((3, 8, 16))
    assert isinstance(tiled, Tiled) and rows == tiled.tiles == 3


@pytest.mark.parametrize(
    "made, shape, message",
    [
        (
            {},
            (1, 8, 8),
            "a is restored in grey, and the teacher makes pictures in colour: convert it to RGB, or colour it, prob",
        ),
        (
            {"shape": (1, 8, 8)},
            (3, 8, 8),
            "a is restored in colour, and the teacher makes pictures in grey: take one of",
        ),
        ({}, (3, 9, 7), "a is restored to 9 x 7 pixels, and the teacher makes 8 x 8: enlarge or pad it first"),
        (
            {"shape": (2, 64)},
            (3, 8, 8),
            "pictures have 1 or 3 channels, and the teacher makes samples of shape .2, 64.",
        ),
        (
            {"shape": (4, 8, 8), "latents": Twice()},
            (3, 16, 17),
            "each of the teacher's latents stands for 2 x 2: crop or",
        ),
        (
            {"shape": (4, 8, 8), "latents": Twice()},
            (3, 16, 15),
            "is restored to 16 x 15 pixels, and the teacher makes 16",
        ),
    ],
)
def test_what_is_no_picture_of_the_teacher_s_is_refused(
    made: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        worker(**made).canvas("a", shape)


def test_a_worker_takes_a_step_and_a_task_a_sample() -> None:
    with pytest.raises(ValueError, match="at least one step, got 0"):
        worker(steps=0)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        task(Grey(), samples=0)
    assert task(Grey(), seed=5, samples=3).seeds.tolist() == [5, 6, 7]
    assert uniform(worker().steps).tolist() == [1, 0.5, 0]


def test_what_is_measured_of_clean_pictures_is_their_problem_with_noise() -> None:
    blur = Blur(gaussian((3, 3), 1.0).float(), noise=0.1)
    measured = task(blur, measure=lambda shape: blur, seed=3).measured(blur, (0, 1))
    rest = measured - blur.A(x)
    assert 0.09 < rest.std() < 0.11 and (rest[0] - rest[1]).abs().max() > 0.1
    # The noise of a picture is its own, whoever else is in the batch.
    alone = task(blur, measure=lambda shape: blur, seed=3).measured(blur, (1,))
    assert (measured[1] - alone[0]).abs().max() < 1e-6


def test_what_a_mask_hides_is_no_measurement() -> None:
    mask = Mask.half((3, 8, 12), noise=0.1)
    for made in (task(mask), task(mask, measure=lambda shape: mask)):
        y = made.measured(mask, (0, 1))
        assert not y[..., 6:].any() and (y[..., :6] - x[..., :6]).abs().max() < 0.5


def test_references_are_the_pictures_themselves_where_they_are_clean() -> None:
    clean = task(Grey(), measure=lambda shape: Grey())
    assert clean.reference(PICTURES[0]) is PICTURES[0].x and clean.shape(PICTURES[0]) == (3, 8, 12)
    smaller = task(Downsample(2), whole=lambda s: (s[0], 2 * s[1], 2 * s[2]), references={"a": torch.zeros(3, 16, 24)})
    assert smaller.shape(PICTURES[0]) == (3, 16, 24) and smaller.reference(PICTURES[0]) is not None
    with pytest.raises(ValueError, match="there is no reference of b: expected a picture of that name, of any suffix"):
        smaller.reference(PICTURES[1])
    with pytest.raises(
        ValueError, match="reference of a is 16 x 24 pixels in colour, and it is restored to 8 x 12 pix"
    ):
        task(Grey(), references={"a": torch.zeros(3, 16, 24)}).reference(PICTURES[0])
    assert task(Grey()).reference(PICTURES[0]) is None


def test_shapes_are_said_in_pixels() -> None:
    assert shown((1, 4, 6)) == "4 x 6 pixels in grey" and shown((3, 4, 6)) == "4 x 6 pixels in colour"
    assert shown((4, 4, 6)) == "4 x 6 pixels"
