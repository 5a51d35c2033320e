"""Students as samplers: one pass or several, with or without fresh noise, as they were trained."""

import pytest
import torch
from torch import Tensor, nn

from dsno.grids import even, uniform
from dsno.schedule import VE, Cosine
from dsno.seeds import noise, noise_tape, seed_range
from dsno.solvers.run import SolverSampler, initial_state
from dsno.students.flowmap import FlowMap, Way
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import FlowMapSampler, MultiPass, OnePass, passes_of, sampler_of
from dsno.teachers.closed import Gaussian
from maps import D64, MEAN, MLP, STD, exact
from operators import MIXTURE, SAMPLER, SHAPE, TIMES, Oracle, restartable, solving, student


def test_a_trajectory_says_what_it_is() -> None:
    made, z, seeds = student(), torch.randn(2, 1, 8, 8), torch.tensor([5, 6])
    trajectory = OnePass(made, whole=True)(z, seeds=seeds)
    assert trajectory.x.shape == (2, 5, 1, 8, 8) and trajectory.t.tolist() == [1.0, *TIMES.tolist()]
    assert torch.equal(trajectory.noise, initial_state(made.schedule, z)) and trajectory.seeds is seeds
    assert trajectory.rounds == 1 and trajectory.x0 is not None and trajectory.x0.shape == trajectory.x.shape
    assert not trajectory.x.requires_grad


@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_last_frame_can_be_the_only_one(target: str) -> None:
    made, z = student(target), torch.randn(2, 1, 8, 8)
    alone, whole = OnePass(made)(z), OnePass(made, whole=True)(z)
    assert alone.t.tolist() == [1.0, 0.0] and alone.x.shape == (2, 2, 1, 8, 8)
    assert torch.allclose(alone.x, whole.x[:, [0, -1]], atol=1e-5)


# Several passes


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("through", [1, ()])
@pytest.mark.parametrize("target", ["x0", "state"])
def test_one_of_many_passes_is_one_pass(target: str, through: int | tuple[int, ...], whole: bool) -> None:
    # Any student makes one pass.
    made, z = student(target), torch.randn(3, 1, 8, 8)
    several, once = MultiPass(made, through, whole)(z), OnePass(made, whole)(z)
    assert torch.equal(several.x, once.x) and torch.equal(several.t, once.t) and several.rounds == several.nfe == 1
    x_1, frames = initial_state(made.schedule, z), range(4) if whole else (3,)
    with torch.no_grad():
        h = made(x_1, select=frames)
        states = made.states(x_1, h, select=frames)
    assert torch.equal(once.x[:, 1:-1], states[:, :-1])
    assert torch.equal(once.sample, h[:, -1] if target == "x0" else states[:, -1])
    assert (once.x0 is None) == (target == "state")


@pytest.mark.parametrize("target", ["x0", "state"])
def test_each_pass_starts_from_the_state_of_the_one_before(target: str) -> None:
    made, z, seeds = restartable(target, classes=3), torch.randn(3, 1, 8, 8), torch.arange(3)
    cond, calls = torch.tensor([0, 2, 1]), []
    handle = made.register_forward_hook(lambda module, arguments, output: calls.append(arguments[2:]))
    trajectory = MultiPass(made, (0, 2), whole=True)(z, cond, seeds)
    handle.remove()
    assert calls == [(1.0, range(1)), (TIMES[0].item(), range(1, 3)), (TIMES[2].item(), range(3, 4))]
    assert trajectory.nfe == trajectory.rounds == 3 and trajectory.seeds is seeds and trajectory.cond is cond
    assert trajectory.t.tolist() == [1.0, *TIMES.tolist()] and not trajectory.x.requires_grad
    for start, frames in ((0, (0,)), (1, (1, 2)), (3, (3,))):
        t = float(trajectory.t[start])
        h = made(trajectory.x[:, start], cond, t, frames)
        states = made.states(trajectory.x[:, start], h, t, frames)
        ends = h if target == "x0" and frames == (3,) else states
        assert torch.allclose(trajectory.x[:, [m + 1 for m in frames]], ends, atol=1e-5)
    # Which is another sample than that of one pass.
    assert not torch.allclose(trajectory.sample, OnePass(made)(z, cond).sample, atol=1e-2)


@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_frames_passed_through_can_be_the_only_ones(target: str) -> None:
    made, z = restartable(target), torch.randn(2, 1, 8, 8)
    whole, alone = MultiPass(made, (0, 2), whole=True)(z), MultiPass(made, (0, 2))(z)
    assert alone.t.tolist() == [1.0, 0.5625, 0.0625, 0.0]
    assert torch.allclose(alone.x, whole.x[:, [0, 1, 3, 4]], atol=1e-5)


