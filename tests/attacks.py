"""Pickles that run something when they are read by Python's own reader."""

import io
import os
import pickle  # noqa: TID251 - one of the attacks is a call of it.
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nvlabs import dumps


class Call:
    """Pickles as a call of `fn`, which is a function or another such call."""

    def __init__(self, fn: object, *args: object, state: object = None) -> None:
        self.reduced = (fn, args, state)

    def __reduce__(self):
        return self.reduced

    def __call__(self) -> None:
        """Only what can be called may be pickled as a function."""


def attack(name: str, marker: Path) -> bytes:
    command = f"touch {marker}"
    source = f"open({str(marker)!r}, 'w').close()"
    system = Call(os.system, command)
    return {
        "reduce": lambda: dumps({"ema": system}),
        "exec": lambda: dumps({"ema": Call(exec, source)}),
        "eval": lambda: dumps({"ema": Call(eval, source)}),
        "getattr": lambda: dumps({"ema": Call(Call(getattr, Call(__import__, "os"), "system"), command)}),
        "old opcode": lambda: b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "dotted name": lambda: (
            b"\x80\x04"
            + text("torch.nn.modules.module")
            + text("inspect.os.system")
            + b"\x93"
            + text(command)
            + b"\x85R."
        ),
        "module of torch": lambda: (
            b"\x80\x04" + text("torch.serialization") + text("os.system") + b"\x93" + text(command) + b"\x85R."
        ),
        "storage": lambda: dumps({"ema": Call(torch.storage._load_from_bytes, dumps(system, 2))}),
        "storage in zip": lambda: dumps({"ema": Call(torch.storage._load_from_bytes, zipped(system))}),
        "hook": lambda: dumps({"ema": Call(torch._utils._rebuild_parameter, torch.ones(2), True, {0: system})}),
        "state of a tensor": lambda: dumps(
            {
                "ema": Call(
                    torch._utils._rebuild_tensor_v2,
                    torch.ones(2)._typed_storage(),
                    0,
                    (2,),
                    (1,),
                    False,
                    {},
                    state=(False, None, {0: system}),
                )
            }
        ),
        "object array": lambda: dumps({"ema": np.array([system], dtype=object)}),
        "method of a module": lambda: dumps({"ema": Call(nn.Module.apply, nn.Linear(1, 1), Call(exec, source))}),
        "hub": lambda: dumps({"ema": Call(torch.hub._import_module, "evil", str(evil(marker, source)))}),
        "pickle in pickle": lambda: dumps({"ema": Call(pickle.loads, dumps(system))}),
    }[name]()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def zipped(value: object) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def evil(marker: Path, source: str) -> Path:
    path = marker.parent / "evil.py"
    path.write_text(source)
    return path


ATTACKS = [
    "reduce",
    "exec",
    "eval",
    "getattr",
    "old opcode",
    "dotted name",
    "module of torch",
    "storage",
    "storage in zip",
    "hook",
    "state of a tensor",
    "object array",
    "method of a module",
    "hub",
    "pickle in pickle",
]
