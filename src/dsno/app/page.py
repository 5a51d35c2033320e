"""A page of gradio on which models are asked and pictures restored, its queue and its endpoints.

What is done lies in the modules beside this one, which know no gradio; here are widgets, and what leads from them
there. Long runs are generators: gradio ends them where somebody presses Stop, closes the page, or cancels a job of its
client. Nothing is fetched from or told to other hosts, and nobody but this machine is listened to unless another
address is asked for.

Needs: the package gradio (`pip install dsno[app]`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dsno.app.desk import Desk, on_canvas, said_of, said_on_the_way
from dsno.app.draw import STEPS
from dsno.app.mend import PROBLEMS, SAMPLES, Wish
from dsno.app.models import Ask, Model
from dsno.app.running import Made
from dsno.app.uploads import BYTES, Bounded
from dsno.data.files import optional_package
from dsno.inverse.named import RESTORERS
from dsno.outside import one_line
from dsno.solvers.named import SOLVERS

__all__ = ["free_port", "made_page", "served_page"]

EXPECTED = (ValueError, OSError, FloatingPointError, ImportError, MemoryError, torch.OutOfMemoryError)
"""What whoever asks can mend, and is told; anything else is a fault of ours, and shows where it is in the log."""

WHO = "`dsno app`"
"""Who needs gradio."""

WAITING, KEPT = 32, 3600
"""Requests that wait, and seconds for which pictures are kept for whoever fetches them."""

ONE = {"concurrency_id": "model", "concurrency_limit": 1}
"""Of what asks a model: one at a time."""

HIDDEN = {"api_visibility": "private"}
"""Of what is no endpoint."""

SHOWN = {
    "format": "png",
    "image_mode": None,
    "type": "filepath",
    "interactive": False,
    "buttons": ["download", "fullscreen"],
}
"""Of a picture that is an answer: no pixel of it changes."""

CSS = ".pixels img {image-rendering: pixelated; object-fit: contain} .pixels img[data-testid] {width: 100%}"


class _Handlers:
    """What gradio calls: by widgets, and by its client under the names of the arguments."""

    def __init__(self, gr: Any, desk: Desk) -> None:
        self.gr, self.desk = gr, desk

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Say to whoever asked what is wrong with it."""
        try:
            yield
        except EXPECTED as error:
            raise self.gr.Error(one_line(error), print_exception=False) from None

    def watched(self, begin: Callable[[], Iterator[Any]], said: int, outputs: int) -> Iterator[Any]:
        """The outputs of a run: its progress as the output of number `said`, in the end all of them."""
        with self.refusing():
            for event in begin():
                if isinstance(event, Made):
                    yield event.value
                else:
                    yield [said_on_the_way(event) if n == said else self.gr.skip() for n in range(outputs)]

    def sample(
        self,
        model: str,
        seed: int = 0,
        label: int | str | None = None,
        prompt: str | None = None,
        guidance: float = 0.0,
        passes: int | str | None = None,
        steps: int = 16,
        solver: str = "dpm2",
        path: bool = False,
    ) -> Iterator[Any]:
        """A sample of a student or a teacher: its picture, what it cost, and the states on the way."""
        given = seed, label, prompt, guidance, passes, steps, solver, path
        yield from self.watched(lambda: self.desk.sample(model, _asked(*given)), 1, 3)

    def beside(self, model: str | None, *given: Any) -> Iterator[Any]:
        """The same of another model, told as much of it as it can be; nothing where none is named."""
        if model:
            yield from self.watched(lambda: self.desk.sample(model, _asked(*given), fit=True), 1, 3)
        else:
            yield None, "", None

    def restore(
        self,
        model: str,
        picture: str | None,
        canvas: Sequence[str | bytes] | None = None,
        mask: str | None = None,
        problem: str = "inpaint",
        whole: bool = True,
        factor: int = 2,
        blur: float = 1.0,
        noise: float = 0.0,
        method: str | None = None,
        steps: int = 50,
        samples: int = 1,
        seed: int = 0,
        label: int | str | None = None,
        prompt: str | None = None,
        guidance: float = 0.0,
    ) -> Iterator[Any]:
        """A picture restored by a teacher: the restorations, and how good they are."""
        wish = Wish(problem, whole, factor, blur, noise, method or None, steps, samples)
        given = seed, label, prompt, guidance
        yield from self.watched(
            lambda: self.desk.restore(model, picture, wish, _asked(*given), canvas or (), mask), 1, 2
        )

    def described(self, model: str | None, other: str | None) -> list[Any]:
        """What two models are, and the widgets of what they may be told."""
        with self.refusing():
            models = [self.desk.opened(name) for name in (model, other) if name]
        update, solved = self.gr.update, any(found.teacher is not None for found in models)
        passes = next((found.passes for found in models if len(found.passes) > 1), ())
        shown = [update(visible=solved)] * 2
        return ["  \n".join(map(said_of, models)), *self.told(models), _choice(self.gr, passes), *shown]

    def told(self, models: Sequence[Model]) -> list[Any]:
        """The widgets of what models may be told: class, guidance weight and prompt."""
        classes = next((found.classes for found in models if found.classes), 0)
        low = next((found.weights[0] for found in models if found.weights), 0.0)
        return [
            _choice(self.gr, range(classes)),
            self.gr.update(visible=any(found.guided for found in models), value=low),
            self.gr.update(visible=any(found.prompted for found in models), value=""),
        ]


