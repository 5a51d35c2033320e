"""A problem is held to its adjoint before anything runs, and every solve is held against the dense one."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dsno.inverse.operators import Composition, Downsample, Function, Grey, Mask
from dsno.inverse.problem import Problem, check_problem, conjugate_gradients, noise_of, posterior_mean

D64 = torch.float64

PROBLEMS = {
    "box": (Mask.box((3, 4, 6)), (3, 4, 6)),
    "signal": (Downsample(2), (2, 6)),
    "bicubic": (Downsample(3, "bicubic"), (1, 6, 9)),
    "volume": (Downsample(2, "bicubic"), (1, 4, 2, 4)),
    "grey": (Grey(), (3, 2, 3)),
    "both": (Composition((Downsample(2), Grey())), (3, 4, 4)),
    "sums": (Function(lambda x: x.flatten(1).cumsum(1)[:, ::2], (2, 5)), (2, 5)),
}


def with_noise(problem: Problem, tau: float) -> Problem:
    held = SimpleNamespace(A=problem.A, A_adjoint=problem.A_adjoint, noise=tau)
    for name in ("A_dagger", "prox_l2"):
        if hasattr(problem, name):
            setattr(held, name, getattr(problem, name))
    return held


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("tau", "variance"), [(0.0, 0.7), (0.3, 0.7), (0.3, math.inf), (0.3, 0.0)])
def test_the_mean_given_y_is_the_dense_one(name: str, tau: float, variance: float) -> None:
    problem, shape = PROBLEMS[name]
    measured, n = check_problem(problem, shape, D64), math.prod(shape)
    z, y = torch.randn(2, *shape, dtype=D64), torch.randn(2, *measured, dtype=D64)
    A = problem.A(torch.eye(n, dtype=D64).reshape(n, *shape)).reshape(n, -1).T
    e = (y - problem.A(z)).reshape(2, -1).T
    if tau == 0 or variance == math.inf:
        moved = torch.linalg.pinv(A) @ e
    else:
        moved = variance * A.T @ torch.linalg.solve(variance * A @ A.T + tau**2 * torch.eye(len(A), dtype=D64), e)
    made = posterior_mean(with_noise(problem, tau), z, y, variance)
    assert torch.allclose(made, z + moved.T.reshape(z.shape), atol=1e-9)


def test_a_row_that_has_arrived_stays_and_scales_do_not_matter() -> None:
    problem, shape = PROBLEMS["sums"]
    y = problem.A(torch.randn(3, *shape))
    y[1] = 0
    b = problem.A_adjoint(y * torch.tensor([1.0, 1.0, 1e8])[:, None])
    x = conjugate_gradients(problem, b)
    assert bool(x.isfinite().all()) and not bool(x[1].any())
    assert torch.allclose(x[2] / 1e8, conjugate_gradients(problem, b / torch.tensor([1.0, 1.0, 1e8])[:, None, None])[2])


def test_noise_is_the_problems_own_or_deepinvs_or_none() -> None:
    assert noise_of(Grey(noise=0.2)) == 0.2
    deep = SimpleNamespace(A=None, A_adjoint=None, noise_model=SimpleNamespace(sigma=torch.tensor(0.25)))
    assert noise_of(deep) == 0.25
    assert noise_of(SimpleNamespace(A=None, A_adjoint=None)) == 0.0
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="the noise of a problem is a standard deviation of 0 or more, got"):
            Mask.box((1, 4, 4), noise=wrong)


def test_the_shape_of_what_is_measured_is_told() -> None:
    assert check_problem(Downsample(2), (3, 8, 4)) == (3, 4, 2)
    assert check_problem(Grey(), (3, 8)) == (1, 8)


def _wrong(A: object, adjoint: object) -> Problem:
    return SimpleNamespace(A=A, A_adjoint=adjoint, noise=0.0)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "problem",
    [
        _wrong(lambda x: 2 * x, lambda y: y),
        _wrong(lambda x: x.roll(1, -1), lambda y: y.roll(1, -1)),
        Function(lambda x: x**2 + x, (2, 6)),
        Function(lambda x: x + 0.1, (2, 6)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, D64])
def test_a_wrong_adjoint_is_refused(problem: Problem, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="the adjoint of .* is none: <A x, y> and <x, A_adjoint y> differ by"):
        check_problem(problem, (2, 6), dtype)


def test_a_problem_of_other_samples_is_refused_with_what_to_do() -> None:
    def matrix(x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.ones(12, 3)

    with pytest.raises(ValueError, match=r"does not measure samples of shape \(2, 8\).*Decoded\(problem, latents\)"):
        check_problem(Function(matrix, (2, 6)), (2, 8))
    with pytest.raises(ValueError, match=r"makes \(2, 2, 6\) of what is measured of \(2, 2, 8\)"):
        check_problem(_wrong(lambda x: x[..., :6], lambda y: y), (2, 8))


def test_a_proximal_map_that_is_none_is_refused() -> None:
    grey = Grey()
    held = SimpleNamespace(A=grey.A, A_adjoint=grey.A_adjoint, noise=0.0, prox_l2=lambda z, y, gamma: z)
    with pytest.raises(ValueError, match=r"prox_l2 of SimpleNamespace is not the minimum .* Function\(problem.A"):
        check_problem(held, (3, 4))
