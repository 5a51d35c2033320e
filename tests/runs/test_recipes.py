"""The named recipes: the paper's own with its settings, and what all of them have to keep to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsno.data.samples import Samples
from dsno.runs.counts import teacher_to_count
from dsno.runs.recipes import RECIPES
from dsno.seeds import noise
from dsno.students.files import load_student
from dsno.trajectories.sets import TrajectorySet

SMALL = {"warmup": 2, "checkpoint_every": 2, "log_every": 1}


@pytest.mark.parametrize(
    "name, small, size, steps",
    [("cifar10", {"channels": 16}, 32, 10), ("imagenet64", {"channels": 8, "head_dim": 4, "classes": 7}, 64, 3)],
)
def test_the_papers_recipes_take_steps(name: str, small: dict, size: int, steps: int, tmp_path: Path) -> None:
    """The exact settings on random data of the right shape; only the widths, the sizes and the lengths are reduced."""
    recipe = RECIPES[name]
    tiny = replace(
        recipe,
        net={**recipe.net, **small},
        teach=replace(recipe.teach, steps=1, precision="no", **SMALL),
        teach_batch=2,
        count=4,
        features_steps=1,
        distill=replace(recipe.distill, steps=steps, precision="no", accumulate=1, **SMALL),
        distill_batch=1,
        solver_steps=16,
    )
    x = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = tiny.run(tmp_path / name, data=Samples(x, torch.arange(8) % 7, "random"))
    student = load_student(out / "student")
    assert student.times.tolist() == list(recipe.times) and student.kind == "x0"
    assert len(student.net.temporal_layers()) == {"cifar10": 22, "imagenet64": 29}[name]
    lines = (out / "student" / "training" / "regression" / "log.jsonl").read_text().splitlines()
    assert len(lines) == steps
    data = TrajectorySet(out / "trajectories")
    assert ("cond" in data[0]) == (name == "imagenet64")
    cond = torch.tensor([0, 6]) if name == "imagenet64" else None
    assert bool(student.sample(noise([0, 1], (3, size, size)), cond).isfinite().all())


def test_the_patches_of_the_recipes_pass_through_their_channels() -> None:
    for name, numbers in (("fashion", 1), ("fashion-gpu", 1), ("sprites", 3), ("sprites-gpu", 3)):
        net = RECIPES[name].net
        assert numbers * net.get("patch", 1) ** 2 <= net["channels"][0]


@pytest.mark.parametrize("name, layers", [("cifar10", 22), ("imagenet64", 29)])
def test_a_plan_counts_the_student_that_the_recipe_would_train(name: str, layers: int) -> None:
    work = RECIPES[name].workload()
    student = work.student_of(teacher_to_count(work))
    assert len(student.net.temporal_layers()) == layers and student.net.told == "output" and not student.net.once
