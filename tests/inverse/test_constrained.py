"""Constraints without a vjp: the identity of the contraction, the direction, and how far it is from the posterior."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dsno.cost import Meter
from dsno.grids import uniform
from dsno.inverse.constrained import Constrained
from dsno.inverse.operators import Mask
from dsno.inverse.restore import Restored
from dsno.inverse.run import Run
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from posteriors import D64, Correlated

D = 16
KEEP = torch.arange(D) < 8


def restored(inner: int, tau: float = 0.0, count: int = 400, **options: Any) -> tuple[Restored, Tensor, Tensor]:
    """Restorations of one measurement from many noises, with the true mean and spread of what is hidden."""
    data, problem = Correlated.of(D), Mask(KEEP, noise=tau)
    y = problem.A(data.sample(1) + tau * noise([7], (D,), dtype=D64)).expand(count, D)
    z = noise(seed_range(0, count), (D,), dtype=D64)
    published: dict[str, Any] = {"lr": (0.5, 0.1), "eta": 0.0}
    made = Constrained(uniform(20), inner=inner, **{**published, **options})(data.denoiser, Cosine(), problem, y, z)
    mean, std = data.posterior(KEEP, y[:1], tau)
    return made, mean, std


def misfit(made: Restored) -> float:
    """The root of the mean square over the seen half: the residual is over all of y, whose other half is 0."""
    return float(made.residual.square().mean().sqrt()) * math.sqrt(2)


def test_it_fits_the_better_the_more_corrections_and_never_takes_a_vjp() -> None:
    found = {}
    for inner in (0, 1, 3, 5):
        made, _, _ = restored(inner)
        found[inner] = misfit(made)
        cost = made.cost
        assert (cost.rounds, cost.rows, cost.vjps, cost.jvps) == (20 * (1 + 2 * inner), 400 * cost.rounds, 0, 0)
    assert found[0] > 0.5 and found[1] < 0.25 * found[0] and found[3] < 0.5 * found[1] and found[3] < 0.05


def test_it_is_no_posterior_sampler() -> None:
    """The spread of what nobody saw falls short of the true one, and its mean is off by a part of that."""
    made, mean, std = restored(3)
    hidden = made.x[:, ~KEEP]
    ratio = float((hidden.std(0) / std).mean())
    bias = float(((hidden.mean(0) - mean[0]) / std).square().mean().sqrt())
    assert 0.5 < ratio < 0.95 and 0.05 < bias < 1.0


@pytest.mark.parametrize("lam", [0.05, 0.5])
def test_unnormalised_corrections_contract_by_the_identity(lam: float) -> None:
    r"""$e_{k+1} = (I - \lambda P J^2 P) e_k$ to rounding, since the denoiser is linear."""
    data, t, problem = Correlated.of(D), 0.4, Mask(KEEP)
    x, y = noise([1], (D,), dtype=D64), problem.A(data.sample(1))
    run = Run(Meter(data.denoiser), Cosine(), problem, y)
    method = Constrained(uniform(2), inner=3, lr=(lam, lam), derivative="forward", normalised=False)
    with torch.no_grad():
        x0_hat = run.x0(x, t)
        moved, after = method.corrected(run, x, x0_hat, t)
    P, J = torch.diag(KEEP.to(D64)), data.jacobian(t)
    contraction = torch.eye(D, dtype=D64) - lam * P @ J @ J @ P
    e = (y - x0_hat) * KEEP
    for _ in range(3):
        e = e @ contraction
    assert torch.allclose((y - after) * KEEP, e, rtol=0, atol=1e-13)
    assert torch.allclose(after, moved @ J, rtol=0, atol=1e-13)
    assert lam * float(torch.linalg.eigvalsh(J).max()) ** 2 < 2 and float(e.norm()) < float(
        ((y - x0_hat) * KEEP).norm()
    )


def test_the_difference_is_the_forward_derivative_which_is_the_pullback_of_an_exact_denoiser() -> None:
    data, t = Correlated.of(D), 0.6
    run = Run(Meter(data.denoiser), Cosine(), Mask(KEEP), noise([0], (D,), dtype=D64))
    x, v = noise([1], (D,), dtype=D64), noise([2], (D,), dtype=D64)
    x0_hat, pull = run.vjp(x, t)
    Jv = run.jvp(x, t, v)[1]
    assert torch.allclose(Jv, pull(v), rtol=0, atol=1e-12) and torch.allclose(Jv, v @ data.jacobian(t), atol=1e-12)
    assert torch.allclose((run.x0(x + 1e-3 * v, t) - x0_hat) / 1e-3, Jv, atol=1e-9)
    assert (run.meter.vjps, run.meter.jvps) == (1, 1)


def test_both_derivatives_restore_alike() -> None:
    one, other = restored(2, count=20)[0], restored(2, count=20, derivative="forward")[0]
    assert torch.allclose(one.x, other.x, atol=1e-6)
    assert (other.cost.jvps, other.cost.vjps) == (20 * 2 * 20, 0)


def test_what_is_noise_is_not_fitted() -> None:
    """Corrections stop where the misfit is that of the noise; without that they would fit it to a tenth."""
    tau = 0.3
    assert 0.6 * tau < misfit(restored(5, tau)[0]) < 1.4 * tau
    assert misfit(restored(5)[0]) < 0.2 * tau


def test_fresh_noise_needs_seeds_and_is_used() -> None:
    with pytest.raises(ValueError, match="Constrained takes noise in its steps: give `seeds`"):
        restored(1, eta=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": -1}, "constrained sampling takes inner >= 0, difference > 0 and eta in"),
        ({"difference": 0.0}, "constrained sampling takes inner >= 0, difference > 0"),
        ({"eta": 2.0}, "and eta in .0, 1., got 3, 0.005 and 2"),
        ({"derivative": "backward"}, "unknown derivative 'backward': expected difference or forward"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Constrained(uniform(2), **options)
