"""The driver keeps what is asked for, on any grid, and may stop and go on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.grids import quadratic, uniform
from dsno.parallel import SRDS, ParaTAA
from dsno.schedule import VE, Cosine, Tabulated
from dsno.seeds import noise_tape, seed_range
from dsno.solvers.chain import Chain
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler, solve
from dsno.solvers.step import Step
from dsno.teachers.closed import GaussianMixture
from solving import MEANS, states

every_solver = pytest.mark.parametrize("step", [build() for build in SOLVERS.values()], ids=SOLVERS.keys())


def test_a_sampler_starts_from_the_noise_of_the_schedule() -> None:
    z = states(2, (2,))
    sampler = SolverSampler(GaussianMixture(VE(80), MEANS, 0.4), VE(80), uniform(2), keep=uniform(2))
    trajectory = sampler(z, seeds=torch.tensor([5, 6]))
    torch.testing.assert_close(trajectory.noise, 80 * z)
    assert trajectory.seeds.tolist() == [5, 6]


@given(split=st.integers(1, 7))
def test_a_one_step_solver_may_stop_and_go_on(split: int) -> None:
    schedule, grid = Cosine(), uniform(8)
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = states(4, (2,))
    for step in (DDIM(), Heun()):
        whole = solve(teacher, schedule, x, grid, step).sample
        half = solve(teacher, schedule, x, grid[: split + 1], step).sample
        torch.testing.assert_close(solve(teacher, schedule, half, grid[split:], step).sample, whole, rtol=0, atol=0)


def test_the_denoiser_is_told_the_exact_time_in_half_precision() -> None:
    told = []

    def denoiser(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        told.append(float(t[0]))
        return x_t

    x = torch.zeros(1, 2, dtype=torch.bfloat16)
    assert solve(denoiser, Cosine(), x, [0.999, 0.499, 0.0]).sample.dtype == torch.bfloat16
    assert told == pytest.approx([0.999, 0.499], abs=1e-6)  # bfloat16 would say 1 and 0.5


# What is kept, and what it cost


@every_solver
def test_the_schedule_is_asked_for_a_grid_and_not_for_its_steps(step: Step) -> None:
    asked = []

    class Counted(Tabulated):
        def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(t.shape)
            return super()._segment(t)

    class Net(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return 0.1 * x_t

    def calls(steps: int) -> int:
        asked.clear()
        schedule = Counted([0.9, 0.5, 0.1])
        solve(
            Prediction(Net(), schedule, "eps"), schedule, states(2, (3,)), uniform(steps), step, seeds=seed_range(0, 2)
        )
        return len(asked)

    assert calls(20) == calls(5) <= 3


def test_noise_and_sample_are_kept_by_default() -> None:
    x = states(2, (2,))
    trajectory = solve(GaussianMixture(Cosine(), MEANS, 0.4), Cosine(), x, uniform(8))
    assert trajectory.x.shape == (2, 2, 2) and trajectory.t.tolist() == [1, 0]
    torch.testing.assert_close(trajectory.noise, x)


@every_solver
def test_only_the_kept_times_come_back_noise_first(step: Step) -> None:
    teacher, x, seeds = GaussianMixture(Cosine(), MEANS, 0.4), states(2, (2,)), seed_range(0, 2)
    everything = solve(teacher, Cosine(), x, quadratic(4), step, seeds=seeds, keep=quadratic(4))
    some = solve(teacher, Cosine(), x, quadratic(4), step, seeds=seeds, keep=[0.0, 0.0625, 0.5625])
    assert some.t.tolist() == [0.5625, 0.0625, 0]
    torch.testing.assert_close(some.x, everything.x[:, [1, 3, 4]], rtol=0, atol=0)


@every_solver
def test_keep_x0_is_what_the_denoiser_said_at_the_kept_states(step: Step) -> None:
    teacher, x, grid = GaussianMixture(Cosine(), MEANS, 0.4), states(2, (2,)), uniform(5)
    trajectory = solve(teacher, Cosine(), x, grid, step, seeds=seed_range(0, 2), keep=grid, keep_x0=True)
    for n, t in enumerate(grid[:-1]):
        torch.testing.assert_close(trajectory.x0[:, n], teacher(trajectory.x[:, n], t), rtol=1e-12, atol=1e-12)
    assert torch.equal(trajectory.x0[:, -1], trajectory.sample)


def test_keep_x0_evaluates_once_more_where_the_grid_ends_in_noise() -> None:
    teacher, x, grid = GaussianMixture(Cosine(), MEANS, 0.4), states(2, (2,)), uniform(5, 1.0, 0.5)
    trajectory = solve(teacher, Cosine(), x, grid, keep_x0=True)
    torch.testing.assert_close(trajectory.x0[:, -1], teacher(trajectory.sample, grid[-1]))
    assert trajectory.nfe == trajectory.rounds == 6
    assert solve(teacher, Cosine(), x, grid).x0 is None


def test_a_given_tape_replaces_the_seeds() -> None:
    teacher, x = GaussianMixture(Cosine(), MEANS, 0.4), states(2, (2,))
    tape = noise_tape([4, 9], (2,), 5, torch.float64)
    by_tape = solve(teacher, Cosine(), x, uniform(5), Ancestral(), tape=tape).sample
    by_seed = solve(teacher, Cosine(), x, uniform(5), Ancestral(), seeds=torch.tensor([4, 9])).sample
    torch.testing.assert_close(by_tape, by_seed, rtol=0, atol=0)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda run: run(keep=[1.0, 0.3]), r"t = 0.3 is not on the grid, so it cannot be kept: the nearest"),
        (lambda run: run(step=Ancestral()), "needs `seeds`"),
        (lambda run: run(grid=[0.0, 1.0]), "decrease strictly"),
    ],
)
def test_what_cannot_be_run_is_refused(build, message: str) -> None:
    def run(grid=(1.0, 0.5, 0.25, 0.0), **arguments):
        return solve(lambda x, t, cond: x, Cosine(), states(), grid, **arguments)

    with pytest.raises(ValueError, match=message):
        build(run)


@pytest.mark.parametrize(
    "z, message",
    [
        (torch.zeros(2, 3), r"noise must have the shape \(B, 1, 3\), got \(2, 3\)"),
        (torch.full((2, 1, 3), torch.nan), "noise must be finite"),
        (torch.zeros(2, 1, 3, dtype=torch.int64), "noise must be of floating point numbers, got int64"),
        ([0.0], "noise must be a tensor"),
    ],
)
def test_what_is_no_noise_of_the_teacher_is_refused(z: Tensor, message: str) -> None:
    class Plain(Prediction):
        def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
            raise AssertionError("it is refused before")

    denoiser = Plain(nn.Identity(), Cosine(), shape=(1, 3))
    chain = Chain(Cosine(), uniform(2))
    for sampler in (SolverSampler(denoiser, Cosine(), uniform(2)), ParaTAA(denoiser, chain), SRDS(denoiser, chain)):
        with pytest.raises(ValueError, match=message):
            sampler(z)


def test_a_list_of_times_is_as_good_as_a_tensor() -> None:
    z, times = states(2, (2,)), [1.0, 0.5, 0.2, 0.0]
    denoiser = GaussianMixture(Cosine(), MEANS, 0.4)
    grid = torch.tensor(times, dtype=torch.float64)
    for make in (
        lambda t: SolverSampler(denoiser, Cosine(), t, keep=t)(z).x,
        lambda t: Chain(Cosine(), t).run(denoiser, z).x,
        lambda t: ParaTAA(denoiser, Chain(Cosine(), t))(z).x,
    ):
        assert torch.equal(make(times), make(grid))
