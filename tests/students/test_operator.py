"""A student's frames are what the formulas say, whatever its teacher predicts."""

import pytest
import torch
from torch import Tensor, nn

from dsno.denoise import Kind, Prediction, convert, expand_like, x0_from
from dsno.schedule import Cosine, RectifiedFlow, Schedule
from dsno.solvers.run import initial_state, solve
from dsno.students.blocks import Told
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import OnePass
from dsno.teachers.closed import Gaussian
from operators import TIMES, Oracle, student, teacher


@pytest.mark.parametrize("start", [1.0, torch.tensor([1.0, 0.6, 0.3])], ids=["noise", "inner"])
@pytest.mark.parametrize("kind", ["x0", "v", "flow", "eps"])
def test_the_output_is_read_as_the_teachers_prediction(kind: Kind, start: Tensor | float, schedule: Schedule) -> None:
    x0, eps = torch.randn(3, 4, 1, 2, 2, dtype=torch.float64), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    t = torch.as_tensor(start, dtype=torch.float64)
    alpha_t, sigma_t = (expand_like(c, eps) for c in schedule(t))
    # One state, and in each frame the prediction that a teacher certain of another x0 would make there.
    x_t = alpha_t * x0[:, 0] + sigma_t * eps
    answer = torch.stack([convert(kind, x0[:, m], x_t, t, schedule) for m in range(4)], 1)
    h = TrajectoryStudent(Oracle(lambda x, s: answer), schedule, TIMES, kind=kind)(x_t, start=start)
    # An eps head is not divided by alpha.
    expected = x0 * alpha_t.unsqueeze(1) if kind == "eps" else x0
    assert torch.allclose(h, expected, atol=1e-9)


def test_states_are_exact_at_the_start(schedule: Schedule) -> None:
    made = TrajectoryStudent(Oracle(None), schedule, TIMES)
    x_t, h = torch.randn(3, 1, 2, 2), torch.randn(3, 4, 1, 2, 2)
    for m, t in enumerate(TIMES[:-1].tolist()):
        assert torch.allclose(made.states(x_t, h, start=t)[:, m], x_t, atol=1e-5)


def test_states_are_the_formula(schedule: Schedule) -> None:
    made = TrajectoryStudent(Oracle(None), schedule, TIMES)
    z, h = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.randn(3, 4, 1, 2, 2, dtype=torch.float64)
    (alpha_1, sigma_1), x_1 = schedule.at(1.0), initial_state(schedule, z)
    states = made.states(x_1, h)
    for m, t in enumerate(TIMES.tolist()):
        alpha, sigma = schedule.at(t)
        expected = alpha * h[:, m] + sigma * (x_1 - alpha_1 * h[:, m]) / sigma_1
        assert torch.allclose(states[:, m], expected, atol=1e-10)
    assert torch.equal(made.states(x_1, h[:, [3, 1]], select=(-1, 1)), states[:, [3, 1]])
    starts = torch.tensor([1.0, 0.7, 0.6], dtype=torch.float64)
    one_by_one = [made.states(x_1[i : i + 1], h[i : i + 1], float(starts[i])) for i in range(3)]
    assert torch.allclose(made.states(x_1, h, starts), torch.cat(one_by_one), atol=1e-10)


def test_with_the_denoiser_as_h_every_frame_is_one_ddim_step(schedule: Schedule) -> None:
    denoiser = Gaussian(schedule, torch.randn(1, 2, 2, dtype=torch.float64), 0.5)
    made = TrajectoryStudent(
        Oracle(lambda x, t: denoiser(x, t)[:, None].expand(-1, 4, -1, -1, -1)), schedule, TIMES, "state", "x0"
    )
    z = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    trajectory = OnePass(made, whole=True)(z)
    for m, t in enumerate(TIMES.tolist()):
        step = solve(denoiser, schedule, initial_state(schedule, z), [1.0, t])
        assert torch.allclose(trajectory.x[:, m + 1], step.sample, atol=1e-9)


def test_with_the_exact_h_the_states_are_the_exact_flow(schedule: Schedule) -> None:
    gaussian = Gaussian(schedule, torch.randn(1, 2, 2, dtype=torch.float64), 0.5)
    alpha_1, sigma_1 = schedule.at(1.0)

    def exact(x_1: Tensor, start: Tensor) -> Tensor:
        h = []
        for t in TIMES.tolist():
            alpha, sigma = schedule.at(t)
            h.append((gaussian.flow(x_1, 1.0, t) - sigma / sigma_1 * x_1) / (alpha - sigma / sigma_1 * alpha_1))
        return torch.stack(h, 1)

    made = TrajectoryStudent(Oracle(exact), schedule, TIMES, "state", "x0")
    z = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    trajectory = OnePass(made, whole=True)(z)
    for m, t in enumerate([1.0, *TIMES.tolist()]):
        assert torch.allclose(trajectory.x[:, m], gaussian.flow(sigma_1 * z, 1.0, t), atol=1e-9)
    assert torch.allclose(made.sample(z), trajectory.sample, atol=1e-9)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_sample_alone_is_the_last_frame_of_the_trajectory(target: str, classes: int | None) -> None:
    made = student(target, classes)
    z, cond = torch.randn(3, 1, 8, 8), None if classes is None else torch.tensor([0, 2, 1])
    # torch picks other matrix kernels where it records gradients; without, both ways are the same to the last bit.
    with torch.no_grad():
        trajectory, h = OnePass(made, whole=True)(z, cond), made(initial_state(made.schedule, z), cond)
    assert torch.allclose(made.sample(z, cond), trajectory.sample, atol=1e-5)
    last = h[:, -1] if target == "x0" else made.states(initial_state(made.schedule, z), h)[:, -1]
    assert torch.equal(trajectory.sample, last)
    # At t = 0 the state is h up to what a truncated schedule leaves of the noise.
    assert torch.allclose(trajectory.sample, h[:, -1], atol=1e-3)


