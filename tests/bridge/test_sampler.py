"""A bridge's samplers: the stochastic start, its price, the grids, and what they cost."""

import pytest
import torch
from torch import Tensor

from crossing import paired, scattered, sliced
from dsno.bridge.coefficients import DDBMVE, DDBMVP, I2SB, Bridge, BrownianBridge, Pinned
from dsno.bridge.sampler import BRIDGE_STEPS, BridgeSampler, bridge_grid, cross, most_calls, steps_of, told
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import affine

ALL: dict[str, Bridge] = {"brownian": BrownianBridge(), "i2sb": I2SB(), "vp": DDBMVP(), "ve": DDBMVE()}
START = torch.tensor([0.15, 0.1], dtype=torch.float64)
every_bridge = pytest.mark.parametrize("bridge", ALL.values(), ids=ALL.keys())
every_name = pytest.mark.parametrize("name", BRIDGE_STEPS)


def starts(count: int) -> Tensor:
    """One x_T, many times."""
    return START.expand(count, 2)


# The start


@every_bridge
def test_without_the_noise_of_the_start_all_samples_of_one_picture_are_one(bridge: Bridge) -> None:
    teacher, grid = paired(bridge), bridge_grid(bridge, 9)
    silent = cross(teacher, bridge, starts(64), grid, z=torch.zeros(64, 2, dtype=torch.float64)).sample
    assert float(silent.std(0).max()) == 0
    spread = cross(teacher, bridge, starts(64), grid, seeds=seed_range(0, 64)).sample.std(0)
    assert float(spread.min()) > 0.1


def test_the_bias_of_the_start_grows_as_it_ends_earlier() -> None:
    """The law at t_1 after the start, against that of the bridge itself, the same noise for both."""
    bridge, count = BrownianBridge(), 8000
    teacher, z = paired(bridge), noise(seed_range(0, count), (2,), dtype=torch.float64)
    x_0 = teacher.sample(starts(count), torch.Generator().manual_seed(0))
    bias = {}
    for t_1 in (0.999, 0.99, 0.95, 0.9, 0.8, 0.5):
        a, b, c = bridge.at(t_1)
        begun = cross(teacher, bridge, starts(count), [1.0, t_1], z=z).sample
        bias[t_1] = sliced(begun, a * START + b * x_0 + c * z)
    assert list(bias.values()) == sorted(bias.values())
    assert bias[0.999] < 2e-3 and bias[0.9] < 0.06 and 0.1 < bias[0.5] < 0.5


def test_the_noise_of_the_start_is_stream_0_of_the_seeds() -> None:
    bridge = I2SB()
    teacher, grid, seeds = paired(bridge), bridge_grid(bridge, 5), torch.tensor([4, 9])
    z = noise(seeds, (2,), dtype=torch.float64)
    by_seed = cross(teacher, bridge, starts(2), grid, seeds=seeds)
    assert torch.equal(by_seed.sample, cross(teacher, bridge, starts(2), grid, z=z).sample)
    assert torch.equal(by_seed.noise, starts(2)) and by_seed.seeds.tolist() == [4, 9]


# The law at the end


def distance(name: str, calls: int, count: int = 4000, **grid: float) -> float:
    """Sliced W2 to p(x_0 | x_T) of a sampler with at most so many calls."""
    bridge = I2SB()
    teacher, g = scattered(bridge), torch.Generator().manual_seed(2)
    start = teacher.pairs(1, g)[0].expand(count, 2)
    sampler = BridgeSampler.of_calls(teacher, bridge, most_calls(name, calls), name, **grid)
    return sliced(sampler(start, seeds=seed_range(0, count)).sample, teacher.sample(start, g))


def _has(name: str, calls: int) -> bool:
    try:
        return steps_of(name, calls) > 0
    except ValueError:
        return False


def test_odes3_is_ahead_of_the_ancestral_sampler_at_a_dozen_calls_and_behind_it_at_a_few() -> None:
    # 0.067 and 0.106, 0.039 and 0.091, 0.157 and 0.146.
    assert distance("odes3", 13) < 0.8 * distance("ancestral", 13)
    assert distance("odes3", 21) < 0.6 * distance("ancestral", 21)
    assert distance("odes3", 5) > distance("ancestral", 5)


