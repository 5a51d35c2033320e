"""A model that somebody named, opened whatever it is: a student of any kind, a teacher, or a pipeline.

| what is named | what it is |
|---|---|
| a folder of `save_student`, or such a repository on the Hub | a student |
| a pipeline of this library (`DSNOPipeline`) | the student in it, and its autoencoder |
| anything else that `load_teacher` takes | a teacher, and the autoencoder beside it |

What a student lacks, the text encoder and the autoencoder of its teacher, is taken from where its folder notes that,
if that may be opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dsno.app.places import INDEX, Places
from dsno.borrow import unwrapped
from dsno.checkpoint import STUDENTS, read_json, type_of
from dsno.condition import Cond, map_cond
from dsno.denoise import Denoiser, Prediction
from dsno.hub import is_hub_id, local_copy
from dsno.nets.backbone import Backbone, own_null, sample_shape
from dsno.schedule import Schedule
from dsno.students.files import null_label, trained_for
from dsno.students.origin import find_teacher, open_student, origin_of
from dsno.students.samplers import Student, passes_known
from dsno.teachers.latents import Latents, load_decoder
from dsno.teachers.load import load_teacher
from dsno.teachers.prompts import encode_prompts, under_guidance
from dsno.trajectories.labels import uniform_labels

__all__ = ["Ask", "Model", "open_model"]


@dataclass(frozen=True)
class Ask:
    """What is asked of a model.

    Attributes:
        seed: Of the noise that it starts from.
        label: The class; drawn by the seed where it is None.
        prompt: The text.
        guidance: The guidance weight; 0 is the conditional model, unguided.
        passes: Network calls of a student; the fewest it was trained for by default.
        steps: Steps of a teacher's solver.
        solver: The solver, one of `dsno.solvers.named.SOLVERS`.
        path: Whether the states on the way are asked for, too.
    """

    seed: int = 0
    label: int | None = None
    prompt: str | None = None
    guidance: float = 0.0
    passes: int | None = None
    steps: int = 16
    solver: str = "dpm2"
    path: bool = False


@dataclass(frozen=True)
class Model:
    """A student or a teacher that makes pictures.

    Attributes:
        name: What it is called, for messages.
        of: It.
        latents: What makes pictures of its samples, if they are latents.
        encoder: The pipeline whose text encoder reads what it is told.
        null: The label that stands for no class, and is never drawn.
        weights: The guidance weights that a student was trained for.
        variant: The variant of the encoder's weights.

    Raises:
        ValueError: for one whose samples are no pictures, or that starts from a picture.
    """

    name: str
    of: Student | Prediction
    latents: Latents | None = None
    encoder: str | None = None
    null: int | None = None
    weights: tuple[float, float] | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        if "start" in self.tokens:
            raise ValueError(f"{self.name} starts from a picture: `dsno sample --input` gives it one")
        if self.latents is None and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise ValueError(
                f"{self.name} makes samples of shape {self.shape}, which are no pictures, and nothing that decodes "
                "them is here: `dsno sample --out samples.npy` writes the numbers"
            )

    @property
    def teacher(self) -> Prediction | None:
        """It, if it is a teacher."""
        return self.of if isinstance(self.of, Prediction) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its samples, (C, *spatial)."""
        return sample_shape(self.of) if isinstance(self.of, Prediction) else self.of.shape

    @property
    def schedule(self) -> Schedule:
        return self.of.schedule

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.of.parameters()), torch.device("cpu"))

    @property
    def classes(self) -> int | None:
        """How many classes it may be told; None if it is told none."""
        return self.of.classes

    @property
    def tokens(self) -> Mapping[str, tuple[int, ...]]:
        """What its network is told beside a class."""
        return _tokens(self.of)

    @property
    def prompted(self) -> bool:
        """Whether it is told a text."""
        return "text" in self.tokens

    @property
    def guided(self) -> bool:
        """Whether it may be told a guidance weight: a student that needs one, a teacher that is told a condition."""
        if isinstance(self.of, Prediction):
            return self.prompted or bool(self.classes)
        return self.of.guided

    @property
    def passes(self) -> tuple[int, ...]:
        """The numbers of passes of a student; none of a teacher."""
        return () if isinstance(self.of, Prediction) else passes_known(self.of)

    def suited(self, ask: Ask) -> Ask:
        """As much of what is asked as it can be told: another model may be told more."""
        low, high = self.weights or (0.0, math.inf)
        return replace(
            ask,
            label=ask.label if self.classes and ask.label is not None and 0 <= ask.label < self.classes else None,
            prompt=ask.prompt if self.prompted else None,
            guidance=min(max(ask.guidance, low), high) if self.guided else 0.0,
            passes=ask.passes if ask.passes in self.passes else None,
        )

    def told(self, ask: Ask, seeds: Tensor) -> Cond | None:
        """What it is told of rows that start from `seeds` (B,).

        Raises:
            ValueError: for a class, a text or a weight that it does not know, or one that it lacks.
        """
        cond: dict[str, Tensor] = {}
        if self.prompted:
            cond |= {name: rows.expand(len(seeds), *rows.shape[1:]) for name, rows in self._encoded(ask.prompt).items()}
        elif ask.prompt:
            raise ValueError(f"{self.name} is told no text: leave the prompt out")
        K = self.classes
        if ask.label is not None and (K is None or not 0 <= ask.label < K):
            expected = "it has no classes" if K is None else f"expected 0 to {K - 1}"
            raise ValueError(f"label {ask.label} is outside the classes of {self.name}: {expected}")
        if K is not None:
            drawn = uniform_labels(K, self.null)
            cond["label"] = drawn(seeds) if ask.label is None else torch.full_like(seeds, ask.label)
        low, high = (self.weights or (0.0, math.inf)) if self.guided else (0.0, 0.0)
        if not (low <= ask.guidance <= high and math.isfinite(ask.guidance)):
            expected = f"{low:g} to {high:g}" if low < high < math.inf else "0 or more" if high else "none"
            raise ValueError(f"{self.name} takes the guidance weight {ask.guidance:g} not: expected {expected}")
        if self.weights is not None:
            cond["weight"] = torch.full((len(seeds),), ask.guidance)
        return map_cond(lambda c: c.to(self.device), cond["label"] if [*cond] == ["label"] else cond or None)

    def _encoded(self, prompt: str | None) -> Mapping[str, Tensor]:
        if not prompt:
            raise ValueError(f"{self.name} is told a text: give a prompt")
        if self.encoder is None:
            raise ValueError(f"{self.name} is told a text, and what encodes it is not here: bring its teacher")
        return encode_prompts(self.encoder, [prompt], self.variant)

    def denoiser(self, guidance: float = 0.0) -> Denoiser:
        """A teacher under a guidance weight; under 0 as it is.

        Raises:
            ValueError: as `under_guidance` does; for a student.
        """
        if not isinstance(self.of, Prediction):
            raise ValueError(f"{self.name} is a student: take a teacher")
        weights = (guidance,) if guidance else ()
        return under_guidance(self.encoder or self.name, self.of, weights, self.prompted, variant=self.variant)


