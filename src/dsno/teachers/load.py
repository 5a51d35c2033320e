"""One way in for every teacher: an object, a folder, a file or a name becomes a `Prediction`.

| `ref` | what it is |
|---|---|
| a `Prediction` | itself |
| a diffusers pipeline | its network and its scheduler |
| `digits`, `digits-classes` | the teachers of digits that ship with the package (a folder so called is `./digits`) |
| a folder with `config.json` of type `teacher` | what `save_teacher` wrote |
| a folder with `model_index.json`, or a model and its `scheduler_config.json` | diffusers (`load_diffusers`) |
| a file `*.pkl` | EDM or EDM2 (`load_edm`) |
| `package.module:attribute`, `path/to/file.py:attribute` | a `Prediction` of your own, or a function that makes one |
| `org/name`, `org/name@revision` | a repository on the Hugging Face Hub: diffusers, or what `save_teacher` wrote |

The table is tried from the top; a `Path` is a folder or a file and nothing else. Your own code (the last row but one)
is run; nothing else is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module, resources
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsno.borrow import borrowed, unwrapped
from dsno.checkpoint import read_json
from dsno.denoise import Prediction
from dsno.hub import first_line, is_hub_id, local_copy
from dsno.nets.backbone import sample_shape
from dsno.outputs import BUILT_IN
from dsno.teachers.native import load_native
from dsno.teachers.parts import contents

__all__ = ["check_dtype", "load_teacher"]

_FORMS = (
    "expected a folder of dsno or diffusers, an EDM file *.pkl, package.module:attribute, file.py:attribute, a Hub id "
    "org/name, or 'digits'"
)

_SHORT_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_teacher(
    ref: Any,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    shape: Sequence[int] | None = None,
    variant: str | None = None,
    unchecked: bool = False,
) -> Prediction:
    """Load a teacher from any of the forms above.

    A pipeline or a `Prediction` of yours stays as it is: dtype, device, mode and settings. The teacher shares the
    memory of its weights, and has a copy of those that `dtype` or `device` change.

    Arguments:
        ref: One of them.
        dtype: The dtype of its network (`bf16`, `float16`, `torch.bfloat16`, ...); float32 by default, and of what is
            in memory its own. A network of diffusers takes states of any dtype, the others take states of their own.
        device: Where to put it; the CPU by default, and where it is for what is in memory.
        shape: (C, *spatial) of a sample, for a diffusers model that does not say it.
        variant: The variant of diffusers' weights, `fp16` say.
        unchecked: Open a folder of the library's own that was changed since it was written.

    Raises:
        FileNotFoundError: if a folder, a file or a repository is missing; says which, and which variants there are.
        ConnectionError: if the Hub is needed and cannot be reached.
        ValueError: if `ref` is not a teacher, and says what it was taken for; if it is damaged; or for a device or
            dtype that the machine lacks.
    """
    wanted, ref = check_dtype(dtype, device), unwrapped(ref)
    teacher = _load(ref, wanted, shape, variant, unchecked)
    if isinstance(ref, Prediction) and (wanted is not None or device is not None):
        teacher = borrowed(ref)
    if wanted is not None:
        teacher.to(wanted)
    return teacher if device is None else teacher.to(device)


def check_dtype(dtype: torch.dtype | str | None, device: torch.device | str | None = None) -> torch.dtype | None:
    """The dtype that is meant, after one convolution in it on `device`.

    Raises:
        ValueError: for an unknown name, a device that is not there, or a dtype that the device cannot compute in.
    """
    if isinstance(dtype, str):
        meant = _SHORT_DTYPES.get(dtype, getattr(torch, dtype, None))
        if not isinstance(meant, torch.dtype):
            raise ValueError(
                f"unknown dtype {dtype!r}: expected float32, bfloat16 (bf16), float16 (fp16), float64, ..."
            )
        dtype = meant
    if dtype is None and device is None:
        return None
    where = "cpu" if device is None else device
    try:
        torch.zeros(1, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"this machine has no device {where} ({first_line(error)})") from None
    if dtype is None:
        return None
    try:
        x = torch.zeros(1, 1, 4, 4, device=where).to(dtype)
        torch.nn.functional.conv2d(x, x[..., :3, :3]).sum().item()
    except (RuntimeError, TypeError, NotImplementedError):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{where} does not compute in {name}: choose float32 or bfloat16") from None
    return dtype


def _load(
    ref: Any, dtype: torch.dtype | None, shape: Sequence[int] | None, variant: str | None, unchecked: bool
) -> Prediction:
    if isinstance(ref, Prediction):
        return ref
    if not isinstance(ref, Path | str):
        return _object(ref, dtype, shape)
    if ref in BUILT_IN:
        return load_native(Path(str(resources.files("dsno"))) / "weights" / ref / "teacher")
    path = Path(ref)
    if path.is_dir() and _is_native(path):
        return load_native(path, unchecked)
    if path.is_dir():
        return _folder(path, ref, dtype, shape, variant)
    if path.is_file():
        return _file(path)
    if isinstance(ref, Path):
        # Whoever gives a path means this machine.
        raise FileNotFoundError(f"no folder {ref}: expected a model folder with config.json in it, or an EDM file")
    if re.fullmatch(r".*[^/\\]:[A-Za-z_][\w.]*", ref):
        return _attribute(ref)
    if path.suffix in (*_PICKLES, *_NO_TEACHERS):
        raise FileNotFoundError(f"there is no file {ref}")
    if not is_hub_id(ref):
        if "/" in ref or "\\" in ref:
            raise FileNotFoundError(f"there is no folder {ref}")
        raise ValueError(f"there is no folder {ref}, and no other teacher of that name: {_FORMS}")
    found = local_copy(ref)
    if _is_native(found):
        return load_native(local_copy(ref, ["config.json", "model.safetensors"]), unchecked)
    return _folder(found, ref, dtype, shape, variant)


def _object(ref: object, dtype: torch.dtype | None, shape: Sequence[int] | None) -> Prediction:
    # A pipeline exists only where diffusers was imported, so nobody waits for it here.
    if "diffusers" in sys.modules and isinstance(ref, sys.modules["diffusers"].DiffusionPipeline):
        from dsno.teachers.diffusers import load_diffusers

        return load_diffusers(ref, dtype, shape)
    kind = type(ref).__name__
    if isinstance(ref, nn.Module) or callable(ref):
        raise ValueError(
            f"a {kind} does not say what it predicts, nor on which schedule: say so, "
            'Prediction(net, Cosine(), kind="eps", shape=(3, 32, 32)), where net(x_t, t) is told t in [0, 1]'
        )
    raise ValueError(f"a {kind} is no teacher: {_FORMS}, or a Prediction")


def _is_native(folder: Path) -> bool:
    """Whether a folder has a configuration of ours, which says its type."""
    if not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json")
    return isinstance(config, dict) and "type" in config


def _folder(
    folder: Path, ref: Path | str, dtype: torch.dtype | None, shape: Sequence[int] | None, variant: str | None
) -> Prediction:
    if (folder / "model_index.json").is_file() or (folder / "config.json").is_file():
        from dsno.teachers.diffusers import load_diffusers

        return load_diffusers(ref, dtype, shape, variant)
    raise ValueError(f"{ref} is no model: it has {contents(folder)}, and neither model_index.json nor config.json")


_PICKLES = (".pkl", ".pickle")

_CHECKPOINT = (
    "a torch checkpoint, which does not say what network it is of: an official DSNO checkpoint is a student, read it "
    "with dsno.students.official.load_official; put other weights into your module and give Prediction(module, ...)"
)

_NO_TEACHERS = {
    ".safetensors": "weights without the configuration that says what they are: give the folder, or convert a "
    "single-file checkpoint once, StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)",
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _CHECKPOINT),
}
"""What files of weights are by their suffix, and where to go with them."""


def _file(path: Path) -> Prediction:
    if path.suffix in _PICKLES:
        from dsno.teachers.edm import load_edm

        return load_edm(path)
    if path.suffix == ".py":
        raise ValueError(f"{path} holds many names: say which is the teacher, {path}:attribute")
    raise ValueError(f"{path} is {_NO_TEACHERS.get(path.suffix, 'no model')}")


def _attribute(ref: str) -> Prediction:
    """The user's own code: `package.module:attribute` or `file.py:attribute`."""
    module_name, _, attribute = ref.rpartition(":")
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path} to take {attribute} from")
        spec = spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"cannot import {module_name} of {ref!r} ({error}): install it, or give file.py:name"
            ) from None
    found: Any = module
    try:
        for name in attribute.split("."):
            found = getattr(found, name)
    except AttributeError:
        raise ValueError(f"{module_name} has no {attribute!r}") from None
    if callable(found) and not isinstance(found, nn.Module):
        found = found()
    if not isinstance(found, Prediction):
        raise ValueError(
            f"{ref} is a {type(found).__name__}: expected a Prediction, or a function without arguments that returns "
            'one, Prediction(net, Cosine(), kind="eps", shape=(3, 32, 32))'
        )
    sample_shape(found)
    return found