@every_name
def test_many_calls_reach_the_law(name: str) -> None:
    # Two draws of 2000 from the law itself are 0.03 to 0.06 apart; Euler's steps near T are the worst.
    assert distance(name, 150, 2000, t_1=0.98) < 0.11 < 0.15 < distance(name, 1, 2000)


@every_bridge
def test_the_fresh_noise_of_dbim_is_that_of_its_authors(bridge: Bridge) -> None:
    """Theirs is of the diffusion that was pinned, eta sigma_s sqrt(1 - SNR_t / SNR_s) with its own sigma and SNR."""
    for t, s in ((0.9, 0.4), (0.5, 0.01), (0.999, 0.99)):
        (alpha_t, r_t, _), (alpha_s, r_s, _) = (
            map(float, bridge.levels(torch.tensor(u, dtype=torch.float64))) for u in (t, s)
        )
        sigma_t, sigma_s = alpha_t * bridge.end * r_t, alpha_s * bridge.end * r_s
        fresh = 0.3 * sigma_s * (1 - (alpha_t / sigma_t) ** 2 / (alpha_s / sigma_s) ** 2) ** 0.5
        assert affine(Pinned(bridge), t, s, 0.3)[2] == pytest.approx(fresh, rel=1e-9)


def test_the_noise_of_dbim_leads_from_its_ode_to_the_ancestral_sampler() -> None:
    bridge = I2SB()
    teacher, seeds = paired(bridge), seed_range(0, 8)

    def made(name: str, **options: float) -> Tensor:
        return BridgeSampler.of_calls(teacher, bridge, 6, name, t_1=0.9, **options)(starts(8), seeds=seeds).sample

    assert torch.equal(made("dbim1", eta=1.0), made("ancestral"))
    half, none = made("dbim1", eta=0.5), made("dbim1")
    assert torch.equal(none, made("dbim1", eta=0.0)) and float((half - none).abs().min()) > 1e-4


# Grids and cost


@every_bridge
def test_a_grid_starts_at_the_end_and_steps_the_share_of_the_variance(bridge: Bridge) -> None:
    grid = bridge_grid(bridge, 5, exponent=2.0)
    share = bridge.levels(grid)[1] ** 2
    expected = (1 - 1 / 3 / 5**0.5) * torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64) ** 2
    assert grid[0] == 1 and grid[-1] == 0
    torch.testing.assert_close(share[1:], expected, rtol=1e-9, atol=1e-12)
    assert float(bridge_grid(bridge, 5, t_1=0.77)[1]) == 0.77
    assert bridge_grid(bridge, 1).tolist() == [1, 0]


@every_name
def test_the_more_steps_the_less_the_start_leaves_out(name: str) -> None:
    bridge, left = I2SB(), []
    for calls in (most_calls(name, 14), most_calls(name, 100)):
        sampler = BridgeSampler.of_calls(paired(bridge), bridge, calls, name)
        share = float(bridge.levels(sampler.grid[1])[1] ** 2)
        assert share == pytest.approx(BRIDGE_STEPS[name].share(len(sampler.grid) - 1))
        left.append(1 - share)
    assert left[0] > 2 * left[1] > 0


@every_name
def test_calls_are_what_they_are_said_to_be(name: str) -> None:
    bridge = DDBMVP()
    for calls in (n for n in range(1, 14) if _has(name, n)):
        made = BridgeSampler.of_calls(paired(bridge), bridge, calls, name)(starts(3), seeds=seed_range(0, 3))
        assert (made.rounds, made.nfe) == (calls, calls), name


@every_name
def test_the_most_calls_of_a_budget_are_those_that_a_grid_has(name: str) -> None:
    assert [most_calls(name, n) for n in range(1, 14)] == [
        max(k for k in range(1, n + 1) if _has(name, k)) for n in range(1, 14)
    ]
    with pytest.raises(ValueError, match=f"{name} makes 1, .* calls, got 0: take 1"):
        most_calls(name, 0)


def test_odes3_in_n_steps_makes_two_n_minus_two_calls() -> None:
    assert [steps_of("odes3", 2 * (n - 1)) for n in (2, 3, 7, 11)] == [2, 3, 7, 11]


