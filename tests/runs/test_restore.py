"""The road from pictures to restored ones, on teachers in closed form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.checkpoint import read_json
from dsno.data.originals import Original
from dsno.denoise import Prediction
from dsno.inverse.colours import FIXES, ColourFix
from dsno.inverse.named import RESTORERS
from dsno.inverse.operators import Downsample, Function, Mask
from dsno.nets.unet import UNet
from dsno.runs.restore import RESTORED, restore
from dsno.runs.task import Task, Worker
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.teachers.closed import Gaussian

SCHEDULE = Cosine()
x = noise(range(5), (1, 8, 8)).clamp(-1, 1)
PICTURES = [Original(f"p{n}", row) for n, row in enumerate(x)]


def worker(method: str = "diffpir", **changes: Any) -> Worker:
    given: dict[str, Any] = {"denoiser": Gaussian(SCHEDULE, torch.zeros(1, 8, 8), 0.5), "schedule": SCHEDULE}
    return Worker(**given | {"shape": (1, 8, 8), "method": RESTORERS[method], "steps": 3, **changes})


def task(**changes: Any) -> Task:
    given: dict[str, Any] = {"pictures": PICTURES, "problem": Mask.half, "whole": lambda measured: measured}
    return Task(**given | {"measure": Mask.half, **changes})


def test_files_and_measures_are_what_was_restored(tmp_path: Path) -> None:
    held = restore(worker(), task(), tmp_path / "out", {"teacher": "t", "method": "diffpir"})
    written = read_json(tmp_path / "out" / "restored.json")
    assert written == {**held, "files": written["files"]} and written["teacher"] == "t"
    assert {*written["files"]} | {"restored.json"} == {p.name for p in (tmp_path / "out").iterdir()}
    assert [row["name"] for row in held["pictures"]] == [p.name for p in PICTURES]
    for picture in PICTURES:
        seen = np.asarray(Image.open(tmp_path / "out" / f"{picture.name}.png"))[:, :4] / 127.5 - 1
        assert np.abs(seen - picture.x[0, :, :4].numpy()).max() < 1 / 127
    assert held["median"]["psnr"] == pytest.approx(np.median([row["psnr"][0] for row in held["pictures"]]))
    assert held["cost"]["rounds"] == 3 and held["cost"]["rows"] == 15 and not held["tiled"]
    assert RESTORED.own(tmp_path / "out")[0].name == "restored.json"
    said = (tmp_path / "out" / "report.html").read_text()
    assert f"Pictures: {len(PICTURES)}. Samples: {len(PICTURES)}, in 3 steps" in said and "more pictures" not in said


def test_pictures_of_several_sizes_keep_their_order_and_their_size(tmp_path: Path) -> None:
    sizes = [(8, 8), (8, 20), (8, 8), (12, 9)]
    pictures = [Original(f"p{n}", noise([n], (1, *size))[0].clamp(-1, 1)) for n, size in enumerate(sizes)]
    held = restore(worker(), task(pictures=pictures, samples=2), tmp_path / "out")
    assert [(row["name"], tuple(row["size"])) for row in held["pictures"]] == [
        (f"p{n}", s) for n, s in enumerate(sizes)
    ]
    assert held["tiled"] and all(len(row["residual"]) == 2 for row in held["pictures"])
    for n, (H, W) in enumerate(sizes):
        assert Image.open(tmp_path / "out" / f"p{n}-mean.png").size == (W, H)


def test_a_batch_has_as_many_rows_as_fit_and_what_is_restored_does_not_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = restore(worker("dps"), task(array=True), tmp_path / "whole")
    monkeypatch.setattr("dsno.runs.restore.ROWS", 2)
    parts = restore(worker("dps"), task(array=True), tmp_path / "parts")
    assert whole["cost"]["rounds"] == 3 and parts["cost"]["rounds"] == 9
    assert whole["cost"]["rows"] == parts["cost"]["rows"] == 15
    one, other = (np.load(tmp_path / name / "restored.npy") for name in ("whole", "parts"))
    assert one.shape == (5, 1, 8, 8) and np.abs(one - other).max() < 1e-5


def test_progress_counts_the_calls_of_the_network(tmp_path: Path) -> None:
    teacher, heard = Prediction(UNet(1, 8, (4, 8), attention=()), SCHEDULE, "v"), list[tuple[int, int]]()
    pictures = [*PICTURES, Original("wide", noise([9], (1, 8, 16))[0].clamp(-1, 1))]
    for method in ("diffpir", "replacement", "constrained"):
        heard.clear()
        made = worker(method, denoiser=teacher)
        held = restore(
            made, task(pictures=pictures), tmp_path / method, report=lambda s, n, of, t: heard.append((n, of))
        )
        assert heard == [(n + 1, len(heard)) for n in range(len(heard))]
        assert len(heard) == held["cost"]["rounds"]
    # Nothing stays on the network.
    assert not teacher.net._forward_hooks


def test_a_condition_is_told_by_the_number_of_a_picture(tmp_path: Path) -> None:
    means = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 8, 8)
    told = worker(denoiser=Gaussian(SCHEDULE, means, 0.01, classes=5), steps=8)
    restore(told, task(condition=lambda numbers: numbers, samples=2), tmp_path / "out")
    for n in range(5):
        hidden = np.asarray(Image.open(tmp_path / "out" / f"p{n}-seed-1.png"))[:, 4:] / 127.5 - 1
        assert np.abs(hidden - float(means[n, 0, 0, 0])).max() < 0.1


@pytest.mark.parametrize("fix", [*FIXES])
def test_restorations_have_the_colours_of_what_was_measured_and_are_measured_in_them(
    fix: ColourFix, tmp_path: Path
) -> None:
    shrunk: dict[str, Any] = {"problem": lambda shape: Downsample(2), "measure": lambda shape: Downsample(2)}
    # A teacher that knows pictures of another colour, asked too rarely to be led to this one.
    pale = {"denoiser": Gaussian(SCHEDULE, torch.full((1, 8, 8), 0.6), 0.1), "steps": 2}
    made = {
        name: restore(
            worker("dps", **pale, colour_fix=name), task(**shrunk, samples=2, array=True), tmp_path / str(name)
        )
        for name in (None, fix)
    }
    plain, fixed = (np.load(tmp_path / str(name) / "restored.npy") for name in (None, fix))
    y0 = Downsample(2).A_dagger(Downsample(2).A(x)).repeat_interleave(2, 0)
    expected = FIXES[fix](torch.from_numpy(plain).flatten(0, 1), y0)
    assert np.abs(fixed.reshape(10, 1, 8, 8) - expected.clamp(-1, 1).numpy()).max() < 1e-5
    assert np.abs(fixed - plain).max() > 0.1
    held = made[fix]
    assert (made[None]["colour_fix"], held["colour_fix"]) == (None, fix)
    residual = (Downsample(2).A(expected) - Downsample(2).A(y0)).square().mean((1, 2, 3)).sqrt()
    assert np.array([row["residual"] for row in held["pictures"]]).flatten() == pytest.approx(
        residual.numpy(), rel=1e-3
    )


def test_colours_that_were_not_measured_are_refused_before_the_teacher_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Mask leaves pixels or colours out"):
        restore(worker(denoiser=never, colour_fix="moments"), task(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def never(*given: object) -> torch.Tensor:
    raise AssertionError("the teacher was asked")


def shifted(shape: tuple[int, ...]) -> Function:
    """What is not linear has no adjoint."""
    return Function(lambda x: x.abs(), shape)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            {"problem": shifted, "measure": shifted},
            ValueError,
            "the adjoint of Function is none: <A x, y> and <x, A_adj",
        ),
        ({"measure": None, "references": {}}, ValueError, "there is no reference of p0"),
        (
            {"pictures": [*PICTURES, Original("p0-mean", x[0])]},
            ValueError,
            "p0-mean is what a part of p0 would be called: rename one of these pictures",
        ),
        ({"pictures": [Original("small", x[0, :, :4])]}, ValueError, "small is restored to 4 x 8 pixels"),
    ],
)
def test_what_cannot_be_restored_is_refused_before_the_teacher_is_asked(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        restore(worker(denoiser=never), task(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def broken(x_t: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return x_t * torch.nan

    with pytest.raises(FloatingPointError, match="the restorations of p0, p1, p2, p3, p4 are not finite: take more st"):
        restore(worker(denoiser=broken), task(), tmp_path / "out")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError):
        restore(worker(), task(), tmp_path / "kept")
    assert {p.name for p in tmp_path.rglob("*")} == {"kept", "mine.txt"}


def test_what_is_somebody_else_s_is_neither_removed_nor_replaced(tmp_path: Path) -> None:
    restore(worker(), task(), tmp_path / "out")
    (tmp_path / "out" / "p0.png").rename(tmp_path / "out" / "other.png")
    held = restore(worker(), task(samples=2), tmp_path / "out", overwrite=True)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "other.png" in names and "p1.png" not in names and "p1-seed-0.png" in names and held["cost"]["rows"] == 30
    (tmp_path / "out" / "p3.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="p3.png is not of a restoration and would be replaced"):
        restore(worker(), task(), tmp_path / "out", overwrite=True)
    assert "p1-seed-0.png" in {p.name for p in (tmp_path / "out").iterdir()}
