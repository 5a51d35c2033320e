"""Noise is a function of (seed, stream, index): the same in any batch, independent across each of the three."""

import numpy as np
import pytest
import torch
from scipy import stats

from dsno.seeds import _philox, check_noise, generator, mixed, noise, noise_tape, rows_at_once, seed_range, strata


# Random123, kat_vectors, philox4x32 10 rounds.
@pytest.mark.parametrize(
    "counter, key, words",
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_generator_is_philox(counter: str, key: str, words: str) -> None:
    c = [torch.tensor([int(w, 16)]) for w in counter.split()]
    k0, k1 = (torch.tensor([int(w, 16)]) for w in key.split())
    assert [f"{int(w):08x}" for w in _philox(c, (k0, k1))] == words.split()


def test_a_sample_is_the_same_in_any_batch() -> None:
    seeds = torch.randint(0, 2**62, (9,))
    together = noise(seeds, (3, 5))
    for i, seed in enumerate(seeds.tolist()):
        assert torch.equal(noise([seed], (3, 5))[0], together[i])
    assert torch.equal(noise(seeds.flip(0), (3, 5)), together.flip(0))


def test_a_larger_sample_starts_with_the_smaller_one() -> None:
    assert torch.equal(noise([7], (13,))[:, :6], noise([7], (6,)))


@pytest.mark.parametrize("other", [2**32, 2**32 + 1, 2**63 - 1, 1 << 40])
def test_seeds_above_32_bits_are_not_folded(other: int) -> None:
    a, b = noise([other % 2**32, other], (64,))
    assert not torch.equal(a, b)


def test_values_are_standard_normal() -> None:
    z = noise(seed_range(0, 200), (500,), dtype=torch.float64).flatten()
    # 1e5 values, fixed seeds: these are thresholds a correct generator has already passed, not a lottery.
    assert abs(float(z.mean())) < 3 / 1e5**0.5
    assert abs(float(z.var()) - 1) < 3 * (2 / 1e5) ** 0.5
    assert abs(float((z**4).mean()) - 3) < 3 * (96 / 1e5) ** 0.5
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01


def test_every_position_of_a_block_is_normal() -> None:
    z = noise(seed_range(0, 5000), (4,), dtype=torch.float64)
    assert all(stats.kstest(z[:, i].numpy(), "norm").pvalue > 0.01 for i in range(4))


def test_seeds_streams_and_positions_are_uncorrelated() -> None:
    draws = torch.stack([noise(seed_range(0, 50), (400,), stream, torch.float64) for stream in (0, 1, 2)])
    for rows in (draws.flatten(1), draws[0], draws[0].T):
        correlation = torch.corrcoef(rows).fill_diagonal_(0).abs().max()
        # The largest of up to 8e4 sample correlations of n values stays below 5.5 / sqrt(n).
        assert correlation < 5.5 / rows.shape[1] ** 0.5


def test_the_tape_is_streams_one_and_up() -> None:
    tape = noise_tape([3, 4], (2, 2), 3)
    assert tape.shape == (3, 2, 2, 2)
    for n in range(3):
        assert torch.equal(tape[n], noise([3, 4], (2, 2), stream=n + 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_narrower_dtype_is_the_same_draw_rounded(dtype: torch.dtype) -> None:
    assert torch.equal(noise([5], (99,), dtype=dtype), noise([5], (99,), dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (2, 3, 5)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert noise([1, 2], shape).shape == (2, *shape)


def test_no_seeds_no_rows() -> None:
    assert noise([], (3,)).shape == (0, 3)


def test_seed_range_counts_up_in_64_bits() -> None:
    assert seed_range(2**40, 3).tolist() == [2**40, 2**40 + 1, 2**40 + 2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([-1], (2,)), r"\[0, 2\^63\), got -1"),
        (([2**63], (2,)), r"\[0, 2\^63\), got 9223372036854775808"),
        (([0, 0.5], (2,)), r"integers in \[0, 2\^63\), got 0.5"),
        (([True], (2,)), r"integers in \[0, 2\^63\), got True"),
        ((["7"], (2,)), r"integers in \[0, 2\^63\), got '7'"),
        (("7", (2,)), r"a sequence of integers in \[0, 2\^63\), got '7'"),
        ((7, (2,)), r"a sequence of integers in \[0, 2\^63\), got 7"),
        ((torch.ones(2), (2,)), r"integers in \[0, 2\^63\), \(B,\), got float32 of shape \(2,\)"),
        ((torch.ones(2, 2, dtype=torch.int64), (2,)), r"\(B,\), got int64 of shape \(2, 2\)"),
        ((np.array([2**63], np.uint64), (2,)), r"integers in \[0, 2\^63\), got -"),
        (([1], (2.5,)), r"the shape of a sample must be integers of 0 or more, got \(2.5,\)"),
        (([1], (-2,)), r"the shape of a sample must be integers of 0 or more, got \(-2,\)"),
        (([1], (2,), 1.0), r"stream must be an integer in \[0, 2\^32\), got 1.0"),
        (([1], (2,), -1), r"stream must be an integer in \[0, 2\^32\)"),
        (([1], (2,), 2**32), r"stream must be an integer in \[0, 2\^32\)"),
    ],
)
def test_bad_seeds_and_streams_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise(*arguments)


def test_generators_of_other_keys_draw_other_numbers() -> None:
    """torch alone takes seed << 32 for no seed at all."""
    keys = [(0,), (1,), (2,), (1 << 40,), (0, 1), (1, 1), (0, 1 << 20), (0, 1, 2), (3, 0, 1)]
    draws = [tuple(torch.rand(4, generator=generator(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws[4] == tuple(torch.rand(4, generator=generator(0, 1)).tolist())
    assert all(0 <= mixed(*key) < 1 << 32 for key in keys)


@pytest.mark.parametrize("seeds", [[0, 2, 5], (0, 2, 5), np.array([0, 2, 5]), np.array([0, 2, 5], np.uint8)])
def test_seeds_may_be_any_integers(seeds: object) -> None:
    assert torch.equal(noise(seeds, (3,)), noise(torch.tensor([0, 2, 5]), (3,)))


def test_no_seeds_make_no_noise() -> None:
    for none in ([], seed_range(0, 0), torch.zeros(0)):
        assert noise(none, (1, 8, 8)).shape == (0, 1, 8, 8)


def test_noise_that_is_drawn_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise(seed_range(3, 10), (7,), dtype=torch.float16)
    monkeypatch.setattr("dsno.seeds.AT_ONCE", 20)
    assert rows_at_once(7) == 2 and torch.equal(noise(seed_range(3, 10), (7,), dtype=torch.float16), whole)


def test_noise_that_no_memory_holds_is_refused_by_its_size() -> None:
    with pytest.raises(
        ValueError, match=r"noise of 3.73e\+09 GB does not fit into the .* GB that are free: draw it in"
    ):
        noise([1], (10**18,))


@pytest.mark.parametrize(
    "start, count, message",
    [
        (0.5, 2, "the start of seeds must be an integer in .*, got 0.5"),
        (-1, 2, "the start of seeds must be .*, got -1"),
        (0, -1, "the count of seeds must be .*, got -1"),
        (0, 2**63, "the count of seeds must be .*, got 9223372036854775808"),
        (2**63 - 2, 5, "seeds must be less than 2\\^63: 5 of them from 9223372036854775806 on are not"),
        (0, 2**62, "GB does not fit"),
    ],
)
def test_a_range_of_seeds_is_one_of_integers(start: float, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seed_range(start, count)


@pytest.mark.parametrize(
    "z, message",
    [
        ([[0.0]], r"a tensor \(B, 1, 2\), got a list: `noise\(seeds, shape\)` makes it"),
        (torch.zeros(3, 2), r"the shape \(B, 1, 2\), got \(3, 2\)"),
        (torch.zeros(3, 1, 2, dtype=torch.int64), "floating point numbers, got int64"),
        (torch.full((3, 1, 2), torch.nan), "must be finite, and holds NaN or infinity"),
        (torch.full((3, 1, 2), torch.inf), "must be finite"),
    ],
)
def test_what_is_no_noise_is_refused(z: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_noise(z, (1, 2))
    check_noise(torch.zeros(0, 1, 2), (1, 2))


def test_strata_are_even_and_each_of_them_is_uniform() -> None:
    drawn = torch.stack([strata(8, generator(0, n)) for n in range(400)])
    assert ((drawn * 8).long().sort(1).values == torch.arange(8)).all()
    gaps = drawn.sort(1).values.diff(dim=1)
    assert torch.allclose(gaps, torch.full_like(gaps, 1 / 8), atol=1e-6)
    first = drawn[:, 0]
    assert float(first.min()) >= 0 and float(first.max()) < 1 and abs(float(first.mean()) - 0.5) < 0.05
    assert strata(4, generator(0), torch.float64).dtype == torch.float64