@every_name
@every_bridge
def test_no_grid_gives_a_nan(bridge: Bridge, name: str) -> None:
    teacher = paired(bridge, dtype=torch.float32)
    for grid in ([1, 0], [1, 0.5, 0], [1, 1 - 1e-6, 0.5, 1e-6, 0], [1, 0.9, 0.1], bridge_grid(bridge, 7, exponent=4)):
        grid = torch.as_tensor(grid, dtype=torch.float64)
        step = BRIDGE_STEPS[name].make()
        made = cross(teacher, bridge, starts(4).float(), grid, step, seeds=seed_range(0, 4), keep=grid, keep_x0=True)
        assert made.x.dtype == torch.float32 and bool(made.x.isfinite().all() and made.x0.isfinite().all())
        assert made.x.shape == (4, len(grid), 2) == made.x0.shape


def test_what_is_kept_is_what_the_denoiser_said_of_it() -> None:
    bridge, grid = BrownianBridge(), bridge_grid(BrownianBridge(), 5)
    teacher = paired(bridge)
    made = cross(teacher, bridge, starts(3), grid, seeds=seed_range(0, 3), keep=grid, keep_x0=True)
    for n, t in enumerate(grid[:-1]):
        said = teacher(made.x[:, n], t, {"start": starts(3)})
        torch.testing.assert_close(made.x0[:, n], said, rtol=1e-10, atol=1e-10)
    assert torch.equal(made.x0[:, -1], made.sample) and torch.equal(made.cond["start"], starts(3))


@every_name
def test_a_sample_is_the_same_alone_and_in_a_batch(name: str) -> None:
    bridge = I2SB()
    sampler = BridgeSampler.of_calls(paired(bridge), bridge, 6, name)
    both = sampler(starts(2), seeds=[3, 8]).sample
    torch.testing.assert_close(sampler(starts(1), seeds=[8]).sample, both[1:], rtol=1e-12, atol=1e-12)
    assert sampler(starts(0), seeds=[]).sample.shape == (0, 2)


def test_labels_and_more_are_told_beside_the_start() -> None:
    label, weight = torch.tensor([1, 2]), torch.ones(2)
    assert told(starts(2), label)["label"] is label and {*told(starts(2))} == {"start"}
    assert {*told(starts(2), {"label": label, "weight": weight})} == {"start", "label", "weight"}


# Refusals


@pytest.mark.parametrize(
    "name, calls, message",
    [
        ("odes3", 13, "odes3 makes 1, 2, 4, 6, ... calls, got 13: take 12 or 14"),
        ("hybrid", 4, "hybrid makes 1, 3, 6, 9, ... calls, got 4: take 3 or 6"),
        ("hybrid", 2, "hybrid makes 1, 3, 6, 9, ... calls, got 2: take 1 or 3"),
        ("dbim2", 0, "dbim2 makes 1, 2, 3, 4, ... calls, got 0: take 1"),
        ("odes4", 2, "unknown sampler 'odes4' of bridges: expected one of ancestral, euler, "),
    ],
)
def test_calls_that_no_grid_has_are_refused_with_those_it_has(name: str, calls: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps_of(name, calls)


@pytest.mark.parametrize(
    "run, message",
    [
        (lambda b: bridge_grid(b, 0), "at least one step, got 0"),
        (lambda b: bridge_grid(b, 4, t_1=1.0), r"t_1 is where the start ends, inside \(0, 1\), got 1"),
        (lambda b: BridgeSampler.of_calls(paired(b), b, 4, "dbim2", eta=0.5), "eta is of dbim1, .* those of dbim2 are"),
        (lambda b: BridgeSampler.of_calls(paired(b), b, 4, "dbim1", eta=2), r"eta must be in \[0, 1\], got 2"),
        (lambda b: bridge_grid(b, 4, exponent=0.0), "exponent of a bridge's grid must be positive, got 0"),
        (lambda b: cross(paired(b), b, starts(2), [1, 0]), "a bridge starts with noise: give `seeds`"),
        (lambda b: cross(paired(b), b, starts(2), [0.5, 0]), "one below 1 from a state x on the bridge"),
        (lambda b: cross(paired(b), b, starts(2), [1, 0], x=starts(2)), "starts from x_T alone"),
        (lambda b: cross(paired(b), b, starts(2), [1, 0], seeds=[1, 2], keep=[0.3]), "t = 0.3 is not on the grid"),
    ],
)
def test_what_cannot_be_run_is_refused(run, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(BrownianBridge())
