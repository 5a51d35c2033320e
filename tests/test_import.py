"""Importing the library loads torch and nothing else heavy."""

import subprocess
import sys

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
