"""The denoising loss is least at the conditional mean, and its batches are functions of the step alone."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from dsno.denoise import KINDS, Kind, convert
from dsno.distillation.denoising import Denoising
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.teachers.closed import Gaussian


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VE(2.0)], ids=repr)
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
def test_the_best_denoiser_is_the_conditional_mean(kind: Kind, schedule: Schedule) -> None:
    gaussian = Gaussian(schedule, torch.randn(1, 2, 2), 0.5)
    x = gaussian.mean + 0.5 * torch.randn(4096, 1, 2, 2)
    objective = Denoising(x, schedule, kind, batch=4096)
    batch = next(objective.batches(0))
    # Closer to the data than this, a prediction divided by sigma is not estimated from thousands of samples.
    batch["t"] = batch["t"].clamp(0.1, 0.9)

    def best(factor: float):
        def net(x_t: Tensor, t: Tensor) -> Tensor:
            return convert(kind, gaussian.mean + factor * (gaussian(x_t, t) - gaussian.mean), x_t, t, schedule)

        return net

    losses = [objective(best(f), batch).item() for f in (0.8, 1.0, 1.2)]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_denoising_batches() -> None:
    x, labels = torch.randn(50, 1, 2, 2), torch.arange(50)
    objective = Denoising(x, Cosine(), labels=labels, batch=16, seed=3)
    third = list(islice(objective.batches(0), 3))[2]
    again = next(objective.batches(2))
    assert all(torch.equal(third[k], again[k]) for k in third) and third["x0"].shape == (16, 1, 2, 2)
    assert torch.equal(third["x0"], x[third["cond"]])
    # One time in each sixteenth of [0, 1].
    assert sorted((third["t"] * 16).floor().int().tolist()) == [*range(16)]
    left, right = (next(objective.batches(2, rank, 2)) for rank in range(2))
    assert len(left["x0"]) == 8 and not torch.equal(left["eps"], right["eps"])
    assert "cond" not in next(Denoising(x, Cosine()).batches(0))


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VE(2.0)], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_square_of_what_a_prediction_is_off_by(kind: Kind, schedule: Schedule) -> None:
    """A Gaussian of no width to speak of has one sample, so its denoiser knows it, and the least loss is nothing."""
    gaussian = Gaussian(schedule, torch.randn(1, 2, 2, dtype=torch.float64), 1e-30)
    objective = Denoising(gaussian.mean.expand(8, 1, 2, 2), schedule, kind, batch=16)
    batch = {name: value.double() for name, value in next(objective.batches(0)).items()}

    def loss(off: float) -> float:
        return float(objective(lambda x, t: convert(kind, gaussian(x, t), x, t, schedule) + off, batch))

    assert loss(0.0) == 0 and loss(0.5) == pytest.approx(0.25)


def test_a_share_of_the_labels_is_dropped_and_nothing_else_changes() -> None:
    x, labels = torch.randn(50, 2), torch.arange(50) % 7
    plain, dropping = (
        next(Denoising(x, Cosine(), labels=labels, batch=4000, null=9, drop=drop).batches(3)) for drop in (0.0, 0.25)
    )
    assert all(torch.equal(plain[name], dropping[name]) for name in ("x0", "t", "eps"))
    dropped = dropping["cond"] == 9
    assert torch.equal(dropping["cond"][~dropped], plain["cond"][~dropped]) and int(plain["cond"].max()) == 6
    # To five standard errors.
    assert float(dropped.double().mean()) == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4000) ** 0.5)


def test_bad_input() -> None:
    x, labels = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        Denoising(x, Cosine(), batch=0)
    for drop in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"the share of labels that is dropped, in \[0, 1\), got {drop}"):
            Denoising(x, Cosine(), labels=labels, null=1, drop=drop)
    for arguments in ({"labels": labels}, {"null": 1}):
        with pytest.raises(ValueError, match="there are labels and a `null` one that stands for none"):
            Denoising(x, Cosine(), drop=0.1, **arguments)
    with pytest.raises(ValueError, match="a batch of 9 cannot be shared evenly by 2 processes: use a multiple"):
        next(Denoising(x, Cosine(), batch=9).batches(0, world=2))
