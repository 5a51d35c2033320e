r"""Between latents and images: the autoencoder of a latent model, and the scale that the model was trained on,

$$ z = (\mathrm{encode}(x) - \mu) \, c, \qquad x = \mathrm{decode}(z / c + \mu). $$

Stable Diffusion has one $c$, its third version one $\mu$ as well, some of the XL models both for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.borrow import borrowed
from dsno.checkpoint import read_json
from dsno.hub import local_copy
from dsno.outside import check, reading
from dsno.teachers.parts import STEM, read_part, with_weights

__all__ = ["Latents", "load_decoder"]


class Latents(nn.Module):
    r"""An autoencoder with the scale of its latents, $\mu$ and $c$; a module that decodes.

    Arguments:
        vae: AutoencoderKL, or VQModel; its weights are shared, and it stays as it is.
        rows: How many samples go through it at once.

    Raises:
        ValueError: unless `rows` is at least 1.
    """

    mean: Tensor
    r"""$\mu$, (1, C, 1, 1) or (1, 1, 1, 1)."""
    scale: Tensor
    """$1 / c$, likewise."""

    def __init__(self, vae: Any, rows: int = 8) -> None:
        super().__init__()
        if not rows >= 1:
            raise ValueError(f"at least one sample goes through the decoder at once, got rows={rows}")
        vae = borrowed(vae)
        self.vae, self.rows = vae.requires_grad_(False).eval(), rows
        mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is None or std is None:
            mean, std = vae.config.get("shift_factor") or 0.0, 1.0
        factor = float(vae.config.get("scaling_factor") or 1.0)
        self.register_buffer("mean", _channels(mean), persistent=False)
        self.register_buffer("scale", _channels(std) / factor, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """`decode`."""
        return self.decode(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1], of the dtype of `latents`."""
        z = (latents * self.scale.to(latents) + self.mean.to(latents)).to(self.vae.dtype)
        images = torch.cat([self.vae.decode(rows, return_dict=False)[0] for rows in z.split(self.rows)])
        return images.clamp(-1, 1).to(latents.dtype)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to the mean of their latents (B, C, h, w)."""
        encoded = [self._encode(rows) for rows in images.to(self.vae.dtype).split(self.rows)]
        z = torch.cat(encoded).to(images.dtype)
        return (z - self.mean.to(z)) / self.scale.to(z)

    def _encode(self, images: Tensor) -> Tensor:
        from diffusers import VQModel

        encoded = self.vae.encode(images)
        return encoded.latents if isinstance(self.vae, VQModel) else encoded.latent_dist.mode()


def _channels(value: float | Sequence[float]) -> Tensor:
    """A number, or one for each channel, to broadcast against (B, C, H, W)."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)


def load_decoder(
    ref: Any, dtype: torch.dtype | None = None, rows: int = 8, variant: str | None = None
) -> Latents | None:
    """What turns a pipeline's latents into images and back, or None where the samples are the images.

    Arguments:
        ref: See `load_diffusers`.
        dtype: The dtype of the autoencoder; float32 by default, and where its configuration says that half is too
            little.
        rows: How many samples go through it at once.
        variant: The variant of the weights, `fp16` say; where there is none of it, those that are no variant.

    Raises:
        FileNotFoundError: if a folder or a file is missing; says which, and which variants there are.
        ValueError: for an autoencoder that we do not know.
    """
    if not isinstance(ref, Path | str):
        held = next((part for name in ("vae", "vqvae") if (part := getattr(ref, name, None)) is not None), None)
        return None if held is None else Latents(held, rows)
    folder = local_copy(ref)
    part = next((p for p in ("vae", "vqvae") if (folder / p / "config.json").is_file()), None)
    if part is None:
        return None
    folder, variant = with_weights(ref, part, STEM, variant, plain=True)
    check(config := read_json(folder / part / "config.json"), dict[str, Any], f"{folder / part / 'config.json'}")
    name = str(config.get("_class_name"))
    if name not in ("AutoencoderKL", "VQModel"):
        raise ValueError(f"unknown autoencoder {name}: expected AutoencoderKL or VQModel")
    if dtype == torch.float16 and config.get("force_upcast", False):
        dtype = None
    import diffusers

    made = getattr(diffusers, name)
    vae = read_part(made, folder / part, dtype, variant)
    with reading(folder / part / "config.json", "describes no autoencoder"):
        return Latents(vae, rows)
