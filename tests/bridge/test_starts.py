"""The best end of a start is found by measuring, and is one that a better reference confirms."""

import pytest
import torch

from crossing import scattered
from dsno.bridge.coefficients import I2SB
from dsno.bridge.sampler import BridgeSampler
from dsno.bridge.starts import compare_starts, sliced_distance
from dsno.seeds import seed_range


def test_the_sliced_distance_of_shifted_laws_is_the_shift() -> None:
    x = torch.randn(2, 1000, 3, dtype=torch.float64)
    shift = torch.tensor([0.3, 0.0, -0.4], dtype=torch.float64)
    # A direction sees |<u, shift>|, whose mean square is |shift|^2 / 3.
    assert sliced_distance(x + shift, x, 256) == pytest.approx(0.5 / 3**0.5, rel=0.1)
    assert sliced_distance(x, x.flip(1)) == pytest.approx(0, abs=1e-12)


def test_the_setting_that_is_found_is_near_the_law_itself() -> None:
    bridge, done = I2SB(), []
    teacher, g = scattered(bridge), torch.Generator().manual_seed(2)
    start = teacher.pairs(2, g)[0]
    found = compare_starts(
        teacher, bridge, start, 6, "odes3", (0.5, 0.8, 0.98), samples=2000, progress=lambda n, of: done.append((n, of))
    )
    assert (
        found.usual[0] == pytest.approx(float(bridge.time(torch.tensor(1 - 1 / 3 / 4**0.5).double())))
        and found.usual[1] == 1.5
    )
    assert [*found.distances.values()] == sorted(found.distances.values()) and len(found.distances) == 8
    assert done == [(n, 10) for n in range(1, 11)]
    rows = start.repeat_interleave(2000, 0)
    exact = teacher.sample(rows, g).unflatten(0, (2, 2000))

    def error(setting: tuple[float, float]) -> float:
        sampler = BridgeSampler.of_calls(teacher, bridge, 6, "odes3", *setting)
        return sliced_distance(sampler(rows, seeds=seed_range(0, len(rows))).sample.unflatten(0, (2, 2000)), exact)

    # Modes are drawn by chance: two sets of 2000 of the reference are this far apart.
    *_, worst = found.distances
    assert 0 < found.floor < 0.3 * found.distances[worst]
    assert error(found.best) < 0.5 * error(worst)


def test_what_cannot_be_tried_is_refused() -> None:
    bridge = I2SB()
    with pytest.raises(ValueError, match="there is no x_T to start from"):
        compare_starts(scattered(bridge), bridge, torch.zeros(0, 2), 6)
    with pytest.raises(ValueError, match=r"odes3 makes 1, 2, 4, 6, ... calls, got 7"):
        compare_starts(scattered(bridge), bridge, torch.zeros(1, 2), 7, "odes3")
