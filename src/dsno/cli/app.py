"""`dsno app`: a page for models that do not fit a browser."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from tyro.conf import Positional

from dsno.app.desk import Desk
from dsno.app.page import free_port, made_page, served_page
from dsno.app.places import Places
from dsno.checkpoint import STUDENTS, type_of
from dsno.cli.console import say, say_aside
from dsno.cli.options import Device, Variant, device_of
from dsno.cli.words import command
from dsno.outputs import BUILT_IN
from dsno.runs.shipped import shipped
from dsno.students.origin import find_teacher

__all__ = ["App"]

HERE = ("127.0.0.1", "localhost", "::1")
"""Addresses that no other machine reaches."""


@dataclass(frozen=True)
class App:
    """Serve a page on which models of any size are asked, side by side, and pictures restored; and its endpoints.

    What a browser alone can run is written by `dsno web` instead. On this page names of other models may be typed:
    those in --folders are opened, with --hub those on the Hub, too, and nothing else.

    In Python:

        from pathlib import Path
        from gradio_client import Client
        from dsno.app.desk import Desk
        from dsno.app.page import made_page, served_page
        from dsno.app.places import Places
        page = made_page(Desk(Places((Path("runs"),))), "digits")
        with served_page(page) as address:
            picture, cost, strip = Client(address).predict(seed=7, api_name="/sample")
    """

    model: Positional[str | None] = None
    """A student's folder, a pipeline of either kind, whatever --teacher takes, or such a name on the Hub; the students
    that ship with the package by default."""
    teacher: str | None = None
    """What stands beside it; of a student the teacher that its folder notes by default."""
    variant: Variant = None
    folders: tuple[Path, ...] = (Path("runs"),)
    """Folders whose models may be opened on the page by their names."""
    hub: bool = False
    """Let names on the Hub be typed there, too: whoever does makes this machine fetch them."""
    host: str = "127.0.0.1"
    """The address that is listened at; 0.0.0.0 lets other machines in."""
    port: int = 7860
    """The port; any free one if 0."""
    share: bool = False
    """Give it a public address through gradio's servers, which anybody may open."""
    open: bool = False
    """Open it in a browser."""
    device: Device = None

    def run(self) -> None:
        device, port = device_of(self.device), free_port(self.host, self.port)
        known = self._known()
        model, other = (*known, None)[:2]
        desk = Desk(Places(self.folders, known, self.hub), device, self.variant)
        page = made_page(desk, str(model), other, drawn=self.model is None)
        with served_page(page, self.host, port, self.share) as address:
            if self.share or self.host not in HERE:
                say_aside("whoever reaches this page makes this machine compute, and reads what it makes")
            say(f"{model} is at {address} until Ctrl-C", "")
            if self.open:
                webbrowser.open(address)
            try:
                Event().wait()
            except KeyboardInterrupt:
                say("\n", command("sample", student=self._student()), "the same samples in a file")

    def _student(self) -> str | None:
        """The student that was named, if one was."""
        return self.model if type_of(self.model) in STUDENTS else None

    def _known(self) -> dict[str, str]:
        """What may be opened beside what lies in the folders, by the name that it has on the page: the model, what is
        beside it, and whatever ships."""
        if self.model is None:
            beside = self.teacher or BUILT_IN[0]
            first, *others = {f"{name} student": str(shipped(name) / "student") for name in BUILT_IN}.items()
            return dict([first, (beside, beside), *others])
        known, student = {self.model: self.model}, self._student()
        if self.teacher is not None or student is None:
            return known | ({} if self.teacher is None else {self.teacher: self.teacher})
        try:
            found = find_teacher(student, self.variant)
        except (FileNotFoundError, ConnectionError) as error:
            say_aside(f"nothing stands beside it: {error}")
            return known
        return known | {found: found}
