"""A diffusers model is the same model here: its x0 at every training step, and its pipeline's images.

All models are tiny and random, written by `save_pretrained` of the real pipelines and read back from the disk. Where
only the coefficients are compared, both sides compute in float64: alpha goes down to 1e-6 here, and divides what
float32 rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsno.denoise import Guided, Prediction, Threshold, expand_like
from dsno.grids import uniform
from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.nets.diffusers import DiffusersNet
from dsno.schedule import VE, RectifiedFlow, Tabulated
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import solve
from dsno.solvers.step import Step
from dsno.teachers.diffusers import load_diffusers, wrap_diffusers
from dsno.teachers.latents import Latents, load_decoder
from dsno.teachers.native import load_native, save_teacher
from dsno.teachers.prompts import encode_prompts, null_cond
from dsno.teachers.schedulers import SCHEDULERS, grid_from_scheduler, load_scheduler, read_convention

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

K, N = 50, 7
BETAS = {"num_train_timesteps": K, "beta_start": 0.002, "beta_end": 0.25}


def make_unet(**settings: Any) -> Any:
    torch.manual_seed(1)
    return diffusers.UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "attention_head_dim": 8,
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            **settings,
        }
    ).eval()


def make_text_unet(**settings: Any) -> Any:
    torch.manual_seed(2)
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "attention_head_dim": 4,
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 16,
            **settings,
        }
    ).eval()


def make_dit() -> Any:
    torch.manual_seed(3)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    return model.eval()


def make_sd3() -> Any:
    torch.manual_seed(4)
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    ).eval()


def make_vae(**settings: Any) -> Any:
    torch.manual_seed(5)
    return diffusers.AutoencoderKL(
        block_out_channels=(8,),
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        scaling_factor=0.3,
        **settings,
    ).eval()


def make_tokenizer(folder: Path) -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=12)


def make_text_encoder(seed: int = 6, projection: bool = False) -> Any:
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=16,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of real pipelines, by name."""
    out = tmp_path_factory.mktemp("pipelines")
    tokenizer = make_tokenizer(out / "words")
    ddim = diffusers.DDIMScheduler
    latent = {**BETAS, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False}
    clip = make_text_encoder(), make_text_encoder(7, True), make_text_encoder(8, True)
    pipelines = {
        "ddpm": diffusers.DDPMPipeline(make_unet(), diffusers.DDPMScheduler(**BETAS)),
        "ddim": diffusers.DDIMPipeline(make_unet(), ddim(**BETAS, clip_sample=False)),
        "dit": diffusers.DiTPipeline(make_dit(), make_vae(), ddim(**{**latent, "set_alpha_to_one": True})),
        "sd": diffusers.StableDiffusionPipeline(
            make_vae(), clip[0], tokenizer, make_text_unet(), ddim(**latent, steps_offset=1), None, None, None, False
        ),
        "sd3": diffusers.StableDiffusion3Pipeline(
            make_sd3(),
            diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            make_vae(shift_factor=0.1),
            clip[1],
            tokenizer,
            clip[2],
            tokenizer,
            None,
            None,
        ),
    }
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(out / name)
    return {name: out / name for name in pipelines}


