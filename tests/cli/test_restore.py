"""`dsno restore`: pictures of the user's, restored by teachers that tests make."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.checkpoint import read_json
from dsno.denoise import Prediction
from dsno.grids import uniform
from dsno.inverse.named import RESTORERS
from dsno.inverse.operators import Downsample, Mask
from dsno.inverse.start import LearnedStart
from dsno.inverse.start_net import NoisePredictor, save_start, start_grid
from dsno.inverse.tiles import Tiled
from dsno.nets.unet import UNet
from dsno.runs.restore import RESTORED
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from refusals import Spoil, refusals, refuses
from shell import Ran, dsno

DRAW = np.random.default_rng(0)
GREY, COLOUR = (DRAW.integers(0, 256, size, dtype=np.uint8) for size in ((8, 8), (8, 8, 3)))
QUICK = ("--steps", 2, "--device", "cpu", "--out", "out")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers of grey pictures, of coloured ones and of classes, pictures, masks and kernels."""
    here = tmp_path_factory.mktemp("restore")
    torch.manual_seed(0)
    for name, channels, classes, null in (
        ("grey", 1, None, False), ("colour", 3, None, False), ("classes", 1, 4, False), ("null", 1, 4, True),
    ):  # fmt: skip
        net = UNet(channels, 8, (4, 8), attention=(), classes=classes, null=null)
        # A network that was never trained says 0, whatever it is told.
        for layer in (m for m in net.modules() if isinstance(m, torch.nn.Conv2d)):
            torch.nn.init.normal_(layer.weight, std=0.1)
        save_teacher(here / name, Prediction(net, Cosine(), "v", clip=1.0))
    pictures = {
        "photos/a.png": GREY, "photos/b.png": GREY.T, "rgb/a.png": COLOUR, "wide/a.png": np.tile(GREY, (2, 3))[:13],
        "small/a.png": GREY[:4, :4], "mask.png": (GREY > 99).astype(np.uint8) * 255, "tall.png": GREY[:, :4],
        "notone.png": GREY, "refs/a.png": GREY, "part/a.png": GREY[:4, :4], "part/b.png": GREY[:4, :4],
    }  # fmt: skip
    for name, pixels in pictures.items():
        (here / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(here / name)
    (here / "odd").mkdir()
    Image.fromarray(GREY.astype(np.uint16) * 200).save(here / "odd" / "a.png")
    np.save(here / "set.npy", DRAW.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for name, array in (("kernel", kernel), ("large", np.ones((9, 9))), ("black", -kernel)):
        np.save(here / f"{name}.npy", array)
    return here


@pytest.fixture
def here(kept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept, tmp_path / "here")


def restored(*arguments: object, at: Path) -> Ran:
    ran = dsno("restore", *arguments, *QUICK, at=at)
    assert ran.code == 0, ran.said
    return ran


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("method", sorted(RESTORERS))
def test_every_method_restores_by_its_name(method: str, here: Path) -> None:
    blind = method.startswith("blind")
    problem = ("--problem", "blind", "--kernel-size", 3) if blind else ("--half", "right")
    ran = restored("photos", "--teacher", "grey", *problem, "--method", method, at=here)
    held = read_json(here / "out" / "restored.json")
    assert held["method"] == method and len(held["pictures"]) == 2
    assert held["cost"]["rounds"] > 0
    assert (here / "out" / "b-kernel.png").is_file() == blind
    assert ran.following == ["cite", "out"]
    for name in ("a", "b"):
        image = Image.open(here / "out" / f"{name}.png")
        assert image.mode == "L" and image.size == (8, 8)


def test_from_a_learned_start_it_restores_as_the_library_does(here: Path) -> None:
    net = NoisePredictor({"in_channels": 1, "image_size": 8, "channels": [8], "attention": []})
    with torch.no_grad():
        net.unet.head.conv.bias.fill_(0.1)
    save_start(here / "begun", net)
    given = ("part", "--teacher", "grey", "--problem", "super", "--factor", 2, "--start", "begun", "--device", "cpu")
    assert (ran := dsno("restore", *given, "--out", "one", at=here)).code == 0, ran.said
    restored(*given, at=here)
    teacher, problem, z = load_teacher(here / "grey").eval(), Downsample(2), noise([0], (1, 8, 8))
    y = torch.from_numpy(pixels(here / "part" / "a.png").copy()).float()[None, None] / 127.5 - 1
    for folder, steps in (("one", 1), ("out", 2)):
        held = read_json(here / folder / "restored.json")
        assert (held["method"], held["steps"]) == ("start", steps)
        made = LearnedStart(start_grid(teacher.schedule, steps), net)(teacher, teacher.schedule, problem, y, z)
        written = pixels(here / folder / "a.png") / 127.5 - 1
        assert np.abs(written - made.x[0, 0].clamp(-1, 1).numpy()).max() < 1 / 127
    for wrong, message in (
        (("--steps", 6), "a learned start takes 1 to 5 steps, got 6"),
        (("--method", "dps"), "--start is of the method start, and this one is dps"),
    ):
        ran = dsno("restore", *given, *wrong, "--out", "none", at=here)
        assert ran.code != 0 and message in ran.said and not (here / "none").exists()
    blind = ("restore", "photos", "--problem", "blind", "--start", "begun", "--out", "none")
    assert "knows its problem, and this one is blind" in dsno(*blind, at=here).said


def test_from_a_learned_start_pictures_of_any_size_are_restored_in_tiles(here: Path) -> None:
    net = NoisePredictor({"in_channels": 1, "image_size": 8, "channels": [8], "attention": []})
    torch.nn.init.normal_(net.unet.head.conv.weight, std=0.3)
    save_start(here / "begun", net)
    given = ("wide", "--teacher", "grey", "--problem", "super", "--factor", 2, "--start", "begun")
    restored(*given, "--samples", 2, at=here)
    held = read_json(here / "out" / "restored.json")
    assert held["tiled"] and held["pictures"][0]["size"] == [26, 48]
    # 6 x 11 tiles of each of 2 samples, in each of 2 steps.
    assert held["cost"]["rows"] == 2 * 2 * 6 * 11
    teacher, problem, canvas = load_teacher(here / "grey").eval(), Downsample(2), (1, 26, 48)
    y = torch.from_numpy(pixels(here / "wide" / "a.png").copy()).float()[None, None].expand(2, -1, -1, -1) / 127.5 - 1
    method = LearnedStart(start_grid(teacher.schedule, 2), net)
    tiled = Tiled(teacher, (1, 8, 8), canvas)
    made = method(tiled, teacher.schedule, problem, y, noise([0, 1], canvas)).x.clamp(-1, 1)
    for n in range(2):
        written = pixels(here / "out" / f"a-seed-{n}.png") / 127.5 - 1
        assert np.abs(written - made[n, 0].numpy()).max() < 1 / 127


def test_colours_are_those_of_what_was_measured_if_asked(here: Path) -> None:
    given = ("rgb", "--teacher", "colour", "--problem", "super", "--factor", 2, "--method", "mpgd")
    restored(*given, "--colour-fix", "moments", at=here)
    made, y = (pixels(here / folder / "a.png").astype(float) for folder in ("out", "rgb"))
    assert np.abs(made.mean((0, 1)) - y.mean((0, 1))).max() < 3
    assert read_json(here / "out" / "restored.json")["colour_fix"] == "moments"
    cited = dsno("cite", "out", at=here).said
    assert "wang2024exploiting" in cited and "huang2017arbitrary" in cited


@pytest.mark.parametrize(
    "problem, teacher, pictures, size",
    [
        ("--mask mask.png", "grey", "photos", (8, 8)),
        ("--box 0.5", "grey", "photos", (8, 8)),
        ("--random 0.5 --noise 0.05", "colour", "rgb", (8, 8)),
        ("--problem super --factor 2", "grey", "part", (8, 8)),
        ("--problem super --factor 2 --resize bicubic --degrade", "colour", "rgb", (8, 8)),
        ("--problem super --factor 2", "grey", "photos", (16, 16)),
        ("--problem deblur --kernel kernel.npy --border zero", "grey", "wide", (13, 24)),
        ("--problem deblur --kernel kernel.npy --degrade", "colour", "rgb", (8, 8)),
        ("--problem gray", "colour", "photos", (8, 8)),
        ("--problem gray --degrade", "colour", "rgb/a.png", (8, 8)),
    ],
)
def test_every_problem_is_restored_from_what_it_measured(
    problem: str, teacher: str, pictures: str, size: tuple[int, int], here: Path
) -> None:
    restored(pictures, "--teacher", teacher, *problem.split(), "--method", "diffpir", at=here)
    picture = pixels(here / "out" / "a.png")
    assert picture.shape == (size if teacher == "grey" else (*size, 3))
    held = read_json(here / "out" / "restored.json")
    assert held["degraded"] == ("--degrade" in problem)
    assert ("psnr" in held["pictures"][0]) == held["degraded"] == (here / "out" / "a-input.png").is_file()


def test_what_is_seen_comes_back_as_it_was(here: Path) -> None:
    restored("photos", "--teacher", "grey", "--mask", "mask.png", "--method", "diffpir", at=here)
    seen = pixels(here / "mask.png") == 255
    assert np.array_equal(pixels(here / "out" / "a.png")[seen], GREY[seen])
    assert not np.array_equal(pixels(here / "out" / "a.png"), GREY)


def test_a_restoration_is_what_the_library_makes(here: Path) -> None:
    given = ("--half", "right", "--samples", 2, "--seed", 7, "--method", "constrained")
    restored("photos/a.png", "--teacher", "grey", *given, at=here)
    teacher, problem, z = load_teacher(here / "grey"), Mask.half((1, 8, 8)), noise(seed_range(7, 2), (1, 8, 8))
    y = problem.A(torch.from_numpy(GREY.copy()).float()[None, None] / 127.5 - 1).expand(2, -1, -1, -1)
    made = RESTORERS["constrained"](uniform(2))(teacher.eval(), teacher.schedule, problem, y, z, seeds=seed_range(7, 2))
    for n in range(2):
        written = pixels(here / "out" / f"a-seed-{7 + n}.png") / 127.5 - 1
        assert np.abs(written - made.x[n, 0].clamp(-1, 1).numpy()).max() < 1 / 127
    held = read_json(here / "out" / "restored.json")["pictures"][0]
    assert held["seeds"] == [7, 8] and held["residual"] == pytest.approx(made.residual.tolist(), rel=1e-3)


def test_several_samples_have_a_mean_and_a_spread(here: Path) -> None:
    restored("photos", "--teacher", "grey", "--half", "bottom", "--samples", 3, "--method", "dps", "--degrade", at=here)
    names = {path.name for path in (here / "out").iterdir() if path.name.startswith("a")}
    assert names == {f"a-{part}.png" for part in ("seed-0", "seed-1", "seed-2", "mean", "spread", "input")}
    samples = np.stack([pixels(here / "out" / f"a-seed-{n}.png") for n in range(3)]).astype(float)
    assert np.abs(pixels(here / "out" / "a-mean.png") - samples.mean(0)).max() <= 1
    held = read_json(here / "out" / "restored.json")["pictures"][0]
    assert len(held["psnr"]) == 3 and held["psnr_of_mean"] >= min(held["psnr"]) and held["spread"] > 0


def test_an_array_goes_back_as_one(here: Path) -> None:
    restored("set.npy", "--teacher", "grey", "--half", "right", at=here)
    x = np.load(here / "out" / "restored.npy")
    assert x.shape == (3, 1, 8, 8) and x.dtype == np.float32 and np.abs(x).max() <= 1
    assert (here / "out" / "set-00002.png").is_file()


def test_references_are_found_by_name(here: Path) -> None:
    given = ("photos/a.png", "--teacher", "grey", "--half", "right", "--reference", "refs")
    ran = restored(*given, at=here)
    held = read_json(here / "out" / "restored.json")["pictures"][0]
    assert "PSNR" in ran.out and len(held["psnr"]) == 1 and held["psnr_of_input"] is not None
    assert not (here / "out" / "a-input.png").exists()


def test_a_picture_larger_than_the_teacher_s_is_restored_in_tiles(here: Path) -> None:
    restored("wide", "--teacher", "grey", "--random", 0.5, "--method", "diffpir", at=here)
    assert pixels(here / "out" / "a.png").shape == (13, 24)
    # 3 x 5 tiles, half of each over its neighbour.
    cost = read_json(here / "out" / "restored.json")["cost"]
    assert cost["rows"] == 15 * cost["rounds"]


def test_a_picture_is_restored_alike_alone_and_among_others(here: Path) -> None:
    given = ("--teacher", "grey", "--half", "right", "--method", "diffpir")
    restored("photos", *given, at=here)
    among = pixels(here / "out" / "b.png")
    shutil.rmtree(here / "out")
    restored("photos/b.png", *given, at=here)
    assert np.abs(pixels(here / "out" / "b.png").astype(int) - among).max() <= 1


def test_a_class_is_told_to_who_asks_for_one(here: Path) -> None:
    given = ("photos/a.png", "--half", "right", "--method", "diffpir", "--overwrite")
    restored(*given, "--teacher", "classes", "--label", 1, at=here)
    one = pixels(here / "out" / "a.png")
    restored(*given, "--teacher", "classes", "--label", 2, at=here)
    assert not np.array_equal(pixels(here / "out" / "a.png"), one)
    # A network that knows a label for no class needs to be told none.
    restored(*given, "--teacher", "null", at=here)
    restored(*given, "--teacher", "null", "--label", 1, "--guidance", 2, at=here)
    assert dsno("restore", *given, *QUICK, "--teacher", "null", "--guidance", 2, at=here).code == 2


def test_a_restoration_is_overwritten_and_nothing_else(here: Path) -> None:
    given = ("restore", "photos", "--teacher", "grey", "--half", "right", *QUICK)
    assert dsno(*given, at=here).code == 0
    (here / "out" / "mine.txt").write_text("precious")
    ran = dsno(*given, at=here)
    assert ran.code == 2 and "out exists already: pass --overwrite to start again" in ran.err
    ran = dsno(*given, "--samples", 2, "--overwrite", at=here)
    assert ran.code == 0 and (here / "out" / "mine.txt").read_text() == "precious"
    assert not (here / "out" / "a.png").exists() and (here / "out" / "a-mean.png").is_file()
    shutil.copy(here / "photos" / "a.png", here / "out" / "a.png")
    refuses(
        "restore photos --teacher grey --half right --steps 2 --device cpu --out out --overwrite",
        None,
        "out/a.png is not of a restoration and would be replaced: choose another folder",
        at=here,
    )


def test_what_is_stopped_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def stop(self: UNet, *given: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return forward(self, *given)

    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", stop)
    given = ("--teacher", "grey", "--half", "right", "--method", "constrained")
    ran = dsno("restore", "photos", *given, *QUICK, at=here)
    assert ran.code == 130 and calls == 4 and not (here / "out").exists()


def test_a_list_that_leads_elsewhere_removes_nothing(here: Path) -> None:
    (here / "out").mkdir()
    for text in ('{"files": ["../photos/a.png"]}', '{"files": 3}', "[]", "{"):
        (here / "out" / "restored.json").write_text(text)
        assert RESTORED.own(here / "out") == []


# Teachers of diffusers


def test_a_teacher_of_latents_sees_the_problem_through_its_decoder(here: Path) -> None:
    pytest.importorskip("diffusers")
    from pipelines import write_pipelines

    sd = write_pipelines(here)["sd"]
    (here / "prompts.txt").write_text("a cat\n")
    given = ("rgb", "--teacher", sd, "--random", 0.5, "--degrade")
    ran = restored(*given, "--prompts", "prompts.txt", at=here)
    assert "makes latents: the problem is seen, and differentiated, through its decoder" in ran.err
    held = read_json(here / "out" / "restored.json")
    assert held["method"] == "constrained" and held["cost"]["vjps"] == 0 < held["cost"]["gradients"]
    assert pixels(here / "out" / "a.png").shape == (8, 8, 3)
    for more, message in (
        (
            ("--prompts", "prompts.txt", "--method", "diffpir"),
            "DiffPIR solves a linear problem, and one that is Decoded",
        ),
        ((), "is told a text: give --prompts, a file with a line for each picture"),
    ):
        ran = dsno("restore", *given, *more, *QUICK[:-1], "new", at=here)
        assert ran.code == 2 and message in ran.err.splitlines()[-1] and not (here / "new").exists()


# Refusals

GIVEN = "restore photos --steps 2 --device cpu --out out"


def cut(here: Path) -> None:
    (here / "photos" / "a.png").write_bytes((here / "photos" / "a.png").read_bytes()[:40])


def transparent(here: Path) -> None:
    Image.fromarray(np.dstack([COLOUR, GREY]), "RGBA").save(here / "photos" / "a.png")


@refusals(
    (f"{GIVEN} --teacher grey", None, "inpaint needs one of --mask FILE, --box SHARE, --half right or bottom, and"),
    (
        f"{GIVEN} --teacher grey --mask tall.png",
        None,
        "tall.png must be black (hidden) and white (seen), and has greys",
    ),
    (
        f"{GIVEN.replace('photos', 'wide')} --teacher grey --mask mask.png",
        None,
        "mask.png is of 8 x 8 pixels, and a picture of 13",
    ),
    (f"{GIVEN} --teacher grey --random 1.5", None, "the share of pixels that is hidden must be in (0, 1), got 1.5"),
    (f"{GIVEN} --teacher grey --half right --noise -0.1", None, "is a standard deviation of 0 or more, got -0.1"),
    (f"{GIVEN} --teacher grey --half right --noise nan", None, "is a standard deviation of 0 or more, got nan"),
    (f"{GIVEN} --teacher grey --half right --samples 0", None, "--samples must be at least 1, got 0"),
    (f"{GIVEN} --teacher grey --half right --steps 0", None, "a grid needs at least one step, got 0"),
    (f"{GIVEN} --teacher grey --half right --seed -1", None, "of seeds must be an integer in [0, 2^63), got -1"),
    (f"{GIVEN} --teacher grey --half right --factor 4", None, "--factor is no option of the problem inpaint"),
    (f"{GIVEN} --teacher grey --half right --method start", None, "--method start needs --start FOLDER"),
    (f"{GIVEN} --teacher grey --half right --start grey", None, "holds a teacher, expected a start"),
    (f"{GIVEN} --teacher grey --half right --colour-fix wavelet", None, "Mask leaves pixels or colours out, so what"),
    (
        f"{GIVEN} --teacher colour --problem gray --colour-fix wavelet",
        None,
        "Grey leaves pixels or colours out, so what was",
    ),
    (f"{GIVEN} --teacher grey --half right --method none", None, "unknown method 'none': expected one of"),
    (f"{GIVEN} --teacher grey --half right --method blind", None, "the method blind estimates a kernel, and the"),
    (
        f"{GIVEN} --teacher grey --problem super --factor 3 --degrade",
        None,
        "a factor of 3 does not divide samples of 8",
    ),
    (f"{GIVEN} --teacher grey --problem deblur --kernel large.npy", None, "a kernel (9, 9) blurs samples"),
    (f"{GIVEN} --teacher grey --problem deblur --kernel black.npy", None, "a kernel must have a positive sum"),
    (f"{GIVEN} --teacher grey --problem deblur --kernel none.npy", None, "no file none.npy"),
    (
        f"{GIVEN} --teacher colour --half right",
        None,
        "a is restored in grey, and the teacher makes pictures in colour: convert",
    ),
    (
        f"{GIVEN.replace('photos', 'rgb')} --teacher grey --half right",
        None,
        "a is restored in colour, and the teacher makes pic",
    ),
    (
        f"{GIVEN.replace('photos', 'rgb')} --teacher colour --problem gray",
        None,
        "gray restores the colours of grey pic",
    ),
    (
        f"{GIVEN} --teacher grey --problem gray --degrade",
        None,
        "gray takes the colours of clean pictures away, and these have none: give some in colour",
    ),
    (f"{GIVEN} --teacher grey --problem gray", None, "a is restored in colour, and the teacher makes pictures in grey"),
    (f"{GIVEN.replace('photos', 'small')} --teacher grey --half right", None, "a is restored to 4 x 4 pixels, and the"),
    (f"{GIVEN.replace('photos', 'odd')} --teacher grey --half right", None, "a.png has more than 8 bits per channel"),
    (f"{GIVEN} --teacher grey --half right", cut, "a.png is damaged or not a picture"),
    (f"{GIVEN} --teacher grey --half right", transparent, "a.png has transparent pixels"),
    (f"{GIVEN.replace('photos', 'nowhere')} --teacher grey --half right", None, "there are no pictures nowhere: expec"),
    (
        f"{GIVEN} --teacher grey --half right --reference refs",
        None,
        "there is no reference of b: expected a picture of",
    ),
    (
        f"{GIVEN} --teacher grey --half right --reference part",
        None,
        "the reference of a is 4 x 4 pixels in grey, and it",
    ),
    (
        f"{GIVEN} --teacher grey --half right --reference refs --degrade",
        None,
        "--degrade takes the pictures themselves",
    ),
    (f"{GIVEN} --teacher classes --half right", None, "classes is told a class: give that of the pictures, --label"),
    (
        f"{GIVEN} --teacher classes --half right --label 4",
        None,
        "label 4 is outside the classes of classes: expected 0",
    ),
    (
        f"{GIVEN} --teacher grey --half right --label 0",
        None,
        "label 0 is outside the classes of grey: it has no classes",
    ),
    (f"{GIVEN} --teacher grey --half right --guidance 2", None, "--guidance leads towards what the teacher is told"),
    (
        f"{GIVEN.replace('--out out', '--out photos')} --teacher grey --half right",
        None,
        "photos is read, and is photos",
    ),
    (f"{GIVEN.replace('--out out', '--out .')} --teacher grey --half right", None, "which is written to"),
    (f"{GIVEN.replace('--out out', '--out rgb')} --teacher grey --half right", None, "rgb exists already"),
    (
        f"{GIVEN.replace('--out out', '--out rgb')} --teacher grey --half right --overwrite",
        None,
        "rgb/a.png is not of a",
    ),
)
def test_a_failure_is_one_line_before_the_network_runs(
    command: str, spoil: Spoil, message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*given: object) -> torch.Tensor:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(UNet, "forward", asked)
    refuses(command, spoil, message, at=here)
    assert not (here / "out").exists()
