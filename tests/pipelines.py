"""Tiny random models of diffusers, as `save_pretrained` of the real pipelines writes them, and what these make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsno.solvers.run import solve
from dsno.solvers.step import Step

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()

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


def write_pipelines(out: Path) -> dict[str, Path]:
    """The folders of real pipelines, by name."""
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
