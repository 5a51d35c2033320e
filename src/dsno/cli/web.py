"""`dsno web`: a student in any browser, its teacher beside it."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dsno.cli.console import say, say_aside
from dsno.cli.options import StudentFolder, Variant
from dsno.cli.words import command
from dsno.denoise import Prediction
from dsno.nets.backbone import own_null
from dsno.runs.shipped import shipped, shipped_name
from dsno.students.files import null_label, trained_for
from dsno.students.origin import find_teacher, open_student
from dsno.students.samplers import Student
from dsno.teachers.load import load_teacher
from dsno.web.graphs import WEIGHTS
from dsno.web.serve import HOST, server_of
from dsno.web.site import SITE, unfit, write_site

__all__ = ["Web"]

HOSTED = 25 * 2**20
"""Bytes of one file that all common hosts of static files take."""


@dataclass(frozen=True)
class Web:
    """Write a page on which a student samples in any browser, its teacher beside it: static files and nothing else.

    With --open the page is served on localhost and opened; a page that is in --out already is shown as it is.

    In Python:

        from dsno import load_student, load_teacher
        from dsno.web.serve import served
        from dsno.web.site import write_site
        write_site("web", load_student("runs/student"), load_teacher("runs/teacher"), "Digits")
        with served("web") as address:
            print(address)
    """

    student: Positional[StudentFolder | None] = None
    """Folder of the student; or digits, by default, or digits-classes, which ship with the package."""
    teacher: str | None = None
    """Its teacher, as `generate --teacher` takes it; by default the one that its folder notes, where a page can."""
    variant: Variant = None
    title: str | None = None
    """What the page calls the samples; the name of the student's folder by default."""
    out: Path = Path("web")
    """The folder, for any host of static files."""
    runtime: Path | None = None
    """Folder of onnxruntime-web's files; they are fetched from the npm registry once by default."""
    open: bool = False
    """Serve --out on localhost and open it in a browser."""
    port: int = 8000
    """Where it is served."""
    overwrite: bool = False
    """Replace the page in --out."""

    def run(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be in [0, 65535], got {self.port}")
        there = self.open and not self.overwrite and self.student is None and bool(SITE.own(self.out))
        if not there:
            self._write()
        if self.open:
            self._serve()

    def _write(self) -> None:
        folder = self.student or shipped() / "student"
        student = open_student(folder, self.teacher, self.variant)
        title = self.title or ("Digits" if shipped_name(folder) else folder.resolve().name)
        teacher = self._beside(folder, student)
        inputs = (self.student, self.teacher, self.runtime)
        null, weights = null_label(folder), trained_for(folder)
        write_site(self.out, student, teacher, title, null, weights, self.runtime, inputs, self.overwrite)
        size = sum(path.stat().st_size for path in SITE.own(self.out))
        if (self.out / WEIGHTS).stat().st_size > HOSTED:
            say_aside(f"some hosts of static files take no file above 25 MB, and {self.out / WEIGHTS} is one")
        say(f"page in {self.out}, {size / 1e6:.0f} MB", "" if self.open else command("web", out=self.out, open=True))

    def _beside(self, folder: Path, student: Student) -> Prediction | None:
        """The teacher that stands beside the student: the one that was given, or else one that can."""
        if self.teacher is not None:
            return load_teacher(self.teacher, variant=self.variant)
        try:
            ref = str(shipped() / "teacher") if self.student is None else find_teacher(folder, self.variant)
            teacher = load_teacher(ref, variant=self.variant)
        except (FileNotFoundError, ConnectionError) as error:
            say_aside(f"the student is alone on the page: {error}")
            return None
        null = null_label(folder)
        if why := unfit(student, teacher, own_null(teacher) if null is None else null):
            say_aside(f"the student is alone on the page: {why}")
            return None
        return teacher

    def _serve(self) -> None:
        with server_of(self.out, self.port) as server:
            address = f"http://{HOST}:{server.server_port}/"
            say(f"{self.out} is at {address} until Ctrl-C", "")
            webbrowser.open(address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                say("\n", command("export", student=self.student), "the student for other programs")
