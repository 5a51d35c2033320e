"""What is cited: everything that a file can say of itself, and nothing that no file says."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from conditional import given, small_set, small_teacher
from dsno.bridge.coefficients import BRIDGES
from dsno.checkpoint import CONFIG, read_json, version_of, write_json
from dsno.denoise import KINDS, Guided, Prediction
from dsno.distillation.registry import METHODS
from dsno.grids import uniform
from dsno.inverse.colours import FIXES
from dsno.inverse.named import RESTORERS
from dsno.measure.results import RESULTS, HeldOut, Quality, save_results
from dsno.nets.backbone import NETS
from dsno.parallel import EXACT
from dsno.references import (
    OF_BRIDGE,
    OF_COLOUR_FIX,
    OF_GUIDE,
    OF_KIND,
    OF_METRIC,
    OF_NET,
    OF_RESTORER,
    OF_SCHEDULE,
    OF_SOLVER,
    REFERENCES,
    bibtex,
    used_by,
)
from dsno.runs.restore import RESTORATIONS
from dsno.schedule import SCHEDULES
from dsno.solvers.named import SOLVERS, SPLITTINGS
from dsno.students.files import save_student
from dsno.teachers.native import save_teacher
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.manifest import MANIFEST
from dsno.trajectories.sets import TrajectorySet
from pretend import result

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1"
TAIL = ["nichol2021improved", "salimans2022progressive"]
"""Cosine, and v: the fixtures' schedule and prediction."""

TEACHER = {"type": "teacher", "schedule": {"name": "none"}, "kind": "none", "net": {}}
STUDENT = {**TEACHER, "type": "student", "times": [0.0], "lift": {}}
MAP = {**TEACHER, "type": "flow map"}
PICTURES: dict[str, Any] = {"pictures": [], "schedule": "none", "kind": "none"}
SET = {"teacher": {"class": "Prediction"}, "schedule": {"name": "none"}, "solver": {"name": "none"}}


def cited(folder: Path, name: str, content: Mapping[str, Any]) -> list[str]:
    folder.mkdir(exist_ok=True)
    write_json(folder / name, content)
    return used_by(folder)


# What there is to cite


def test_every_entry_is_bibtex() -> None:
    text = bibtex(REFERENCES)
    *entries, own = text.split("\n\n")
    assert len(entries) == len(REFERENCES) and text.count("{") == text.count("}")
    for (key, citation), entry in zip(REFERENCES.items(), entries, strict=True):
        kinds = tuple(f"@{kind}{{{key}," for kind in ("inproceedings", "article", "misc"))
        assert entry.startswith(kinds) and entry.endswith("}")
        assert all(f"  {name:<13} = {{" in entry for name in ("author", "title", "year"))
        # A preprint is not younger than its publication.
        assert not citation.arxiv or 2000 + int(citation.arxiv[:2]) <= citation.year
    assert own.startswith("@software{dsno,") and f"  version       = {{{version_of('dsno')}}}," in own


def test_each_paper_is_asked_for_once_and_unknown_ones_not_at_all() -> None:
    assert bibtex(["heusel2017gans", "heusel2017gans"]).count("@inproceedings{") == 1
    with pytest.raises(KeyError):
        bibtex(["nobody1999nothing"])


# Everything that is recorded


def test_every_method_has_its_papers() -> None:
    for method in METHODS.values():
        assert method.references and {*method.references} <= {*REFERENCES}, method.name


def test_every_solver_schedule_kind_network_and_metric_has_its_paper() -> None:
    # What trajectories and notes record is the class of the step.
    assert {type(make()).__name__ for make in {**SOLVERS, **SPLITTINGS}.values()} <= {*OF_SOLVER}
    assert {sampler.__name__ for sampler in EXACT.values()} - {"Receding"} <= {*OF_SOLVER}
    assert {*SCHEDULES} == {*OF_SCHEDULE}
    assert {*KINDS} == {*OF_KIND}
    assert {*RESTORERS} <= {*OF_RESTORER}
    assert {*NETS} - {"UNet", "DiffusersNet"} <= {*OF_NET}
    assert {*BRIDGES} == {*OF_BRIDGE} and {*FIXES} == {*OF_COLOUR_FIX}
    numbers = {field.name for part in (Quality, HeldOut) for field in dataclasses.fields(part)}
    assert numbers - {"diversity"} == {*OF_METRIC}


