"""The fine solution is the ODE's, and a solver's error the distance to it."""

import math

import pytest
import torch
from torch import Tensor

from dsno.grids import GRIDS, quadratic, through, uniform
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear
from dsno.seeds import noise
from dsno.solvers.fine import fine_solution, solver_errors
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import UniPC
from dsno.solvers.run import SolverSampler, initial_state
from dsno.teachers.closed import Gaussian, GaussianMixture

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def teacher() -> GaussianMixture:
    means = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.7
    return GaussianMixture(Cosine(), means, 0.1, labels=torch.arange(12) % 3)


def test_fine_solution_is_the_exact_flow(schedule: Schedule) -> None:
    teacher = Gaussian(schedule, torch.tensor([0.3, -0.6], dtype=torch.float64), 0.2)
    z = noise(range(20), (2,), dtype=torch.float64)
    exact = teacher.flow(initial_state(schedule, z), 1.0, 0.0)
    assert (fine_solution(teacher, schedule, z).sample - exact).abs().max() < 3e-4


def test_fine_solution_keeps_times_in_any_batch(teacher: GaussianMixture) -> None:
    z = noise(range(5), SHAPE)
    times = [1.0, *quadratic(4)[1:].tolist()]
    path = fine_solution(teacher, teacher.schedule, z, 64, keep=times, keep_x0=True, batch=2)
    assert path.t.tolist() == times and path.x.shape == (5, 5, *SHAPE) and path.x0.shape == (5, 5, *SHAPE)
    assert path.rounds == 64
    whole = fine_solution(teacher, teacher.schedule, z, 64, keep=times)
    torch.testing.assert_close(path.x, whole.x, rtol=1e-4, atol=1e-4)


def test_fine_solution_of_a_condition_and_of_a_truncated_schedule(teacher: GaussianMixture) -> None:
    z, cond, steps = noise(range(6), SHAPE), torch.arange(6) % 3, []
    x = fine_solution(
        teacher, teacher.schedule, z, 32, cond=cond, step=DDIM(), batch=4, progress=lambda *done: steps.append(done)
    )
    nearest = (x.sample[:, None] - teacher.means).flatten(2).norm(dim=2).argmin(1)
    assert torch.equal(nearest % 3, cond) and x.cond is cond
    assert steps == [(4, 6), (6, 6)]
    short = GaussianMixture(Cosine(-8, 8), teacher.means, 0.1)
    assert torch.isfinite(fine_solution(short, short.schedule, z, 32).sample).all()


def test_fine_solution_refuses_what_it_cannot_solve(teacher: GaussianMixture) -> None:
    z = noise(range(2), SHAPE)
    with pytest.raises(ValueError, match="empty"):
        fine_solution(teacher, teacher.schedule, z[:0])
    with pytest.raises(ValueError, match="use more steps"):
        fine_solution(teacher, teacher.schedule, z, 2, keep=[1.0, 0.5, 0.4, 0.3, 0.0])


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()])
def test_a_solver_error_is_that_to_the_exact_flow(schedule: Schedule) -> None:
    gaussian = Gaussian(schedule, torch.tensor([0.4, -0.3], dtype=torch.float64), torch.tensor([0.2, 0.7]).double())
    z = noise(range(32), (2,), dtype=torch.float64)
    exact = gaussian.flow(initial_state(schedule, z), 1.0, 0.0)
    grids = {"uniform": uniform(8), "quadratic": quadratic(8), "fine": uniform(64)}
    errors = solver_errors(gaussian, schedule, z, grids, fine_steps=512)
    for name, grid in grids.items():
        ends = SolverSampler(gaussian, schedule, grid, DDIM())(z).sample
        assert errors[name] == pytest.approx(float((ends - exact).square().mean().sqrt()), abs=1e-4)
    assert [*errors] == sorted(grids, key=errors.__getitem__) and next(iter(errors)) == "fine"
    batched = solver_errors(gaussian, schedule, z, grids, fine_steps=512, batch=5)
    assert batched == pytest.approx(errors, rel=1e-12)


def test_steps_and_frames_of_the_phase_cost_the_same_error_on_every_path() -> None:
    """Whatever a path's time: an EDM teacher's frames at quadratic t would leave no step for the data."""
    means, found = noise(range(20), (8,), dtype=torch.float64) * 0.7, []
    for path in (Cosine(), VE(80.0), RectifiedFlow(), VPLinear()):
        teacher, frames = GaussianMixture(path, means, 0.15), path.from_phase(quadratic(4))[1:]
        grids = {"quadratic": through(GRIDS["quadratic"](path, 16), frames)}
        found.append(
            solver_errors(teacher, path, noise(range(64), (8,), dtype=torch.float64), grids, UniPC(3))["quadratic"]
        )
    assert max(found) < 1.1 * min(found) < 0.05


def test_a_solver_that_diverges_is_the_last() -> None:
    gaussian = Gaussian(Cosine(), torch.zeros(2), torch.ones(2))

    def early(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return torch.where((t == 0.25)[:, None], torch.nan, gaussian(x, t))

    errors = solver_errors(early, Cosine(), noise(range(4), (2,)), {"four": uniform(4), "three": uniform(3)})
    assert [*errors] == ["three", "four"] and errors["three"] < errors["four"] == math.inf