def open_model(name: str, places: Places, device: torch.device | str = "cpu", variant: str | None = None) -> Model:
    """The model of a name, ready to be asked.

    Raises:
        FileNotFoundError, PermissionError: as `Places.opened` does; if a file is missing.
        ConnectionError: if the Hub cannot be reached.
        ValueError: if what is there is no model, damaged, or makes no pictures.
    """
    ref = places.opened(name)
    folder = local_copy(ref) if Path(ref).exists() or is_hub_id(ref) else None
    if folder is not None and type_of(folder) in STUDENTS:
        model = _student(name, ref, folder, places, variant)
    elif folder is not None and _is_ours(folder):
        from dsno.app.pipeline import DSNOPipeline

        pipe = DSNOPipeline.from_pretrained(ref, variant=variant)
        latents = None if pipe.vae is None else Latents(pipe.vae)
        model = Model(name, pipe.student, latents, weights=(0.0, math.inf) if pipe.student.guided else None)
    else:
        teacher = load_teacher(ref, variant=variant)
        latents = None if folder is None else load_decoder(ref, variant=variant)
        model = Model(name, teacher, latents, None if folder is None else ref, own_null(teacher), variant=variant)
    for part in (model.of, model.latents):
        if isinstance(part, nn.Module):
            part.to(device).requires_grad_(False).eval()
    return model


def _student(name: str, ref: str, folder: Path, places: Places, variant: str | None) -> Model:
    teacher = find_teacher(folder, variant, places.allows) if type_of(folder) == "adapter" else None
    student = unwrapped(open_student(ref, teacher, variant))
    weights = trained_for(folder) if student.guided else None
    # Of pictures that need no text nobody asks the Hub.
    far = student.shape[0] not in (1, 3) or "text" in _tokens(student)
    noted = (place for place in origin_of(folder).places if _is_pipeline(place, places, far))
    place = next(noted, None)
    latents = None if place is None else load_decoder(place, variant=variant)
    return Model(name, student, latents, place, null_label(folder), weights, variant)


def _is_pipeline(place: str, places: Places, far: bool) -> bool:
    """Whether a place that a student notes may be opened, and is a pipeline; a name on the Hub is taken for one."""
    try:
        places.opened(place)
    except (FileNotFoundError, PermissionError):
        return False
    return (Path(place) / INDEX).is_file() or (far and not Path(place).exists() and is_hub_id(place))


def _tokens(of: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """What the network inside is told beside a class."""
    net = next((part for part in of.modules() if isinstance(part, Backbone)), None)
    return {} if net is None else net.tokens


def _is_ours(folder: Path) -> bool:
    index = folder / INDEX
    held = read_json(index) if index.is_file() else None
    return isinstance(held, dict) and held.get("_class_name") == "DSNOPipeline"