def test_frames_can_be_chosen() -> None:
    made, x_1 = student(), torch.randn(2, 1, 8, 8)
    every = made(x_1)
    for select in [(0,), (-1,), (1, 3), (2, 1), (0, 1, 2, 3)]:
        assert torch.allclose(made(x_1, select=select), every[:, list(select)], atol=1e-5)


@pytest.mark.parametrize("told", ["output", "input"])
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
def test_untrained_it_is_the_teacher_told_one_time_a_frame(kind: Kind, told: Told) -> None:
    source = teacher(kind, schedule=RectifiedFlow())
    before = {k: v.clone() for k, v in source.net.state_dict().items()}
    made = student_from_teacher(source, TIMES, once=False, told=told)
    x_1 = torch.randn(2, 1, 8, 8)
    h = made(x_1)
    for m, t in enumerate(TIMES.tolist()):
        output = source.net(x_1, torch.full((2,), t if told == "output" else 1.0))
        one = torch.ones(2)
        expected = x_1 - output if kind == "eps" else x0_from(kind, output, x_1, one, source.schedule)
        assert torch.allclose(h[:, m], expected, atol=1e-5)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    assert all(torch.equal(v, before[k]) for k, v in source.net.state_dict().items())


def test_modes_are_two_or_what_one_frame_has_unless_they_are_given() -> None:
    made = student_from_teacher(teacher(), [0.0])
    assert made.frames == 1 and all(layer.modes == 1 for layer in made.net.temporal_layers().values())
    assert made(torch.randn(2, 1, 8, 8)).shape == (2, 1, 1, 8, 8)
    assert {layer.modes for layer in student().net.temporal_layers().values()} == {2}
    for times, modes, message in ((TIMES, 4, r"in \[1, 3\], got 4"), ([0.0], 2, r"in \[1, 1\], got 2")):
        with pytest.raises(ValueError, match=message):
            student_from_teacher(teacher(), times, modes=modes)


def test_a_student_is_of_its_teachers_precision() -> None:
    source = teacher()
    source.net.to(torch.bfloat16)
    made = student_from_teacher(source, TIMES, init="normal")
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert OnePass(made)(torch.randn(2, 1, 8, 8, dtype=torch.bfloat16)).x.dtype == torch.bfloat16


def test_labels_choose_the_sample() -> None:
    made, z = student(classes=3), torch.randn(1, 1, 8, 8).expand(3, 1, 8, 8)
    together = made.sample(z, torch.tensor([0, 1, 2]))
    for label in range(3):
        assert torch.allclose(together[label], made.sample(z[:1], torch.tensor([label]))[0], atol=1e-5)
    assert len({round(float(x.sum()), 4) for x in together}) == 3
    with pytest.raises(ValueError, match="class conditional: pass labels"):
        made.sample(z)


@pytest.mark.parametrize(
    "times, message",
    [
        ([0.5, 0.0], r"has 4 frames but \(2,\) times"),
        ([0.5, 0.6, 0.1, 0.0], "must decrease strictly"),
        ([0.5, 0.5, 0.1, 0.0], "must decrease strictly"),
        ([1.0, 0.5, 0.1, 0.0], r"inside \[0, 1\)"),
        ([0.5, 0.2, 0.0, -0.1], r"inside \[0, 1\)"),
    ],
)
def test_times_must_fit(times: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryStudent(Oracle(None), Cosine(), times)


def test_what_a_student_cannot_be() -> None:
    with pytest.raises(ValueError, match="unknown target 'image': expected x0 or state"):
        TrajectoryStudent(Oracle(None), Cosine(), TIMES, "image")
    with pytest.raises(ValueError, match="no head for a teacher that predicts 'score'"):
        TrajectoryStudent(Oracle(None), Cosine(), TIMES, kind="score")
    with pytest.raises(
        ValueError, match="a Linear does not say which of its modules are blocks: pass `blocks`, or use `lift`"
    ):
        student_from_teacher(Prediction(nn.Linear(1, 1), Cosine()), TIMES)
