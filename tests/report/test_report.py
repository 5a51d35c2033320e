import base64
import dataclasses
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsno.denoise import Prediction
from dsno.grids import quadratic
from dsno.measure.results import Cost, Protocol, Quality, Result, load_results
from dsno.nets.features import FeatureNet, save_feature_net
from dsno.nets.unet import UNet
from dsno.report.compare import compare
from dsno.report.page import Picture, Section, html_report
from dsno.report.pictures import image_grid, interpolation, quality_against_cost, slerp, trajectory_strips
from dsno.schedule import Cosine
from dsno.students.files import save_student
from dsno.students.operator import student_from_teacher
from dsno.teachers.native import save_teacher


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def images(N: int, C: int = 1, size: int = 8) -> Tensor:
    return torch.rand(N, C, size, size) * 2 - 1


def result(name: str, rounds: int, frechet: float, error: float | None = 0.1, **protocol: object) -> Result:
    quality = Quality(frechet, frechet / 10, 0.01, 0.9, 0.8, 1.0)
    cost = Cost(rounds, rounds, 10**6 * rounds, 1.0, 0.01, 0.002) if rounds else Cost()
    family = re.sub(r"-\d+$", "", name)
    return Result(name, family, cost, Protocol(count=64, extractor="tiny_cnn", **protocol), quality, error, error)


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
    assert [int(grid[r * 104, c * 104, 0]) for r, c in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))] == [
        0,
        64,
        128,
        191,
        255,
    ]
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


def test_pictures_need_no_display_and_no_pyplot() -> None:
    code = "import sys, dsno.report.pictures; assert 'matplotlib' not in sys.modules; import torch\n"
    code += "dsno.report.pictures.trajectory_strips(*[torch.zeros(1, 1, 1, 8, 8)] * 2, [0.0])\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


# The page


class Page(HTMLParser):
    """Every element that could load something, the text, and whether tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for key, value in attrs if key in ("src", "srcset", "href", "data", "poster")]
        if tag not in ("meta", "img", "source", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_is_one_file_with_everything_in_it(results: list[Result], tmp_path: Path) -> None:
    grid, light, dark = image_grid(images(4)), quality_against_cost(results), quality_against_cost(results, dark=True)
    path = html_report(
        tmp_path / "deep" / "report.html",
        "Digits <1>",
        [
            Section("Samples", "One & two.\n\nThree.", [Picture(grid, "A <grid>")]),
            Section("Numbers", pictures=[Picture(light, "Plot", dark)], results=results),
        ],
        "A summary.",
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert [load.partition(",")[0] for load in page.loads] == ["data:image/png;base64"] * 3
    assert {base64.b64decode(load.partition(",")[2]) for load in page.loads} == {grid, light, dark}
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert "prefers-color-scheme: dark" in text and 'width="100"' in text
    words = " ".join(page.words)
    for expected in ("Digits <1>", "A summary.", "One & two.", "Three.", "A <grid>", "DSNO", "UniPC-8", "tiny_cnn"):
        assert expected in words
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def cells(text: str, css: str) -> list[str]:
    return re.findall(rf"<td class={css}>([^<]*)</td>", text)


def test_report_highlights_the_best_on_one_scale_only(results: list[Result], tmp_path: Path) -> None:
    text = html_report(tmp_path / "a.html", "x", [Section("x", results=results)]).read_text()
    assert "0.625" in cells(text, "best") and "0.0625" in cells(text, "best")
    mixed = [*results[:-1], result("other", 3, 0.01, reference_sha="b" * 64)]
    text = html_report(tmp_path / "b.html", "x", [Section("x", results=mixed)]).read_text()
    assert cells(text, "best") == []
    assert "<th>reference sha</th>" not in text  # the others have none to differ from


def test_report_shows_what_protocols_share_once_and_what_differs_per_name(tmp_path: Path) -> None:
    pair = [result("a", 1, 1.0, batch=8, device="one"), result("b", 2, 1.0, batch=8, device="two")]
    text = html_report(tmp_path / "x.html", "x", [Section("x", results=pair)]).read_text()
    assert text.count("<dt>batch</dt>") == 1 and "<dt>device</dt>" not in text
    assert "<th>device</th>" in text and 'title="one"' in text and 'title="two"' in text


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = html_report(tmp_path / "x.html", "old", [])
    monkeypatch.setattr(Path, "write_text", lambda *args, **rest: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        html_report(path, "new", [])
    assert "old" in path.read_text() and [p.name for p in tmp_path.iterdir()] == ["x.html"]


# All of it


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    teacher = Prediction(UNet(1, 8, (8, 8)), Cosine(), "v", clip=1.0)
    save_teacher(root / "teacher", teacher)
    save_student(root / "student", student_from_teacher(teacher, quadratic(2)[1:]))
    save_feature_net(root / "features", FeatureNet("tiny_cnn", width=4))
    return root


def test_compare_writes_numbers_and_a_report(folders: Path, tmp_path: Path) -> None:
    said: list[tuple[str, int, int, str]] = []
    results = compare(
        folders / "teacher", folders / "student", folders / "features", "digits", 8, tmp_path / "out",
        lambda *line: said.append(line), ddim=(1, 2, 4), multistep=(2, 4), fine_steps=8, repeats=0,
    )  # fmt: skip
    assert load_results(tmp_path / "out" / "results.json") == results
    assert results[0].name == "DSNO" and results[0].cost.rounds == 1 and results[0].path_error > 0
    assert {r.family for r in results} == {"DSNO", "DDIM", "DPM-Solver++", "UniPC", "teacher, fine"}
    assert len({r.protocol.fine_sha for r in results[:-1]}) == 1
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.open == [] and len(page.loads) == 9
    assert said[-1][1] == said[-1][2] and said[0][0] == "evaluate"


def test_compare_refuses_other_data(folders: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (9, 16, 16), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"makes \(1, 8, 8\), x.npy has \(1, 16, 16\)"):
        compare(folders / "teacher", folders / "student", folders / "features", str(tmp_path / "x.npy"), 8)
