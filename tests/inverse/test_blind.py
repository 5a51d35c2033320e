"""Picture and kernel are found together where the prior of pictures can tell them apart, at the cost that is stated."""

from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dsno.cost import Cost
from dsno.data.load import load_data
from dsno.grids import even, uniform
from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.blind import ClassicEM, FastEM, PlainMAP
from dsno.inverse.blur import Blur
from dsno.inverse.kernel_step import KernelStep
from dsno.inverse.kernels import aligned, delta, gaussian, kernel_error, motion
from dsno.inverse.operators import Mask
from dsno.inverse.restore import Restored
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.seeds import noise, seed_range
from dsno.teachers.closed import Gaussian, GaussianMixture

SIZE, TAU, COUNT = (5, 5), 0.01, 8
START = Blur(delta(SIZE), noise=TAU)
GRID = uniform(50)
FAST = partial(FastEM, spread=0.1)
"""With the variance of the answers: a prior of few pictures is sure of one too soon."""


@cache
def dictionary(schedule: Schedule) -> GaussianMixture:
    """Digits of 16 pixels, each with a little noise: a prior that is far from Gaussian, in closed form."""
    x = load_data("digits").x[::18].double()
    return GaussianMixture(schedule, F.interpolate(x, size=(16, 16), mode="bilinear"), 0.1)


class Case:
    """Samples of the dictionary, blurred by motion."""

    def __init__(self, schedule: Schedule | None = None, count: int = COUNT) -> None:
        self.schedule = schedule or Cosine()
        self.teacher = dictionary(self.schedule)
        self.seeds = seed_range(0, count)
        self.x = self.teacher.sample(count, torch.Generator().manual_seed(1))
        self.k = motion(SIZE, seed_range(100, count), share=(0.7, 1.0))
        self.y = Blur(self.k).A(self.x) + TAU * noise(seed_range(500, count), self.x.shape[1:], dtype=torch.float64)
        self.z = noise(self.seeds, self.x.shape[1:], dtype=torch.float64)

    def run(self, method) -> Restored:
        return method(self.teacher, self.schedule, START, self.y, self.z, None, self.seeds)

    def psnr(self, x: Tensor) -> Tensor:
        missed = (aligned(x, self.x, reach=2) - self.x).square().flatten(1).mean(1)
        return 10 * torch.log10(4 / missed)

    def kernel_errors(self, kernel: Tensor) -> Tensor:
        return kernel_error(kernel, self.k)


# Recovery


def test_fast_em_finds_picture_and_kernel_on_a_dictionary_of_digits() -> None:
    case = Case()
    made = case.run(FAST(GRID))
    oracle = PiGDM(GRID)(
        case.teacher, case.schedule, START, case.y, case.z, None, case.seeds, lambda x0, t: Blur(case.k, noise=TAU)
    )
    no_blur = case.kernel_errors(delta(SIZE).expand(COUNT, 1, *SIZE))
    assert case.kernel_errors(made.kernel).median() < 0.25 * no_blur.median()
    assert case.psnr(made.x).median() > case.psnr(case.y).median() + 4
    assert case.psnr(made.x).median() > case.psnr(oracle.x).median() - 4
    assert made.residual.median() < 2 * TAU
    assert made.kernel.shape == (COUNT, 1, *SIZE) and made.kernel.min() >= 0
    torch.testing.assert_close(made.kernel.sum((1, 2, 3)), torch.ones(COUNT, dtype=torch.float64))


@pytest.mark.parametrize("schedule", [VE(), RectifiedFlow()], ids=["ve", "flow"])
def test_fast_em_runs_on_other_schedules(schedule: Schedule) -> None:
    case = Case(schedule, 4)
    made = case.run(FAST(even(schedule, 50)))
    assert case.psnr(made.x).median() > case.psnr(case.y).median() + 3


def test_runs_of_one_picture_vote_and_their_mean_is_returned() -> None:
    case = Case(count=4)
    one, three = (case.run(FAST(uniform(30), samples=n)) for n in (1, 3))
    assert three.x.shape == one.x.shape and three.kernel.shape == one.kernel.shape
    assert (three.cost.rounds, three.cost.rows) == (one.cost.rounds, 3 * one.cost.rows)
    assert (three.x - one.x).abs().max() > 1e-3 and case.psnr(three.x).min() > case.psnr(case.y).min()


