"""Either kind of student from its folder, and the sampler of so many passes that it was trained for."""

from __future__ import annotations

from pathlib import Path

import torch

from dsno.checkpoint import CONFIG, read_json
from dsno.solve import Sampler
from dsno.students.flowmap import MultiPass, TrajectoryStudent, load_student
from dsno.students.twotime import FlowMap, FlowMapSampler, load_flow_map, passes_of

__all__ = ["Student", "load_any", "sampler_of"]

Student = TrajectoryStudent | FlowMap
"""What `dsno distill` makes."""


def load_any(folder: Path | str) -> Student:
    """Read what `save_student` or `save_flow_map` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: as `load_student` and `load_flow_map` do.
    """
    config = read_json(Path(folder) / CONFIG)
    is_map = isinstance(config, dict) and config.get("type") == "flow map"
    return load_flow_map(folder) if is_map else load_student(folder)


def sampler_of(student: Student, passes: int | None = None, whole: bool = False, fresh: bool = False) -> Sampler:
    """The sampler of so many passes; by default of the fewest it was trained for, which is one of all but a grid's map.

    `whole` keeps all frames of a `TrajectoryStudent`; `fresh` noises the sample again between passes, which the samplers of
    consistency functions do in any case.

    Raises:
        ValueError: for passes it was not trained for, or fresh noise in a map of one grid.
    """
    if not isinstance(student, FlowMap):
        return MultiPass(student, 1 if passes is None else passes, whole, fresh)
    sampler = passes_of(student, passes if passes is not None else student.steps or 1)
    if not fresh:
        return sampler
    if student.way == "grid":
        raise ValueError(
            "a flow map of one grid's steps never jumps to t = 0 and back: leave fresh noise (`--fresh`) out"
        )
    return FlowMapSampler(student, sampler.grid, torch.zeros(len(sampler.grid) - 1))
