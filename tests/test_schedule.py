"""Schedules are maps of time with known ends, inverses and derivatives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp

from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, Tabulated, VPLinear, linear_beta, schedule_from_config

# Condition numbers of the maps are below 1e3 inside, so float64 round-off stays below this.
EXACT = dict(rtol=1e-11, atol=1e-11)
LINEAR = linear_beta()


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_time_inverts_log_snr(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 997, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, **EXACT)


@pytest.mark.parametrize(
    "schedule_", [Cosine(), Cosine(-8, 12), LINEAR, VPLinear(), VPLinear(2, 2), VE(), VE(3), RectifiedFlow()], ids=repr
)
@given(t=st.floats(1e-3, 1 - 1e-3))
def test_time_inverts_log_snr_of_any_inner_time(schedule_: Schedule, t: float) -> None:
    assert float(schedule_.time(schedule_.log_snr(f64(t)))) == pytest.approx(t, abs=1e-11)


def test_log_snr_inverts_time(schedule: Schedule) -> None:
    log_snr = torch.linspace(-8, 8, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(schedule.time(log_snr)), log_snr, **EXACT)


def test_time_clamps_log_snrs_out_of_range(schedule: Schedule) -> None:
    assert schedule.time(f64(-1e3, 1e3)).tolist() == pytest.approx([1, 0], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pure_noise_and_clean_data_are_at_the_ends(schedule: Schedule, dtype: torch.dtype) -> None:
    assert schedule.time(torch.tensor([-torch.inf, torch.inf], dtype=dtype)).tolist() == [1, 0]
    assert VPLinear(2, 2).time(torch.tensor([-torch.inf, torch.inf], dtype=dtype)).tolist() == [1, 0]


def test_the_phase_is_the_share_of_the_angle(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 997, dtype=torch.float64)
    alpha, sigma = schedule(t)
    angle = torch.atan2(sigma, alpha)
    p = schedule.phase(t)
    torch.testing.assert_close(p, (angle - angle[0]) / (angle[-1] - angle[0]), **EXACT)
    torch.testing.assert_close(schedule.from_phase(p), t, rtol=1e-9, atol=1e-9)
    assert schedule.from_phase(f64(-0.1, 0, 1, 1.1)).tolist() == [0, 0, 1, 1]
    single = schedule.from_phase(schedule.phase(t.float()))
    assert single.dtype == torch.float32 and float((single.double() - t).abs().max()) < 1e-4


def test_derivative_is_the_jvp_of_the_schedule(schedule: Schedule) -> None:
    t = torch.rand(64, dtype=torch.float64)
    _, tangents = jvp(schedule, (t,), (torch.ones_like(t),))
    for ours, theirs in zip(schedule.derivative(t), tangents, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_log_snr_decreases(schedule: Schedule) -> None:
    assert (schedule.log_snr(torch.linspace(0, 1, 2001, dtype=torch.float64)).diff() < 0).all()


@pytest.mark.parametrize("schedule_", [Cosine(), LINEAR, VPLinear()], ids=repr)
def test_variance_is_preserved(schedule_: Schedule) -> None:
    alpha_t, sigma_t = schedule_(torch.linspace(0, 1, 997, dtype=torch.float64))
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones_like(alpha_t), rtol=0, atol=1e-15)


@pytest.mark.parametrize("low, high", [(-20, 20), (-6, 9)])
def test_cosine_ends_at_the_log_snrs_asked_for(low: float, high: float) -> None:
    assert Cosine(low, high).log_snr(f64(0, 1)).tolist() == pytest.approx([high, low], abs=1e-9)


def test_linear_beta_is_diffusers_table_at_integer_steps() -> None:
    from diffusers import DDPMScheduler

    alpha_t, sigma_t = LINEAR(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    table = DDPMScheduler(beta_schedule="linear").alphas_cumprod.double()
    torch.testing.assert_close(alpha_t**2, table, rtol=1e-13, atol=0)
    torch.testing.assert_close(sigma_t**2, 1 - table, rtol=1e-11, atol=0)


def test_a_tabulated_model_starts_from_clean_data() -> None:
    assert LINEAR.at(0.0) == (1.0, 0.0)


def test_vp_linear_is_edms_formula_and_the_limit_of_linear_beta() -> None:
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    alpha_t, sigma_t = VPLinear(0.1, 20)(t)
    # Karras et al., 2022, table 1: sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), s(t) = 1 / sqrt(1 + sigma^2).
    sigma = torch.sqrt(torch.exp(19.9 * t**2 / 2 + 0.1 * t) - 1)
    torch.testing.assert_close(sigma_t / alpha_t, sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha_t, 1 / torch.sqrt(1 + sigma**2), rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha_t, LINEAR(t)[0], rtol=0, atol=2e-3)


def test_ve_is_edm_time() -> None:
    assert VE(80).at(0.25) == (1.0, 20.0)


def test_rectified_flow_is_a_straight_line() -> None:
    assert RectifiedFlow().at(0.25) == (0.75, 0.25)


@pytest.mark.parametrize(
    "times, weights",
    [((0.5625, 0.25, 0.0625, 0), (1, 2.41, 10.15, 10_000)), ((0.75, 0.5, 0.25, 0), (1, 1, 2.41, 10_000))],
    ids=["cifar", "imagenet"],
)
def test_published_loss_weights_are_the_clamped_ratio(times: tuple[float, ...], weights: tuple[float, ...]) -> None:
    alpha_t, sigma_t = Cosine()(f64(*times))
    # alpha / sigma is 1 at t = 1/2 up to the truncation of the schedule; the table has two decimals.
    torch.testing.assert_close((alpha_t / sigma_t).clamp(1, 1e4), f64(*weights), rtol=0, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_maps_keep_shape_and_dtype(schedule: Schedule, dtype: torch.dtype) -> None:
    t = torch.rand(2, 3).to(dtype)
    for value in (*schedule(t), *schedule.derivative(t), schedule.log_snr(t), schedule.time(t)):
        assert value.shape == t.shape and value.dtype == dtype


def test_announced_times_change_no_answer(schedule: Schedule) -> None:
    def half(of: Schedule, t: Tensor) -> tuple[Tensor, ...]:
        return (of(t)[0] / 2,)

    times, inner = [1.0, 0.7, 0.1, 0.0], [0.7, 0.5, 0.1]
    again = schedule_from_config(schedule.config)
    for t in (times, [0.5], times):
        again.expect(t)
        assert [again.at(u) for u in times] == [schedule.at(u) for u in times]
        assert [again.slope(u) for u in inner] == [schedule.slope(u) for u in inner]
        for dtype in (torch.float32, torch.float64):
            assert [again.numbers(half, u, dtype) for u in inner] == [schedule.numbers(half, u, dtype) for u in inner]


def test_announced_times_are_worked_out_together() -> None:
    asked = []

    class Counted(Cosine):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(t.tolist())
            return super().__call__(t)

    schedule = Counted()
    schedule.expect([1.0, 0.5, 0.0])
    for t in (0.5, 0.0, 1.0, 0.3, 0.5):
        schedule.at(t)
    assert asked == [[1.0, 0.5, 0.0], [0.3]]


def test_config_rebuilds_the_schedule(schedule: Schedule) -> None:
    again = schedule_from_config(schedule.config)
    assert again == schedule and hash(again) == hash(schedule)
    t = torch.rand(16, dtype=torch.float64)
    torch.testing.assert_close(again(t), schedule(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Cosine(5, 5), "log_snr_min must be below"),
        (lambda: VE(0), "sigma_max must be positive"),
        (lambda: VPLinear(0), "beta_min must be positive and at most beta_max, got 0 and 20"),
        (lambda: VPLinear(3, 2), "beta_min must be positive and at most beta_max, got 3 and 2"),
        (lambda: Tabulated([]), "non-empty"),
        (lambda: Tabulated([0.9, 1.0]), "strictly between 0 and 1"),
        (lambda: Tabulated([0.5, 0.9]), "must decrease"),
        (lambda: schedule_from_config({"name": "Sine"}), "unknown schedule 'Sine'"),
        (lambda: schedule_from_config({"name": "VE", "sigma": 1}), "VE has sigma_max: got an unexpected .*'sigma'"),
        (lambda: schedule_from_config({"name": "Tabulated"}), "missing a required argument: 'alphas_cumprod'"),
    ],
)
def test_bad_arguments_say_what_is_wrong(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
