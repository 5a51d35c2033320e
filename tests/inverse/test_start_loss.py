"""The loss of a start: through the teacher and not into it, each part on its own, the critic when its time has come."""

from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.denoise import Guided, Prediction
from dsno.distillation.distances import distance
from dsno.engine import Undivided
from dsno.inverse.decoded import Decoded
from dsno.inverse.operators import Downsample
from dsno.inverse.start import OneJump, pseudo_inverse
from dsno.inverse.start_loss import Inversion, Learner, Shares
from dsno.inverse.start_net import NoisePredictor
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.teachers.closed import Gaussian
from dsno.teachers.latents import Latents
from maps import small as small_map
from pipelines import make_vae

SQUARES = Shares(perceptual=0, adversarial=0)
X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
PROBLEM = Downsample(2, noise=0.1)
NET = {"in_channels": 1, "image_size": 8, "channels": [8], "attention": []}
D = Gaussian(Cosine(), torch.zeros(1, 8, 8), 0.5)


def learner(shares: Shares = SQUARES) -> Learner:
    made = Learner.of(NoisePredictor(NET), shares)
    assert isinstance(made, Undivided)  # its critic is called with weights that stand still
    torch.manual_seed(3)
    for parameter in made.parameters():  # heads that are zero pass nothing on
        nn.init.normal_(parameter, std=0.1)
    return made


def gradients(shares: Shares, teacher: object = D, step: int = 0, **options: object) -> tuple[Learner, Tensor]:
    """A learner after one backward pass, and its predictor's gradients as one vector."""
    made = learner(shares)
    objective = Inversion(X, PROBLEM, teacher, Cosine(), shares=shares, batch=8, **options)
    objective(made, {**next(objective.batches(0)), "step": step}).backward()
    return made, torch.cat([p.grad.flatten() for p in made.net.parameters() if p.grad is not None])


