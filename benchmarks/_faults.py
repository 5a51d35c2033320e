"""What `faults.py` damages: a small folder of every kind, how it is opened, and what is read.

`opened` returns a checksum of everything that the rest of the library would use, so that what was accepted in spite of
a damage is told from what the damage did not touch.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markdown_it import MarkdownIt
from torch import Tensor, nn

from dsno import Cosine, Gaussian, Prediction, SolverSampler, grids
from dsno.app.export import export_program, load_program
from dsno.checkpoint import digest, sha256_of
from dsno.data.load import load_data
from dsno.measure.results import load_results
from dsno.nets.features import FeatureNet, load_feature_net, save_feature_net
from dsno.nets.unet import UNet
from dsno.students.files import load_student, notes_of, save_student
from dsno.students.official import load_official
from dsno.students.operator import student_from_teacher
from dsno.teachers.edm import load_edm, read_snapshot
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.train import TrainConfig, train
from dsno.trajectories.card import card
from dsno.trajectories.manifest import read_manifest
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.share import push
from dsno.trajectories.store import store

__all__ = ["KINDS", "UNREAD", "Kind"]

SHAPE = (1, 4, 4)


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Attributes:
        make: Writes it.
        opened: Opens it, reads all of it, and says in a checksum what was read.
        sealed: Whether every bit of it counts: a damage that is accepted is one too many.
    """

    make: Callable[[Path], object]
    opened: Callable[[Path], str]
    sealed: bool


def network(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(1, 4, (4, 8), attention=(), classes=3)


def teacher() -> Prediction:
    return Prediction(network(), Cosine(), "v").eval()


def said(module: nn.Module, *more: object) -> str:
    return sha256_of([(repr(more), torch.zeros(0)), (digest(module.state_dict()), torch.zeros(0))])


def make_set(folder: Path) -> None:
    exact = Gaussian(Cosine(), torch.zeros(SHAPE), 0.5)
    keep = grids.quadratic(4)
    solver = SolverSampler(exact, Cosine(), keep, keep=keep)
    store(solver, SHAPE, folder, 20, batch=4, shard=8, targets=("x0", "state"), label=lambda s: s % 3)


def open_set(folder: Path) -> str:
    data = TrajectorySet(folder)
    rows = data.__getitems__(range(len(data)))
    return hashlib.sha256(f"{digest(rows)} {data.times.tolist()} {data.schedule.config}".encode()).hexdigest()


def open_teacher(folder: Path) -> str:
    held = load_teacher(folder)
    return said(held, held.schedule.config, held.kind, held.clip, held.data_std, held.shape, held.classes)


def open_student(folder: Path) -> str:
    held: Any = load_student(folder)
    return said(held, held.config, sorted(notes_of(folder)))


def open_program(folder: Path) -> str:
    program = load_program(folder / "student.pt2")
    z = torch.linspace(-2, 2, 48).reshape(3, *SHAPE)
    return digest({"x": program(z, {"label": torch.arange(3), "weight": torch.ones(3)})})


class Objective:
    """Fits zeros; enough for a checkpoint."""

    def batches(self, first: int, rank: int, world: int) -> Any:
        while True:
            yield {"x": torch.ones(2, 3)}

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["x"]) ** 2).mean()


def trained(folder: Path, steps: int) -> nn.Module:
    torch.manual_seed(0)
    settings = TrainConfig(steps=steps, warmup=0, checkpoint_every=2, log_every=1)
    return train(nn.Linear(3, 2), Objective(), settings, folder, resume=True)


def make_results(folder: Path) -> None:
    held = Path(__file__).parents[1] / "tests" / "fixtures" / "v0_1" / "results.json"
    folder.mkdir()
    (folder / "results.json").write_bytes(held.read_bytes())


def data_kind(write: Callable[[Path, np.ndarray], object], name: str = "") -> Kind:
    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        write(folder, np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8))

    return Kind(make, lambda folder: digest({"x": load_data(folder / name).x}), sealed=False)