def images(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


def pipeline_images(folder: Path, **arguments: Any) -> Tensor:
    """What the pipeline itself makes from the seed 0, (B, C, H, W)."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, made in index.items() if made == [None, None]}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(generator=torch.Generator().manual_seed(0), output_type="np", **arguments).images
    return torch.as_tensor(made).permute(0, 3, 1, 2)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ours(teacher: Any, schedule: Any, z: Tensor, grid: Tensor, cond: Any = None, step: Step | None = None) -> Tensor:
    # The pipelines start at z itself, not at sigma z.
    return solve(teacher, schedule, z, grid, step, cond).x[:, -1]


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
    with pytest.raises(ValueError, match="cannot be larger"):
        grid_from_scheduler(diffusers.DDIMScheduler(**BETAS), 51)


# Pipelines


def test_ddpm_pipeline(folders: dict[str, Path]) -> None:
    teacher = load_diffusers(folders["ddpm"])
    assert (teacher.kind, teacher.clip, teacher.shape, teacher.classes) == ("eps", 1.0, (3, 8, 8), None)
    assert isinstance(teacher.schedule, Tabulated)
    want = pipeline_images(folders["ddpm"], batch_size=2, num_inference_steps=10)
    drawn = torch.Generator().manual_seed(0)
    # The pipeline draws z, then the noise of each step but the last.
    tape = torch.stack([torch.randn(2, 3, 8, 8, generator=drawn) for _ in range(10)] + [torch.zeros(2, 3, 8, 8)])
    grid = grid_from_scheduler(folders["ddpm"], 10)
    with torch.no_grad():
        x = solve(teacher, teacher.schedule, tape[0], grid, Ancestral(), tape=tape[1:]).x[:, -1]
    torch.testing.assert_close(images(x), want, rtol=0, atol=1e-4)


DDIM_CASES = {
    "plain": {"clip_sample": False},
    "clip": {"clip_sample": True},
    "clip-range": {"clip_sample": True, "clip_sample_range": 0.5},
    "threshold": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    "trailing": {"clip_sample": True, "timestep_spacing": "trailing"},
    "offset": {"clip_sample": True, "steps_offset": 1, "set_alpha_to_one": False},
    "v": {
        "clip_sample": True,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}


@pytest.mark.parametrize("case", DDIM_CASES)
@pytest.mark.parametrize("steps", [1, 5])
def test_ddim_pipeline(folders: dict[str, Path], tmp_path: Path, case: str, steps: int) -> None:
    # 5 divides the 50 training steps, so that `trailing` steps as far down as it says.
    scheduler = diffusers.DDIMScheduler(**BETAS, **DDIM_CASES[case])
    unet = diffusers.UNet2DModel.from_pretrained(folders["ddim"] / "unet")
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(tmp_path)
    teacher = load_diffusers(tmp_path)
    # By default DDIMScheduler puts a clipped x0 and the noise of the unclipped one together; we, and this option, the
    # noise that belongs to the clipped x0. Without clipping there is no difference.
    want = pipeline_images(tmp_path, batch_size=2, num_inference_steps=steps, use_clipped_model_output=True)
    x = ours(teacher, teacher.schedule, noise(2, 3, 8, 8), grid_from_scheduler(tmp_path, steps))
    torch.testing.assert_close(images(x), want, rtol=0, atol=1e-4)
    default = pipeline_images(tmp_path, batch_size=2, num_inference_steps=steps)
    last_is_data = steps == 1 and case != "offset"
    assert torch.allclose(images(x), default, atol=1e-4) == (case == "plain" or last_is_data)


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


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_dit_pipeline(folders: dict[str, Path], scale: float) -> None:
    teacher, decoder = load_diffusers(folders["dit"]), load_decoder(folders["dit"])
    assert (teacher.shape, teacher.classes) == ((4, 8, 8), 1000)
    assert isinstance(decoder, Latents)
    labels = torch.tensor([3, 999])
    want = pipeline_images(folders["dit"], class_labels=labels.tolist(), guidance_scale=scale, num_inference_steps=N)
    guided = Guided(teacher, null_cond(folders["dit"]), scale - 1)
    z = ours(guided, teacher.schedule, noise(2, 4, 8, 8), grid_from_scheduler(folders["dit"], N), labels)
    torch.testing.assert_close(images(decoder(z)), want, rtol=0, atol=1e-4)
    other = ours(guided, teacher.schedule, noise(2, 4, 8, 8), grid_from_scheduler(folders["dit"], N), labels.flip(0))
    assert not torch.allclose(other, z, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_stable_diffusion_pipeline(folders: dict[str, Path], scale: float) -> None:
    folder = folders["sd"]
    teacher, decoder, prompts = load_diffusers(folder), load_decoder(folder), ["a cat", "two owls"]
    assert isinstance(decoder, Latents)
    assert isinstance(teacher.net, DiffusersNet)
    assert teacher.net.tokens == {"text": (12, 16)}
    cond = encode_prompts(folder, prompts)
    assert {k: v.shape for k, v in cond.items()} == {"text": (2, 12, 16)}
    null = null_cond(folder)
    want = pipeline_images(folder, prompt=prompts, guidance_scale=scale, num_inference_steps=N)
    guided = Guided(teacher, null, scale - 1)
    z = ours(guided, teacher.schedule, noise(2, 4, 8, 8), grid_from_scheduler(folder, N), cond["text"])
    torch.testing.assert_close(images(decoder(z)), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_stable_diffusion_3_pipeline(folders: dict[str, Path], scale: float) -> None:
    folder = folders["sd3"]
    teacher, decoder, prompts = load_diffusers(folder), load_decoder(folder), ["a cat", "two owls"]
    assert isinstance(decoder, Latents)
    assert (teacher.schedule, teacher.kind) == (RectifiedFlow(), "flow")
    cond, null = encode_prompts(folder, prompts), null_cond(folder)
    assert isinstance(teacher.net, DiffusersNet)
    assert teacher.net.tokens == {k: tuple(v.shape[1:]) for k, v in cond.items()}
    want = pipeline_images(folder, prompt=prompts, guidance_scale=scale, num_inference_steps=N, height=8, width=8)
    guided = Guided(teacher, null, scale - 1)
    grid = grid_from_scheduler(folder, N)
    z = ours(guided, teacher.schedule, noise(2, 4, 8, 8), grid, cond)
    torch.testing.assert_close(images(decoder(z)), want, rtol=0, atol=1e-4)
    assert (grid - uniform(N)).abs().max() > 0.1


def test_stable_diffusion_xl_network_is_told_its_sizes() -> None:
    unet = make_text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=48 + 10
    )
    teacher = wrap_diffusers(unet, diffusers.EulerDiscreteScheduler(**BETAS), time_ids=(64, 64, 0, 0, 64, 64))
    x, text, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 16), torch.randn(2, 10)
    assert isinstance(teacher.net, DiffusersNet)
    assert teacher.net.tokens == {"text": (77, 16), "pooled": (10,)}

    def raw(*ids: float) -> Tensor:
        told = {"text_embeds": pooled, "time_ids": torch.tensor([ids] * 2)}
        return unet(x, 19, text, added_cond_kwargs=told).sample

    with torch.no_grad():
        t, cond = torch.full((2,), 0.4), {"text": text, "pooled": pooled}
        torch.testing.assert_close(teacher.net(x, t, cond), raw(64.0, 64, 0, 0, 64, 64), rtol=0, atol=1e-5)
        cropped = {**cond, "time_ids": torch.tensor([[64.0, 64, 8, 8, 64, 64]] * 2)}
        torch.testing.assert_close(teacher.net(x, t, cropped), raw(64.0, 64, 8, 8, 64, 64), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="pass time_ids"):
        wrap_diffusers(unet, diffusers.EulerDiscreteScheduler(**BETAS))


# Latents


@pytest.mark.parametrize(
    "settings", [{}, {"shift_factor": 0.2}, {"latents_mean": [1, 2, 3, 4], "latents_std": [4, 3, 2, 1]}]
)
def test_latents_are_scaled_and_back(settings: dict[str, Any]) -> None:
    # Stable Diffusion scales by one factor, its third version shifts as well, some of the XL ones have channels of
    # their own.
    vae = make_vae(**settings)
    latents, images = Latents(vae, rows=2), torch.rand(5, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        mean = vae.encode(images).latent_dist.mode()
        std = torch.tensor(settings.get("latents_std", [1.0] * 4)).reshape(1, 4, 1, 1)
        shift = torch.tensor(settings.get("latents_mean", [settings.get("shift_factor", 0.0)] * 4)).reshape(1, 4, 1, 1)
        z = latents.encode(images)
        torch.testing.assert_close(z, (mean - shift) / std * 0.3, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(latents(z), vae.decode(mean).sample.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="rows=0"):
        Latents(vae, rows=0)


def test_pixel_models_have_no_decoder(folders: dict[str, Path]) -> None:
    assert load_decoder(folders["ddpm"]) is None


def test_a_vector_quantised_autoencoder_is_one(tmp_path: Path) -> None:
    vq = diffusers.VQModel(
        block_out_channels=(8,), latent_channels=3, norm_num_groups=4, num_vq_embeddings=16, scaling_factor=0.5
    )
    diffusers.LDMPipeline(vq, make_unet(), diffusers.DDIMScheduler(**BETAS, clip_sample=False)).save_pretrained(
        tmp_path
    )
    teacher, decoder = load_diffusers(tmp_path), load_decoder(tmp_path)
    assert decoder is not None
    want = pipeline_images(tmp_path, batch_size=2, num_inference_steps=N)
    z = ours(teacher, teacher.schedule, noise(2, 3, 8, 8), grid_from_scheduler(tmp_path, N))
    with torch.no_grad():
        torch.testing.assert_close(images(decoder(z)), want, rtol=0, atol=1e-4)
        assert decoder.encode(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)


# The network as a backbone


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dit", "sd", "sd3"])
def test_saved_as_our_own_it_is_the_same(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    teacher = load_diffusers(folders[name])
    again = load_native(save_teacher(tmp_path / "teacher", teacher))
    assert isinstance(teacher.net, Backbone)
    assert (again.schedule, again.kind, again.clip) == (teacher.schedule, teacher.kind, teacher.clip)
    torch.manual_seed(0)
    x, t, *cond = (torch.randn_like(v) if isinstance(v, Tensor) and v.ndim == 4 else v for v in arguments(teacher))
    with torch.no_grad():
        want = teacher(x, t, *cond)
        torch.testing.assert_close(again(x, t, *cond), want, rtol=0, atol=0)
    assert want.shape == x.shape
    for block in teacher.net.blocks:
        held = dict(teacher.net.named_modules())
        assert block in held if isinstance(block, str) else any(isinstance(m, block) for m in held.values())


def arguments(teacher: Prediction) -> tuple[Any, ...]:
    assert isinstance(teacher.net, Backbone)
    parameter = next(teacher.net.parameters())
    x, _, *cond = example(teacher.net, parameter, 2)
    return x, torch.full((2,), 0.5), *cond


@pytest.mark.parametrize("name", ["ddpm", "dit", "sd", "sd3"])
def test_the_embedding_is_where_it_says(folders: dict[str, Path], name: str) -> None:
    teacher = load_diffusers(folders[name])
    assert isinstance(teacher.net, Backbone)
    shapes = []
    for module in map(teacher.net.get_submodule, teacher.net.embedding):
        module.register_forward_hook(lambda m, args, output: shapes.append(output.shape))
    x, t, *cond = arguments(teacher)
    with torch.no_grad():
        teacher(x, t, *cond)
    assert shapes
    assert {s[0] for s in shapes} == {2}
    assert {len(s) for s in shapes} == {2}


@pytest.mark.parametrize("name", ["ddpm", "dit", "sd", "sd3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_take_states_of_any_dtype(
    folders: dict[str, Path], name: str, dtype: torch.dtype
) -> None:
    full, half = load_diffusers(folders[name]), load_diffusers(folders[name], dtype)
    x, t, *cond = arguments(full)
    x = torch.randn_like(x)
    with torch.no_grad():
        want, got = full(x, t, *cond), half(x, t, *cond)
        assert got.dtype == torch.float32
        # A few parts in 2^8 (bfloat16) of a network output of about one.
        assert (want - got).abs().max() < 0.1
        # Steps 998 and 999 are one number in bfloat16: that they differ is t in float32.
        late = torch.full_like(t, 0.999)
        assert isinstance(half.net, DiffusersNet)
        assert half.net.time(late).dtype == torch.float32
        assert half(x.to(dtype), t, *cond).dtype == dtype


def test_times_between_training_steps_are_told_as_fractions() -> None:
    net = DiffusersNet(make_unet(), steps=1000)
    whole = net.time((torch.arange(1000) + 1).float() / 1000)
    assert torch.equal(whole, torch.arange(1000).float())
    torch.testing.assert_close(net.time(torch.tensor([0.0, 0.5005])), torch.tensor([0.0, 499.5]))
    slope = torch.func.grad(lambda t: net.time(t))(torch.tensor(0.5))
    assert float(slope) == 1000
    # An embedding with one row for each training step has no fractions.
    learned = DiffusersNet(make_unet(time_embedding_type="learned", num_train_timesteps=K), steps=K)
    assert learned.time(torch.tensor([0.0, 0.31, 1.0])).tolist() == [0, 14, 49]


@pytest.mark.parametrize(
    ("settings", "cond", "classes"),
    [
        ({"num_class_embeds": 5}, torch.tensor([1, 4]), 5),
        ({"class_embed_type": "timestep"}, torch.tensor([1, 4]), None),
        ({"class_embed_type": "identity"}, torch.randn(2, 32), None),
    ],
    ids=["labels", "numbers", "vectors"],
)
def test_class_conditional_unets(settings: dict[str, Any], cond: Tensor, classes: int | None) -> None:
    unet = make_unet(**settings)
    teacher = wrap_diffusers(unet, diffusers.DDPMScheduler(**BETAS))
    assert teacher.classes == classes
    x, t = torch.randn(2, 3, 8, 8), torch.full((2,), 0.4)
    with torch.no_grad():
        torch.testing.assert_close(teacher.net(x, t, cond), unet(x, 19, class_labels=cond).sample)
        assert not torch.allclose(teacher.net(x, t, cond), teacher.net(x, t, cond.flip(0)))
        x, t, told = arguments(teacher)
        teacher(x, t, told)
    with pytest.raises(ValueError, match="UNet2DModel needs a condition: pass (label|pooled) as cond"):
        teacher(x, t)


def test_learned_variances_are_dropped() -> None:
    unet = make_unet(out_channels=6)
    teacher = wrap_diffusers(unet, diffusers.DDPMScheduler(**BETAS, variance_type="learned_range"))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(teacher.net(x, torch.full((2,), 0.4)), unet(x, 19).sample[:, :3])


def test_dit_does_not_forget_labels_in_training(folders: dict[str, Path]) -> None:
    net = load_diffusers(folders["dit"]).net.train()
    x, t, label = torch.randn(64, 4, 8, 8), torch.full((64,), 0.5), torch.zeros(64, dtype=torch.long)
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, label), net.eval()(x, t, label))


def test_networks_we_cannot_read_are_refused(folders: dict[str, Path]) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS)
    with pytest.raises(ValueError, match="takes 9 channels and gives 4"):
        wrap_diffusers(make_text_unet(in_channels=9), scheduler)
    with pytest.raises(ValueError, match="time_cond_proj_dim=8 is not supported"):
        wrap_diffusers(make_text_unet(time_cond_proj_dim=8), scheduler)
    with pytest.raises(ValueError, match="unknown network class Linear: expected one of UNet2DModel"):
        wrap_diffusers(torch.nn.Linear(2, 2), scheduler)
    with pytest.raises(ValueError, match=r"no sample_size: pass shape=\(C, H, W\)"):
        wrap_diffusers(make_unet(sample_size=None), scheduler)
    assert wrap_diffusers(make_unet(sample_size=None), scheduler, shape=(3, 16, 8)).shape == (3, 16, 8)
    with pytest.raises(ValueError, match="unconditional"):
        load_diffusers(folders["ddpm"])(torch.zeros(1, 3, 8, 8), torch.ones(1), torch.tensor([1]))
    with pytest.raises(ValueError, match="name no null label"):
        null_cond(folders["ddpm"])
    with pytest.raises(ValueError, match="unknown text pipeline DDPMPipeline"):
        encode_prompts(folders["ddpm"], "a cat")
    with pytest.raises(ValueError, match="unknown key 'setings' in the configuration of a DiffusersNet"):
        net_from_config({"name": "DiffusersNet", "model": "UNet2DModel", "setings": {}})


def test_a_pipeline_in_memory_is_a_teacher_too(folders: dict[str, Path]) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None)
    teacher, decoder = load_diffusers(pipe), load_decoder(pipe)
    assert decoder is not None
    stored = load_diffusers(folders["sd"])
    assert isinstance(teacher.net, DiffusersNet)
    assert isinstance(stored.net, DiffusersNet)
    assert teacher.net.config == stored.net.config
    torch.testing.assert_close(encode_prompts(pipe, "a cat"), encode_prompts(folders["sd"], ["a cat"]))
    torch.testing.assert_close(null_cond(pipe), null_cond(folders["sd"]))
    assert load_scheduler(pipe).config == load_scheduler(folders["sd"]).config
    with pytest.raises(ValueError, match="a dict has neither a unet nor a transformer"):
        load_diffusers({})
