"""A stage that is looked at on its way, and of whose students the best is kept.

What `dsno.distillation.identity` minimises moves with the student, as the denoiser that it is held against follows it:
the distance to the data falls for some hundred steps, and then wanders. The stage is therefore trained in pieces. After
each its averaged student is measured, on noises that are neither trained nor held out for comparisons, in two passes,
too, where it is trained for them, and the one whose farthest samples are nearest to the data is kept.

| in the stage's folder | what |
|---|---|
| `training` | its checkpoints |
| `looks.json` | the distance after so many steps |
| `best` | the best student until now |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dsno.checkpoint import read_json, write_json
from dsno.data.samples import Samples
from dsno.measure.features import extract
from dsno.measure.metrics import frechet_distance
from dsno.seeds import noise, seed_range
from dsno.students.files import load_student, notes_of, save_student
from dsno.students.samplers import Student, sampler_of
from dsno.trajectories.labels import Label
from dsno.trajectory import Sampler

__all__ = ["COUNT", "FIRST", "LOOKS", "distance_to", "drawn", "kept_best"]

FIRST, COUNT = 2**39, 8192
"""The first seed of the noises of a look, and how many there are: of a quarter of them, it is they that decide."""
LOOKS = "looks.json"


def kept_best(
    out: Path | str,
    folder: Path | str,
    steps: Sequence[int],
    trained: Callable[[int], Student],
    distance: Callable[[Student], float],
) -> None:
    """Train a stage in `out` piece by piece, and write the best of its students to `folder`.

    What is there already is not done again.

    Arguments:
        out: The stage's folder, to which `trained` writes.
        folder: That of the student that is kept; its notes hold the distances.
        steps: After how many steps to look, in ascending order.
        trained: Trains the stage until so many steps, from where it stands, and returns the student.
        distance: To the data; the least is best.
    """
    out = Path(out)
    noted: dict[str, float] = read_json(out / LOOKS) if (out / LOOKS).is_file() else {}
    for step in steps:
        if str(step) in noted:
            continue
        student = trained(step)
        found = distance(student)
        if found < min(noted.values(), default=math.inf):
            save_student(out / "best", student, **notes_of(out))
        # Behind the student: a run that ends between the two looks again.
        noted[str(step)] = found
        write_json(out / LOOKS, noted)
    save_student(folder, load_student(out / "best"), **{**notes_of(out / "best"), "looks": noted})


def distance_to(
    samples: Samples,
    extractor: nn.Module,
    label: Label | None = None,
    count: int = COUNT,
    passes: Sequence[int] = (1,),
) -> Callable[[Student], float]:
    """The Frechet distance of a student's samples to data, as a function of the student.

    Arguments:
        samples: The data.
        extractor: The feature network.
        label: What a student is told, by seed.
        count: How many samples.
        passes: In how many passes they are made; of several, the farthest counts.
    """
    real, seeds = extract(extractor, samples.x), seed_range(FIRST, count)

    def made(student: Student, n: int) -> float:
        x = drawn(sampler_of(student, n), seeds, samples.shape, label)
        return frechet_distance(extract(extractor, x.clamp(-1, 1)), real)

    return lambda student: max(made(student, n) for n in passes)


@torch.no_grad()
def drawn(sampler: Sampler, seeds: Tensor, shape: tuple[int, ...], label: Label | None = None) -> Tensor:
    """The samples of seeds (N,), told `label` by seed: (N, *shape), a batch at a time."""
    parts = seeds.split(512)
    return torch.cat([sampler(noise(s, shape), None if label is None else label(s), seeds=s).sample for s in parts])
