"""One way in: whatever names a teacher gives one, and whatever does not is told what it is, at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dsno
from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.teachers.load import check_dtype, load_teacher
from dsno.teachers.native import save_teacher
from local_hub import LocalHub, serving


def small() -> Prediction:
    net = UNet(image_size=4, channels=(8,), attention=())
    return Prediction(net, Cosine(), "v", shape=net.shape)


def same(a: Prediction, b: Prediction) -> bool:
    x, t = torch.randn(2, 1, 4, 4), torch.full((2,), 0.4)
    with torch.no_grad():
        return torch.equal(a(x, t), b(x, t))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers pipeline on the disk."""
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    folder = tmp_path_factory.mktemp("pipeline")
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder)
    return folder


# What is a teacher


def test_objects_and_our_own_folders(tmp_path: Path) -> None:
    teacher = small()
    assert load_teacher(teacher) is teacher
    save_teacher(tmp_path / "t", teacher)
    assert same(load_teacher(tmp_path / "t"), teacher)
    assert same(dsno.load_teacher(str(tmp_path / "t")), teacher)


def test_a_prediction_of_ones_own_stays_as_it_is() -> None:
    teacher = small().train()
    low = load_teacher(teacher, dtype="bf16")
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    # Where nothing changes, nothing is copied.
    here = dict(load_teacher(teacher, device="cpu").named_parameters())
    assert all(here[name].data_ptr() == p.data_ptr() for name, p in teacher.named_parameters())


def test_digits_is_the_teacher_that_ships() -> None:
    assert load_teacher("digits").shape == (1, 8, 8)


def test_diffusers_folders(pipeline: Path, tmp_path: Path) -> None:
    import diffusers

    teacher = load_teacher(pipeline)
    assert (teacher.kind, teacher.shape) == ("eps", (1, 4, 4))
    # A model folder finds its scheduler beside it, or in it.
    assert same(load_teacher(pipeline / "unet"), teacher)
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    unet.save_pretrained(tmp_path / "model")
    with pytest.raises(
        FileNotFoundError, match="has no scheduler/scheduler_config.json .it has config.json, diffusion"
    ):
        load_teacher(tmp_path / "model")
    diffusers.DDPMScheduler(num_train_timesteps=10).save_pretrained(tmp_path / "model")
    assert same(load_teacher(tmp_path / "model"), teacher)
    pipe = diffusers.DDPMPipeline.from_pretrained(pipeline)
    assert same(load_teacher(pipe), teacher)


