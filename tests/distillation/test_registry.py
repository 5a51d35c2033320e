"""The registry of methods: what it says is there, every method trains what it says, and what does not fit is refused first."""

import copy
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsno.checkpoint import read_json
from dsno.cost import Meter
from dsno.denoise import Guided, Prediction
from dsno.distillation import run
from dsno.distillation.registry import METHODS, Method, student_of
from dsno.distillation.run import distill, distill_by
from dsno.distillation.stages import Given, Stage
from dsno.nets.features import FeatureNet
from dsno.nets.unet import UNet
from dsno.references import REFERENCES, used_by
from dsno.schedule import Cosine
from dsno.students.files import load_any
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import sampler_of
from dsno.train import Objective, TrainConfig, train
from dsno.trajectories.labels import samples_of, uniform_labels
from dsno.trajectories.make import make_trajectories
from dsno.trajectories.sets import TrajectorySet

CONFIG = TrainConfig(lr=1e-3, warmup=2, checkpoint_every=50)


@pytest.fixture(scope="module")
def teacher() -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 4, (4, 8), attention=(), classes=2, null=True)
    return Prediction(net, Cosine(), "v", shape=(1, 4, 4), classes=2).eval()


@pytest.fixture(scope="module")
def trajectories(teacher: Prediction, tmp_path_factory: pytest.TempPathFactory) -> TrajectorySet:
    out = tmp_path_factory.mktemp("data") / "trajectories"
    times = torch.tensor([0.5, 0.0], dtype=torch.float64)
    label = uniform_labels(2)
    return make_trajectories(teacher, (1, 4, 4), out, 32, times, steps=4, solver="unipc2", label=label, batch=16)


def given(teacher: Prediction, trajectories: TrajectorySet, name: str = "", steps: int = 8) -> Given:
    x, labels = samples_of(trajectories)
    solved = Guided(teacher, {"label": torch.tensor(2)}) if name == "guided" else teacher
    return Given(solved, teacher.schedule, steps, 8, 0, x, labels, trajectories)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# The registry


def test_listing_the_methods_loads_none_of_them() -> None:
    code = "import sys, dsno.distillation.registry as m; print(*[w for x in m.METHODS.values() if (w := x.where.split(':')[0]) in sys.modules and w != m.__name__])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_entry_is_whole(method: Method) -> None:
    assert METHODS[method.name] is method and callable(method.stages)
    assert method.needs and {*method.references} <= {*REFERENCES} and method.choose.endswith(".")


