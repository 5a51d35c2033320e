"""The same network on the same grid gives what diffusers gives.

Both sides see the same noise-to-signal ratios: a step k of diffusers' table is our t = (k + 1) / 1000. Samples are
float64 here; diffusers keeps its coefficients (and some samples) in float32, so agreement stops near 1e-6.
"""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from dsno.denoise import Kind, Prediction
from dsno.grids import karras
from dsno.schedule import VE, linear_beta
from dsno.seeds import noise, noise_tape, seed_range
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.run import solve
from dsno.solvers.step import Step

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers and NumPy 2

SCHEDULE = linear_beta()
KINDS: dict[str, Kind] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
AGREE = dict(rtol=1e-5, atol=1e-5)

every_kind = pytest.mark.parametrize("prediction_type", KINDS)
spacings = pytest.mark.parametrize("spacing", ["trailing", "linspace"])


class Net(nn.Module):
    """A fixed nonlinear function of state and integer step."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.A, self.B = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        time = (k.double().reshape(-1, 1) + 1) / 1000
        return torch.tanh(x @ self.A + 3 * time) @ self.B / 4


NET = Net()
X = noise(seed_range(0, 3), (4,), dtype=torch.float64)


def ours(
    step: Step, grid: Tensor, prediction_type: str, x: Tensor = X, tape: Tensor | None = None, seeds: Any = None
) -> Tensor:
    denoiser = Prediction(NET, SCHEDULE, KINDS[prediction_type], time=lambda t: (1000 * t - 1).round())
    return solve(denoiser, SCHEDULE, x, grid, step, tape=tape, seeds=seeds).sample


def theirs(scheduler: Any, N: int, x: Tensor = X, **step: Any) -> tuple[Tensor, Tensor]:
    """Run a diffusers scheduler; also return our times of its steps, all but the last."""
    scheduler.set_timesteps(N)
    grid = (scheduler.timesteps.double() + 1) / 1000
    for k in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, k)
        x = scheduler.step(NET(model_input, k), k, x, **step).prev_sample
    return x, grid


def to_data(grid: Tensor) -> Tensor:
    return torch.cat([grid, torch.zeros(1, dtype=torch.float64)])


@every_kind
@pytest.mark.parametrize("N", [1, 10])
def test_ddim(prediction_type: str, N: int) -> None:
    # Trailing spacing starts at the last step and ends at alphas_cumprod = 1, as our grids do; the others start early.
    scheduler = DDIMScheduler(prediction_type=prediction_type, timestep_spacing="trailing", clip_sample=False)
    expected, grid = theirs(scheduler, N)
    torch.testing.assert_close(ours(DDIM(), to_data(grid), prediction_type), expected, **AGREE)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ancestral_is_ddim_with_eta(eta: float) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(10)
    tape, x = noise_tape(seed_range(0, 3), (4,), 10, torch.float64), X
    for k, z in zip(scheduler.timesteps, tape, strict=True):
        x = scheduler.step(NET(x, k), k, x, eta=eta, variance_noise=z).prev_sample
    grid = to_data((scheduler.timesteps.double() + 1) / 1000)
    torch.testing.assert_close(ours(Ancestral(eta), grid, "epsilon", tape=tape), x, **AGREE)


class DPM(DPMSolverMultistepScheduler):
    """diffusers' multistep scheduler with the second difference of its own singlestep scheduler.

    Its third-order multistep update takes half of D2 (as the authors' code does), which leaves it second order; see
    `DPMSolverPP`. The missing half is added here. Nothing else differs.
    """

    def multistep_dpm_solver_third_order_update(self, model_output_list: Any, *args: Any, **kwargs: Any) -> Tensor:
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas.double())
        lam = alpha.log() - sigma.log()
        i = self.step_index
        h, h_0, h_1 = (lam[i + 1 - j] - lam[i - j] for j in range(3))
        m_2, m_1, m_0 = model_output_list[-3:]
        D_2 = ((m_0 - m_1) / h_0 - (m_1 - m_2) / h_1) * h**2 / (h_0 + h_1)
        x = super().multistep_dpm_solver_third_order_update(model_output_list, *args, **kwargs)
        return x - alpha[i + 1] * ((torch.expm1(-h) + h) / h**2 - 0.5) * D_2


@every_kind
@spacings
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("N", [1, 2, 10, 20])
def test_dpm_solver_pp(prediction_type: str, spacing: str, order: int, N: int) -> None:
    # `lower_order_final` lowers the order of the *second* to last step of short runs; we do so only where lambda is
    # infinite, at sigma = 0, which final_sigmas_type="zero" lowers anyway.
    scheduler = DPM(
        solver_order=order,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=False,
        timestep_spacing=spacing,
        prediction_type=prediction_type,
    )
    expected, grid = theirs(scheduler, N)
    torch.testing.assert_close(ours(DPMSolverPP(order), to_data(grid), prediction_type), expected, **AGREE)


@every_kind
@spacings
@pytest.mark.parametrize("N", [1, 2, 10, 20])
def test_unipc(prediction_type: str, spacing: str, N: int) -> None:
    # Order 2 with a final step to sigma = 0: `lower_order_final` takes that step, and only that one, at first order.
    scheduler = UniPCMultistepScheduler(
        solver_order=2,
        solver_type="bh2",
        predict_x0=True,
        final_sigmas_type="zero",
        timestep_spacing=spacing,
        prediction_type=prediction_type,
    )
    expected, grid = theirs(scheduler, N)
    torch.testing.assert_close(ours(UniPC(2), to_data(grid), prediction_type), expected, **AGREE)


@every_kind
@spacings
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("N", [2, 10, 20])
def test_unipc_at_full_order_to_the_end(prediction_type: str, spacing: str, order: int, N: int) -> None:
    # `lower_order_final` would lower order 3 one step before sigma = 0 already; without it the last sigma must be
    # positive, so both stop at step 0 of the table, t = 1 / 1000.
    scheduler = UniPCMultistepScheduler(
        solver_order=order,
        solver_type="bh2",
        predict_x0=True,
        final_sigmas_type="sigma_min",
        lower_order_final=False,
        timestep_spacing=spacing,
        prediction_type=prediction_type,
    )
    expected, grid = theirs(scheduler, N)
    grid = torch.cat([grid, torch.tensor([1e-3], dtype=torch.float64)])
    torch.testing.assert_close(ours(UniPC(order), grid, prediction_type), expected, **AGREE)


@every_kind
@spacings
@pytest.mark.parametrize("N", [1, 10])
def test_euler_is_ddim_in_the_scaled_state(prediction_type: str, spacing: str, N: int) -> None:
    # Euler's scheduler integrates x / alpha in sigma / alpha, where DDIM is Euler's method.
    scheduler = EulerDiscreteScheduler(prediction_type=prediction_type, timestep_spacing=spacing)
    scheduler.set_timesteps(N)
    start = float((scheduler.timesteps[0] + 1) / 1000)
    alpha_1 = SCHEDULE.at(start)[0]
    expected, grid = theirs(scheduler, N, X / alpha_1)
    torch.testing.assert_close(ours(DDIM(), to_data(grid), prediction_type), expected, **AGREE)


@every_kind
@pytest.mark.parametrize("N", [1, 10])
def test_heun_on_the_scaled_state(prediction_type: str, N: int) -> None:
    # The scaled state is a VE path, so Heun in our t is Heun in its sigma; the network still sees the VP state.
    # Unlike the other schedulers, this one does not default to DDPM's betas.
    scheduler = HeunDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, prediction_type=prediction_type, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(N)
    steps = scheduler.timesteps.unique().flip(0)
    grid = to_data((steps.double() + 1) / 1000)
    alpha_t, sigma_t = SCHEDULE(grid)
    sigma = sigma_t / alpha_t
    ve = VE(float(sigma[0]))
    x = expected = X * ve.sigma_max
    vp = Prediction(NET, SCHEDULE, KINDS[prediction_type], time=lambda t: (1000 * t - 1).round())

    def denoiser(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        sigma_t = ve.sigma_max * t
        return vp(x_t / (1 + sigma_t[:, None] ** 2) ** 0.5, SCHEDULE.time(-2 * sigma_t.log()))

    for k in scheduler.timesteps:
        output = NET(scheduler.scale_model_input(expected, k), k)
        expected = scheduler.step(output, k, expected).prev_sample
    actual = solve(denoiser, ve, x, sigma / ve.sigma_max, Heun())
    torch.testing.assert_close(actual.sample, expected, **AGREE)
    assert actual.nfe == len(scheduler.timesteps)


@pytest.mark.parametrize("N", [1, 10, 18])
def test_edm_euler_is_ddim_on_ve(N: int) -> None:
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(N)
    x = expected = 80 * X
    for c_noise in scheduler.timesteps:
        output = NET(scheduler.scale_model_input(expected, c_noise), 100 * c_noise)
        expected = scheduler.step(output, c_noise, expected).prev_sample

    def denoiser(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        sigma, sigma_data = 80 * t[:, None], 0.5
        norm = (sigma**2 + sigma_data**2) ** 0.5
        output = NET(x_t / norm, 100 * sigma.log() / 4)
        return sigma_data**2 / norm**2 * x_t + sigma * sigma_data / norm * output

    torch.testing.assert_close(solve(denoiser, VE(80), x, karras(VE(80), N), DDIM()).sample, expected, **AGREE)
