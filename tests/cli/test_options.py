"""What several verbs ask for: a device, a file to write, a share of the work."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dsno.cli.options import Reading, device_of, launched, new_file
from dsno.cli.words import command
from shell import dsno


def test_a_device_is_the_one_that_was_named_or_the_fastest() -> None:
    assert device_of("cpu") == torch.device("cpu")
    fastest = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device_of(None) == fastest


@pytest.mark.parametrize(
    "name, message", [("nowhere", "unknown device 'nowhere': expected cpu"), ("cuda:99", "has no device cuda:99")]
)
def test_a_device_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        device_of(name)


def test_a_new_file_gets_its_folder_and_replaces_nothing_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    new_file(path, overwrite=False)
    assert path.parent.is_dir() and not path.exists()
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="b.json exists already: pass --overwrite to replace it"):
        new_file(path, overwrite=False)
    new_file(path, overwrite=True)
    assert path.read_text() == "mine"
    with pytest.raises(FileExistsError, match="b.json is read, and is"):
        new_file(path, True, None, "digits", path)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="a is a folder: name a file"):
            new_file(path.parent, overwrite)


def test_work_is_shared_only_where_several_processes_were_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator", lambda cpu: ("several", cpu))
    for world, found in ((None, None), ("1", None), ("2", ("several", not torch.cuda.is_available()))):
        if world is None:
            monkeypatch.delenv("WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("WORLD_SIZE", world)
        assert launched() == found


@pytest.mark.parametrize("verb", ["check-teacher", "convert", "generate"])
def test_a_teacher_is_explained_alike_by_every_verb_that_takes_one(verb: str, tmp_path: Path) -> None:
    said = " ".join(dsno(verb, "--help", at=tmp_path).out.replace("│", " ").split())
    assert "The teacher: a folder of dsno or diffusers, an EDM *.pkl, module:attribute, file.py:attribute" in said


# The variant of a teacher's weights


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of 8 x 8 digits whose weights are there in half precision alone."""
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    folder = tmp_path_factory.mktemp("fp16")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=10)
    diffusers.DDPMPipeline(unet.half(), scheduler).save_pretrained(folder / "pipe", variant="fp16")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "check-teacher pipe --rows 16 --levels 2 --patience 0",
        "convert pipe --out own",
        "generate --teacher pipe --count 4 --steps 6 --frames 2",
        "sample --teacher pipe --exact taa --steps 2 --count 1",
        "plan pipe --seconds 0.1 --count 4 --steps 2",
        "distill --method consistency --teacher pipe --data digits --train.steps 2",
        "evaluate --teacher pipe",
        "reproduce digits --teacher pipe",
    ],
)
def test_every_verb_that_takes_a_teacher_takes_a_variant_of_it(command: str, fp16: Path, tmp_path: Path) -> None:
    shutil.copytree(fp16 / "pipe", tmp_path / "pipe")
    failed = dsno(*command.split(), "--variant", "bf16", at=tmp_path)
    assert failed.code not in (0, None) and "Traceback" not in failed.err
    assert "take the variant fp16" in " ".join(failed.err.replace("│", " ").split())
    if command.startswith(("convert", "generate")):
        assert dsno(*command.split(), "--variant", "fp16", at=tmp_path).code == 0


# How data are read


def test_what_was_given_is_said_again_alike() -> None:
    reading = Reading(size=8, range=(0.0, 1.0), crop=(4, 6), channels_last=True)
    assert reading.given() == ["--size", "--crop", "--range", "--channels-last"]
    words = "--data 'a b' --size 8 --crop 4 6 --range 0.0 1.0 --channels-last"
    assert command("teach", **reading.options("a b")) == f"dsno teach {words}"
    assert Reading().options("digits") == {"data": "digits"}


def test_an_array_is_read_as_it_is_said_to_be(tmp_path: Path) -> None:
    physical = np.random.default_rng(0).normal(280, 10, (6, 9, 8, 4)).astype(np.float32)
    np.savez(tmp_path / "fields.npz", coarse=physical[:, ::2], fine=physical)
    read = Reading(key="fine", scale="std", channels_last=True, crop=(8,)).load(str(tmp_path / "fields.npz"))
    assert read.shape == (4, 8, 8) and abs(float(read.x.mean())) < 0.1 and float(read.x.std()) == pytest.approx(1, 0.1)
    torch.testing.assert_close(
        read.restore(read.x), torch.from_numpy(physical[:, :8]).movedim(-1, 1), rtol=1e-4, atol=0
    )
    with pytest.raises(ValueError, match="--channels-first and --channels-last exclude each other"):
        Reading(channels_first=True, channels_last=True).load("digits")


@pytest.mark.parametrize("verb", ["teach", "distill", "features", "evaluate", "check-teacher"])
def test_every_verb_that_reads_data_takes_how(verb: str, tmp_path: Path) -> None:
    said = dsno(verb, "--help", at=tmp_path).out
    assert all(option in said for option in ("--size", "--crop", "--range", "--scale", "--key", "--channels-last"))
