"""A student that is told the guidance weight uses it."""

import copy

import pytest
import torch
from torch import Tensor

from dsno.denoise import Guided, Prediction
from dsno.grids import uniform
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.solvers.run import initial_state, solve
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.weight import WeightEmbedding, weight_features
from dsno.teachers.closed import Gaussian

TIMES = [0.5, 0.0]


def made(guidance: bool = True) -> TrajectoryStudent:
    torch.manual_seed(0)
    source = Prediction(UNet(1, 4, (8, 16), attention=(), classes=2), Cosine(), "v")
    return student_from_teacher(source, TIMES, "state", guidance=guidance)


def trajectories(rows: int, seed: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Noise, condition, and the states of a guided Gaussian with a weight of its own for each row."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.tensor([-0.5, 0.5, 0.0]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    teacher = Guided(Gaussian(Cosine(), mean, 0.4, classes=3), null=torch.tensor(2))
    named = Guided(lambda x, t, cond: teacher.denoiser(x, t, cond["label"]), null={"label": torch.tensor(2)})
    z = torch.randn(rows, 1, 4, 4, generator=g)
    cond = {"label": torch.randint(2, (rows,), generator=g), "weight": 4 * torch.rand(rows, generator=g)}
    x = solve(named, Cosine(), initial_state(Cosine(), z), uniform(8), cond=cond, keep=[1.0, *TIMES]).x
    return z, cond, x[:, 1:]


def error(student: TrajectoryStudent, z: Tensor, cond: dict[str, Tensor], x: Tensor) -> Tensor:
    x_1 = initial_state(student.schedule, z)
    return (student.states(x_1, student(x_1, cond)) - x).square().mean()


def test_it_learns_what_the_weight_does() -> None:
    z, cond, x = trajectories(128, 0)
    shuffled = {**cond, "weight": cond["weight"].roll(1)}
    held_out = trajectories(128, 1)
    errors = []
    for told in (cond, shuffled):
        student = made()
        optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
        for step in range(100):
            rows = torch.arange(32) + 32 * (step % 4)
            error(student, z[rows], {k: v[rows] for k, v in told.items()}, x[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            errors.append(float(error(student, *held_out)))
    assert errors[0] < 0.5 * errors[1]


def test_the_features_tell_weights_apart() -> None:
    w = torch.linspace(0, 10, 41)
    features = weight_features(w)
    assert features.shape == (41, 64)
    distance = torch.cdist(features, features) + 10 * torch.eye(41)
    assert distance.min() > 0.5


def test_at_the_start_it_adds_nothing_and_learns_from_the_first_step() -> None:
    embedding = WeightEmbedding([4, 6])
    out = embedding(torch.tensor([0.0, 3.0]))
    assert [tuple(e.shape) for e in out] == [(2, 4), (2, 6)] and not any(e.any() for e in out)
    sum(e.sum() for e in out).backward()
    assert all(head.weight.grad.abs().max() > 0 for head in embedding.heads)


def test_a_missing_or_superfluous_weight_is_an_error() -> None:
    z, label, w = torch.randn(2, 1, 4, 4), torch.tensor([0, 1]), torch.ones(2)
    for cond in (label, {"label": label}, None):
        with pytest.raises(ValueError, match="is told a guidance weight: give `weight`"):
            made().sample(z, cond)
    with pytest.raises(ValueError, match="takes no guidance weight"):
        made(guidance=False).sample(z, {"label": label, "weight": w})


def test_a_copy_has_its_own_embedding() -> None:
    student, z = made().eval(), torch.randn(2, 1, 4, 4)
    torch.nn.init.normal_(student.net.backbone.head.conv.weight)
    for block in student.net.backbone.mid:
        torch.nn.init.normal_(block.conv2.weight)
    cond = {"label": torch.tensor([0, 1]), "weight": torch.ones(2)}
    expected = student.sample(z, cond)
    twin = copy.deepcopy(student)
    assert twin.net.guidance is not student.net.guidance
    torch.nn.init.normal_(twin.net.guidance.heads[0].weight)
    assert torch.equal(student.sample(z, cond), expected)
    assert not torch.allclose(twin.sample(z, cond), expected, atol=1e-4)
    keys = [name for name in student.state_dict() if ".guidance." in name]
    assert keys == ["net.guidance.hidden.weight", "net.guidance.hidden.bias", "net.guidance.heads.0.weight"]


def test_a_backbone_that_names_no_embedding_is_refused() -> None:
    net = UNet(1, 4, (8, 16), attention=())
    net.embedding = ()
    with pytest.raises(ValueError, match="does not say which of its modules return the time embedding"):
        student_from_teacher(Prediction(net, Cosine(), "v"), TIMES, guidance=True)
    net.embedding = ("stem",)
    with pytest.raises(ValueError, match=r"'stem' is no time embedding \(B, D\): it returns shape \(1, 8, 4, 4\)"):
        student_from_teacher(Prediction(net, Cosine(), "v"), TIMES, guidance=True)
