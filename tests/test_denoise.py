"""One prediction is all predictions; the closed-form teachers are the posterior means they say they are."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import grad

from dsno.condition import Cond
from dsno.cost import Meter
from dsno.denoise import KINDS, Denoiser, Guided, Kind, Prediction, Threshold, convert, scale_input, x0_from
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.teachers.closed import Gaussian, GaussianMixture

MEAN = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
STD = torch.tensor([0.5, 0.2, 1.5], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.6, 0.4], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
kinds = pytest.mark.parametrize("kind", KINDS)


def pair(B: int = 16, shape: tuple[int, ...] = (3,)) -> tuple[Tensor, Tensor]:
    return torch.randn(B, *shape, dtype=torch.float64), torch.randn(B, *shape, dtype=torch.float64)


# The table of relations


@kinds
def test_conversion_round_trips(kind: Kind, schedule: Schedule) -> None:
    x0_hat, x_t = pair()
    t = torch.linspace(0.02, 0.98, 16, dtype=torch.float64)
    output = convert(kind, x0_hat, x_t, t, schedule)
    # alpha_t >= 0.006 and sigma_t >= 0.01 here, so at most six digits of sixteen are lost.
    torch.testing.assert_close(x0_from(kind, output, x_t, t, schedule), x0_hat, rtol=1e-10, atol=1e-10)


@kinds
def test_kinds_are_what_their_names_say(kind: Kind, schedule: Schedule) -> None:
    x0, eps = pair()
    t = torch.linspace(0.1, 0.9, 16, dtype=torch.float64)
    (alpha_t, sigma_t), (d_alpha, d_sigma) = schedule(t[:, None]), schedule.derivative(t[:, None])
    truth = {
        "x0": x0,
        "eps": eps,
        "v": alpha_t * eps - sigma_t * x0,
        "flow": d_alpha * x0 + d_sigma * eps,
        "score": -eps / sigma_t,
        "edm": (sigma_t * x0 - alpha_t * eps) / (alpha_t**2 + sigma_t**2).sqrt(),
    }[kind]
    output = convert(kind, x0, alpha_t * x0 + sigma_t * eps, t, schedule)
    torch.testing.assert_close(output, truth, rtol=1e-9, atol=1e-9)


@kinds
@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_conversion_is_finite_at_both_ends(kind: Kind, schedule: Schedule, t: float, dtype: torch.dtype) -> None:
    x0_hat, x_t = (u.to(dtype) for u in pair())
    time = torch.tensor(t, dtype=dtype)
    output = convert(kind, x0_hat, x_t, time, schedule)
    assert output.isfinite().all()
    assert x0_from(kind, output, x_t, time, schedule).isfinite().all()


@kinds
def test_pure_data_is_its_own_denoised_sample(kind: Kind, schedule: Schedule) -> None:
    # An exact denoiser returns x at sigma = 0; what the network says there must not matter but for the truncation of
    # the cosine schedule (sigma = 4.5e-5, times an output of at most 1 / sigma for the score).
    x, _ = pair()
    time = torch.zeros((), dtype=torch.float64)
    output = convert(kind, x, x, time, schedule)
    torch.testing.assert_close(x0_from(kind, output, x, time, schedule), x, rtol=0, atol=1e-3)


@kinds
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_any_network_output_gives_no_nan_at_either_end(kind: Kind, schedule: Schedule, t: float) -> None:
    # eps and score say nothing about the data where alpha = 0: the result is useless there, but a number.
    x_t, output = pair()
    assert not x0_from(kind, output, x_t, torch.tensor(t, dtype=torch.float64), schedule).isnan().any()


@kinds
def test_one_time_for_all_or_one_for_each(kind: Kind, schedule: Schedule) -> None:
    x0_hat, x_t = pair(4, (2, 3, 3))
    t = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(
        convert(kind, x0_hat, x_t, t, schedule), convert(kind, x0_hat, x_t, t.expand(4), schedule), rtol=0, atol=0
    )


@pytest.mark.parametrize("relation", [x0_from, convert])
def test_an_unknown_kind_is_refused(relation) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="unknown prediction kind 'noise'"):
        relation("noise", x, x, torch.tensor(0.5), Cosine())


# Wrappers


@kinds
def test_prediction_turns_a_network_of_any_kind_into_the_denoiser(kind: Kind, schedule: Schedule) -> None:
    teacher = Gaussian(schedule, MEAN, STD)

    class Net(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            x_t = x_t / scale_input(kind, torch.ones_like(x_t), t, schedule)
            return convert(kind, teacher(x_t, t), x_t, t, schedule)

    x_t, _ = pair()
    t = torch.tensor(0.6, dtype=torch.float64)
    torch.testing.assert_close(Prediction(Net(), schedule, kind)(x_t, t), teacher(x_t, t), rtol=1e-10, atol=1e-10)


def test_prediction_hands_the_network_its_own_time_and_the_condition() -> None:
    seen = []

    class Net(nn.Module):
        def forward(self, x_t: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
            seen.append((time, cond))
            return x_t

    denoiser = Prediction(Net(), Cosine(), time=lambda t: 1000 * t - 1)
    labels = torch.tensor([3, 1])
    denoiser(torch.zeros(2, 3), torch.tensor(0.5))
    denoiser(torch.zeros(2, 3), torch.tensor(0.5), labels)
    assert seen[0][0].tolist() == [499, 499] and seen[0][1] is None
    assert seen[1][1] is labels


def test_prediction_clips() -> None:
    class Net(nn.Module):
        def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
            return 3 * x_t

    x_t = torch.tensor([[1.0], [-1.0], [0.1]])
    x0_hat = Prediction(Net(), Cosine(), clip=0.5)(x_t, torch.tensor(0.5))
    torch.testing.assert_close(x0_hat, torch.tensor([[0.5], [-0.5], [0.3]]))


def test_prediction_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown prediction kind"):
        Prediction(nn.Identity(), Cosine(), kind="epsilon")  # type: ignore[arg-type]


def test_half_precision_does_not_round_the_time() -> None:
    seen = []

    class Net(nn.Module):
        def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
            seen.append(float(time[0]))
            return x_t

    x0_hat = Prediction(Net(), Cosine())(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor(0.999))
    assert seen == [pytest.approx(0.999, abs=1e-6)]  # bfloat16 would make it 1
    assert x0_hat.dtype == torch.bfloat16


def test_meter_counts_calls_rows_and_products() -> None:
    meter = Meter(Gaussian(VE(), MEAN, STD))
    for B in (4, 1, 7):
        meter(torch.zeros(B, 3), torch.tensor(0.5))
    meter.tally(jvps=2, vjps=5)
    assert (meter.rounds, meter.rows, meter.jvps, meter.vjps) == (3, 12, 2, 5)
    meter.reset()
    assert (meter.rounds, meter.rows, meter.jvps, meter.vjps) == (0, 0, 0, 0)


def test_any_callable_is_a_denoiser() -> None:
    assert isinstance(lambda x_t, t, cond=None: x_t, Denoiser)


# Closed-form teachers


def gaussian_density(schedule: Schedule, t: Tensor) -> Independent:
    alpha_t, sigma_t = schedule(t)
    return Independent(Normal(alpha_t * MEAN, (alpha_t**2 * STD**2 + sigma_t**2).sqrt()), 1)


def mixture_density(schedule: Schedule, t: Tensor) -> MixtureSameFamily:
    alpha_t, sigma_t = schedule(t)
    std = (alpha_t**2 * STDS**2 + sigma_t**2).sqrt()[:, None].expand(-1, 2)
    return MixtureSameFamily(Categorical(WEIGHTS), Independent(Normal(alpha_t * MEANS, std), 1))


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_the_teacher_is_the_posterior_mean_by_tweedies_formula(schedule: Schedule, name: str, t: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    if name == "gaussian":
        teacher: Denoiser = Gaussian(schedule, MEAN, STD)
        density = gaussian_density(schedule, time)
    else:
        teacher = GaussianMixture(schedule, MEANS, STDS, WEIGHTS)
        density = mixture_density(schedule, time)
    x_t = density.sample((16,)) * 1.5
    score = grad(lambda x: density.log_prob(x).sum())(x_t)
    # The score at small noise is up to 1e3, divided by alpha_t >= 0.05.
    torch.testing.assert_close(teacher(x_t, time), x0_from("score", score, x_t, time, schedule), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_teachers_are_finite_at_both_ends(schedule: Schedule, t: float) -> None:
    x_t = torch.randn(8, 2)
    for teacher in (Gaussian(schedule, MEANS[0], 0.5), GaussianMixture(schedule, MEANS, STDS)):
        assert teacher(x_t, torch.tensor(t)).isfinite().all()


def test_teachers_know_nothing_in_pure_noise_and_everything_in_pure_data() -> None:
    x = torch.randn(8, 2, dtype=torch.float64)
    for teacher in (Gaussian(RectifiedFlow(), MEANS.mean(0), 0.5), GaussianMixture(RectifiedFlow(), MEANS, STDS)):
        torch.testing.assert_close(teacher(x, torch.tensor(1.0)), MEANS.mean(0).expand(8, 2))
        torch.testing.assert_close(teacher(x, torch.tensor(0.0)), x)


def test_a_mixture_of_one_is_the_gaussian(schedule: Schedule) -> None:
    x_t, t = torch.randn(8, 2, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    one = GaussianMixture(schedule, MEANS[:1], STDS[:1])
    torch.testing.assert_close(one(x_t, t), Gaussian(schedule, MEANS[0], STDS[0])(x_t, t), rtol=1e-12, atol=1e-12)


def test_a_class_of_the_mixture_is_the_mixture_of_its_components(schedule: Schedule) -> None:
    x_t, t = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    mixture = GaussianMixture(schedule, MEANS, STDS, WEIGHTS, labels=[0, 1, 0])
    only_0 = GaussianMixture(schedule, MEANS[[0, 2]], STDS[[0, 2]], WEIGHTS[[0, 2]])
    only_1 = GaussianMixture(schedule, MEANS[[1]], STDS[[1]])
    cond = torch.tensor([0, 1, 0, 1, 1, 0])
    expected = torch.where((cond == 0)[:, None], only_0(x_t, t), only_1(x_t, t))
    torch.testing.assert_close(mixture(x_t, t, cond), expected, rtol=1e-12, atol=1e-12)


def test_a_class_conditional_gaussian_is_one_gaussian_per_row(schedule: Schedule) -> None:
    x_t, cond = torch.randn(5, 2, dtype=torch.float64), torch.tensor([2, 0, 1, 1, 0])
    teacher = Gaussian(schedule, MEANS, 0.4, classes=3)
    t = torch.tensor(0.5, dtype=torch.float64)
    for i, k in enumerate(cond):
        alone = Gaussian(schedule, MEANS[k], 0.4)
        torch.testing.assert_close(teacher(x_t, t, cond)[i], alone(x_t[i : i + 1], t)[0])
        torch.testing.assert_close(teacher.flow(x_t, 1.0, 0.2, cond)[i], alone.flow(x_t[i : i + 1], 1.0, 0.2)[0])


def test_samples_of_the_mixture_have_its_mean_and_variance() -> None:
    mixture = GaussianMixture(Cosine(), MEANS, STDS, WEIGHTS)
    x = mixture.sample(20_000, torch.Generator().manual_seed(0))
    mean = WEIGHTS @ MEANS
    second = (WEIGHTS[:, None] * (STDS[:, None] ** 2 + MEANS**2)).sum(0)
    # Four standard errors of a mean of 20 000 values of variance about 1.
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close((x**2).mean(0), second, rtol=0, atol=0.05)


@pytest.mark.parametrize("s", [0.1, 0.5, 0.9])
def test_the_gaussians_flow_solves_the_ode(schedule: Schedule, s: float) -> None:
    teacher = Gaussian(schedule, MEAN, STD)
    x_1 = torch.randn(8, 3, dtype=torch.float64)
    # On a tabulated schedule the whole stencil must lie inside one of its thousand segments.
    h = 1e-5
    s += 5e-4
    time = torch.tensor(s, dtype=torch.float64)
    x_s = teacher.flow(x_1, 1.0, s)
    velocity = (teacher.flow(x_1, 1.0, s + h) - teacher.flow(x_1, 1.0, s - h)) / (2 * h)
    expected = convert("flow", teacher(x_s, time), x_s, time, schedule)
    # Central differences: h^2 x'''/6 plus round-off of 1e-16 |x| / h, relative to |x| up to 80 on VE.
    torch.testing.assert_close(velocity, expected, rtol=1e-6, atol=1e-6)


def test_the_gaussians_flow_composes_and_carries_the_marginals(schedule: Schedule) -> None:
    teacher = Gaussian(schedule, MEAN, STD)
    x = torch.randn(8, 3, dtype=torch.float64)
    through = teacher.flow(teacher.flow(x, 1.0, 0.4), 0.4, 0.0)
    torch.testing.assert_close(through, teacher.flow(x, 1.0, 0.0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(teacher.flow(x, 0.4, 0.4), x, rtol=1e-12, atol=1e-12)
    (alpha_1, sigma_1), (alpha_s, sigma_s) = schedule.at(1.0), schedule.at(0.3)
    whitened = (x - alpha_1 * MEAN) / (alpha_1**2 * STD**2 + sigma_1**2).sqrt()
    expected = alpha_s * MEAN + (alpha_s**2 * STD**2 + sigma_s**2).sqrt() * whitened
    torch.testing.assert_close(teacher.flow(x, 1.0, 0.3), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Gaussian(VE(), MEAN, 0.0), "std must be positive"),
        (lambda: Gaussian(VE(), MEANS, 1.0, classes=4), "3 rows but there are 4 classes"),
        (lambda: Gaussian(VE(), MEANS, 1.0, classes=3)(MEANS, torch.tensor(0.5)), "pass labels"),
        (lambda: GaussianMixture(VE(), MEANS, 1.0)(MEANS, torch.tensor(0.5), torch.zeros(3)), "has no labels"),
    ],
)
def test_teachers_say_what_is_missing(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_edm_is_karras_preconditioning_on_the_ve_path() -> None:
    torch.manual_seed(0)
    schedule, sigma_d = VE(80.0), 0.5
    x, F, t = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64), torch.rand(6).double()
    sigma = 80 * t[:, None]
    c_skip, c_out = sigma_d**2 / (sigma**2 + sigma_d**2), sigma * sigma_d / (sigma**2 + sigma_d**2).sqrt()
    torch.testing.assert_close(x0_from("edm", F, x, t, schedule, sigma_d), c_skip * x + c_out * F)
    torch.testing.assert_close(convert("edm", c_skip * x + c_out * F, x, t, schedule, sigma_d), F)
    shown = []

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            shown.append(x)
            return F

    teacher = Prediction(Net(), schedule, "edm", data_std=sigma_d)
    torch.testing.assert_close(teacher(x, t), c_skip * x + c_out * F)
    torch.testing.assert_close(shown[0], x / (sigma**2 + sigma_d**2).sqrt())


class Labelled(torch.nn.Module):
    """Linear in what it is told, so that guidance is arithmetic."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return x + cond[:, None]


