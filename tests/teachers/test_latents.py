"""Latents are scaled as their model was trained, and the decoder is the pipeline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsno.teachers.diffusers import load_diffusers
from dsno.teachers.latents import Latents, load_decoder
from dsno.teachers.schedulers import grid_from_scheduler
from pipelines import BETAS, N, diffusers, images, make_unet, make_vae, noise, ours, pipeline_images

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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
