"""What `import dsno` loads, and what it offers."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dsno

MODULES = [
    "dsno",
    "dsno.schedule",
    "dsno.denoise",
    "dsno.seeds",
    "dsno.trajectory",
    "dsno.solvers.run",
    "dsno.checkpoint",
    "dsno.data.load",
    "dsno.train",
    "dsno.students.temporal",
    "dsno.students.lift",
    "dsno.nets.unet",
]
HEAVY = ["diffusers", "transformers", "accelerate", "sklearn", "scipy", "matplotlib", "torchmetrics", "tyro", "rich"]


def test_importing_dsno_loads_no_optional_package() -> None:
    # One fresh interpreter for all: what an import of any of them loads shows up at the end.
    code = f"import sys, {', '.join(MODULES)}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_every_public_name_is_there_and_none_hides_a_module() -> None:
    """`from dsno import noise` must be one thing, whatever was imported before."""
    modules = {info.name for info in pkgutil.iter_modules(dsno.__path__)}
    assert not modules & {*dsno.__all__}
    assert {*dsno.LATER} <= {*dsno.__all__} <= {*dir(dsno)}
    for name in dsno.__all__:
        assert getattr(dsno, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        dsno.distil  # noqa: B018


def test_the_page_of_the_api_lists_every_public_name_and_every_module() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    listed = set(re.findall(r"`(\w+)`", page.split(":::")[0].split("|---|")[1]))
    assert listed == {*dsno.__all__}
    modules = {
        info.name
        for info in pkgutil.walk_packages(dsno.__path__, "dsno.")
        if not info.ispkg and not info.name.startswith(("dsno.cli", "dsno.__main__"))
    }
    assert set(re.findall(r"^::: (\S+)$", page, re.M)) == modules - {"dsno.pipeline"}


def test_the_road_needs_no_second_import_line(tmp_path: Path) -> None:
    """From a teacher to an exported student with what `from dsno import` gives."""
    from dsno import (
        MultiPass,
        TrainConfig,
        TrajectorySet,
        distill,
        evaluate,
        export_program,
        generate,
        load_student,
        load_teacher,
        noise,
        seed_range,
        shipped,
    )

    teacher = load_teacher(shipped() / "teacher")
    generate(teacher, tmp_path / "set", 16, steps=6, grid="quadratic")
    data = TrajectorySet(tmp_path / "set")
    distill(teacher, data, tmp_path / "student", config=TrainConfig(steps=2, lr=1e-3), batch=8)
    student = load_student(tmp_path / "student")
    assert student.sample(noise(seed_range(0, 4), (1, 8, 8))).shape == (4, 1, 8, 8)
    result = evaluate(MultiPass(student, 1), name="one pass", shape=(1, 8, 8), seeds=range(4), repeats=0)
    assert result.cost.rounds == 1
    assert export_program(student, tmp_path / "student.pt2").is_file()