@pytest.mark.parametrize(
    "frames, inner",
    [
        (1, [()]),
        (2, [(), (0,)]),
        (4, [(), (1,), (0, 2), (0, 1, 2)]),
        (8, [(), (3,), (2, 4), (1, 3, 5), (1, 2, 4, 5), (0, 2, 3, 4, 6), (0, 1, 2, 4, 5, 6), (0, 1, 2, 3, 4, 5, 6)]),
    ],
)
def test_passes_spread_evenly(frames: int, inner: list[tuple[int, ...]]) -> None:
    times = torch.linspace(0.9, 0, frames) if frames > 1 else [0.0]
    made = TrajectoryStudent(Oracle(None, frames), Cosine(), times, restarts=True)
    for passes, expected in enumerate(inner, 1):
        sampler = MultiPass(made, passes)
        assert sampler.inner == expected and sampler.passes == passes
    range_ = f"{frames} frames makes 1 to {frames} passes" if frames > 1 else "one frame makes one pass alone"
    for passes in (0, frames + 1, -1):
        with pytest.raises(ValueError, match=rf"a student of {range_}, got {passes}"):
            MultiPass(made, passes)


@pytest.mark.parametrize("through", [(3,), (1, 1), (2, 0), (-1,), (0, 4)])
def test_only_inner_frames_are_passed_through(through: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must increase within \[0, 2\], the last of 4 being the sample: got \["):
        MultiPass(restartable(), through)


@pytest.mark.parametrize("through", [2, 4, (1,)])
def test_a_student_of_noise_alone_makes_one_pass(through: int | tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"from noise alone, in one pass: for more, .*distill\(..., inner_starts=0\.5\)"
    ):
        MultiPass(student(), through)
    restartable().check_restarts()


THROUGH = [1, 2, 3, 4, (), (0,), (2,), (0, 1), (1, 2)]


@pytest.mark.parametrize("through", THROUGH, ids=str)
def test_passes_of_an_exact_state_student_are_the_solution(through: int | tuple[int, ...]) -> None:
    z = torch.randn(5, *SHAPE, dtype=torch.float64)
    student, solved = solving("state"), SAMPLER(z)
    sampler = MultiPass(student, through, whole=True)
    made = sampler(z)
    assert torch.allclose(made.t, torch.cat([torch.ones(1), TIMES]).double()) and made.x0 is None
    assert torch.allclose(made.x[:, 1:], solved.x, rtol=0, atol=1e-10) and torch.equal(made.noise, made.x[:, 0])
    # Each pass starts where the one before it stopped, and makes no frame twice.
    starts = [1.0, *(float(TIMES[j]) for j in sampler.inner)]
    assert [start for start, _ in student.net.asked] == starts
    assert [m for _, frames in student.net.asked for m in frames] == [0, 1, 2, 3]
    assert made.nfe == made.rounds == sampler.passes == len(starts)


@pytest.mark.parametrize("through", THROUGH, ids=str)
def test_passes_of_an_exact_x0_student_are_exact_from_the_last_start(through: int | tuple[int, ...]) -> None:
    z = torch.randn(5, *SHAPE, dtype=torch.float64)
    student = solving("x0")
    sampler = MultiPass(student, through, whole=True)
    made, once = sampler(z), OnePass(student, whole=True)(z)
    j = sampler.inner[-1] if sampler.inner else -1
    start = float([*TIMES, 1.0][j])
    grid = torch.tensor([t for t in uniform(16).tolist() if t <= start], dtype=torch.float64)
    solved = SolverSampler(MIXTURE, Cosine(), grid)(made.x[:, j + 1] / Cosine().at(start)[1])
    assert torch.allclose(made.sample, solved.sample, rtol=0, atol=1e-10)
    # Up to the first restart it is the one pass.
    i = sampler.inner[0] if sampler.inner else 3
    assert torch.equal(made.x[:, : i + 2], once.x[:, : i + 2]) and made.x0 is not None and once.x0 is not None
    assert torch.equal(made.x0[:, : i + 2], once.x0[:, : i + 2]) and made.x0.shape == made.x.shape


# Passes that noise the sample again


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("target", ["x0", "state"])
def test_with_fresh_noise_a_pass_starts_from_the_noised_sample_of_the_one_before(target: str, whole: bool) -> None:
    made, z, seeds = restartable(target, classes=3), torch.randn(3, 1, 8, 8), torch.arange(3)
    cond, tape = torch.tensor([0, 2, 1]), noise_tape(seeds, (1, 8, 8), 2)
    trajectory = MultiPass(made, (0, 2), whole, fresh=True)(z, cond, seeds)
    assert trajectory.nfe == trajectory.rounds == 3 and trajectory.x0 is None
    assert trajectory.t.tolist() == [1.0, *(TIMES if whole else TIMES[[0, 2, 3]]).tolist()]
    x_t, start = initial_state(made.schedule, z), 1.0
    for n, frame in enumerate((0, 2)):
        with torch.no_grad():
            h = made(x_t, cond, start, (-1,))
            x = h[:, 0] if target == "x0" else made.states(x_t, h, start, (-1,))[:, 0]
        start = float(TIMES[frame])
        alpha_j, sigma_j = made.schedule.at(start)
        x_t = alpha_j * x + sigma_j * tape[n]
        place = trajectory.t.tolist().index(start)
        assert torch.allclose(trajectory.x[:, place], x_t, atol=1e-5)
    with torch.no_grad():
        h = made(x_t, cond, start, (-1,))
        last = h if target == "x0" else made.states(x_t, h, start, (-1,))
    assert torch.allclose(trajectory.sample, last[:, 0], atol=1e-5)
    # A row is the same in any batch.
    alone = MultiPass(made, (0, 2), whole, fresh=True)(z[1:2], cond[1:2], seeds[1:2])
    assert torch.allclose(alone.sample, trajectory.sample[1:2], atol=1e-5)


def test_fresh_noise_keeps_the_law_of_exact_samples() -> None:
    """With the exact flow as h every restart is a draw of the same Gaussian, and independent of the one before."""
    exact = Gaussian(Cosine(), torch.full((1,), 0.7, dtype=torch.float64), 0.4)

    def answer(x: Tensor, start: Tensor) -> Tensor:
        return exact.flow(x, float(start), 0.0).unsqueeze(1).expand(-1, 4, -1)

    made = TrajectoryStudent(Oracle(answer), Cosine(), TIMES, kind="x0", restarts=True)
    count = 20_000
    z, seeds = torch.randn(count, 1, dtype=torch.float64), torch.arange(count)
    again = MultiPass(made, (0,), fresh=True)(z, None, seeds).sample
    assert abs(float(again.mean()) - 0.7) < 0.012 and abs(float(again.std()) - 0.4) < 0.01
    once = OnePass(made)(z).sample
    gain = float(torch.corrcoef(torch.cat([again, once], 1).T)[0, 1])
    alpha_j, sigma_j = Cosine().at(float(TIMES[0]))
    assert abs(gain - alpha_j * 0.4 / (alpha_j**2 * 0.16 + sigma_j**2) ** 0.5) < 0.03


def test_fresh_noise_needs_seeds_only_where_it_is_drawn() -> None:
    made, z = restartable(), torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match="fresh noise at every restart: pass the seeds"):
        MultiPass(made, 2, fresh=True)(z)
    once = MultiPass(made, 1, fresh=True)(z)
    assert torch.equal(once.x, OnePass(made)(z).x) and once.x0 is not None
    with pytest.raises(ValueError, match="from noise alone"):
        MultiPass(student(), 2, fresh=True)


# Passes of flow maps


def test_landings_short_of_the_grid_are_noised_back() -> None:
    """Of the exact map every landing keeps the law of a Gaussian: mean and standard deviation to five errors."""
    schedule, count = Cosine(), 20_000
    X, seeds, grid = exact(schedule).eval(), seed_range(0, 20_000), torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=D64)
    z = noise(seeds, (3,), dtype=D64)
    plain = FlowMapSampler(X, grid)(z)
    assert torch.equal(FlowMapSampler(X, grid, grid[1:])(z).sample, plain.sample)
    for landings in (torch.zeros(3), torch.tensor([0.3, 0.1, 0.0])):
        made = FlowMapSampler(X, grid, landings)(z, seeds=seeds)
        assert made.nfe == 3 and not torch.allclose(made.sample, plain.sample, atol=0.1)
        for n, t in enumerate(grid.tolist()):
            alpha, sigma = schedule.at(t)
            mean, std = alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()
            state = made.x[:, n]
            assert torch.all((state.mean(0) - mean).abs() < 5 * std / count**0.5), (landings, t)
            assert torch.all((state.std(0) / std - 1).abs() < 5 / (2 * count) ** 0.5), (landings, t)
    with pytest.raises(ValueError, match="draws fresh noise at every step: pass the seeds"):
        FlowMapSampler(X, grid, torch.zeros(3))(z)
    for wrong in (torch.zeros(2), torch.tensor([0.7, 0.3, 0.0]), torch.tensor([0.6, 0.3, 0.1])):
        with pytest.raises(ValueError, match="a step lands between 0 and the grid's next time"):
            FlowMapSampler(X, grid, wrong)


