"""The U-Net of guided diffusion: its names are those of published weights, and its forward is written anew here."""

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dsno.nets.backbone import Backbone, net_from_config
from dsno.nets.guided import GuidedUNet

SMALL: dict[str, Any] = {
    "image_size": 8,
    "channels": 8,
    "in_channels": 1,
    "out_channels": 2,
    "ch_mult": (1, 2),
    "blocks": 2,
    "attention": (4,),
    "head_dim": 4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "ddbm": {},
    "plain": {"updown": False, "scale_shift": False, "legacy": False},
    "i2sb": {"paired": False, "clock": "steps"},
}


def perturbed(**options: Any) -> GuidedUNet:
    torch.manual_seed(0)
    net = GuidedUNet(**{**SMALL, **options})
    for p in net.parameters():
        p.data = 0.3 * torch.randn_like(p)
    return net.eval()


def by_hand(w: dict[str, Tensor], x: Tensor, told: Tensor, heads_of: int, legacy: bool) -> Tensor:
    """Guided diffusion's forward from its weights' names alone, (B, 2C or C, H, W)."""

    def norm(h: Tensor, at: str) -> Tensor:
        groups = {8: 8, 16: 16, 24: 8, 32: 32}[h.shape[1]]  # 32 in earnest, as far as they divide
        return F.group_norm(h, groups, w[f"{at}.weight"], w[f"{at}.bias"])

    def conv(h: Tensor, at: str, **how: int) -> Tensor:
        return F.conv2d(h, w[f"{at}.weight"], w[f"{at}.bias"], **{"padding": w[f"{at}.weight"].shape[-1] // 2, **how})

    def residual(h: Tensor, at: str, change: str) -> Tensor:
        r = F.silu(norm(h, f"{at}.in_layers.0"))
        if change == "down":
            h, r = F.avg_pool2d(h, 2), F.avg_pool2d(r, 2)
        if change == "up":
            h, r = (v.repeat_interleave(2, 2).repeat_interleave(2, 3) for v in (h, r))
        r = conv(r, f"{at}.in_layers.2")
        e = F.linear(F.silu(emb), w[f"{at}.emb_layers.1.weight"], w[f"{at}.emb_layers.1.bias"])[..., None, None]
        if e.shape[1] == 2 * r.shape[1]:
            r = norm(r, f"{at}.out_layers.0") * (1 + e[:, : r.shape[1]]) + e[:, r.shape[1] :]
        else:
            r = norm(r + e, f"{at}.out_layers.0")
        r = conv(F.silu(r), f"{at}.out_layers.3")
        return r + (conv(h, f"{at}.skip_connection") if f"{at}.skip_connection.weight" in w else h)

    def attention(h: Tensor, at: str) -> Tensor:
        B, C, H, W = h.shape
        qkv = F.conv1d(norm(h, f"{at}.norm").reshape(B, C, -1), w[f"{at}.qkv.weight"], w[f"{at}.qkv.bias"])
        heads, out = C // heads_of, []
        for k in range(heads):
            if legacy:
                q, key, v = qkv[:, 3 * heads_of * k : 3 * heads_of * (k + 1)].chunk(3, 1)
            else:
                q, key, v = (part[:, heads_of * k : heads_of * (k + 1)] for part in qkv.chunk(3, 1))
            weight = (torch.einsum("bct,bcs->bts", q, key) / heads_of**0.5).softmax(-1)
            out.append(torch.einsum("bts,bcs->bct", weight, v))
        made = F.conv1d(torch.cat(out, 1), w[f"{at}.proj_out.weight"], w[f"{at}.proj_out.bias"])
        return h + made.reshape(B, C, H, W)

    def block(h: Tensor, at: str, way: str) -> Tensor:
        parts = [k for k in range(3) if any(name.startswith(f"{at}.{k}.") for name in w)]
        for k in parts:
            name = f"{at}.{k}"
            if f"{name}.qkv.weight" in w:
                h = attention(h, name)
            elif f"{name}.op.weight" in w:
                h = conv(h, f"{name}.op", stride=2)
            elif f"{name}.conv.weight" in w:
                h = conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), f"{name}.conv")
            else:
                # Of two levels of two blocks: what resamples is the third block down, and the last of the third up.
                third = at in ("input_blocks.3", "output_blocks.2")
                h = residual(h, name, way if third and (way == "down" or k == parts[-1]) else "")
        return h

    half = w["time_embed.0.weight"].shape[1] // 2
    angle = told[:, None] * torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(half) / half)
    emb = F.linear(torch.cat([angle.cos(), angle.sin()], 1), w["time_embed.0.weight"], w["time_embed.0.bias"])
    emb = F.linear(F.silu(emb), w["time_embed.2.weight"], w["time_embed.2.bias"])
    h = conv(x, "input_blocks.0.0")
    held = [h]
    for n in count(1):
        if not any(name.startswith(f"input_blocks.{n}.") for name in w):
            break
        h = block(h, f"input_blocks.{n}", "down")
        held.append(h)
    h = residual(attention(residual(h, "middle_block.0", ""), "middle_block.1"), "middle_block.2", "")
    for n in range(len(held)):
        h = block(torch.cat([h, held.pop()], 1), f"output_blocks.{n}", "up")
    return conv(F.silu(norm(h, "out.0")), "out.2")


@pytest.mark.parametrize("name", VARIANTS)
def test_its_forward_is_guided_diffusions(name: str) -> None:
    net = perturbed(**VARIANTS[name])
    x, start, t = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([0.05, 0.5, 1.0])
    told = 1000 * t if net.clock == "steps" else 250 * t.log()
    shown = torch.cat([x, start], 1) if net.paired else x
    expected = by_hand(net.state_dict(), shown, told, 4, VARIANTS[name].get("legacy", True))[:, :1]
    found = net(x, t, {"start": start})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * float(expected.abs().max()))


def test_it_is_a_backbone_and_is_told_finite_times() -> None:
    net = perturbed(span=80.0)
    assert isinstance(net, Backbone) and net.shape == (1, 8, 8) and net.tokens == {"start": (1, 8, 8)}
    assert net_from_config(net.config).config == net.config
    assert net.told(torch.zeros(1)).isfinite().all()
    assert float(net.told(torch.tensor(0.5))) == pytest.approx(250 * float(torch.tensor(40.0).log()))
    with pytest.raises(ValueError, match="told where it comes from"):
        net(torch.zeros(1, 1, 8, 8), torch.ones(1))
