"""The one road: every method trains what it says, resumes where it stopped, and what does not fit is refused first."""

import copy
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conditional import given, same
from dsno.checkpoint import read_json, read_tensors
from dsno.data.samples import Samples
from dsno.denoise import Guided, Prediction
from dsno.distillation import run
from dsno.distillation.registry import METHODS, Method
from dsno.distillation.run import distill, run_stages
from dsno.distillation.stages import Given, Stage
from dsno.nets.features import FeatureNet, save_feature_net
from dsno.references import used_by
from dsno.students.files import load_student, notes_of, null_label, trained_for
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.operator import student_from_teacher
from dsno.students.samplers import Student, sampler_of
from dsno.train import Objective, TrainConfig, train
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.sets import TrajectorySet, samples_of
from pretend import stop_at

CONFIG = TrainConfig(lr=1e-3, warmup=2, checkpoint_every=50)


def by(
    name: str,
    student: Student,
    given: Given,
    out: Path,
    config: TrainConfig = CONFIG,
    resume: bool = False,
    **options: Any,
) -> Student:
    """`run_stages` of a method by its name."""
    method = METHODS[name]
    return run_stages(method, method.configured(**options), student, given, out, config, resume)


def untrained(method: Method, teacher: Prediction, drawn_on: Given) -> Student:
    """What a method trains; of one that goes on from any student, one of a single frame."""
    other = METHODS["knowledge"] if method.student == "student" else method
    return other.options().student(teacher, drawn_on)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_its_student_comes_back(
    name: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    method, drawn_on = METHODS[name], given(teacher, trajectories, name)
    torch.manual_seed(1)
    student = untrained(method, teacher, drawn_on)
    before = copy.deepcopy(student)
    trained = run_stages(
        method, method.options(), student, drawn_on, tmp_path / "out", CONFIG, sources={"data": "here"}
    )
    assert trained.net is student.net and not same(before, student)
    assert isinstance(student, FlowMap) == (method.student == "flow map")
    notes = read_json(tmp_path / "out" / "config.json")["notes"]
    assert notes["method"] == name and notes["steps"] == 8 and notes["batch"] == 8
    assert notes["sources"] == {"data": "here"} and notes["solver"] == "UniPC"
    assert {*notes["options"]} == {option.name for option in method.described()}
    assert notes == notes_of(tmp_path / "out")
    stages = [read_json(path) for path in (tmp_path / "out" / "training").glob("*/step-*/state.json")]
    assert sum(state["step"] for state in stages) == 8
    loaded, z = load_student(tmp_path / "out"), torch.randn(3, 1, 4, 4)
    assert type(loaded) is type(student) and same(loaded, student)
    cond: Tensor | dict[str, Tensor] = torch.tensor([0, 1, 1])
    if name == "guided":
        cond = {"label": torch.tensor([0, 1, 1]), "weight": torch.tensor([0.0, 1.0, 4.0])}
    assert sampler_of(loaded)(z, cond).sample.isfinite().all()
    assert {*method.references} <= {*used_by(tmp_path / "out")} and "zhao2023unipc" in used_by(tmp_path / "out")


@pytest.mark.parametrize("name", ["progressive", "consistency"])
def test_a_resumed_run_is_the_uninterrupted_one(
    name: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_on, config = given(teacher, trajectories), replace(CONFIG, checkpoint_every=2)

    def student() -> nn.Module:
        torch.manual_seed(1)
        return METHODS[name].options().student(teacher, drawn_on)

    whole = by(name, student(), drawn_on, tmp_path / "whole", config)
    # Killed at every fourth call of the loss, within stages and at the first step of one.
    calls, kills = itertools.count(1), 0

    class Dying:
        def __init__(self, objective: Objective) -> None:
            self.objective, self.batches = objective, objective.batches

        def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
            if next(calls) % 4 == 0:
                raise KeyboardInterrupt
            return self.objective(model, batch)

    def dies(model: nn.Module, objective: Objective, *rest: Any, **options: Any) -> nn.Module:
        return train(model, Dying(objective), *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run, "train", dies)
        while True:
            try:
                parts = by(name, student(), drawn_on, tmp_path / "parts", config, resume=True)
                break
            except KeyboardInterrupt:
                kills += 1
    assert kills >= 2
    assert same(whole, parts)
    # Complete, it takes no step.
    counted = next(calls)
    assert same(whole, by(name, student(), drawn_on, tmp_path / "parts", config, resume=True))
    assert next(calls) == counted + 1


def test_stages_have_a_schedule_of_their_own_and_hand_on_the_student(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, TrainConfig]] = []

    def noted(
        model: nn.Module, objective: object, config: TrainConfig, out: Path, *rest: object, **options: object
    ) -> None:
        seen.append((out, config))

    monkeypatch.setattr(run, "train", noted)
    drawn_on = given(teacher, trajectories, steps=600)
    by(
        "progressive",
        METHODS["progressive"].options().student(teacher, drawn_on),
        drawn_on,
        tmp_path,
        replace(CONFIG, warmup=20),
    )
    assert [out.name for out, _ in seen] == ["steps-16", "steps-8", "steps-4", "steps-2", "steps-1"]
    assert sum(config.steps for _, config in seen) == 600
    assert all(config.warmup == min(20, config.steps // 10) for _, config in seen)


def test_a_run_is_continued_with_its_own_settings_alone(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories, steps=4)
    student = METHODS["consistency"].options().student(teacher, drawn_on)
    by("consistency", student, drawn_on, tmp_path / "out", CONFIG)
    for key, other in (
        ("total_steps", replace(drawn_on, steps=8)),
        ("samples", replace(drawn_on, x=drawn_on.samples + 1)),
        ("data_seed", replace(drawn_on, seed=3)),
    ):
        again = METHODS["consistency"].options().student(teacher, drawn_on)
        with pytest.raises(ValueError, match=f"was trained with {key} = .* resume alike"):
            by("consistency", again, other, tmp_path / "out", CONFIG, resume=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "operator",
            {"trajectories": None},
            "operator learns from the teacher's trajectories and there are none: make",
        ),
        ("matching", {"trajectories": None}, "or take a method that needs samples alone, such as shortcut"),
        ("consistency", {"x": None}, "this method noises clean samples and there are none: give some"),
        ("easy-consistency", {"x": None}, "this method noises clean samples and there are none: give some"),
        ("guided", {}, r"Guided\(denoiser, null\) of a class-conditional one: got a Prediction"),
        ("lagrangian", {"teacher": None}, "this method asks the teacher at every step and there is none: give one"),
    ],
)
def test_what_a_method_is_not_given_is_said_before_any_work(
    name: str, change: dict[str, object], message: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = replace(given(teacher, trajectories), **change)
    with pytest.raises(ValueError, match=message):
        by(name, flow_map_from_teacher(teacher), drawn_on, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lagrangian", {"derivative": "upwind"}, "derivative 'upwind': lagrangian takes none along the flow, expected"),
        ("progressive-map", {"derivative": "forward"}, "unknown key 'derivative' in the options of progressive-map"),
        (
            "consistency",
            {"interval": 3},
            "unknown key 'interval' in the options of consistency: did you mean 'intervals'",
        ),
        ("knowledge", {"passes": 2}, "knowledge makes one pass: leave `passes` out"),
        ("operator", {"passes": 2}, "train it with inner_starts=0.5 for several"),
        ("lagrangian", {"passes": 4}, "lagrangian is not trained for a number of passes: .* choose it when you draw"),
        ("progressive", {"passes": 0}, "not 0 passes"),
        ("progressive", {"passes": 3}, "not 3 passes"),
        (
            "guided",
            {"guidance": (4.0, 0.0)},
            "LOW HIGH with 0 <= LOW < HIGH, got 4 0: that of the paper is guidance=\\(0, 4\\)",
        ),
        ("guided", {"guidance": (-1.0, 2.0)}, "LOW HIGH with 0 <= LOW < HIGH, got -1 2"),
        ("guided", {"guidance": (2.0, 2.0)}, "LOW HIGH with 0 <= LOW < HIGH, got 2 2"),
        (
            "easy-consistency",
            {"levels": None},
            "this method draws noise levels: give their mean and standard deviation",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(
    name: str, options: dict[str, Any], message: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        by(
            name,
            flow_map_from_teacher(teacher, name == "guided"),
            given(teacher, trajectories, name),
            tmp_path / "out",
            **options,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["meanflow", "shortcut"])
def test_the_velocity_of_the_data_needs_no_teacher(
    name: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = replace(given(teacher, trajectories, steps=2), teacher=None)
    torch.manual_seed(1)
    by(name, flow_map_from_teacher(teacher), drawn_on, tmp_path / "out")
    torch.manual_seed(1)
    by(name, flow_map_from_teacher(teacher), given(teacher, trajectories, steps=2), tmp_path / "told", from_data=True)
    here, there = (read_tensors(tmp_path / out / "model.safetensors") for out in ("out", "told"))
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert used_by(tmp_path / "out")


def test_the_name_of_a_perceptual_distance_is_noted(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on, features = given(teacher, trajectories, steps=2), tmp_path / "features"
    save_feature_net(features, FeatureNet("tiny", 1, 2, 4))
    for method in ("operator", "matching", "consistency"):
        student, out = METHODS[method].options().student(teacher, drawn_on), tmp_path / method
        with pytest.raises(ValueError, match=r"needs a feature network: .* or features=FOLDER"):
            by(method, student, drawn_on, out, distance="l1+perceptual")
        with pytest.raises(ValueError, match="features are of a perceptual distance, and this one is (l1|the default)"):
            by(method, student, drawn_on, out, features=features)
        by(method, student, drawn_on, out, distance="l1+perceptual", features=features)
        assert "zhang2018unreasonable" in used_by(out)
        assert notes_of(out)["options"]["features"] == str(features)
    with pytest.raises(ValueError, match=r"tiny takes images \(B, 3, H, W\) of 4x4 or more, got \(.*1, 4, 4\)"):
        FeatureNet("tiny", 3, 2, 4).maps(torch.zeros(2, 1, 4, 4))


def test_a_run_is_resumed_where_its_features_have_moved_but_not_with_others(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories, steps=2)
    net, made = FeatureNet("tiny", 1, 2, 4), METHODS["operator"].options().student(teacher, drawn_on)
    options = {"distance": "perceptual", "features": save_feature_net(tmp_path / "here", net)}
    by("operator", made, drawn_on, tmp_path / "out", **options)
    options["features"] = (tmp_path / "here").rename(tmp_path / "there")
    by("operator", made, drawn_on, tmp_path / "out", resume=True, **options)
    torch.manual_seed(7)
    options["features"] = save_feature_net(tmp_path / "other", FeatureNet("tiny", 1, 2, 4))
    with pytest.raises(ValueError, match=r"was trained with options.features = .*: resume alike"):
        by("operator", made, drawn_on, tmp_path / "out", resume=True, **options)


def test_a_student_of_another_kind_and_an_unknown_method(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories)
    with pytest.raises(
        ValueError, match="knowledge trains an operator, got a flow map: make the student with student_from"
    ):
        by("knowledge", flow_map_from_teacher(teacher), drawn_on, tmp_path / "out")
    operator = METHODS["operator"].options().student(teacher, drawn_on)
    with pytest.raises(ValueError, match="shortcut trains a flow map, got an operator: .* flow_map_from_teacher"):
        by("shortcut", operator, drawn_on, tmp_path / "out")
    with pytest.raises(ValueError, match="unknown method 'magic': expected one of operator, knowledge, "):
        distill(teacher, trajectories, tmp_path / "out", "magic")


def test_what_was_trained_auxiliarily_starts_from_the_seed(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    """A stage may add layers to what it trains: the same ones, whatever was drawn before."""
    made: list[Tensor] = []

    def stages(student: nn.Module, given: Given, options: object) -> list[Stage]:
        def make(student: nn.Module) -> tuple[nn.Module, object]:
            made.append(torch.randn(3))
            raise KeyboardInterrupt

        return [Stage("one", 1, make)]

    method = replace(METHODS["shortcut"], stages=stages)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_stages(
                method, method.options(), flow_map_from_teacher(teacher), given(teacher, trajectories), tmp_path, CONFIG
            )
    assert torch.equal(*made)


# Building has no side effects, and Python's road is the shell's


@pytest.mark.parametrize("name", METHODS)
def test_building_the_stages_changes_nothing_of_the_student(
    name: str, teacher: Prediction, trajectories: TrajectorySet
) -> None:
    method, drawn_on = METHODS[name], given(teacher, trajectories, name)
    student = untrained(method, teacher, drawn_on)

    def seen(module: nn.Module) -> dict[str, Any]:
        return {k: v for k, v in vars(module).items() if not isinstance(v, dict)} | {
            k: v.clone() for k, v in module.state_dict().items()
        }

    before = seen(student)
    stages = method.stages(student, drawn_on, method.options())
    for stage in stages:
        became = stage.became(student)
        assert type(became) is type(student) and became.net is student.net
    after = seen(student)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert (
            torch.equal(value, after[key]) if isinstance(value, Tensor) else value is after[key] or value == after[key]
        )


@pytest.mark.parametrize("name", ["operator", "consistency", "guided", "knowledge"])
def test_distill_puts_together_what_run_stages_is_given(
    name: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    config = TrainConfig(steps=8, lr=1e-3, warmup=0, seed=5)
    options: dict[str, Any] = {"null": 2} if name == "guided" else {}
    made = distill(teacher, trajectories, tmp_path / "made", name, config, batch=8, **options)
    method = METHODS[name]
    solved = Guided(teacher, torch.tensor(2)) if name == "guided" else teacher
    x, labels = samples_of(trajectories)
    drawn_on = Given(solved, teacher.schedule, 8, 8, 5, x, labels, trajectories)
    torch.manual_seed(5)
    student = untrained(method, teacher, drawn_on)
    again = run_stages(method, method.configured(**options), student, drawn_on, tmp_path / "again", config)
    assert same(made, again) and notes_of(tmp_path / "made") == notes_of(tmp_path / "again")


def test_a_data_set_serves_methods_that_noise_samples(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    x, labels = samples_of(trajectories)
    config = TrainConfig(steps=2, lr=1e-3, warmup=0)
    made = [
        distill(teacher, data, tmp_path / name, "shortcut", config, batch=8)
        for name, data in (("ends", trajectories), ("samples", Samples(x, labels, "ends")))
    ]
    assert same(*made)
    with pytest.raises(ValueError, match="operator learns from the teacher's trajectories and there are none in ends"):
        distill(teacher, Samples(x, labels, "ends"), tmp_path / "other")


def test_options_of_making_a_student_do_not_go_with_one_that_is_made(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    student = student_from_teacher(teacher, trajectories.times)
    with pytest.raises(ValueError, match="where is an option of making a student, and one is given"):
        distill(teacher, trajectories, tmp_path / "out", student=student, where="every")
    config = TrainConfig(steps=2, lr=1e-3, warmup=0)
    made = distill(teacher, trajectories, tmp_path / "out", config=config, batch=8, student=student, inner_starts=0.0)
    assert made.net is student.net


@pytest.mark.parametrize("null", [2, {"label": 2}])
def test_a_teacher_is_guided_as_its_trajectories_were(
    null: Any, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    absent = torch.tensor(2) if isinstance(null, int) else {"label": torch.tensor(2)}
    labels = uniform_labels(2)
    label = labels if isinstance(null, int) else lambda seeds: {"label": labels(seeds)}
    data = generate(
        Guided(teacher, absent, 1.5),
        tmp_path / "set",
        8,
        times=trajectories.times,
        steps=4,
        grid="uniform",
        label=label,
    )
    found = run.guided_as(data, teacher)
    assert isinstance(found, Guided) and found.weight == 1.5
    data.check_teacher(found)
    assert run.guided_as(trajectories, teacher) is teacher
    # A student that is told no weight notes the one that it was made for.
    distill(teacher, data, tmp_path / "student", "knowledge", TrainConfig(steps=1, warmup=0), batch=4)
    assert trained_for(tmp_path / "student") == (1.5, 1.5) and null_label(tmp_path / "student") == 2


# What a folder holds already


def test_a_student_is_resumed_by_what_began_it(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    out, config = tmp_path / "out", TrainConfig(lr=1e-3, steps=6, warmup=0)

    def again(method: str = "progressive", changed: TrainConfig = config, **options: Any) -> Student:
        return distill(teacher, trajectories, out, method, changed, batch=4, resume=True, **options)

    first = again(passes=2)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    for method, options, message in (
        ("knowledge", {}, "holds a run of progressive, not of knowledge: a run is resumed by the method that began it"),
        ("progressive", {"passes": 1}, "is a stage that progressive does not have|was trained with options.passes"),
        (
            "progressive",
            {"passes": 2, "start": 8},
            "is a stage that progressive|was trained with options.start",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            again(method, **options)
    with pytest.raises(ValueError, match=r"is complete, trained with lr = 0\.001, now 0\.1: resume alike"):
        again(changed=replace(config, lr=0.1), passes=2)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before
    assert same(first, again(passes=2))
    for place in (out / "training").iterdir():
        shutil.rmtree(place)
    with pytest.raises(ValueError, match="holds a finished model and no checkpoint to go on from"):
        again(passes=2)


def test_a_rate_that_was_changed_after_a_divergence_is_noted(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    config = TrainConfig(lr=1e-3, steps=6, warmup=0, checkpoint_every=2, log_every=1)

    def run_on(lr: float, stop: int) -> Student:
        report = stop_at("consistency", stop)
        return distill(
            teacher, trajectories, tmp_path, "consistency", replace(config, lr=lr), batch=4, resume=True, report=report
        )

    with pytest.raises(KeyboardInterrupt):
        run_on(1e-3, 3)
    run_on(1e-4, 99)
    notes = notes_of(tmp_path)
    assert notes["training"]["lr"] == 1e-4 and notes["changes"] == {"consistency": [{"step": 2, "lr": [1e-3, 1e-4]}]}


def test_an_output_that_holds_what_is_read_is_refused(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    (tmp_path / "teacher").mkdir()
    where = Path(trajectories.source)
    for out, sources in ((where, {}), (where.parent, {}), (tmp_path, {"teacher": str(tmp_path / "teacher")})):
        for how in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(FileExistsError, match="is read, and (is|lies in) .* choose another output"):
                distill(teacher, trajectories, out, "consistency", CONFIG, batch=4, sources=sources, **how)
    assert len(TrajectorySet(where)) == len(trajectories)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        distill(teacher, trajectories, tmp_path / "out", batch=0)