def test_passes_are_made_as_a_map_was_trained() -> None:
    def net() -> FlowMap:
        return FlowMap(MLP(), Cosine())

    assert torch.equal(passes_of(net(), 3).landings, uniform(3)[1:])
    assert torch.equal(passes_of(FlowMap(MLP(), VE()), 3).grid, even(VE(), 3))
    end = net()
    end.way = "end"
    assert torch.equal(passes_of(end, 3).landings, torch.zeros(3, dtype=D64))
    assert len(passes_of(FlowMap(MLP(), Cosine(), way="grid", steps=4), 4).grid) == 5
    with pytest.raises(ValueError, match=r"for the grid of 4 step\(s\) alone and makes 4 pass\(es\), got 2"):
        passes_of(FlowMap(MLP(), Cosine(), way="grid", steps=4), 2)
    with pytest.raises(ValueError, match="at least one pass, got 0"):
        passes_of(net(), 0)
    with pytest.raises(ValueError, match="a map of the way 'grid', and no other, has `steps`"):
        FlowMap(MLP(), Cosine(), way="grid")


def test_a_map_of_any_step_can_noise_its_samples_again() -> None:
    teacher, z, seeds = Gaussian(Cosine(), MEAN, STD), torch.randn(20_000, 3, dtype=D64), torch.arange(20_000)
    X = exact(Cosine())
    again, on = (sampler_of(X, 3, fresh=fresh)(z, seeds=seeds).sample for fresh in (True, False))
    assert torch.allclose(on, teacher.flow(sampler_of(X, 1)(z).x[:, 0], 1.0, 0.0), atol=1e-9)
    # Another sample of the same law.
    assert float((again - on).abs().mean()) > 0.1
    assert torch.allclose(again.mean(0), MEAN, atol=0.05) and torch.allclose(again.std(0), STD, rtol=0.03)
    grid = FlowMap(X.net, Cosine(), "x0", way="grid", steps=2)
    with pytest.raises(ValueError, match="leave `fresh` out"):
        sampler_of(grid, 2, fresh=True)


