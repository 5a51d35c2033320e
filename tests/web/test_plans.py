"""Plans are the library's samplers: the same states from the same seeds."""

import pytest
import torch

from dsno.denoise import Kind
from dsno.grids import even, uniform
from dsno.inverse.operators import Downsample, Mask
from dsno.inverse.projected import DiffPIR
from dsno.seeds import noise, seed_range
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student, passes_known, sampler_of
from dsno.web.graphs import student_network, teacher_network
from dsno.web.plans import STEPS, passes_planned, restoring_planned, sample_planned, steps_planned
from planned import decoder, flow_map, operator, run_passes, run_restoring, run_steps, teacher

SEEDS = seed_range(7, 3)

STUDENTS = {
    "operator": operator(),
    "operator of states": operator("flow", "state"),
    "operator of noise": operator("eps"),
    "operator that noises again": operator("v").restarting(fresh=True),
    "operator of edm, noised again": operator("edm", "state", classes=3).restarting(fresh=True),
    "operator of edm": operator("edm", "state", classes=3, guidance=True),
    "flow map": flow_map("v"),
    "consistency map": flow_map("edm", "end", guidance=True),
    "map of one grid": flow_map("flow", "grid", 2),
    "decoder": decoder("v"),
    "decoder of edm": decoder("edm"),
}
of_each_student = pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS.keys())


def condition(student: Student) -> dict[str, torch.Tensor]:
    told = {"label": torch.tensor([2, 0, 1])} if student.classes else {}
    return told | ({"weight": torch.tensor([0.0, 1.0, 2.5])} if student.guided else {})


def started(student: Student) -> float:
    return student.schedule.at(1.0)[1]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@of_each_student
def test_a_plan_makes_the_states_of_a_students_sampler_in_any_passes(student: Student) -> None:
    told, z = condition(student), noise(SEEDS, student.shape)
    network = student_network(student, len(SEEDS))
    for passes in passes_known(student):
        expected = sampler_of(student, passes, whole=True)(z, told or None, SEEDS)
        plan = passes_planned(student, passes)
        assert len(plan) == passes and [t for call in plan for t in call.times][-1] == expected.t[-1]
        found = run_passes(plan, started(student), network, SEEDS, told)
        # A decoder's heads say the states at all times of its grid, of which its sampler keeps the ends of its calls.
        kept = found[:, :: (found.shape[1] - 1) // (expected.x.shape[1] - 1)]
        close(kept, expected.x)


@of_each_student
def test_the_sample_alone_needs_the_samples_output_alone(student: Student) -> None:
    if 1 not in passes_known(student):
        with pytest.raises(ValueError, match="was trained for the grid of 2 step"):
            sample_planned(student)
        return
    told, network = condition(student), student_network(student, len(SEEDS), last=True)
    found = run_passes([sample_planned(student)], started(student), network, SEEDS, told)
    close(found[:, -1], sampler_of(student, 1)(noise(SEEDS, student.shape), told or None, SEEDS).sample)


def test_predictions_are_those_of_the_trajectory() -> None:
    student = operator()
    assert isinstance(student, TrajectoryStudent)
    (call,) = passes_planned(student, 1)
    x = noise(SEEDS, student.shape) * started(student)
    F = student_network(student, 3)(x, torch.tensor([1.0])).unbind(1)
    expected = sampler_of(student, 1, whole=True)(noise(SEEDS, student.shape)).x0
    assert expected is not None and call.predictions is not None
    found = torch.stack([sum(w * y for w, y in zip(row, (x, *F), strict=True)) for row in call.predictions], 1)
    close(found.detach(), expected[:, 1:])
    assert passes_planned(operator(target="state"), 1)[0].predictions is None
    # Nobody predicted a state that was noised again.
    assert all(call.predictions is None for call in passes_planned(student.restarting(fresh=True), 2))
    assert passes_planned(student.restarting(fresh=True), 1) == (call,)


@pytest.mark.parametrize("solver", ["ddim", "dpm2"])
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow", "edm"])
def test_a_plan_makes_the_states_of_a_teachers_solver(kind: Kind, solver: str) -> None:
    model = teacher(kind, classes=3, clip=2.0 if kind == "v" else None)
    z, label = noise(SEEDS, (1, 4, 4)), torch.tensor([2, 0, 1])
    network = teacher_network(model, 3)
    for steps in (1, 2, 7):
        grid = even(model.schedule, steps)
        expected = SolverSampler(model, model.schedule, grid, SOLVERS[solver](), keep=grid)(z, label)
        plan = steps_planned(model, solver, steps)
        assert [step.t for step in plan] == grid[:-1].tolist()
        close(run_steps(plan, started(model), network, z, model.clip, label), expected.x)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow", "edm"])
def test_a_plan_makes_the_restorations_of_a_teacher(kind: Kind) -> None:
    model, z = teacher(kind, clip=2.0 if kind == "v" else None), noise(SEEDS, (1, 4, 4))
    network = teacher_network(model, 3)
    for problem in (Mask.half((1, 4, 4)), Mask.half((1, 4, 4), noise=0.1), Downsample(2, noise=0.3)):
        y = problem.A(noise([1], (1, 4, 4)).expand(3, 1, 4, 4))
        expected = DiffPIR(uniform(7))(model, model.schedule, problem, y, z, seeds=SEEDS).x
        close(run_restoring(restoring_planned(model, 7), model, network, problem, y, SEEDS), expected)


def test_a_page_offers_passes_that_a_student_was_trained_for_and_one_to_64_steps() -> None:
    assert passes_known(operator()) == (1, 2, 3, 4) and passes_known(operator().restarting(False)) == (1,)
    assert passes_known(flow_map(way="grid", steps=2)) == (2,) and passes_known(decoder()) == (1, 2, 4)
    assert (STEPS[0], STEPS[-1]) == (1, 64)
    with pytest.raises(ValueError, match="starts from noise alone"):
        passes_planned(operator().restarting(False), 2)