def _choice(gr: Any, numbers: Sequence[int]) -> Any:
    """A widget to choose one of some numbers, if there are any."""
    return gr.update(visible=bool(numbers), choices=[str(n) for n in numbers], value=None)


def _asked(
    seed: int,
    label: int | str | None,
    prompt: str | None,
    guidance: float | None,
    passes: int | str | None = None,
    *how: Any,
) -> Ask:
    """What widgets ask, of which some may have been left empty."""
    return Ask(seed, _whole(label), prompt or None, guidance or 0.0, _whole(passes), *how)


def _whole(number: int | str | None) -> int | None:
    """A number that may have been left empty.

    Raises:
        ValueError: if it is none.
    """
    if number is None or number == "":
        return None
    try:
        return int(number)
    except ValueError:
        raise ValueError(f"a whole number is expected, got {number!r}") from None


def made_page(
    desk: Desk,
    model: str,
    other: str | None = None,
    drawn: bool = False,
) -> Any:
    """The page, a `gradio.Blocks`.

    Arguments:
        desk: What it asks.
        model: The model that is asked first, by its name there.
        other: The one beside it, likewise.
        drawn: Whether samples are drawn when the page is opened.

    Raises:
        ModuleNotFoundError: without gradio; says how to install it.
        FileNotFoundError, ValueError, ...: as `open_model` does, for the first model.
    """
    gr = optional_package("gradio", "app", WHO)
    desk.opened(model)
    handlers, known = _Handlers(gr, desk), desk.places.found()
    teacher = next((name for name in (other, model) if name and desk.opened(name).teacher is not None), "digits")
    with gr.Blocks(title="dsno", analytics_enabled=False, delete_cache=(KEPT, KEPT), fill_width=True) as page:
        with gr.Tab("Sample"):
            picture = _sample_tab(gr, page, handlers, known, (model, other or ""), drawn)
        with gr.Tab("Restore"):
            _restore_tab(gr, page, handlers, known, teacher, picture)
    return page.queue(max_size=WAITING)