def test_guidance_is_linear_in_its_two_terms_and_counts_both() -> None:
    x, t, label = torch.randn(4, 3).double(), torch.tensor(0.5).double(), torch.tensor([0, 1, 2, 3])
    teacher = Prediction(Labelled(), Cosine(), "x0", classes=4)
    null, w = torch.tensor(9), 1.5
    guided = Guided(teacher, null, w)
    expected = (1 + w) * teacher(x, t, label) - w * teacher(x, t, null.expand(4))
    torch.testing.assert_close(guided(x, t, label), expected)
    torch.testing.assert_close(Guided(teacher, null, 0.0)(x, t, label), teacher(x, t, label))
    each = torch.tensor([0.0, 0.5, 1.0, 4.0]).double()
    by_row = Guided(Named(teacher), {"label": null})(x, t, {"label": label, "weight": each})
    for n in range(4):
        torch.testing.assert_close(
            by_row[n : n + 1], Guided(teacher, null, float(each[n]))(x[n : n + 1], t, label[n : n + 1])
        )
    meter = Meter(guided)
    meter(x, t, label)
    assert (meter.rounds, meter.rows) == (1, 8)


class Named:
    def __init__(self, teacher: Prediction) -> None:
        self.teacher = teacher

    def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Cond | None = None) -> torch.Tensor:
        assert cond is not None and not isinstance(cond, torch.Tensor)
        return self.teacher(x, t, cond["label"])


def test_guidance_comes_before_clipping() -> None:
    x, t, label = torch.zeros(2, 3), torch.tensor(0.5), torch.tensor([2, 4])
    guided = Guided(Prediction(Labelled(), Cosine(), clip=1.0), torch.tensor(3), 1.0)
    # Clipped terms would give 2 * 1 - 1; the guided value 2 * c - 3 is 1 and 5.
    torch.testing.assert_close(guided(x, t, torch.tensor([1, 4])), torch.tensor([[-1.0] * 3, [1.0] * 3]))
    with pytest.raises(ValueError, match="needs a condition"):
        guided(x, t)
    with pytest.raises(ValueError, match="no weight"):
        Guided(guided.denoiser, torch.tensor(3))(x, t, label)
    with pytest.raises(ValueError, match="must be alike"):
        Guided(guided.denoiser, {"text": torch.tensor(3)}, 1.0)(x, t, label)
    with pytest.raises(ValueError, match="at least 0"):
        Guided(guided.denoiser, torch.tensor(3), -1.0)


def test_dynamic_thresholding_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    x0 = 3 * torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.7)
    torch.testing.assert_close(Threshold(0.9, 1.7)(x0), scheduler._threshold_sample(x0))