@pytest.mark.parametrize(
    "way, passes, fresh, landings",
    [
        ("any", None, False, [0.0]),
        ("any", 4, False, [0.75, 0.5, 0.25, 0.0]),
        ("any", 4, True, [0.0, 0.0, 0.0, 0.0]),
        ("end", None, False, [0.0]),
        ("end", 4, False, [0.0, 0.0, 0.0, 0.0]),
        ("end", 4, True, [0.0, 0.0, 0.0, 0.0]),
        ("grid", None, False, [0.75, 0.5, 0.25, 0.0]),
        ("grid", 4, False, [0.75, 0.5, 0.25, 0.0]),
    ],
)
def test_every_way_has_its_sampler(way: Way, passes: int | None, fresh: bool, landings: list[float]) -> None:
    X = FlowMap(MLP(), Cosine(), way=way, steps=4 if way == "grid" else None)
    sampler = sampler_of(X, passes, fresh=fresh)
    assert isinstance(sampler, FlowMapSampler) and sampler.map is X
    assert sampler.grid.tolist() == uniform(len(landings)).tolist() and sampler.landings.tolist() == landings


def test_the_sampler_of_an_operator_is_of_one_pass_unless_more_are_asked_for() -> None:
    made = restartable()
    assert sampler_of(made) == MultiPass(made, 1, whole=False, fresh=False)
    assert sampler_of(made, 3, whole=True, fresh=True) == MultiPass(made, 3, whole=True, fresh=True)
    # As it was trained, unless it is said otherwise.
    trained = made.restarting(fresh=True)
    assert sampler_of(trained, 3) == MultiPass(trained, 3, fresh=True) != MultiPass(trained, 3, fresh=False)
    assert sampler_of(trained, 3, fresh=False) == MultiPass(trained, 3, fresh=False)
    with pytest.raises(ValueError, match="from noise alone"):
        sampler_of(student(), 2)


def test_a_wrapped_student_is_sampled_and_says_what_it_is() -> None:
    made = student()
    z = noise(seed_range(0, 2), made.shape)
    expected = sampler_of(made)(z).sample
    assert torch.equal(sampler_of(nn.DataParallel(made))(z).sample, expected)
    known = (made.frames, made.shape, made.classes, made.guided, made.config)
    made.net = nn.DataParallel(made.net)
    assert torch.equal(sampler_of(made)(z).sample, expected)
    assert (made.frames, made.shape, made.classes, made.guided, made.config) == known
    made.net.module.backbone = nn.DataParallel(made.net.module.backbone)
    assert (made.frames, made.shape, made.classes, made.guided, made.config) == known