def test_no_entry_is_an_orphan(tmp_path: Path) -> None:
    """Each is of something that a folder can hold."""
    nets = [{"name": name} for name in OF_NET] + [{"name": "x", "net": {"type": name}} for name in OF_NET]
    rows = [{"family": name} for name in OF_SOLVER] + [{"quality": dict.fromkeys(OF_METRIC, 0.0)}]
    held: list[tuple[str, Mapping[str, Any]]] = [
        *((CONFIG, {**MAP, "notes": {"method": name}}) for name in METHODS),
        *((CONFIG, {**TEACHER, "schedule": {"name": name}}) for name in OF_SCHEDULE),
        *((CONFIG, {**TEACHER, "kind": name}) for name in OF_KIND),
        *((CONFIG, {"type": "bridge", "bridge": {"name": name}, "net": {}}) for name in OF_BRIDGE),
        *((CONFIG, {**TEACHER, "net": net}) for net in nets),
        (CONFIG, {**TEACHER, "clip": {"ratio": 0.995}}),
        (CONFIG, {**STUDENT, "notes": {"method": "knowledge", "distance": "l1+perceptual"}}),
        *((CONFIG, {**STUDENT, "notes": {"guide": name}}) for name in OF_GUIDE),
        (CONFIG, {"type": "kernel denoiser"}),
        (CONFIG, {"type": "start"}),
        (RESULTS, {"results": rows}),
        *((RESTORATIONS, {**PICTURES, "method": name}) for name in OF_RESTORER),
        *((RESTORATIONS, {**PICTURES, "colour_fix": name}) for name in OF_COLOUR_FIX),
        (RESTORATIONS, {**PICTURES, "tiled": True, "pictures": [{"ssim": [1.0]}]}),
    ]
    found = [cited(tmp_path / str(n), name, content) for n, (name, content) in enumerate(held)]
    assert {*itertools.chain(*found)} == {*REFERENCES}


# What a folder used


def test_what_a_student_says_of_itself_is_cited_once_and_in_order(tmp_path: Path) -> None:
    notes = {"method": "operator", "distance": "l1+perceptual", "solver": "DDIM", "guided": True}
    made = {**STUDENT, "times": [0.5, 0.0], "notes": notes, "schedule": {"name": "Cosine"}, "kind": "v"}
    parts = ["zheng2023fast", "zhang2018unreasonable", "ho2022classifier", "song2021denoising"]
    assert cited(tmp_path, CONFIG, made) == [*parts, *TAIL]
    weighted = {**made, "lift": {"guidance": {"emb": 4}}, "notes": {}}
    assert cited(tmp_path, CONFIG, weighted) == ["zheng2023fast", "meng2023distillation", *TAIL]
    # A method that this version does not have left its papers in the notes.
    foreign = {**MAP, "notes": {"method": "unheard-of", "references": ["song2023consistency", "nobody1999nothing"]}}
    assert cited(tmp_path, CONFIG, foreign) == ["song2023consistency"]


def test_a_start_cites_its_paper_and_the_distance_it_was_trained_in(tmp_path: Path) -> None:
    assert cited(tmp_path / "a", CONFIG, {"type": "start", "notes": {"features": None}}) == ["yue2025arbitrary"]
    both = ["yue2025arbitrary", "zhang2018unreasonable"]
    assert cited(tmp_path / "b", CONFIG, {"type": "start", "notes": {"features": "runs/features"}}) == both


def test_trajectories_cite_solver_guidance_and_thresholding(tmp_path: Path) -> None:
    teacher = {"class": "Guided", "denoiser": {"class": "Prediction", "kind": "eps", "clip": {"ratio": 0.9}}}
    made = {"teacher": teacher, "schedule": {"name": "VE"}, "solver": {"name": "UniPC", "order": 3}}
    expected = ["zhao2023unipc", "ho2022classifier", "karras2022elucidating", "ho2020denoising"]
    assert cited(tmp_path, MANIFEST, made) == [*expected, "saharia2022photorealistic"]
    assert cited(tmp_path, MANIFEST, SET) == []


def test_results_cite_their_solvers_and_metrics(tmp_path: Path) -> None:
    save_results([result("DSNO", 1, 2.0), result("ParaTAA-8", 8, 1.0), result("UniPC-4", 4, 1.0)], tmp_path / RESULTS)
    metrics = ["heusel2017gans", "binkowski2018demystifying", "kynkaanniemi2019improved"]
    assert used_by(tmp_path) == ["tang2024accelerating", "zhao2023unipc", *metrics, "meehan2020nonparametric"]
    save_results([dataclasses.replace(result("DDIM-8", 8, 1.0), quality=None, held_out=None)], tmp_path / RESULTS)
    assert used_by(tmp_path) == ["song2021denoising"]


def test_a_runs_folder_is_the_sum_of_those_in_it(tmp_path: Path) -> None:
    cited(tmp_path / "a", CONFIG, {**TEACHER, "kind": "v"})
    cited(tmp_path / "b", MANIFEST, {**SET, "solver": {"name": "Heun"}})
    (tmp_path / "c").mkdir()
    assert used_by(tmp_path) == ["salimans2022progressive", "karras2022elucidating"]


