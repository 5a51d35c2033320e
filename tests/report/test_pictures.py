"""Pictures show what they are given, pixel by pixel."""

import dataclasses
import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsno.grids import quadratic
from dsno.measure.results import Fidelity, Result
from dsno.report.pictures import (
    FIDELITY,
    check_grid_size,
    enlarged,
    image_grid,
    interpolation,
    quality_against_cost,
    slerp,
    trajectory_strips,
)
from pretend import result


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def images(N: int, C: int = 1, size: int = 8) -> Tensor:
    return torch.rand(N, C, size, size) * 2 - 1


@pytest.fixture
def results() -> list[Result]:
    curves = [result(f"{f}-{n}", n, 5 / n, 0.5 / n) for f in ("DDIM", "UniPC") for n in (2, 4, 8)]
    return [result("DSNO", 1, 2.0), *curves, result("fine", 0, 0.3, None)]


# Images


def test_image_grid_enlarges_without_smoothing() -> None:
    x = torch.tensor([-1.0, 1.0, 0.0, 0.5] * 16).reshape(1, 1, 8, 8)
    grid = pixels(image_grid(x))
    assert grid.shape == (96, 96, 4)
    assert (grid[..., 3] == 255).all()
    expected = ((x[0, 0] + 1) * 127.5).round().repeat_interleave(12, 0).repeat_interleave(12, 1)
    for channel in range(3):
        assert np.array_equal(grid[..., channel], expected.numpy().astype(np.uint8))


def test_image_grid_places_every_image_and_leaves_gaps_transparent() -> None:
    x = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 3, 32, 32)
    grid = pixels(image_grid(x, columns=3))
    assert grid.shape == (2 * 96 + 8, 3 * 96 + 16, 4)
    corners = [int(grid[r * 104, c * 104, 0]) for r, c in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
    assert corners == [0, 64, 128, 191, 255]
    assert grid[0, 98, 3] == 0 and grid[98, 0, 3] == 0 and grid[120, 220, 3] == 0
    assert pixels(image_grid(x)).shape == (200, 304, 4)


def test_colours_stay_colours_and_values_are_clamped() -> None:
    x = torch.tensor([5.0, -1.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert pixels(image_grid(x))[0, 0].tolist() == [255, 0, 128, 255]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(0, 1, 8, 8), "pictures are made of images"),
        (torch.zeros(2, 8, 8), "pictures are made of images"),
        (torch.zeros(2, 2, 8, 8), "1 or 3 channels"),
        (torch.full((2, 1, 8, 8), math.nan), "not finite"),
    ],
)
def test_bad_images_are_one_clear_error(bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_grid(bad)
    with pytest.raises(ValueError, match="column"):
        image_grid(images(2), columns=0)


def test_interpolation_has_one_row_per_strip() -> None:
    strips = images(12).reshape(2, 6, 1, 8, 8)
    both, first = pixels(interpolation(strips)), pixels(interpolation(strips[0]))
    assert both.shape == (2 * 96 + 16, 6 * 104 - 8, 4)
    assert np.array_equal(both[:96], first)
    with pytest.raises(ValueError, match="strips"):
        interpolation(torch.zeros(1, 8, 8))


def test_slerp_stays_on_the_shell_and_keeps_its_ends() -> None:
    z_0, z_1 = torch.randn(1, 16, 16), torch.randn(1, 16, 16)
    arc = slerp(z_0, z_1, 9)
    assert arc.shape == (9, 1, 16, 16) and arc.dtype == z_0.dtype
    torch.testing.assert_close(arc[0], z_0)
    torch.testing.assert_close(arc[-1], z_1)
    norms = arc.flatten(1).norm(dim=1)
    assert (norms / 16 - 1).abs().max() < 0.15
    unit = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 3)
    torch.testing.assert_close(unit[1], torch.tensor([0.5, 1.0]) * math.sqrt(2))


def test_slerp_of_parallel_noises_is_a_line() -> None:
    z = torch.randn(4)
    torch.testing.assert_close(slerp(z, z, 3), z.expand(3, -1))
    assert torch.isfinite(slerp(z, -z, 3)).all()
    with pytest.raises(ValueError, match="one shape"):
        slerp(z, z[:2], 3)
    with pytest.raises(ValueError, match="2 or more"):
        slerp(z, z, 1)


# Plots