def write_idx(folder: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB3I", 0, 8, 3, *array.shape)
    (folder / "a-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def write_zarr(folder: Path, array: np.ndarray) -> None:
    import zarr

    zarr.save_array(str(folder / "a.zarr"), array)


def write_pictures(folder: Path, array: np.ndarray) -> None:
    from PIL import Image

    for i, picture in enumerate(array):
        Image.fromarray(picture).save(folder / f"{i}.png")


def write_zip(folder: Path, array: np.ndarray) -> None:
    write_pictures(folder, array)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for path in sorted(folder.glob("*.png")):
            archive.write(path, path.name)
            path.unlink()


def make_diffusers(folder: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    net = diffusers.UNet2DModel(
        8, 1, 1, layers_per_block=1, block_out_channels=(4, 8), norm_num_groups=4, down_block_types=down,
        up_block_types=up, attention_head_dim=4,
    )  # fmt: skip
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(50)).save_pretrained(folder)


def make_pipeline(folder: Path) -> None:
    from dsno import DSNOPipeline

    DSNOPipeline.from_student(student_from_teacher(teacher(), [0.5, 0.0])).save_pretrained(folder)


def open_pipeline(folder: Path) -> str:
    from dsno import DSNOPipeline

    return said(DSNOPipeline.from_pretrained(folder).student)


def make_remote(folder: Path) -> None:
    make_set(folder / "set")
    push(folder / "set", f"file://{folder}/far")
    shutil.rmtree(folder / "set")


def open_remote(folder: Path) -> str:
    data = TrajectorySet(f"file://{folder}/far", cache=folder.with_name("cache"))
    return digest(data.__getitems__(range(len(data))))


def open_card(folder: Path) -> str:
    text = card(read_manifest(folder), "file:///far", "unknown")
    shown = MarkdownIt("commonmark").enable("table").render(text)
    if "<script" in shown or "<img" in shown:
        Path("marker").mkdir()  # A browser would have run it.
    return text


def make_edm(folder: Path) -> None:
    """A snapshot as NVlabs' code pickles it, of a small network."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    nvlabs: Any = importlib.import_module("nvlabs")
    sys.path.pop(0)
    folder.mkdir()
    precond, net, more = nvlabs.made("edm-song")
    (folder / "a.pkl").write_bytes(nvlabs.dumps(nvlabs.snapshot(net, precond, **more)))


def nothing(folder: Path) -> None:
    folder.mkdir()
    (folder / "held").write_bytes(b"")


KINDS: dict[str, Kind] = {
    "teacher": Kind(lambda folder: save_teacher(folder, teacher(), note="a"), open_teacher, True),
    "student": Kind(
        lambda folder: save_student(folder, student_from_teacher(teacher(), [0.5, 0.0], guidance=True), note="a"),
        open_student,
        True,
    ),
    "features": Kind(
        lambda folder: save_feature_net(folder, FeatureNet("a", 1, 3, width=4, dim=8)),
        lambda folder: said(load_feature_net(folder)),
        True,
    ),
    "trajectories": Kind(make_set, open_set, True),
    "program": Kind(
        lambda folder: export_program(
            student_from_teacher(teacher(), [0.5, 0.0], guidance=True), folder / "student.pt2"
        ),
        open_program,
        True,
    ),
    "checkpoint": Kind(lambda folder: trained(folder, 4), lambda folder: said(trained(folder, 6)), True),
    "results": Kind(make_results, lambda folder: repr(load_results(folder / "results.json")), False),
    "npy": data_kind(lambda folder, array: np.save(folder / "a.npy", array), "a.npy"),
    "npz": data_kind(lambda folder, array: np.savez_compressed(folder / "a.npz", x=array), "a.npz"),
    "zarr": data_kind(write_zarr, "a.zarr"),
    "idx": data_kind(write_idx, "a-ubyte.gz"),
    "pictures": data_kind(write_pictures),
    "zip": data_kind(write_zip, "a.zip"),
    "diffusers": Kind(make_diffusers, open_teacher, False),
    "pipeline": Kind(make_pipeline, open_pipeline, False),
    "remote": Kind(make_remote, open_remote, True),
    "card": Kind(make_set, open_card, False),
    "edm": Kind(make_edm, lambda folder: said(load_edm(folder / "a.pkl").net), False),
    "snapshot": Kind(nothing, lambda folder: repr(sorted(read_snapshot(folder / "held"))), False),
    "official": Kind(nothing, lambda folder: said(load_official(folder / "held")), False),
}

UNREAD = ("snapshot", "official")
"""Kinds whose folder holds nothing that can be read, before it holds what was crafted."""
