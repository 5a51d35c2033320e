"""Picard and what iterates like it: the chain's own samples, whatever was guessed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from chains import CHAINS, D64, METHODS, drafts, mixture, problem
from dsno.denoise import Guided, Prediction
from dsno.grids import uniform
from dsno.nets.unet import UNet
from dsno.parallel.picard import Picard
from dsno.parallel.rounds import Exact
from dsno.parallel.taa import ParaTAA
from dsno.schedule import Cosine
from dsno.solvers.chain import Chain
from dsno.teachers.closed import GaussianMixture


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("d", [2, 64])
def test_run_to_the_end_it_is_the_chain(method: Callable[..., Exact], chain: Chain, d: int) -> None:
    if len(chain) == 1 and method in (METHODS["k=3, m=3, window"],):
        pytest.skip("an order above N is refused")
    teacher, (x, tape) = mixture(d, chain.schedule), problem(chain, d)
    reference, made = chain.run(teacher, x, tape), method(teacher, chain, tolerance=None).solve(x, tape)
    scale = float(reference.x.abs().max())
    assert float((made.x - reference.x).abs().max()) <= 1e-12 * scale
    assert torch.equal(made.t, reference.t) and made.trace is not None
    assert made.rounds <= len(chain) and int(made.trace.rounds.max()) == made.rounds


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_after_r_rounds_the_first_r_states_are_exact(method: Callable[..., Exact]) -> None:
    chain, d = CHAINS["ddpm"], 2
    (x, tape), asked = problem(chain, d), []

    class Watched(GaussianMixture):
        """Notes the states it is asked about."""

        def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            asked.append((x_t.clone(), t.clone()))
            return super().__call__(x_t, t, cond)

    base = mixture(d)
    teacher = Watched(base.schedule, base.means, base.stds)
    reference = chain.run(base, x, tape)
    method(teacher, chain, tolerance=None).solve(x[:1], tape[:, :1])
    for r, (x_t, t) in enumerate(asked):
        for state, time in zip(x_t, t, strict=True):
            n = int((chain.grid - float(time)).abs().argmin())
            if n <= r:
                assert torch.allclose(state, reference.x[0, n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["picard", "taa", "m=4", "k=3, m=3, window"])
@pytest.mark.parametrize("eta", ["ddim", "ddpm"])
def test_a_draft_never_changes_the_result(name: str, eta: str) -> None:
    chain = CHAINS[eta]
    (x, tape), teacher = problem(chain, 2), mixture(2)
    reference = chain.run(teacher, x, tape)
    for draft in drafts(chain, x, reference).values():
        made = METHODS[name](teacher, chain, tolerance=None, draft=draft).solve(x, tape)
        assert float((made.x - reference.x).abs().max()) <= 1e-12
        assert made.rounds <= len(chain)


@pytest.mark.parametrize("eta", ["ddim", "ddpm", "half"])
def test_the_solution_as_a_draft_is_verified_in_one_round(eta: str) -> None:
    chain = CHAINS[eta]
    (x, tape), teacher = problem(chain, 2), mixture(2)
    reference = chain.run(teacher, x, tape)
    for sampler in (Picard, ParaTAA):
        made = sampler(teacher, chain, tolerance=1e-6, draft=reference).solve(x, tape)
        assert made.rounds == 1 and made.nfe == len(chain)
        assert float((made.x - reference.x).abs().max()) < 1e-6


def test_a_sample_costs_the_same_in_any_company() -> None:
    chain, teacher = Chain(Cosine(), uniform(40), 1.0), mixture(2)
    z, seeds = torch.randn(6, 2, dtype=D64), torch.arange(6)
    for sampler in (Picard(teacher, chain, window=15), ParaTAA(teacher, chain)):
        together, alone = sampler(z, seeds=seeds), sampler(z[4:5], seeds=seeds[4:5])
        assert together.trace is not None and alone.trace is not None
        assert torch.allclose(together.x[4], alone.x[0], rtol=0, atol=1e-12)
        assert int(together.trace.rounds[4]) == int(alone.trace.rounds[0]) == alone.rounds
        assert int(together.trace.rows[4]) == int(alone.trace.rows[0]) == alone.nfe
        # A sample that is done leaves the rounds of the others.
        assert len(set(together.trace.rounds.tolist())) > 1


def test_conditions_and_guidance_reach_their_rows() -> None:
    chain = CHAINS["ddim"]
    means = torch.randn(3, 4, dtype=D64, generator=torch.Generator().manual_seed(2))
    teacher = GaussianMixture(Cosine(), means, 0.3, labels=[0, 1, 2])
    cond, (x, _) = torch.tensor([2, 0, 1, 1, 0, 2, 0, 1]), problem(chain, 4)
    reference = chain.run(teacher, x, cond=cond)
    assert torch.allclose(ParaTAA(teacher, chain, tolerance=None).solve(x, cond=cond).x, reference.x, atol=1e-12)
    net = UNet(1, 4, (8,), classes=3, null=True).double().eval()
    guided = Guided(Prediction(net, Cosine(), "v", shape=(1, 4, 4), classes=3).eval(), torch.tensor(3))
    named = {"label": cond[:3], "weight": torch.tensor([0.0, 1.0, 2.0], dtype=D64)}
    guided.null = {"label": torch.tensor(3)}
    guided.denoiser.net = _Named(net)
    x = torch.randn(3, 1, 4, 4, dtype=D64)
    made, reference = ParaTAA(guided, chain, tolerance=None).solve(x, cond=named), chain.run(guided, x, cond=named)
    assert torch.allclose(made.x, reference.x, atol=1e-12)
    assert made.trace is not None and int(made.trace.rows.min()) >= 2 * len(chain)


class _Named(nn.Module):
    """A network that is told its label by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.net(x, t, cond["label"])


@pytest.mark.parametrize("name", ["picard", "taa"])
def test_a_network_may_answer_in_another_precision(name: str) -> None:
    chain, exact = CHAINS["ddim"], mixture(2)
    x, _ = problem(chain, 2)

    def rough(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return exact(x_t, t).bfloat16()

    made = METHODS[name](rough, chain, tolerance=None).solve(x)
    # The sequential solver multiplies in the answer's precision, and then in its own.
    assert made.x.dtype == D64 and torch.allclose(made.x, chain.run(rough, x).x, atol=0.02)


@pytest.mark.parametrize("name", ["near", "few times"])
def test_a_draft_that_is_near_keeps_to_the_tolerance(name: str) -> None:
    chain, teacher = Chain(Cosine(), uniform(24)), mixture(2)
    x, _ = problem(chain, 2, 16)
    reference = chain.run(teacher, x)
    draft = drafts(chain, x, reference)[name]
    for sampler in (Picard, ParaTAA):
        made = sampler(teacher, chain, tolerance=1e-3, draft=draft).solve(x)
        assert float((made.sample - reference.sample).square().mean(1).sqrt().max()) <= 1e-3