def network(**options: object) -> Prediction:
    torch.manual_seed(5)
    net = UNet(1, 8, (8,), attention=(), **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Prediction(net, Cosine(), "v", shape=(1, 8, 8))


def test_gradients_pass_through_a_teacher_that_gets_none() -> None:
    teacher = network()
    _, found = gradients(SQUARES, teacher)
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    _, frozen = gradients(SQUARES, teacher.requires_grad_(False))
    assert torch.allclose(found, frozen) and float(found.norm()) > 0
    # A teacher whose answer does not depend on the state passes nothing.
    _, nothing = gradients(SQUARES, lambda x, t, cond=None: 0 * x.detach() + X.mean() + 0 * x)
    assert float(nothing.norm()) == 0


def test_guidance_is_passed_through_and_labels_reach_the_teacher() -> None:
    told: list[Tensor] = []

    class Told(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            assert isinstance(cond, Tensor)
            told.append(cond)
            return D(x, t)

    _, found = gradients(SQUARES, Told(), labels=torch.arange(32))
    batch = next(Inversion(X, PROBLEM, D, Cosine(), labels=torch.arange(32), batch=8).batches(0))
    assert torch.equal(told[0], batch["cond"]) and torch.equal(batch["x"], X[batch["cond"]])
    teacher = Guided(network(classes=3, null=True), torch.tensor(3), 1.0)
    _, guided = gradients(SQUARES, teacher, labels=torch.arange(32) % 3)
    assert float(guided.norm()) > 0 and all(p.grad is None for p in teacher.parameters())
    assert not torch.allclose(guided, found)


def test_parts_add_up_and_one_that_weighs_nothing_is_left_out() -> None:
    phi = nn.Conv2d(1, 4, 3)
    d = distance("perceptual", phi)
    _, squares = gradients(SQUARES, distance=d)
    assert torch.equal(squares, gradients(SQUARES)[1])
    _, alone = gradients(Shares(0, 2.0, 0), distance=d)
    _, both = gradients(Shares(1, 2.0, 0), distance=d)
    assert torch.allclose(both, squares + alone, atol=1e-5) and float(alone.norm()) > 0
    assert phi.weight.grad is None and learner(SQUARES).critic is None


def test_the_critic_learns_from_the_first_step_and_is_listened_to_from_its_own_on() -> None:
    shares = Shares(1, 0, 0.5, after=10)
    _, squares = gradients(SQUARES)
    early, before = gradients(shares, step=9)
    late, behind = gradients(shares, step=10)
    assert torch.allclose(before, squares)
    assert float((behind - squares).norm()) > 1e-3 * float(squares.norm())
    assert early.critic is not None and late.critic is not None
    # What the predictor hears of the critic does not teach the critic.
    for a, b in zip(early.critic.parameters(), late.critic.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad)
    assert sum(float(p.grad.norm()) for p in early.critic.parameters() if p.grad is not None) > 0


def test_the_loss_of_a_start_that_knows_the_answer_vanishes() -> None:
    """With a teacher that returns the state at its level, f = (x_0 - alpha y_0) / sigma is the answer."""
    objective = Inversion(X, Downsample(2), lambda x, t, cond=None: x, Cosine(), shares=SQUARES, batch=8)
    batch = next(objective.batches(0))
    x0, y0 = objective.pairs(batch)
    assert torch.equal(y0, pseudo_inverse(Downsample(2), Downsample(2).A(x0)))

    class Knows(NoisePredictor):
        def noise(self, y0: Tensor, p: Tensor, z: Tensor) -> Tensor:
            alpha_t, sigma_t = (c.reshape(-1, 1, 1, 1) for c in Cosine()(Cosine().from_phase(p)))
            return (batch["x"] - alpha_t * y0) / sigma_t

    assert float(objective(Learner(Knows(NET)), batch)) < 1e-10
    assert float(objective(learner(), batch).detach()) > 0.01


def test_a_batch_is_a_function_of_its_step_and_shared_by_processes() -> None:
    objective = Inversion(X, PROBLEM, D, Cosine(), (0.3, 0.1), batch=8, seed=4)
    third = next(objective.batches(2))
    again = list(islice(objective.batches(0), 3))[2]
    shares = [next(objective.batches(2, rank, 2)) for rank in range(2)]
    for name in ("x", "n", "z", "p", "t"):
        assert torch.equal(third[name], again[name])
        assert torch.equal(third[name], torch.cat([share[name] for share in shares]))
    assert {*third["p"].tolist()} == {*torch.tensor([0.3, 0.1]).tolist()}
    assert third["n"].shape == (8, 1, 4, 4) and third["step"] == 2
    with pytest.raises(ValueError, match="cannot be shared evenly by 3"):
        next(objective.batches(0, 0, 3))


def test_of_latents_the_squares_are_of_latents_and_the_problem_is_of_pixels() -> None:
    latents, images = Latents(make_vae()), 0.3 * torch.randn(4, 3, 8, 8)
    shape = latents.encode(images).shape[1:]
    teacher = Gaussian(Cosine(), torch.zeros(shape), 0.5)
    objective = Inversion(images, Decoded(PROBLEM, latents), teacher, Cosine(), shares=SQUARES, batch=4, shape=shape)
    batch = next(objective.batches(0))
    x0, y0 = objective.pairs(batch)
    assert torch.equal(x0, latents.encode(batch["x"])) and y0.shape == x0.shape and batch["n"].shape == (4, 3, 4, 4)
    made = Learner(NoisePredictor({**NET, "in_channels": shape[0], "image_size": shape[1]}))
    assert float(objective(made, batch).detach()) > 0
    with pytest.raises(ValueError, match="give Decoded the Latents"):
        Inversion(images, Decoded(PROBLEM, latents.decode), teacher, Cosine(), shape=shape)


def test_what_cannot_be_is_said_in_a_line() -> None:
    for wrong in ({"l2": -1.0}, {"after": -1}, {"l2": 0.0, "perceptual": 0.0, "adversarial": 0.0}):
        with pytest.raises(ValueError, match="the parts of a loss weigh 0 or more"):
            Shares(**wrong)
    with pytest.raises(ValueError, match="perceptual part alone needs a distance"):
        Inversion(X, PROBLEM, D, Cosine(), shares=Shares(0, 2.0, 0))
    with pytest.raises(ValueError, match="batch must be at least 1"):
        Inversion(X, PROBLEM, D, Cosine(), batch=0)
    map, _ = small_map()
    with pytest.raises(ValueError, match=r"starts from noise alone, so phases=\(1.0,\)"):
        Inversion(X, PROBLEM, OneJump(map.trained_for("grid", 1)), Cosine())
