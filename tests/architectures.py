"""Real architectures, small and with every parameter counting, as teachers."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.denoise import Kind, Prediction
from dsno.nets.backbone import Backbone
from dsno.nets.iddpm import IDDPMUNet
from dsno.nets.preconditioned import PreconditionedUNet
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule


def randomise(net: nn.Module) -> nn.Module:
    """Give every parameter weight in the result: networks start with zeros in many places."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=max(parameter[0].numel() if parameter.ndim else 1, 4) ** -0.5 / 2)
    return net.eval()


def edm(kind: str, **options: Any) -> PreconditionedUNet:
    net = {"type": kind, "img_resolution": 8, "model_channels": 8, "num_blocks": 1, "channel_mult": [1, 2], **options}
    if kind != "MagnitudeUNet":
        net |= {"in_channels": 2, "out_channels": 2}
    else:
        net |= {"img_channels": 2, "channels_per_head": 4}
    return PreconditionedUNet({**net, "attn_resolutions": [4]})


def diffusers_net(name: str, **options: Any) -> nn.Module:
    from dsno.nets.diffusers import DiffusersNet

    return DiffusersNet(name, options, "flow" if name.startswith("SD3") else "steps", text_length=6)


STAGES = dict(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, sample_size=8, attention_head_dim=4)
MAKE: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: UNet(1, 8, (8, 16), head_dim=8, classes=5),
    "UNet of signals": lambda: UNet(2, (16,), (8, 16), head_dim=8),
    "IDDPM": lambda: IDDPMUNet(1, 8, 8, (1, 2), 1, (4,), classes=5),
    "DDPM++": lambda: edm("SongUNet", label_dim=5),
    "NCSN++": lambda: edm(
        "SongUNet",
        embedding_type="fourier",
        channel_mult_noise=2,
        encoder_type="residual",
        resample_filter=[1, 3, 3, 1],
    ),
    "ADM": lambda: edm("DhariwalUNet", label_dim=5),
    "EDM2": lambda: edm("MagnitudeUNet", label_dim=5),
    "UNet2D": lambda: diffusers_net(
        "UNet2DModel",
        **STAGES,
        in_channels=3,
        out_channels=3,
        num_class_embeds=5,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2DCondition": lambda: diffusers_net(
        "UNet2DConditionModel",
        **STAGES,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "DiT": lambda: diffusers_net(
        "DiTTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        norm_num_groups=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    ),
    "SD3": lambda: diffusers_net(
        "SD3Transformer2DModel",
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
    ),
}
EDM = ("DDPM++", "NCSN++", "ADM", "EDM2")


@cache
def teacher(name: str) -> Prediction:
    torch.manual_seed(0)
    net = randomise(MAKE[name]())
    path: tuple[Schedule, Kind] = (VE(80.0), "edm") if name in EDM else (Cosine(), "v")
    path = (RectifiedFlow(), "flow") if name == "SD3" else path
    assert isinstance(net, Backbone)
    return Prediction(net, *path, data_std=0.5, shape=net.shape, classes=net.classes).eval()


def inputs(name: str, rows: int = 3, weight: bool = False) -> tuple[Tensor, Cond | None]:
    net: Any = teacher(name).net
    g = torch.Generator().manual_seed(2)
    cond: dict[str, Tensor] = {k: torch.randn(rows, *shape, generator=g) for k, shape in net.tokens.items()}
    if net.classes is not None:
        cond["label"] = torch.randint(net.classes, (rows,), generator=g)
    if weight:
        cond["weight"] = 4 * torch.rand(rows, generator=g)
    return torch.randn(rows, *net.shape, generator=g), cond or None