def _sample_tab(gr: Any, page: Any, handlers: _Handlers, known: list[str], named: tuple[str, str], drawn: bool) -> Any:
    """The widgets of two models side by side; returns the first one's picture."""
    with gr.Row():
        models = [
            gr.Dropdown(choices, value=name, allow_custom_value=True, label=title)
            for choices, name, title in zip((known, ["", *known]), named, ("Model", "Beside it"), strict=True)
        ]
    about = gr.Markdown()
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        label, guidance = _label_and_guidance(gr)
        passes = gr.Dropdown([], label="Passes", info="The fewest if empty", allow_custom_value=True, visible=False)
        steps = gr.Number(16, label="Steps", precision=0, minimum=1, maximum=STEPS)
        solver = gr.Dropdown([*SOLVERS], value="dpm2", label="Solver")
    prompt = gr.Textbox("", label="Prompt", visible=False)
    with gr.Row():
        path = gr.Checkbox(True, label="Show the way there")
        go, following, stop = gr.Button("Draw", variant="primary"), gr.Button("Next seed"), gr.Button("Stop")
    seen = []
    with gr.Row():
        for title in ("Sample", "Beside it"):
            with gr.Column():
                image = _unread(gr, gr.Image(label=title, elem_classes="pixels", height=320, **SHOWN))
                said = gr.Textbox(label="Cost", interactive=False)
                strip = gr.Image(show_label=False, **{**SHOWN, "buttons": []})
                seen.append([image, said, strip])
    told = [seed, label, prompt, guidance, passes, steps, solver, path]
    shown = [about, label, guidance, prompt, passes, steps, solver]
    begun = page.load(handlers.described, models, shown, **ONE, **HIDDEN)
    gr.on([model.change for model in models], handlers.described, models, shown, **ONE, **HIDDEN)
    further = following.click(lambda n: n + 1, seed, seed, queue=False, **HIDDEN)
    begins = [go.click, seed.submit, further.then, *[begun.then] * drawn]
    asked = zip((handlers.sample, handlers.beside), models, seen, ({"api_name": "sample"}, HIDDEN), strict=True)
    events = []
    for function, model, outputs, visible in asked:
        for n, begin in enumerate(begins):
            events.append(begin(function, [model, *told], outputs, **ONE, **(visible if n == 0 else HIDDEN)))
    stop.click(None, cancels=events, **HIDDEN)
    return seen[0][0]


def _unread(gr: Any, widget: Any) -> Any:
    """A widget of a picture, or of what is painted over one, that hands over files as they were sent: gradio would read
    them, however large they are, and one that only calls itself sent, too.

    It is changed and not derived from: for each class of widgets gradio writes a file beside its source.
    """

    def sent(path: str | bytes | None) -> str | bytes | None:
        if isinstance(path, str) and not Path(path).resolve().is_relative_to(Path(widget.GRADIO_CACHE).resolve()):
            raise gr.Error("a file that was not sent is not read", print_exception=False)
        return path

    def picture(payload: Any) -> str | bytes | None:
        return None if payload is None else sent(payload.path)

    def layers(payload: Any) -> list[str | bytes | None]:
        held = widget.blob_storage.pop(payload.id, None) if payload is not None and payload.id else payload
        found = [] if held is None else held.layers
        return [sent(layer if isinstance(layer, bytes) else layer.path) for layer in found]

    widget.preprocess = layers if isinstance(widget, gr.ImageEditor) else picture
    return widget


def _label_and_guidance(gr: Any) -> tuple[Any, Any]:
    return (
        gr.Dropdown([], label="Class", info="Any if empty", allow_custom_value=True, visible=False),
        gr.Number(0.0, label="Guidance weight", minimum=0, visible=False),
    )


