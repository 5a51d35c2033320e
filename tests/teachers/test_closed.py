"""The closed-form teachers are the posterior means they say they are, and the Gaussian's flow is that of its ODE."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import grad

from dsno.denoise import Denoiser, convert, x0_from
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.teachers.closed import Gaussian, GaussianMixture

MEAN = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
STD = torch.tensor([0.5, 0.2, 1.5], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.6, 0.4], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


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


def test_the_posterior_of_a_mixture_s_classes_is_bayes_rule() -> None:
    schedule = Cosine()
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]], dtype=torch.float64)
    mixture = GaussianMixture(schedule, means, 0.4, labels=[0, 1, 0])
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.full((5,), 0.4, dtype=torch.float64)
    both = torch.stack([mixture.log_posterior(x, t, torch.full((5,), y)) for y in (0, 1)])
    torch.testing.assert_close(both.exp().sum(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(mixture.log_posterior(x, 0.4, torch.zeros(5).long()), both[0])
    # Told less of the noise it is surer.
    sure = torch.stack([mixture.log_posterior(x, t, torch.full((5,), y), 0.3) for y in (0, 1)])
    assert bool((sure.max(0).values > both.max(0).values).all())
    with pytest.raises(ValueError, match="this mixture has no labels: it has no classes to tell apart"):
        GaussianMixture(schedule, means, 0.4).log_posterior(x, t, torch.zeros(5).long())