def test_what_holds_nothing_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere: name one of a student, a flow map"):
        used_by(tmp_path / "nowhere")
    expected = "holds no student, flow map, trajectories, teacher, results or restored pictures, and "
    with pytest.raises(ValueError, match=expected):
        used_by(tmp_path)
    write_json(tmp_path / CONFIG, {"type": "feature net"})
    with pytest.raises(ValueError, match=expected):
        used_by(tmp_path)


# Version 0.1

SOLVED = "zhao2023unipc"
OF_STUDENT = {
    "operator": ["zheng2023fast", SOLVED],
    "restarting": ["zheng2023fast", SOLVED],
    "adapter": ["zheng2023fast"],
    "guidance_weight": ["zheng2023fast", "meng2023distillation", "ho2022classifier", SOLVED],
    "knowledge": ["luhman2021knowledge", SOLVED],
    "matching": ["zheng2023fast", "yin2024one", "yin2024improved", SOLVED],
    "progressive": ["salimans2022progressive", "song2021denoising", SOLVED],
    "guided": ["meng2023distillation", "salimans2022progressive", "ho2022classifier", "song2021denoising"],
    "consistency": ["song2023consistency", "song2024improved", "karras2022elucidating", SOLVED],
    "consistency-training": ["song2023consistency", "song2024improved", "karras2022elucidating"],
    "easy-consistency": ["geng2025consistency"],
    "continuous-consistency": ["lu2025simplifying", "song2023consistency", SOLVED],
    "lagrangian": ["boffi2025flow", SOLVED],
    "eulerian": ["boffi2025flow", SOLVED],
    "progressive-map": ["boffi2025flow", SOLVED],
    "shortcut": ["frans2025one", SOLVED],
    "meanflow": ["geng2025mean", SOLVED],
    "direct": ["boffi2025flow"],
}


def test_students_of_version_0_1_are_cited() -> None:
    found = {folder.name: used_by(folder) for folder in (FIXTURES / "students").iterdir()}
    assert found == {name: list(dict.fromkeys([*keys, *TAIL])) for name, keys in OF_STUDENT.items()}


def test_teachers_sets_and_results_of_version_0_1_are_cited() -> None:
    assert used_by(FIXTURES / "teacher") == used_by(FIXTURES / "teacher_conditional") == TAIL
    assert used_by(FIXTURES / "trajectories") == [SOLVED, *TAIL]
    assert used_by(FIXTURES / "trajectories_conditional") == [SOLVED, "ho2022classifier", *TAIL]
    assert read_json(FIXTURES / RESULTS)["results"][1]["family"] == "DDIM"
    metrics = ["heusel2017gans", "binkowski2018demystifying", "kynkaanniemi2019improved"]
    assert used_by(FIXTURES) == ["song2021denoising", *metrics]
    assert used_by(FIXTURES / "recipe") == ["zheng2023fast", SOLVED, *TAIL]


# What a run wrote


@pytest.fixture(scope="module")
def teacher() -> Prediction:
    return small_teacher()


@pytest.fixture(scope="module")
def trajectories(teacher: Prediction, tmp_path_factory: pytest.TempPathFactory) -> TrajectorySet:
    return small_set(teacher, tmp_path_factory.mktemp("data") / "trajectories")


def test_trajectories_teachers_and_whole_runs_are_cited(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    assert used_by(trajectories.folder) == ["zhao2023unipc", "nichol2021improved", "salimans2022progressive"]
    guided = generate(
        Guided(teacher, torch.tensor(2), 1.0),
        tmp_path / "run" / "trajectories",
        4,
        shape=(1, 4, 4),
        times=uniform(1)[1:],
        steps=2,
        solver="heun",
        label=uniform_labels(2),
    )
    assert used_by(guided.folder)[:2] == ["karras2022elucidating", "ho2022classifier"]
    save_teacher(tmp_path / "run" / "teacher", teacher)
    assert used_by(tmp_path / "run" / "teacher") == ["nichol2021improved", "salimans2022progressive"]
    assert {*used_by(tmp_path / "run")} == {
        "nichol2021improved",
        "salimans2022progressive",
        "karras2022elucidating",
        "ho2022classifier",
    }
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere: name one of a student, a flow map"):
        used_by(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="holds no student, flow map, trajectories, teacher, results or restored pictures, and "
    ):
        used_by(tmp_path / "empty")


def test_the_distance_and_the_path_of_an_operator_are_cited(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories, steps=2)
    student = METHODS["operator"].options().student(teacher, drawn_on)
    save_student(tmp_path, student, method="operator", distance="l1+perceptual", solver="DDIM", guided=True)
    assert used_by(tmp_path) == [
        "zheng2023fast",
        "zhang2018unreasonable",
        "ho2022classifier",
        "song2021denoising",
        "nichol2021improved",
        "salimans2022progressive",
    ]
