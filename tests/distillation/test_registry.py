"""The registry of methods: what it says is there, and nobody else knows it by name."""

import ast
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conditional import given
from dsno.cost import Meter
from dsno.denoise import Prediction
from dsno.distillation import registry
from dsno.distillation.guided import GuidedOptions
from dsno.distillation.registry import METHODS, Method, method_named
from dsno.distillation.run import run_stages
from dsno.distillation.stages import FlowMapOptions
from dsno.nets.unet import UNet
from dsno.references import REFERENCES
from dsno.schedule import Cosine
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.operator import TrajectoryStudent
from dsno.train import TrainConfig
from dsno.trajectories.sets import TrajectorySet

CONFIG = TrainConfig(lr=1e-3, warmup=2, checkpoint_every=50)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_entry_is_whole(method: Method) -> None:
    assert METHODS[method.name] is method_named(method.name) is method
    assert method.needs and {*method.references} <= {*REFERENCES} and method.choose.endswith(".")
    assert method.guides == isinstance(method.options(), GuidedOptions)
    assert (method.student == "flow map") == isinstance(method.options(), FlowMapOptions)
    assert method.batch == (256 if "trajectories" in method.needs else 64)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_option_has_a_default_and_a_help_text_and_is_json(method: Method) -> None:
    options = method.described()
    assert [o.name for o in options] == [f.name for f in fields(method.options)]
    for option in options:
        assert option.help.endswith(".") and option.help[0].isupper() and "\n" not in option.help
    plain = asdict(method.configured())
    assert json.loads(json.dumps(plain)) == {k: [*v] if isinstance(v, tuple) else v for k, v in plain.items()}
    assert method.configured() == method.options()


def test_no_room_but_the_registry_knows_a_method_by_its_name() -> None:
    """Nothing is compared with the name of a method, whatever it lies in."""
    names = {*METHODS} - {"operator"}  # which is a kind of student, too
    for path in Path(registry.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and path != Path(registry.__file__):
                about = any("method" in ast.unparse(part) for part in (node.left, *node.comparators))
                compared = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                assert not (about and compared & names), f"{path}: {ast.unparse(node)}"


def test_a_student_of_one_frame_learns_the_last_of_those_stored(
    teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    drawn_on = given(teacher, trajectories)
    student = METHODS["knowledge"].options().student(teacher, drawn_on)
    assert isinstance(student, TrajectoryStudent) and student.times.tolist() == [0.0]
    (stage,) = METHODS["knowledge"].stages(student, drawn_on, METHODS["knowledge"].options())
    batch = next(stage.make(student)[1].batches(0))
    assert torch.equal(batch["x0"][:, 0], drawn_on.samples[batch["seeds"]])


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
    drawn_on = given(teacher, trajectories, steps=2)
    differentiating = [m for m in METHODS.values() if "derivative" in (o.name for o in m.described())]
    assert len(differentiating) == 6
    for method in differentiating:
        options = method.configured(derivative="forward")
        with pytest.raises(
            ValueError, match=rf"{method.name} takes derivatives .* by differences \(derivative='difference'\)"
        ):
            run_stages(method, options, flow_map_from_teacher(teacher), drawn_on, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    for name, derivative in (("lagrangian", "difference"), ("eulerian", "upwind"), ("meanflow", "upwind")):
        method, options = METHODS[name], METHODS[name].configured(derivative=derivative)
        method.check_student(flow_map_from_teacher(teacher), drawn_on, options)
        (stage,) = method.stages(flow_map_from_teacher(teacher), drawn_on, options)
        model, objective = stage.make(flow_map_from_teacher(teacher))
        assert objective(model, next(objective.batches(0))).isfinite()


def test_a_metered_teacher_is_guided_all_the_same(teacher: Prediction, trajectories: TrajectorySet) -> None:
    drawn_on = given(teacher, trajectories, "guided")
    METHODS["guided"].check(replace(drawn_on, teacher=Meter(drawn_on.denoiser)))