def contains(picture: np.ndarray, tile: np.ndarray) -> bool:
    """Whether an exact copy of the tile is in the picture."""
    h, w = tile.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], (h, w))[:, :, :: h // 8, :: w // 8]
    return bool((windows == tile[:: h // 8, :: w // 8, 0]).all((2, 3)).any())


@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 4), (4, 4), (2, 8)])
@pytest.mark.parametrize("dark", [False, True])
def test_strips_show_every_frame_exactly(B: int, T: int, dark: bool) -> None:
    student, teacher = (images(B * T).reshape(B, T, 1, 8, 8) for _ in range(2))
    noises = torch.randn(B, 1, 8, 8) / 2
    picture = pixels(trajectory_strips(student, teacher, quadratic(T)[1:], noises, dark=dark))
    assert picture[0, 0].tolist()[:3] == ([24, 25, 27] if dark else [255, 255, 255])
    for tile in (student[0, 0], student[-1, -1], teacher[-1, 0], noises[-1] / 2):
        assert contains(picture, pixels(image_grid(tile[None])))


def test_strips_refuse_what_does_not_belong_together() -> None:
    x = images(6).reshape(2, 3, 1, 8, 8)
    times = [0.5, 0.2, 0.0]
    with pytest.raises(ValueError, match="two sets of frames"):
        trajectory_strips(x, x[:, :2], times)
    with pytest.raises(ValueError, match="and 2 times"):
        trajectory_strips(x, x, times[:2])
    with pytest.raises(ValueError, match="2 pairs need 2 noises"):
        trajectory_strips(x, x, times, noises=x[:1, 0])


@pytest.mark.parametrize("against", ["rounds", "nfe", "flops", "latency"])
def test_quality_plot_shows_stars_and_curves(results: list[Result], against) -> None:
    light, dark = (pixels(quality_against_cost(results, against, dark=dark)) for dark in (False, True))
    assert light.shape == dark.shape == (800, 1800, 4)
    for colour in ((229, 83, 45), (62, 99, 221), (18, 165, 148)):  # the star, then one per curve
        assert (light[..., :3] == colour).all(-1).sum() > 100
        assert (dark[..., :3] == colour).all(-1).sum() > 100


def test_quality_plot_leaves_out_a_panel_without_numbers(results: list[Result]) -> None:
    no_path = [dataclasses.replace(r, path_error=None) for r in results]
    assert pixels(quality_against_cost(no_path)).shape == (800, 1000, 4)
    with pytest.raises(ValueError, match="nothing to plot"):
        quality_against_cost([dataclasses.replace(r, quality=None) for r in no_path])
    with pytest.raises(ValueError, match="nothing to plot"):
        quality_against_cost([])


def test_a_plot_of_references_shows_zeros(results: list[Result]) -> None:
    beside = [dataclasses.replace(r, fidelity=Fidelity(20.0, None, 0.0)) for r in results]
    drawn = pixels(quality_against_cost(beside, panels=FIDELITY[:2]))
    assert drawn.shape == (800, 1800, 4)
    # Of equal numbers every curve is a line, in both panels; the last one is above the others.
    for half in (drawn[:, :900, :3], drawn[:, 900:, :3]):
        assert (half == (18, 165, 148)).all(-1).sum() > 100
    with pytest.raises(ValueError, match="nothing to plot"):
        quality_against_cost(beside, panels=FIDELITY[3:])


def test_pictures_are_enlarged_by_whole_factors_and_in_colour() -> None:
    x = images(2)
    made = enlarged(x, 30)
    assert made.shape == (2, 3, 24, 24) and torch.equal(made[:, :, ::3, 1::3], x.expand(-1, 3, -1, -1))
    assert enlarged(x[0], 4).shape == (3, 8, 8)


def test_pictures_need_no_display_and_no_pyplot() -> None:
    code = "import sys, dsno.report.pictures; assert 'matplotlib' not in sys.modules; import torch\n"
    code += "dsno.report.pictures.trajectory_strips(*[torch.zeros(1, 1, 1, 8, 8)] * 2, [0.0])\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_a_caption_stands_below_its_image() -> None:
    x = images(3)
    plain, grid = pixels(image_grid(x, 2)), pixels(image_grid(x, 2, ["1", "22", "333"]))
    assert grid.shape == (2 * (96 + 8 + 20), 200, 4)
    # The images are where they were, but for the room of a line; there is no fourth caption.
    for held, before in ((grid[:96], plain[:96]), (grid[124:220], plain[104:])):
        assert np.array_equal(held[..., 3], before[..., 3])
        assert np.array_equal(held[held[..., 3] > 0], before[before[..., 3] > 0])
    written = [bool(grid[r : r + 28, c : c + 96, 3].any()) for r, c in ((96, 0), (96, 104), (220, 0), (220, 104))]
    assert written == [True, True, True, False]
    with pytest.raises(ValueError, match="3 images need as many captions, or none, got 1"):
        image_grid(x, 2, ["1"])


def test_a_picture_that_no_viewer_opens_is_refused_by_its_size() -> None:
    assert check_grid_size((64, 1, 8, 8)) == 8
    with pytest.raises(ValueError, match=r"a picture of 10000 images has 12400 x 10400 pixels, more than 2\^26"):
        check_grid_size((10_000, 1, 8, 8))
