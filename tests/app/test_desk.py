"""What a page shows of what it asks: pictures, costs, and where a run is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import planned
from dsno.app.desk import SIDE, Desk, image_of, on_canvas, said_of, said_on_the_way
from dsno.app.mend import Wish
from dsno.app.models import Ask
from dsno.app.places import Places
from dsno.app.running import Made, Progress
from dsno.data.load import load_data
from dsno.data.originals import as_png
from dsno.students.files import save_student


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    save_student(tmp_path / "told", planned.told()[0], options={"guidance": [1.0, 3.0]})
    return Desk(Places((tmp_path,), {"told": str(tmp_path / "told")}))


def made(events: Any) -> Any:
    *_, last = events
    assert isinstance(last, Made)
    return last.value


def test_a_sample_is_a_picture_with_its_cost_and_a_strip(desk: Desk) -> None:
    image, said, strip = made(desk.sample("digits", Ask(3, steps=5, path=True)))
    assert image.size == (8, 8) and image.mode == "L" and strip.size[0] > 5 * 96
    assert said.startswith("5 network calls, ") and said.endswith("s")
    _, said, strip = made(desk.sample("told", Ask(guidance=1.0)))
    assert said.startswith("1 network call, ") and strip is None
    assert desk.opened("digits") is desk.opened("digits")


def test_another_model_is_told_what_it_can_be(desk: Desk) -> None:
    ask = Ask(label=9, prompt="a cat", guidance=0.0, passes=3)
    assert made(desk.sample("told", ask, fit=True))[1].startswith("3 network calls, ")
    with pytest.raises(ValueError, match="told is told no text"):
        made(desk.sample("told", ask))
    with pytest.raises(PermissionError, match="'/etc' is not opened here"):
        made(desk.sample("/etc", Ask()))


def test_a_picture_is_restored_where_it_was_painted_over_or_a_mask_is_black(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "digit.png").write_bytes(as_png(load_data("digits").x[0]))
    layer = np.zeros((80, 80, 4), np.uint8)
    layer[:, 40:, 3] = 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    mask = np.full((8, 8), 255, np.uint8)
    mask[:, 4:] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    wish, file = Wish(whole=True, steps=2, samples=2), str(tmp_path / "digit.png")
    pictures, said = made(desk.restore("digits", file, wish, Ask(), [str(tmp_path / "layer.png")]))
    assert [name for _, name in pictures] == ["input", "mean", "seed 0", "seed 1", "spread"]
    assert said.startswith("2 network calls, 0 vjps, ") and ", PSNR " in said and said.endswith(" dB")
    masked, _ = made(desk.restore("digits", file, wish, Ask(), mask=str(tmp_path / "mask.png")))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(pictures, masked, strict=True))
    with pytest.raises(ValueError, match="there is no picture: send one"):
        made(desk.restore("digits", None, wish, Ask()))
    Image.new("L", (4, 8)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="the mask is of 8 x 4 pixels, and the picture of 8 x 8: bring it to that"):
        made(desk.restore("digits", file, wish, Ask(), mask=str(tmp_path / "mask.png")))


def test_pictures_keep_their_bytes_and_small_ones_are_enlarged_to_be_painted_over(tmp_path: Path) -> None:
    x = load_data("digits").x[0]
    (tmp_path / "digit.png").write_bytes(as_png(x))
    assert np.array_equal(np.asarray(image_of(x)), np.asarray(Image.open(tmp_path / "digit.png")))
    canvas = on_canvas(str(tmp_path / "digit.png"))
    assert canvas is not None and canvas.size == (SIDE, SIDE) and on_canvas(None) is None
    assert image_of(torch.zeros(3, 2, 2)).mode == "RGB"


def test_models_and_runs_are_said_in_a_line(desk: Desk) -> None:
    assert said_of(desk.opened("told")) == "told: a student of 1 x 4 x 4, told 3 classes"
    assert said_of(desk.opened("digits")) == "digits: a teacher of 1 x 8 x 8"
    assert said_on_the_way(Progress(3, 8, 1.25)) == "3 of 8 network calls, 1.2 s"
    assert said_on_the_way(Progress(0, 0, 0.1)) == "waiting, 0.1 s"