# Training


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_its_student_comes_back(
    name: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    method, drawn_on = METHODS[name], given(teacher, trajectories, name)
    torch.manual_seed(1)
    student = student_of(method, teacher, drawn_on)
    before = copy.deepcopy(student)
    trained = distill_by(name, student, drawn_on, tmp_path / "out", CONFIG, sources={"data": "here"})
    assert trained is student and not same(before, student)
    assert isinstance(student, FlowMap) == (method.student == "flow map")
    notes = read_json(tmp_path / "out" / "config.json")["notes"]
    assert notes["method"] == name and notes["steps"] == 8 and notes["batch"] == 8
    assert notes["sources"] == {"data": "here"} and notes["solver"] == "UniPC"
    stages = [read_json(path) for path in (tmp_path / "out" / "training").glob("*/step-*/state.json")]
    assert sum(state["step"] for state in stages) == 8
    loaded, z = load_any(tmp_path / "out"), torch.randn(3, 1, 4, 4)
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
        return student_of(METHODS[name], teacher, drawn_on)

    whole = distill_by(name, student(), drawn_on, tmp_path / "whole", config)
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
                parts = distill_by(name, student(), drawn_on, tmp_path / "parts", config, resume=True)
                break
            except KeyboardInterrupt:
                kills += 1
    assert kills >= 2
    assert same(whole, parts)
    # Complete, it takes no step.
    counted = next(calls)
    assert same(whole, distill_by(name, student(), drawn_on, tmp_path / "parts", config, resume=True))
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
    distill_by(
        "progressive",
        student_of(METHODS["progressive"], teacher, drawn_on),
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
    student = student_of(METHODS["consistency"], teacher, drawn_on)
    distill_by("consistency", student, drawn_on, tmp_path / "out", CONFIG)
    for key, other in (
        ("total_steps", replace(drawn_on, steps=8)),
        ("samples", replace(drawn_on, x=drawn_on.samples + 1)),
        ("data_seed", replace(drawn_on, seed=3)),
    ):
        again = student_of(METHODS["consistency"], teacher, drawn_on)
        with pytest.raises(ValueError, match=f"was trained with {key} = .* resume alike"):
            distill_by("consistency", again, other, tmp_path / "out", CONFIG, resume=True)


def test_a_student_of_one_frame_learns_the_last_of_those_stored(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories)
    student = student_of(METHODS["knowledge"], teacher, drawn_on)
    assert isinstance(student, TrajectoryStudent) and student.times.tolist() == [0.0]
    (stage,) = METHODS["knowledge"].stages(student, drawn_on)
    batch = next(stage.make(student)[1].batches(0))
    assert torch.equal(batch["x0"][:, 0], drawn_on.samples[batch["seeds"]])


# What is given


def test_samples_are_the_ends_of_trajectories_with_their_labels(trajectories: TrajectorySet) -> None:
    x, labels = samples_of(trajectories)
    rows = trajectories.__getitems__(list(range(32)))
    assert torch.equal(x, rows["x0"][:, -1]) and labels is not None and torch.equal(labels, rows["cond"])
    with pytest.raises(ValueError, match=r"ends at t = 0.5, where there is noise left: its ends are no samples"):
        samples_of(TrajectorySet(trajectories.folder, [0.5]))


class Halved(torch.autograd.Function):
    """A layer without a forward mode."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad / 2


class NoForward(UNet):
    def forward(self, *arguments: Tensor) -> Tensor:
        return Halved.apply(super().forward(*arguments))


def test_a_backbone_without_forward_mode_is_refused_and_differences_mend_it(
    trajectories: TrajectorySet, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    teacher = Prediction(NoForward(1, 4, (4, 8), attention=(), classes=2), Cosine(), "v", shape=(1, 4, 4), classes=2)
    drawn_on = replace(given(teacher, trajectories, steps=2), derivative="forward")
    for name in (name for name, method in METHODS.items() if method.derivative):
        with pytest.raises(
            ValueError, match=rf"{name} takes derivatives .* by differences \(`--derivative difference`\)"
        ):
            distill_by(name, flow_map_from_teacher(teacher), drawn_on, tmp_path / "out", CONFIG)
        assert not (tmp_path / "out").exists()
    for name, derivative in (("lagrangian", "difference"), ("eulerian", None), ("meanflow", None)):
        mended = replace(drawn_on, derivative=derivative)
        METHODS[name].check_student(flow_map_from_teacher(teacher), mended)
        (stage,) = METHODS[name].stages(flow_map_from_teacher(teacher), mended)
        model, objective = stage.make(flow_map_from_teacher(teacher))
        assert objective(model, next(objective.batches(0))).isfinite()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("operator", {"trajectories": None}, "operator learns from the teacher's trajectories and there are none: make them"),
        ("matching", {"trajectories": None}, "or take a method that needs samples alone, such as shortcut"),
        ("consistency", {"x": None}, "this method noises clean samples and there are none: give data"),
        ("easy-consistency", {"x": None}, "this method noises clean samples and there are none: give data"),
        ("lagrangian", {"derivative": "upwind"}, "derivative 'upwind': lagrangian takes none along the flow, expected one of"),
        ("progressive-map", {"derivative": "forward"}, "progressive-map takes no derivatives: leave derivative='forward' out"),
        ("guided", {"guidance": (4.0, 0.0)}, "LOW HIGH with 0 <= LOW < HIGH, got 4 0: the range of the paper is 0 4"),
        ("guided", {"guidance": (-1.0, 2.0)}, "LOW HIGH with 0 <= LOW < HIGH, got -1 2"),
        ("guided", {"guidance": (2.0, 2.0)}, "LOW HIGH with 0 <= LOW < HIGH, got 2 2"),
        ("guided", {}, r"Guided\(denoiser, null\) of a class-conditional one: got a Prediction"),
        ("knowledge", {"passes": 2}, "knowledge makes one pass: leave `--passes` out"),
        ("operator", {"passes": 2}, "train it with `--inner-starts 0.5` for several"),
        ("lagrangian", {"passes": 4}, "lagrangian is not trained for a number of passes: .* choose it when you draw"),
        ("progressive", {"passes": 0}, "progressive makes at least one pass, got passes = 0"),
        ("progressive", {"passes": 3}, "3 passes"),
        ("lagrangian", {"teacher": None}, "this method asks the teacher at every step and there is none: give it"),
    ],
)  # fmt: skip
def test_what_a_method_is_not_given_is_said_before_any_work(
    name: str, change: dict[str, object], message: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = replace(given(teacher, trajectories), **change)
    student = flow_map_from_teacher(teacher)
    with pytest.raises(ValueError, match=message):
        distill_by(name, student, drawn_on, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_metered_teacher_is_guided_all_the_same(teacher: Prediction, trajectories: TrajectorySet) -> None:
    drawn_on = given(teacher, trajectories, "guided")
    METHODS["guided"].check(replace(drawn_on, teacher=Meter(drawn_on.denoiser)))


@pytest.mark.parametrize("name", ["meanflow", "shortcut"])
def test_the_velocity_of_the_data_needs_no_teacher(
    name: str, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = replace(given(teacher, trajectories, steps=2), teacher=None)
    distill_by(name, flow_map_from_teacher(teacher), drawn_on, tmp_path / "out", CONFIG)
    assert used_by(tmp_path / "out")


def test_a_function_among_the_options_does_not_stop_a_run_from_being_resumed(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories, steps=2)
    students = []
    for _ in range(2):
        torch.manual_seed(1)
        student = student_of(METHODS["operator"], teacher, drawn_on)
        # As a new process makes one: the same function at another address.
        distance = eval("lambda a, b: (a - b).square().flatten(1).mean(1)")
        students.append(
            distill_by("operator", student, drawn_on, tmp_path / "out", CONFIG, resume=True, distance=distance)
        )
    assert same(*students)


def test_the_name_of_a_perceptual_distance_is_noted(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories, steps=2)
    net = FeatureNet("tiny", 1, 2, 4)
    for method in ("matching", "consistency"):
        student, out = student_of(METHODS[method], teacher, drawn_on), tmp_path / method
        with pytest.raises(ValueError, match=r"needs a feature network: .* `--features FOLDER`"):
            distill_by(method, student, drawn_on, out, CONFIG, distance="l1+perceptual")
        distill_by(method, student, drawn_on, out, CONFIG, features=net, distance="l1+perceptual")
        assert "zhang2018unreasonable" in used_by(out)
        with pytest.raises(ValueError, match="features are of a perceptual distance, and this one is the default"):
            distill_by(method, student, drawn_on, out, CONFIG, features=net)
    operator = student_of(METHODS["operator"], teacher, drawn_on)
    with pytest.raises(ValueError, match="features are of a perceptual distance, and this one is l1: name one"):
        distill(operator, trajectories, tmp_path / "operator", CONFIG, features=net)
    with pytest.raises(ValueError, match=r"tiny takes images \(B, 3, H, W\) of 4x4 or more, got \(.*1, 4, 4\)"):
        FeatureNet("tiny", 3, 2, 4).maps(torch.zeros(2, 1, 4, 4))


def test_a_student_of_another_kind_and_an_unknown_method(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories)
    with pytest.raises(
        ValueError, match="knowledge trains an operator, got a flow map: make the student with student_from"
    ):
        distill_by("knowledge", flow_map_from_teacher(teacher), drawn_on, tmp_path / "out")
    operator = student_of(METHODS["operator"], teacher, drawn_on)
    with pytest.raises(ValueError, match="shortcut trains a flow map, got an operator: .* flow_map_from_teacher"):
        distill_by("shortcut", operator, drawn_on, tmp_path / "out")
    with pytest.raises(ValueError, match="unknown method 'magic': expected one of operator, knowledge, "):
        distill_by("magic", operator, drawn_on, tmp_path / "out")


def test_what_was_trained_auxiliarily_starts_from_the_seed(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage may add layers to what it trains: the same ones, whatever was drawn before."""
    made: list[Tensor] = []

    def stages(student: nn.Module, given: Given) -> list[Stage]:
        def make(student: nn.Module) -> tuple[nn.Module, object]:
            made.append(torch.randn(3))
            raise KeyboardInterrupt

        return [Stage("one", 1, make)]

    monkeypatch.setattr(Method, "stages", property(lambda self: stages))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill_by("shortcut", flow_map_from_teacher(teacher), given(teacher, trajectories), tmp_path, CONFIG)
    assert torch.equal(*made)