def test_code_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from dsno.denoise import Prediction\nfrom dsno.schedule import Cosine\nfrom dsno.nets.unet import UNet\n"
        "net = UNet(image_size=4, channels=(8,), attention=())\nteacher = Prediction(net, Cosine(), 'v', shape=(1, 4, "
        "4))\n"
        "def make():\n    return teacher\n"
        "class Zoo:\n    small = teacher\n"
        "shapeless = Prediction(__import__('torch').nn.Identity(), Cosine())\nnumber = 3\n"
    )
    file = tmp_path / "my_teacher_code.py"
    file.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found = load_teacher("my_teacher_code:teacher")
    assert found.shape == (1, 4, 4)
    assert load_teacher("my_teacher_code:make") is found
    assert load_teacher("my_teacher_code:Zoo.small") is found
    # A file is run afresh.
    assert load_teacher(f"{file}:make") is not found
    for ref, message in [
        (f"{file}:nothing", "has no 'nothing'"),
        (f"{file}:number", "is a int: expected a Prediction"),
        (f"{file}:net", "is a UNet: expected a Prediction"),
        (f"{file}:shapeless", "does not say what shape it makes"),
        ("no_such_package.at_all:teacher", "cannot import no_such_package.at_all"),
        (str(file), "holds many names: say which is the teacher"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_teacher(ref)
    with pytest.raises(FileNotFoundError, match=r"no file .*gone.py to take teacher from"):
        load_teacher(f"{tmp_path}/gone.py:teacher")


# What is none


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (nn.Linear(2, 2), r"a Linear does not say what it predicts.*Prediction\(net, Cosine\(\), kind="),
        (lambda x, t: x, "a function does not say what it predicts"),
        (3, "a int is no teacher: expected a folder"),
        (
            "digit",
            "there is no folder digit, and no other teacher.*: expected a folder of dsno or diffusers, .* or 'digits'",
        ),
    ],
    ids=["module", "function", "number", "word"],
)
def test_other_things_are_refused(ref: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_teacher(ref)


@pytest.mark.parametrize("ref", ["/no/such/folder", "./teacher", "a/b/c", "gone.pkl", "runs/gone.pkl", "x.pt"])
def test_missing_files_and_folders_are_missing(ref: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no (file|folder) {ref}"):
        load_teacher(ref)


def test_a_path_is_a_path() -> None:
    # No Hub is asked for a folder that is missing here, and no shipped teacher stands in for it.
    for name in ("org/name", "digits", "module:attribute"):
        with pytest.raises(
            FileNotFoundError, match=f"no folder {name}: expected a model folder with config.json in it"
        ):
            load_teacher(Path(name))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has nothing, and neither model_index.json nor config.json"):
        load_teacher(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is no model: it has notes.txt"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "student"}')
    with pytest.raises(ValueError, match="holds a student, expected a teacher"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    with pytest.raises(ValueError, match="unknown network class FluxTransformer2DModel: expected one of UNet2DModel"):
        load_teacher(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "MyScheduler"}')
    with pytest.raises(ValueError, match="unknown scheduler MyScheduler: expected one of DDIMScheduler, DDPMScheduler"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": ')
    with pytest.raises(ValueError, match="not valid JSON"):
        load_teacher(tmp_path)


def test_pickled_diffusers_weights_are_not_read(pipeline: Path, tmp_path: Path) -> None:
    import diffusers

    pipe = diffusers.DDPMPipeline.from_pretrained(pipeline)
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(
        FileNotFoundError, match="no weights diffusion_pytorch_model.safetensors .it has .*pickled weights"
    ):
        load_teacher(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights diffusion_pytorch_model.fp16.safetensors"):
        load_teacher(pipeline, variant="fp16")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "solver-model_10.pt",
            "an official DSNO checkpoint is a student, read it with dsno.students.official.load_official",
        ),
        ("v1-5.safetensors", "weights without the configuration.*from_single_file"),
        ("picture.png", "is no model"),
    ],
)
def test_files_that_are_no_teacher_are_told_where_to_go(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        load_teacher(tmp_path / name)


def test_pickles_go_to_the_reader_that_runs_nothing(tmp_path: Path) -> None:
    # `cos\nsystem` with an argument: a plain unpickler would write the file.
    (tmp_path / "evil.pkl").write_bytes(f"cos\nsystem\n(Vtouch {tmp_path}/run\ntR.".encode())
    with pytest.raises(ValueError, match="evil.pkl"):
        load_teacher(tmp_path / "evil.pkl")
    assert not (tmp_path / "run").exists()


def test_the_page_about_teachers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/teachers.md", "exec"), names)
    assert names["images"].shape == (4, 3, 8, 8)
    assert names["again"].schedule == load_teacher(tmp_path / "pipeline").schedule


# Devices and dtypes


def test_dtypes_by_name_or_object(pipeline: Path) -> None:
    assert check_dtype("bf16") == check_dtype("bfloat16") == check_dtype(torch.bfloat16) == torch.bfloat16
    assert check_dtype(None) is None
    for dtype in ("bf16", torch.float64):
        teacher = load_teacher(pipeline, dtype=dtype)
        assert next(teacher.parameters()).dtype == check_dtype(dtype)
        # A network of diffusers takes states of any dtype.
        assert teacher(torch.zeros(1, 1, 4, 4), torch.ones(1)).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp7"}, "unknown dtype 'fp7'"),
        ({"dtype": "nn"}, "unknown dtype 'nn'"),
        ({"dtype": "float8_e4m3fn"}, "cpu does not compute in float8_e4m3fn: choose float32"),
        ({"dtype": torch.bool}, "cpu does not compute in bool"),
        ({"device": "warp"}, "this machine has no device warp"),
    ],
    ids=["unknown", "attribute", "fp8", "bool", "device"],
)
def test_what_the_machine_lacks_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_teacher("digits", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_no_gpu_no_gpu() -> None:
    with pytest.raises(ValueError, match="this machine has no device cuda"):
        load_teacher("digits", device="cuda")


# The Hub, served by this machine


UNUSED = ("README.md", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors")


@pytest.fixture
def hub(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub with a pipeline and a teacher of our own."""
    root = tmp_path / "hub"
    root.mkdir()
    shutil.copytree(pipeline, root / "pipeline")
    for name in UNUSED:
        (root / "pipeline" / name).write_bytes(b"not needed")
    save_teacher(root / "native", small())
    with serving(root, tmp_path / "cache", monkeypatch) as served:
        yield served


def test_hub_ids_fetch_what_is_needed_and_nothing_else(hub: LocalHub, pipeline: Path) -> None:
    teacher = load_teacher("org/pipeline")
    assert same(teacher, load_teacher(pipeline))
    wanted = {"model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"}
    assert set(hub.fetched) == wanted
    assert same(load_teacher("org/native@main"), load_teacher("org/native"))
    # Once fetched it needs no Hub.
    hub.close()
    assert same(load_teacher("org/pipeline"), teacher)


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        ("org/absent", FileNotFoundError, "no folder org/absent here, and the Hub has no repository org/absent"),
        ("org/pipeline@v9", FileNotFoundError, "org/pipeline on the Hub has no revision 'v9'"),
        ("org/gated", PermissionError, "org/gated on the Hub is closed to you"),
    ],
)
def test_hub_ids_that_give_nothing(hub: LocalHub, ref: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_teacher(ref)
    assert hub.fetched == []


@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["off", "dead"]
)
def test_no_network_is_an_error_within_seconds(tmp_path: Path, environment: dict[str, str]) -> None:
    code = (
        "import time, torch, huggingface_hub\nfrom dsno.teachers.load import load_teacher\nstart = "
        "time.perf_counter()\n"
        "try:\n    load_teacher('org/name')\nexcept ConnectionError as error:\n    print(error)\n"
        "print(time.perf_counter() - start)"
    )
    started = {**os.environ, "HF_HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=started)
    message, seconds = done.stdout.splitlines()
    assert message.startswith("there is no folder org/name here, and the Hub cannot be reached for org/name (")
    assert message.endswith("nor is it in the cache: connect, or give a local folder")
    assert float(seconds) < 5


def test_a_variant_on_the_hub_is_fetched_alone_and_a_missing_one_lists_those_there(
    hub: LocalHub, pipeline: Path
) -> None:
    unet = hub.root / "pipeline" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"^org/pipeline/unet has no weights .*: take the variant fp16 \(varia"):
        load_teacher("org/pipeline")
    assert same(load_teacher("org/pipeline", variant="fp16"), load_teacher(pipeline))
    assert {name for name in hub.fetched if "safetensors" in name} == {"diffusion_pytorch_model.fp16.safetensors"}


def test_bad_names_do_not_wait() -> None:
    start = time.perf_counter()
    for ref in ("a b/c", "/gone", "org/name/more", "word"):
        with pytest.raises((FileNotFoundError, ValueError)):
            load_teacher(ref)
    assert time.perf_counter() - start < 1
