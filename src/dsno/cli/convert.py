"""`dsno convert`: a teacher, brought into the library's own form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dsno.borrow import unwrapped
from dsno.cli.console import say
from dsno.cli.options import TeacherRef, Variant
from dsno.cli.words import command
from dsno.nets.backbone import Backbone
from dsno.outputs import TEACHER, check_apart, claimed
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher

__all__ = ["Convert"]


@dataclass(frozen=True)
class Convert:
    """Write any teacher as a folder of the library's own: config.json and safetensors, nothing else needed to read it.

    In Python:

        from dsno import load_teacher, save_teacher
        save_teacher("runs/teacher", load_teacher("digits"))
    """

    ref: Positional[TeacherRef]
    variant: Variant = None
    out: Path = Path("runs/teacher")
    """Folder for it."""
    dtype: str | None = None
    """Store its network in this dtype: float32, bf16, fp16."""
    overwrite: bool = False
    """Throw away the teacher in --out."""

    def run(self) -> None:
        check_apart(self.out, self.ref)
        teacher = load_teacher(self.ref, self.dtype, variant=self.variant)
        net = unwrapped(teacher.net)
        if not isinstance(net, Backbone) or teacher.time is not None:
            own = "has time units of its own" if teacher.time is not None else "does not say how to rebuild it"
            raise ValueError(f"the {type(net).__name__} of {self.ref} {own}: it cannot be converted, use it as it is")
        with claimed(self.out, TEACHER, overwrite=self.overwrite):
            save_teacher(self.out, teacher, source=self.ref)
        say(f"teacher in {self.out}", command("check-teacher", self.out))
