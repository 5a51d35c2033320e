"""Problems of pixels for latents: gradients through a decoder, and what cannot be done with them."""

import pytest
import torch
from torch import Tensor

from dsno.grids import uniform
from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.constrained import Constrained
from dsno.inverse.decoded import Decoded, linearised
from dsno.inverse.operators import Downsample, Function, Mask
from dsno.inverse.problem import noise_of
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.teachers.closed import Gaussian

D64 = torch.float64
LATENT = (2, 4)
W = torch.randn(8, 3 * 6, dtype=D64, generator=torch.Generator().manual_seed(2))


def decode(x: Tensor) -> Tensor:
    """A linear decoder, of which everything is known."""
    return (x.flatten(1) @ W).reshape(-1, 3, 6)


PROBLEM = Downsample(2)
DECODED, LINEAR = Decoded(PROBLEM, decode), Function(lambda x: PROBLEM.A(decode(x)), LATENT)


def test_its_pullback_is_the_adjoint_through_the_decoder() -> None:
    x, v = torch.randn(3, *LATENT, dtype=D64), torch.randn(3, 3, 3, dtype=D64)
    with torch.no_grad():
        Ax, pull = linearised(DECODED, x)
        assert torch.allclose(Ax, LINEAR.A(x)) and torch.allclose(pull(v), LINEAR.A_adjoint(v))
        assert torch.equal(pull(v), pull(v))
    bent = Decoded(PROBLEM, lambda x: decode(x).sin())
    with torch.no_grad():
        _, pull = linearised(bent, x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(PROBLEM.A(decode(leaf).sin()), leaf, v)
    assert torch.allclose(pull(v), expected) and noise_of(Decoded(Downsample(2, noise=0.2), decode)) == 0.2


@pytest.mark.parametrize(("make", "each"), [(lambda g: Constrained(g, inner=2), 2), (DPS, 1), (MPGD, 1)])
def test_of_a_linear_decoder_it_is_the_linear_problem_and_its_gradients_are_counted(make: type, each: int) -> None:
    teacher = Gaussian(Cosine(), torch.zeros(LATENT, dtype=D64), 0.8)
    seeds = seed_range(0, 3)
    z, y = noise(seeds, LATENT, dtype=D64), PROBLEM.A(decode(torch.randn(3, *LATENT, dtype=D64)))
    made = make(uniform(5))(teacher, Cosine(), DECODED, y, z, seeds=seeds)
    known = make(uniform(5))(teacher, Cosine(), LINEAR, y, z, seeds=seeds)
    assert torch.allclose(made.x, known.x, atol=1e-7) and torch.allclose(made.residual, known.residual, atol=1e-7)
    assert made.cost.gradients == 3 * 5 * each and known.cost.gradients == 0
    assert made.cost.vjps == known.cost.vjps


@pytest.mark.parametrize("make", [PiGDM, DiffPIR, Replacement])
def test_what_solves_a_linear_problem_refuses_it(make: type) -> None:
    teacher = Gaussian(Cosine(), torch.zeros(LATENT), 0.8)
    with pytest.raises(ValueError, match=f"{make.__name__} solves a linear problem, and one that is Decoded is none"):
        make(uniform(2))(teacher, Cosine(), DECODED, torch.zeros(1, 3, 3), torch.zeros(1, *LATENT), seeds=[0])


def test_a_problem_of_pixels_stated_for_latents_is_refused() -> None:
    teacher, z = Gaussian(Cosine(), torch.zeros(LATENT), 0.8), torch.zeros(1, *LATENT)
    decode_first = r"stated for latents as Decoded\(problem, latents\), and its gradients pass through the decoder$"
    with pytest.raises(ValueError, match=rf"the mask is .3, 6., and samples are .2, 4.*{decode_first}"):
        DPS(uniform(2))(teacher, Cosine(), Mask(torch.ones(3, 6)), torch.zeros(1, 3, 6), z, seeds=[0])
    with pytest.raises(ValueError, match=rf"and y is \(1, 3, 3\).*{decode_first}"):
        DPS(uniform(2))(teacher, Cosine(), Downsample(2), torch.zeros(1, 3, 3), z, seeds=[0])
