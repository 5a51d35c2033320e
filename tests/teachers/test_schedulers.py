"""A scheduler of diffusers says what a model was trained on, and where it would call it.

Where only the coefficients are compared, both sides compute in float64: alpha goes down to 1e-6 here, and divides what
float32 rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsno.denoise import Threshold, expand_like
from dsno.schedule import VE, RectifiedFlow, Tabulated
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import solve
from dsno.solvers.step import Step
from dsno.teachers.diffusers import wrap_diffusers
from dsno.teachers.schedulers import SCHEDULERS, grid_from_scheduler, load_scheduler, read_convention
from pipelines import BETAS, K, diffusers, make_unet, ours

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# The denoiser of every scheduler


def stepped(scheduler: Any, raw: Tensor, x: Tensor, k: int) -> Tensor:
    """`pred_original_sample` of schedulers that keep x_t itself."""
    return scheduler.step(raw, k, x).pred_original_sample


def stepped_scaled(scheduler: Any, raw: Tensor, x: Tensor, k: int) -> Tensor:
    """Of schedulers that keep x_t / alpha_t."""
    scheduler._step_index, scheduler.dt, scheduler.is_scale_input_called = None, None, True
    t = torch.tensor(float(k))
    return scheduler.step(raw, t, x / scheduler.alphas_cumprod[k].sqrt()).pred_original_sample


def converted(scheduler: Any, raw: Tensor, x: Tensor, k: int) -> Tensor:
    """Of multistep solvers, whose `step` does not say."""
    scheduler._step_index = int((scheduler.timesteps == k).nonzero())
    return scheduler.convert_model_output(raw, sample=x)


TRAILING = {**BETAS, "timestep_spacing": "trailing"}
CASES: dict[str, tuple[str, dict[str, Any], Callable[..., Tensor]]] = {
    "ddpm-eps-clip": ("DDPMScheduler", BETAS, stepped),
    "ddpm-v-cosine": (
        "DDPMScheduler",
        {**BETAS, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": False},
        stepped,
    ),
    "ddpm-x0-sigmoid": (
        "DDPMScheduler",
        {**BETAS, "beta_schedule": "sigmoid", "prediction_type": "sample", "clip_sample_range": 0.1},
        stepped,
    ),
    "ddpm-eps-cosine": (
        "DDPMScheduler",
        {**BETAS, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
        stepped,
    ),
    "ddpm-trained-betas": (
        "DDPMScheduler",
        {"num_train_timesteps": K, "clip_sample": False, "trained_betas": torch.linspace(0.01, 0.3, K).tolist()},
        stepped,
    ),
    "ddim-thresholding": (
        "DDIMScheduler",
        {
            **BETAS,
            "beta_schedule": "scaled_linear",
            "thresholding": True,
            "dynamic_thresholding_ratio": 0.9,
            "sample_max_value": 1.7,
        },
        stepped,
    ),
    "ddim-zero-snr": (
        "DDIMScheduler",
        {**BETAS, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False},
        stepped,
    ),
    "dpm-eps": ("DPMSolverMultistepScheduler", TRAILING, converted),
    "dpm-threshold": (
        "DPMSolverMultistepScheduler",
        {**TRAILING, "thresholding": True, "sample_max_value": 2.0},
        converted,
    ),
    "unipc-v": ("UniPCMultistepScheduler", {**TRAILING, "prediction_type": "v_prediction"}, converted),
    "euler-eps": ("EulerDiscreteScheduler", TRAILING, stepped_scaled),
    "euler-v": ("EulerDiscreteScheduler", {**TRAILING, "prediction_type": "v_prediction"}, stepped_scaled),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", TRAILING, stepped_scaled),
    "heun-clip": ("HeunDiscreteScheduler", {**TRAILING, "clip_sample": True}, stepped_scaled),
    "lms": ("LMSDiscreteScheduler", TRAILING, stepped_scaled),
}


@pytest.mark.parametrize("case", CASES)
def test_x0_is_the_schedulers_at_every_training_step(case: str) -> None:
    name, config, reference = CASES[case]
    scheduler = getattr(diffusers, name)(**config)
    unet = make_unet().double()
    teacher = wrap_diffusers(unet, scheduler)
    scheduler.set_timesteps(K)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    k = torch.arange(K)
    t = (k.double() + 1) / K
    alpha_t, sigma_t = (expand_like(c, torch.ones(1, 1, 1, 1)).double() for c in teacher.schedule(t))
    x = alpha_t * 0.5 + sigma_t * torch.randn(K, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        raw, got = unet(x, k).sample, teacher(x, t)
    want = torch.cat([reference(scheduler, raw[i : i + 1], x[i : i + 1], i) for i in range(K)])
    # DDPM and DDIM read their table in float64 like ours; the others keep float32 copies of sigma, which alpha divides.
    loose = 1.0 if reference is stepped else (1 / alpha_t).clamp_min(1)
    assert ((got - want).abs() / loose).max() < 1e-5
    assert got.std() > 0.05


@pytest.mark.parametrize("clip", [False, True])
def test_x0_in_float32_differs_by_rounding_only(clip: bool) -> None:
    # What float32 loses is a few 1e-7 of x_t, and x0 = (x_t - sigma eps) / alpha divides it: compared times alpha.
    scheduler = diffusers.DDIMScheduler(**{**BETAS, "beta_schedule": "squaredcos_cap_v2", "clip_sample": clip})
    unet = make_unet()
    teacher = wrap_diffusers(unet, scheduler)
    scheduler.set_timesteps(K)
    k, x = torch.arange(K), torch.randn(K, 3, 8, 8)
    t = (k.float() + 1) / K
    with torch.no_grad():
        raw, got = unet(x, k).sample, teacher(x, t)
    want = torch.cat([stepped(scheduler, raw[i : i + 1], x[i : i + 1], i) for i in range(K)])
    alpha_t, _ = teacher.schedule(t)
    assert ((got - want) * expand_like(alpha_t, x)).abs().max() < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_schedulers_are_edm(name: str, prediction: str) -> None:
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=K, prediction_type=prediction, sigma_data=0.4, sigma_max=20.0
    )
    unet = make_unet()
    teacher = wrap_diffusers(unet, scheduler)
    assert teacher.schedule == VE(20.0)
    assert (teacher.kind, teacher.data_std) == ("edm", 0.4)
    for sigma in (0.002, 0.3, 20.0):
        x = 0.4 * torch.randn(2, 3, 8, 8) + sigma * torch.randn(2, 3, 8, 8)
        level = torch.tensor(sigma)
        with torch.no_grad():
            raw = unet(scheduler.precondition_inputs(x, level), scheduler.precondition_noise(level)).sample
            got = teacher(x, level / 20)
        torch.testing.assert_close(got, scheduler.precondition_outputs(x, raw, level), rtol=1e-5, atol=1e-5)
    grid = grid_from_scheduler(scheduler, 5)
    scheduler.set_timesteps(5)
    torch.testing.assert_close(20 * grid.float(), scheduler.sigmas, rtol=1e-6, atol=0)
    assert teacher(x, torch.zeros(2)).isfinite().all()


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_flow_schedulers_are_rectified_flow_whatever_their_shift(name: str) -> None:
    flow: dict[str, Any] = {"shift": 3.0}
    if not name.startswith("Flow"):
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    scheduler = getattr(diffusers, name)(**flow)
    unet = make_unet()
    teacher = wrap_diffusers(unet, scheduler)
    assert teacher.schedule == RectifiedFlow()
    x, t = torch.randn(5, 3, 8, 8), torch.tensor([0.001, 0.25, 0.5, 0.75, 1.0])
    with torch.no_grad():
        want = x - expand_like(t, x) * unet(x, 1000 * t).sample
        torch.testing.assert_close(teacher(x, t), want, rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(6)
    torch.testing.assert_close(grid_from_scheduler(scheduler, 6).float(), scheduler.sigmas, rtol=1e-6, atol=1e-7)


def test_pndm_states_what_ddim_does() -> None:
    settings = {**BETAS, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    pndm = read_convention(diffusers.PNDMScheduler(**settings, skip_prk_steps=True))
    assert pndm == read_convention(diffusers.DDIMScheduler(**settings, clip_sample=False))
    grid = grid_from_scheduler(diffusers.PNDMScheduler(**settings, skip_prk_steps=True, steps_offset=1), 5)
    assert (K * grid - 1).round().int().tolist() == [41, 31, 21, 11, 1, 0]


def test_clipping_is_read() -> None:
    def clip(**settings: Any) -> float | Threshold | None:
        return read_convention(diffusers.DDIMScheduler(**BETAS, **settings)).clip

    assert clip() == 1.0
    assert clip(clip_sample=False) is None
    assert clip(clip_sample_range=3.0) == 3.0
    assert clip(thresholding=True, sample_max_value=2.5) == Threshold(0.995, 2.5)


def test_zero_terminal_snr_is_a_floor_under_the_last_step() -> None:
    schedule = read_convention(diffusers.DDIMScheduler(**BETAS, rescale_betas_zero_snr=True)).schedule
    alpha_t, sigma_t = schedule.at(1.0)
    assert alpha_t == pytest.approx(1e-6)
    assert sigma_t == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, f"unknown scheduler ScoreSdeVeScheduler: .*{', '.join(SCHEDULERS)}"),
        ({"_class_name": "LCMScheduler"}, "a student and no teacher"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "noise"}, "unknown prediction_type 'noise'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "inverted sigmas"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous"),
    ],
)
def test_schedulers_we_cannot_read_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_convention(config)


# Grids


def pipeline_loop(unet: Any, scheduler: Any, z: Tensor, steps: int) -> Tensor:
    """What every diffusers pipeline does between noise and image."""
    scheduler.set_timesteps(steps)
    x = z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        raw = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(raw, t, x).prev_sample
    return x


@pytest.mark.parametrize("last", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(
    ("name", "settings", "step"),
    [
        ("EulerDiscreteScheduler", {}, DDIM()),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}, DDIM()),
        ("DPMSolverMultistepScheduler", {"lower_order_final": False}, DPMSolverPP(2)),
    ],
    ids=["euler", "dpm1", "dpm2"],
)
def test_grids_of_samplers_with_noise_levels(
    name: str, settings: dict[str, Any], step: Step, spacing: str, last: str
) -> None:
    config = {**BETAS, "prediction_type": "v_prediction", "timestep_spacing": spacing, "final_sigmas_type": last}
    scheduler, unet, z = getattr(diffusers, name)(**config, **settings), make_unet(), torch.randn(2, 3, 8, 8)
    # Eight steps: 49 / 7 and 49 / 8 are where Euler's are whole numbers.
    teacher, grid = wrap_diffusers(unet, scheduler), grid_from_scheduler(scheduler, 8)
    with torch.no_grad():
        want = pipeline_loop(unet, scheduler, z, 8)
    alpha_t, _ = teacher.schedule.at(float(grid[0]))
    start = z * scheduler.init_noise_sigma * (alpha_t if name.startswith("Euler") else 1.0)
    got = ours(teacher, teacher.schedule, start, grid, step=step)
    alpha_s, _ = teacher.schedule.at(float(grid[-1]))
    torch.testing.assert_close(got / (alpha_s if name.startswith("Euler") else 1.0), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("setting", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_grids_keep_the_noise_levels_of_other_spacings(setting: str) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, **{setting: True})
    grid = grid_from_scheduler(scheduler, 6)
    scheduler.set_timesteps(6)
    alpha_t, sigma_t = read_convention(scheduler).schedule(grid)
    # Snapping to a whole step moves a time by less than 1e-3 of a step.
    torch.testing.assert_close((sigma_t / alpha_t).float(), scheduler.sigmas, rtol=2e-4, atol=1e-6)


def test_grids_of_heun_and_of_dynamic_shifts() -> None:
    heun = grid_from_scheduler(diffusers.HeunDiscreteScheduler(**BETAS), 5)
    assert len(heun) == 6
    flow = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    grid = grid_from_scheduler(flow, 4, mu=0.5)
    flow.set_timesteps(4, mu=0.5)
    torch.testing.assert_close(grid.float(), flow.sigmas, rtol=1e-6, atol=1e-7)


def test_grids_end_where_the_scheduler_ends() -> None:
    def steps(**settings: Any) -> list[int]:
        grid = grid_from_scheduler(diffusers.DDIMScheduler(**BETAS, **settings), 5)
        return [round(k) for k in (K * grid - 1).tolist()]

    assert steps() == [40, 30, 20, 10, 0, -1]
    assert steps(steps_offset=1) == [41, 31, 21, 11, 1, -1]
    assert steps(steps_offset=1, set_alpha_to_one=False) == [41, 31, 21, 11, 1, 0]
    # Nothing is left to do between the first training step and itself.
    assert steps(set_alpha_to_one=False) == [40, 30, 20, 10, 0]
    assert steps(timestep_spacing="trailing") == [49, 39, 29, 19, 9, -1]
    assert steps(timestep_spacing="linspace") == [49, 37, 24, 12, 0, -1]
    with pytest.raises(ValueError, match="at least one step, got 0"):
        grid_from_scheduler(diffusers.DDIMScheduler(**BETAS), 0)
    with pytest.raises(ValueError, match="DDIMScheduler of 50 training steps takes no 51 steps: .*cannot be larger"):
        grid_from_scheduler(diffusers.DDIMScheduler(**BETAS), 51)


@pytest.mark.parametrize(
    "name, spacing, most, of",
    [
        ("DPMSolverMultistepScheduler", "linspace", 49, 49),  # from 49 down to 1: 0 is the data's
        ("UniPCMultistepScheduler", "trailing", 50, 50),
        ("EulerDiscreteScheduler", "trailing", 50, 50),
        ("EulerAncestralDiscreteScheduler", "leading", 50, 1),
        ("HeunDiscreteScheduler", "trailing", 50, 50),
        ("LMSDiscreteScheduler", "leading", 50, 1),
        ("PNDMScheduler", "leading", 50, 1),
    ],
)
def test_a_grid_of_more_steps_than_there_are_times_is_refused(name: str, spacing: str, most: int, of: int) -> None:
    scheduler = getattr(diffusers, name)(**BETAS, timestep_spacing=spacing)
    assert len(grid_from_scheduler(scheduler, most)) >= most
    message = rf"{most + 1} steps of a {name} of 50 training steps are at {of} different times only.*: take fewer"
    with pytest.raises(ValueError, match=message):
        grid_from_scheduler(scheduler, most + 1)


def test_ddim_steps_shorter_than_its_linspace_says() -> None:
    # The limit that `grid_from_scheduler` documents: with linspace DDIMScheduler leaves the state at k - K // N.
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="linspace")
    unet, z = make_unet(), torch.randn(1, 3, 8, 8)
    teacher, grid = wrap_diffusers(unet, scheduler), grid_from_scheduler(scheduler, 5)
    with torch.no_grad():
        scheduler.set_timesteps(5)
        first = scheduler.step(unet(z, 49).sample, 49, z).prev_sample
        assert scheduler.timesteps.tolist() == [49, 37, 24, 12, 0]
        shorter = solve(teacher, teacher.schedule, z, [1.0, 40 / K]).x[:, -1]
        told = solve(teacher, teacher.schedule, z, grid[:2]).x[:, -1]
    torch.testing.assert_close(first, shorter, rtol=0, atol=1e-5)
    assert not torch.allclose(first, told, atol=1e-2)


# Tables, and what a class would drop

ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


def table(scheduler: Any) -> torch.Tensor:
    schedule = read_convention(scheduler).schedule
    assert isinstance(schedule, Tabulated)
    return torch.exp(-schedule.B[1:])


OLD = {"_class_name": "DDPMScheduler", "predict_epsilon": False}


def test_predict_epsilon_false_is_a_network_that_gives_x0() -> None:
    assert read_convention(OLD).kind == "x0"
    # One in memory states its defaults, too, but says that they are.
    assert read_convention(diffusers.DDPMScheduler.from_config(OLD)).kind == "x0"
    assert read_convention({**OLD, "prediction_type": "sample"}).kind == "x0"
    for said in (True, None):
        assert read_convention({**OLD, "predict_epsilon": said}).kind == "eps"
        assert read_convention({**OLD, "predict_epsilon": said, "prediction_type": "v_prediction"}).kind == "v"
    assert read_convention({**OLD, "predict_epsilon": 0}).kind == "x0"
    with pytest.raises(ValueError, match="predict_epsilon = 'false': expected true or false"):
        load_scheduler({**OLD, "predict_epsilon": "false"})
    with pytest.raises(ValueError, match="predict_epsilon = false, so .* and prediction_type = 'epsilon': leave in"):
        load_scheduler({**OLD, "prediction_type": "epsilon"})


def test_original_sample_is_the_first_name_of_sample() -> None:
    assert read_convention({"_class_name": "EulerDiscreteScheduler", "prediction_type": "original_sample"}).kind == "x0"


@pytest.mark.parametrize("steps", [2000, 3000, 4000])
def test_a_long_table_is_taken_as_it_is(steps: int) -> None:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=steps)
    assert torch.allclose(table(scheduler), scheduler.alphas_cumprod.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("settings", [{"beta_start": 1e-8}, {"num_train_timesteps": 12_000}], ids=["starts", "ends"])
def test_what_float32_does_not_tell_apart_is_computed_in_float64(settings: dict[str, Any]) -> None:
    scheduler = diffusers.DDPMScheduler(**settings)
    found, own = table(scheduler), scheduler.alphas_cumprod.double()
    assert own[0] == 1 or own[-1] == 0
    assert torch.allclose(found.log(), torch.log1p(-scheduler.betas.double()).cumsum(0), rtol=1e-9, atol=0)
    assert torch.allclose(found, own, rtol=1e-4, atol=1e-38)


NAMES = ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep", "DDPM"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_zero_terminal_snr_is_one_table_whoever_samples(name: str, betas: str) -> None:
    expected = table(diffusers.DDIMScheduler(beta_schedule=betas, **ZERO))
    assert expected[-1] == pytest.approx(1e-12)
    assert torch.equal(table(getattr(diffusers, f"{name}Scheduler")(beta_schedule=betas, **ZERO)), expected)


@pytest.mark.parametrize("name", ["PNDM", "HeunDiscrete", "LMSDiscrete"])
def test_it_counts_where_the_class_drops_it(name: str) -> None:
    ddim = diffusers.DDIMScheduler(beta_start=0.001, beta_end=0.02, **ZERO)
    made = getattr(diffusers, f"{name}Scheduler").from_config(ddim.config)
    assert made.alphas_cumprod[-1] > 1e-5
    assert torch.equal(table(made), table(ddim))


def test_the_last_level_lies_below_the_one_before() -> None:
    found = table(diffusers.DDIMScheduler(num_train_timesteps=4000, **ZERO))
    assert found[-2] < 1e-12 and found[-1] == pytest.approx(float(found[-2]) / 2)
    assert table(diffusers.DDIMScheduler(trained_betas=[0.5, 1.0])).tolist() == pytest.approx([0.5, 1e-12])


@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_their_grid_starts_from_pure_noise(name: str) -> None:
    grid = grid_from_scheduler(getattr(diffusers, f"{name}Scheduler")(**ZERO), 4)
    assert grid.tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