def _restore_tab(gr: Any, page: Any, handlers: _Handlers, known: list[str], teacher: str, drawn: Any) -> None:
    """The widgets of restorations, of a picture that is sent or was `drawn`."""
    with gr.Row():
        with gr.Column():
            model = gr.Dropdown(known, value=teacher, allow_custom_value=True, label="Teacher")
            how = {"height": 200, "elem_classes": "pixels"}
            picture = _unread(gr, gr.Image(label="Picture", sources=["upload", "clipboard"], **how))
            take = gr.Button("Take the sample that was drawn")
            editor = gr.ImageEditor(
                label="Paint over what is missing",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=48, colors=["#e5532d"], color_mode="fixed"),
                format="png",
                elem_classes="pixels",
            )
            canvas = _unread(gr, editor)
            mask = _unread(gr, gr.Image(label="Or a mask: black is missing", sources=["upload"], **how))
        with gr.Column():
            problem = gr.Dropdown([*PROBLEMS], value="inpaint", label="What happened to it")
            whole = gr.Checkbox(True, label="It is whole: measure it first, and compare")
            with gr.Row():
                factor = gr.Number(2, label="Factor", precision=0, minimum=2, visible=False)
                blur = gr.Number(1.0, label="Blur", info="Standard deviation, pixels", visible=False)
                noise = gr.Number(0.0, label="Noise", minimum=0)
                method = gr.Dropdown(["", *RESTORERS], value="", label="Method", info="The first to try if empty")
            with gr.Row():
                steps = gr.Number(50, label="Steps", precision=0, minimum=1, maximum=STEPS)
                samples = gr.Number(4, label="Samples", precision=0, minimum=1, maximum=SAMPLES)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Row():
                label, guidance = _label_and_guidance(gr)
                prompt = gr.Textbox("", label="Prompt", visible=False)
            with gr.Row():
                go, stop = gr.Button("Restore", variant="primary"), gr.Button("Stop")
            said = gr.Textbox(label="Cost and quality", interactive=False)
            made = gr.Gallery(
                label="Restored", format="png", columns=4, elem_classes="pixels", buttons=["download", "fullscreen"]
            )

    def laid(given: str | None) -> Any:
        with handlers.refusing():
            return on_canvas(given)

    def numbers(name: str) -> tuple[Any, Any]:
        return gr.update(visible=name == "super"), gr.update(visible=name in ("deblur", "blind"))

    def described(name: str) -> list[Any]:
        with handlers.refusing():
            return handlers.told([handlers.desk.opened(name)])

    gr.on([model.change, page.load], described, model, [label, guidance, prompt], **ONE, **HIDDEN)
    take.click(lambda path: path, drawn, picture, queue=False, **HIDDEN)
    picture.change(laid, picture, canvas, queue=False, **HIDDEN)
    problem.change(numbers, problem, [factor, blur], queue=False, **HIDDEN)
    given = [model, picture, canvas, mask, problem, whole, factor, blur, noise, method, steps, samples]
    event = go.click(handlers.restore, [*given, seed, label, prompt, guidance], [made, said], api_name="restore", **ONE)
    stop.click(None, cancels=[event], **HIDDEN)


@contextmanager
def served_page(page: Any, host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> Iterator[str]:
    """The address at which a page is served while inside; a `port` of 0 is any free one.

    Arguments:
        page: Of `made_page`.
        host: The address that is listened at: `0.0.0.0` is every network that this machine is in.
        port: The port.
        share: Whether gradio's servers give it a public address, for a week at most, which anybody may open.

    Raises:
        OSError, ValueError: as `free_port` does.
    """
    gr, starlette = (optional_package(name, "app", WHO) for name in ("gradio", "starlette.middleware"))
    port = free_port(host, port)
    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=BYTES,
            app_kwargs={"middleware": [starlette.Middleware(Bounded)]},
            ssr_mode=False,
            theme=gr.themes.Default(),
            css=CSS,
            footer_links=["api"],
        )
        yield public or local
    finally:
        page.close(verbose=False)


def free_port(host: str, port: int) -> int:
    """The port, or if it is 0 any free one, where it can be listened at.

    Raises:
        OSError: if the port is taken, or the machine has no such address.
        ValueError: if it is no port.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be in [0, 65535], got {port}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            return int(tried.getsockname()[1])
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise OSError(f"port {port} of {host} is taken or not yours: choose another, port={port + 1}") from None
        raise OSError(f"{host} is no address of this machine ({error.strerror or error}): take 127.0.0.1") from None
