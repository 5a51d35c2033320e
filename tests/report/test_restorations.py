"""Restored pictures: their measures, their files, their page."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.measure.fidelity import psnr, ssim
from dsno.report.restorations import Restoration, restoration_report
from dsno.seeds import noise
from pages import Page

x = noise([0], (3, 1, 8, 12))[0].clamp(-1, 1)
reference = (x.mean(0) + 0.1).clamp(-1, 1)
SEEDS = (4, 5, 6)


def several(**changes: object) -> Restoration:
    given = {"name": "a", "y": x[0], "x": x, "residual": torch.tensor([0.1, 0.2, 0.3]), "seeds": SEEDS}
    return Restoration(**given | changes)


def alone(**changes: object) -> Restoration:
    return several(**{"x": x[:1], "residual": torch.tensor([0.1]), "seeds": (4,)} | changes)


def test_measures_are_those_of_each_sample_of_the_mean_and_of_the_input() -> None:
    held = several(reference=reference).measures()
    assert held["psnr"] == pytest.approx(psnr(x, reference.expand(3, -1, -1, -1)).tolist())
    assert held["ssim"] == pytest.approx(ssim(x, reference.expand(3, -1, -1, -1)).tolist())
    assert held["psnr_of_mean"] == pytest.approx(float(psnr(x.mean(0)[None], reference[None])))
    assert held["psnr_of_input"] == pytest.approx(float(psnr(x[:1], reference[None])))
    assert held["spread"] == pytest.approx(float(x.var(0).mean().sqrt()))
    assert held["residual"] == pytest.approx([0.1, 0.2, 0.3]) and held["seeds"] == [4, 5, 6]
    assert held["size"] == [8, 12] and held["mode"] == "L"


def test_what_is_not_known_is_not_measured() -> None:
    assert alone().measures().keys() == {"name", "size", "mode", "seeds", "residual"}
    # JSON has no infinity: a picture that is its own reference has no number.
    assert alone(reference=x[0]).measures()["psnr"] == [None]


@pytest.mark.parametrize("measured", [(1, 4, 6), (1, 2, 3), (1, 8, 12)])
def test_the_input_is_shown_at_the_size_of_what_it_became(measured: tuple[int, ...]) -> None:
    y = noise([1], measured)[0].clamp(-1, 1)
    plain = alone(y=y, x=x[:1].expand(1, 3, 8, 12)).plain
    factor = 8 // measured[1]
    assert plain.shape == (3, 8, 12) and torch.equal(plain[:, ::factor, ::factor], y.expand(3, -1, -1))


def read(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content))).astype(float) / 127.5 - 1


def test_the_files_of_one_sample_are_its_picture_alone() -> None:
    held = alone().files()
    assert [*held] == ["a.png"] and np.abs(read(held["a.png"]) - x[0, 0].numpy()).max() < 1 / 255
    assert [*alone(measured=True).files()] == ["a.png", "a-input.png"]


def test_the_files_of_several_samples_have_their_mean_and_spread() -> None:
    held = several(kernel=torch.rand(3, 5, 5), measured=True).files()
    samples = [f"a-seed-{seed}" for seed in SEEDS]
    kernels = [f"{name}-kernel.{suffix}" for name in samples for suffix in ("npy", "png")]
    assert [*held] == [*(f"{name}.png" for name in samples), "a-mean.png", "a-spread.png", "a-input.png", *kernels]
    assert np.abs(read(held["a-mean.png"]) - x.mean(0)[0].numpy()).max() < 1 / 255
    shown = (2 * x.std(0)[0] - 1).clamp(-1, 1)
    assert np.abs(read(held["a-spread.png"]) - shown.numpy()).max() < 1 / 255


def test_a_kernel_is_written_as_numbers_and_as_a_picture() -> None:
    kernel = torch.arange(15.0).reshape(1, 3, 5) / 105
    held = alone(kernel=kernel).files()
    assert np.array_equal(np.load(BytesIO(held["a-kernel.npy"])), kernel[0].numpy())
    picture = read(held["a-kernel.png"])
    # Black is none and white the largest weight, enlarged to be seen.
    assert picture.min() == -1 and picture.max() == 1 and picture.shape[:2] == (3 * 51, 5 * 51)


def test_the_page_shows_each_picture_beside_its_reference(tmp_path: Path) -> None:
    restorations = [alone(reference=reference), several(name="b<i>", reference=reference, kernel=torch.rand(3, 5, 5))]
    text = restoration_report(tmp_path / "page.html", "Restored", "two of them", restorations, more=3).read_text()
    page = Page(text)
    assert page.open == [] and len(page.loads) == 4 and all(part.startswith("data:") for part in page.loads)
    said = " ".join(page.words)
    assert "two of them" in said and "3 more pictures are in the folder" in said and "b<i>" in said
    assert "8 x 12 pixels, residual 0.1, PSNR" in said and "Medians: 8 x 12 pixels, residual 0.2, PSNR" in said
    assert (
        "The kernel that was estimated" in said
        and "more pictures"
        not in restoration_report(tmp_path / "page.html", "Restored", "one", restorations[:1]).read_text()
    )
