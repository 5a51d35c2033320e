"""Conditions are functions of the seeds, alike for all of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsno.denoise import Prediction
from dsno.seeds import seed_range
from dsno.trajectories.labels import Label, checked_labels, shared_labels, uniform_labels, uniform_weights, write_labels
from stored import COSINE, Net, make, named_labels, sampler


@pytest.mark.parametrize("make_label", [lambda: uniform_labels(7), lambda: uniform_weights(0.5, 3.0)])
def test_what_is_drawn_is_a_function_of_the_seed(make_label: Callable[[], Label]) -> None:
    label, seeds = make_label(), seed_range(100, 50)
    together = label(seeds)
    assert torch.equal(together, make_label()(seeds))
    assert torch.equal(together.flip(0), label(seeds.flip(0)))
    assert torch.equal(together[13:14], label(seeds[13:14]))


def test_labels_are_uniform() -> None:
    drawn = uniform_labels(5)(seed_range(0, 20_000))
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn).double()
    # Five bins of 4000 with a standard deviation of 57.
    assert len(counts) == 5 and float((counts - 4000).abs().max()) < 4 * 57
    # Chi-squared of 4 degrees of freedom, at 0.1 %.
    assert float(((counts - 4000) ** 2 / 4000).sum()) < 18.5
    assert uniform_labels(1)(seed_range(0, 100)).unique().tolist() == [0]


def test_the_null_label_is_no_class_to_draw() -> None:
    seeds = seed_range(0, 20_000)
    for null in (0, 2, 4):
        counts = torch.bincount(uniform_labels(5, null)(seeds), minlength=5)
        assert counts[null] == 0
        # Four bins of 5000 with a standard deviation of 61.
        assert float((counts[counts > 0] - 5000).abs().max()) < 4 * 61 and int((counts > 0).sum()) == 4
    # One behind the last class takes nothing away.
    assert torch.equal(uniform_labels(5, 5)(seeds), uniform_labels(5)(seeds))
    with pytest.raises(ValueError, match="there is no class to draw: 1 in all, and the null label is 0"):
        uniform_labels(1, 0)


def test_labels_have_their_shares() -> None:
    seeds = seed_range(0, 20_000)
    shares = torch.tensor([0, 1, 4, 0, 5, 0])
    drawn = shared_labels(shares)(seeds)
    assert drawn.dtype == torch.int64 and torch.equal(drawn[13:14], shared_labels(shares / 10)(seeds[13:14]))
    counts = torch.bincount(drawn, minlength=6)
    # 2000, 8000 and 10000 are expected, with standard deviations of 42, 69 and 71.
    assert float((counts - 2000 * shares).abs().max()) < 4 * 71 and {*drawn.tolist()} == {1, 2, 4}
    # Of equal shares they are the uniform ones.
    assert torch.equal(shared_labels(torch.ones(5))(seeds), uniform_labels(5)(seeds))
    for none in (torch.zeros(3), torch.tensor([2, -1])):
        with pytest.raises(ValueError, match="there is no class to draw: the shares are"):
            shared_labels(none)


def test_weights_are_uniform_and_know_nothing_of_the_labels() -> None:
    seeds = seed_range(0, 20_000)
    drawn = uniform_weights(0.5, 3.0)(seeds)
    assert drawn.dtype == torch.float32 and 0.5 <= float(drawn.min()) < 0.501 and 2.999 < float(drawn.max()) <= 3.0
    u = ((drawn - 0.5) / 2.5).double()
    assert float(u.mean()) == pytest.approx(1 / 2, abs=4 * (1 / 12 / 20_000) ** 0.5)
    assert float(u.var()) == pytest.approx(1 / 12, abs=4 * (1 / 180 / 20_000) ** 0.5)
    labels = uniform_labels(1000)(seeds).double()
    assert abs(float(torch.corrcoef(torch.stack([u, labels]))[0, 1])) < 4 / 20_000**0.5


def test_a_condition_is_brought_to_the_host_and_written_to_its_rows() -> None:
    seeds = seed_range(3, 4)
    assert torch.equal(checked_labels(lambda s: s.tolist(), seeds), seeds)
    rows = {"seeds": seeds, "cond.label": torch.zeros(4, dtype=torch.int64), "cond.weight": torch.zeros(4)}
    cond = write_labels(named_labels, rows)
    assert isinstance(cond, dict) and torch.equal(rows["cond.label"], seeds % 3)
    assert torch.equal(rows["cond.weight"], seeds / 2) and torch.equal(cond["weight"], seeds / 2)
    with pytest.raises(ValueError, match=r"the like for all seeds: expected .*int64.*got .*float64"):
        write_labels(lambda s: s.double(), {"seeds": seeds, "cond": torch.zeros(4, dtype=torch.int64)})


def test_a_label_may_be_a_vector(tmp_path: Path) -> None:
    net = Net()
    solver = sampler(Prediction(net, COSINE))
    solver = dataclasses.replace(solver, denoiser=lambda x, t, cond=None: net(x, t) + cond.mean())
    data = make(tmp_path / "set", sampler=solver, label=lambda s: torch.stack([s.float(), 2 * s.float()], 1).half())
    assert data[3]["cond"].tolist() == [3.0, 6.0]


def test_a_label_is_alike_for_all_seeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label must return the like for all seeds"):
        make(tmp_path / "set", label=lambda s: named_labels(s) if int(s[0]) < 8 else {"label": s % 3})