def test_the_kernel_of_a_signal_is_found_as_well() -> None:
    steps = torch.randn(40, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sign()
    teacher = GaussianMixture(Cosine(), 0.8 * steps.repeat_interleave(4, dim=2), 0.1)
    x, k = teacher.sample(8, torch.Generator().manual_seed(1)), motion((5,), seed_range(0, 8))
    y = Blur(k).A(x) + TAU * torch.randn_like(x)
    z = noise(range(8), x.shape[1:], dtype=torch.float64)
    method = FAST(uniform(50))
    made = method(teacher, Cosine(), Blur(delta((5,)), noise=TAU), y, z, None, seed_range(0, 8))
    assert kernel_error(made.kernel, k).median() < 0.3 * kernel_error(delta((5,)).expand(8, 1, 5), k).median()


def test_classic_em_improves_on_no_blur_at_its_price() -> None:
    case = Case(count=4)
    made = case.run(ClassicEM(uniform(15), rounds=3, samples=2))
    assert (made.cost.rounds, made.cost.rows, made.cost.vjps) == (45, 45 * 8, 45 * 8)
    assert made.cost.seconds > 0 and made.x.shape == case.x.shape
    assert case.kernel_errors(made.kernel).mean() < case.kernel_errors(delta(SIZE).expand(4, 1, *SIZE)).mean()
    fast = case.run(FastEM(uniform(15)))
    assert (fast.cost.rounds, fast.cost.rows, fast.cost.vjps) == (15, 60, 60)


def test_one_round_of_classic_em_is_a_run_at_no_blur_and_one_m_step() -> None:
    case = Case(count=2)
    made = case.run(ClassicEM(uniform(10), rounds=1))
    run = PiGDM(uniform(10))(case.teacher, case.schedule, START, case.y, case.z, None, case.seeds)
    torch.testing.assert_close(made.x, run.x, rtol=0, atol=1e-12)


def test_plain_map_asks_no_teacher_and_finds_the_kernel_of_a_sharp_picture() -> None:
    x = -torch.ones(1, 1, 32, 32, dtype=torch.float64)
    x[..., 6:20, 5:12], x[..., 12:27, 17:28], x[..., 3:8, 20:24] = 0.8, 0.4, 0.9
    k = motion((7, 7), [5])
    y = Blur(k).A(x) + TAU * noise([0], x.shape[1:], dtype=torch.float64)

    def nobody(*_: object) -> Tensor:
        raise AssertionError("the teacher was asked")

    start = Blur(delta((7, 7)), noise=TAU)
    made = PlainMAP()(nobody, Cosine(), start, y, torch.zeros_like(y))
    assert made.cost == Cost(seconds=made.cost.seconds)
    assert kernel_error(made.kernel, k) < 0.4 * kernel_error(start.rows, k)
    flat = PlainMAP()(nobody, Cosine(), start, torch.full_like(y, 0.3), torch.zeros_like(y))
    torch.testing.assert_close(flat.x, torch.full_like(y, 0.3))
    error = (aligned(made.x, x, reach=3) - x).square().mean()
    assert error < 0.25 * (aligned(y, x, reach=3) - x).square().mean()


# Steps


def test_the_m_step_sees_pictures_in_their_range_and_a_level_that_falls() -> None:
    seen = []

    class Watched(KernelStep):
        def __call__(self, blur: Blur, x: Tensor, y: Tensor, variance: float | Tensor = 0.0) -> Blur:
            seen.append((self.level, float(x.abs().max()), variance))
            return super().__call__(blur, x, y, variance)

    case = Case(count=2)
    wide = Gaussian(Cosine(), torch.full(case.x.shape[1:], 3.0, dtype=torch.float64), 1.0)
    method = FastEM(uniform(5), step=Watched(level=0.01), coarse=0.05, spread=0.5)
    method(wide, Cosine(), START, case.y, case.z, None, case.seeds)
    levels, sizes, variances = zip(*seen, strict=True)
    assert len(seen) == 5 and max(sizes) <= 1
    assert levels[0] == pytest.approx(0.05, abs=1e-5) and all(a > b > 0.01 for a, b in pairwise(levels))
    assert variances[0] == pytest.approx(0.5, abs=1e-4) and variances[0] > variances[-1] > 0


def test_the_noise_is_learned_on_the_way() -> None:
    case = Case(count=4)
    guess = Blur(delta(SIZE), noise=0.1)
    step = KernelStep(beta=1e3, learn_noise=True)
    made = FastEM(GRID, step=step)(case.teacher, case.schedule, guess, case.y, case.z, None, case.seeds)
    assert made.residual.median() < 0.05
    assert case.psnr(made.x).median() > case.psnr(case.y).median() + 2


def test_the_sampler_is_one_of_several_with_their_options() -> None:
    case = Case(count=2)
    for sampler in (DPS, partial(PiGDM, eta=0.5), partial(DPS, scale=1.0)):
        made = case.run(FastEM(uniform(8), sampler=sampler))
        assert made.x.isfinite().all() and made.kernel.isfinite().all() and made.cost.vjps == 16


def test_the_estimate_begins_at_the_kernel_of_each_picture_where_there_is_one() -> None:
    case = Case(count=2)
    begun = Blur(case.k, noise=TAU)
    # What the first kernel weighs is beyond any picture here, and the prior takes nothing off it.
    step = KernelStep(beta=1e12, level=0.0)
    for make in (partial(FastEM, coarse=0.0), partial(ClassicEM, rounds=2)):
        method = make(uniform(2), step=step, samples=2)
        made = method(case.teacher, case.schedule, begun, case.y, case.z, None, case.seeds)
        torch.testing.assert_close(made.kernel, case.k, rtol=0, atol=1e-4)


def test_pictures_of_a_batch_do_not_see_each_other() -> None:
    case = Case(count=3)
    both = FastEM(uniform(10))(case.teacher, case.schedule, START, case.y, case.z, None, case.seeds)
    alone = FastEM(uniform(10))(case.teacher, case.schedule, START, case.y[1:2], case.z[1:2], None, case.seeds[1:2])
    torch.testing.assert_close(alone.x[0], both.x[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone.kernel[0], both.kernel[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "method, problem, message",
    [
        (FastEM(GRID), Mask(torch.ones(1, 16, 16)), "of a circular Blur"),
        (FastEM(GRID), Blur(delta(SIZE), circular=False, noise=0.1), "of a circular Blur"),
        (ClassicEM(GRID), Blur(delta(SIZE)), "state one above 0"),
        (PlainMAP(), Blur(gaussian((17, 17), 2.0), noise=0.1), "at least as large"),
    ],
)
def test_problems_that_no_blind_method_solves_are_refused(method, problem, message: str) -> None:
    case = Case(count=2)
    with pytest.raises(ValueError, match=message):
        method(case.teacher, case.schedule, problem, case.y, case.z, None, case.seeds)


def test_several_runs_need_seeds_and_options_have_ranges() -> None:
    case = Case(count=2)
    for method in (
        FastEM(GRID, samples=2, sampler=partial(PiGDM, eta=0.0)),
        ClassicEM(GRID, sampler=partial(PiGDM, eta=0.0)),
    ):
        with pytest.raises(ValueError, match="draw their own noise: give `seeds`"):
            method(case.teacher, case.schedule, START, case.y, case.z)
    for build in (partial(FastEM, samples=0), partial(FastEM, coarse=-1.0), partial(FastEM, spread=-1.0)):
        with pytest.raises(ValueError, match="a sample or more, and a coarse level"):
            build(GRID)
    for build in (partial(ClassicEM, rounds=0), partial(ClassicEM, samples=0)):
        with pytest.raises(ValueError, match="a round and a sample or more"):
            build(GRID)
    with pytest.raises(ValueError, match="plain MAP has a round or more"):
        PlainMAP(penalty=(1.0, 0.1))
