"""Noise levels, the estimates that anybody can make, and schedules that do not lead to noise."""

import math

import pytest
import torch

from dsno.schedule import Cosine, Tabulated
from dsno.teachers.check.denoising import baselines, check_sampling, denoise
from dsno.teachers.check.run import check_teacher
from dsno.teachers.check.subject import subject_of
from dsno.teachers.closed import Gaussian, GaussianMixture
from exact import SHAPE, data, mixture, said, worst_of


def test_a_schedule_that_does_not_end_in_noise_is_caught() -> None:
    short = Tabulated([0.99, 0.9, 0.8, 0.7])
    verdict = check_teacher(mixture(short), data(), levels=4)
    assert worst_of(verdict, "schedule") == "failure" and "t = 1 has to be noise" in said(verdict)
    # Stable Diffusion's table leaves 7 % of the signal.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    verdict = check_teacher(mixture(Tabulated(torch.cumprod(1 - betas, 0).tolist())), data(), levels=4)
    assert worst_of(verdict, "schedule") == "warning" and "2305.08891" in said(verdict) and verdict.ok


def test_the_wiener_estimate_is_the_gaussian_denoiser_and_the_best_of_the_baselines() -> None:
    x = 0.3 + 0.7 * torch.randn(4096, 1, 2, 2)
    for t in (0.1, 0.5, 0.9):
        subject, findings = subject_of(Gaussian(Cosine(), torch.full((1, 2, 2), 0.3), 0.7), x, None, 0, 4096)
        assert not findings
        mean, own, wiener = baselines(subject, t, subject.noised(t)[0])
        (alpha_t, sigma_t), [level] = Cosine().at(t), denoise(subject, [t])
        assert mean == pytest.approx(0.7, rel=0.02)
        assert own == pytest.approx(sigma_t / alpha_t, rel=0.02)
        assert wiener == pytest.approx(0.7 * sigma_t / (0.49 * alpha_t**2 + sigma_t**2) ** 0.5, rel=0.02)
        assert wiener < min(mean, own)
        assert level.error == pytest.approx(wiener, rel=1e-3)
        assert (level.mean, level.input, level.wiener) == (mean, own, wiener)
        assert level.log_snr == pytest.approx(2 * math.log(alpha_t / sigma_t))


def test_samples_that_are_not_finite_are_none() -> None:
    nan = GaussianMixture(Cosine(), torch.full((1, *SHAPE), torch.nan), 1.0)
    subject, _ = subject_of(nan, data(), None, 0, 16)
    samples, [finding] = check_sampling(subject)
    assert samples is None and finding.state == "failure" and "not finite" in finding.text
