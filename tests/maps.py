"""Flow maps that are known exactly, and networks of two times that know nothing."""

import math

import torch
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.distillation.stages import Given
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, RectifiedFlow, Schedule, VPLinear
from dsno.students.flowmap import FlowMap, flow_map_from_teacher

D64 = torch.float64
SCHEDULES = [Cosine(), RectifiedFlow(), VPLinear()]
MEAN, STD = torch.tensor([0.5, -1.0, 0.2], dtype=D64), torch.tensor([0.3, 0.7, 1.4], dtype=D64)


class Exact(nn.Module):
    """h of a Gaussian's exact flow, off by `wrong` times a wave, and by an affine map of x."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.wrong = schedule, nn.Parameter(torch.zeros((), dtype=D64))
        self.affine = nn.Parameter(torch.zeros(2, dtype=D64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ((c[:, None] for c in self.schedule(v)) for v in (t, s))
        gain = ((alpha_s**2 * STD**2 + sigma_s**2) / (alpha_t**2 * STD**2 + sigma_t**2)).sqrt()
        moved, ratio = alpha_s * MEAN + gain * (x - alpha_t * MEAN), sigma_s / sigma_t
        off = self.wrong * torch.sin(3 * x + t[:, None] + 2 * s[:, None])
        off = off + (self.affine[0] + self.affine[1] * x) * torch.cos(t + 2 * s)[:, None]
        # At s = t the quotient is 0 / 0, and its limit the denoiser.
        still = (t == s)[:, None]
        D = MEAN + alpha_t * STD**2 / (alpha_t**2 * STD**2 + sigma_t**2) * (x - alpha_t * MEAN)
        return torch.where(still, D, (moved - ratio * x) / torch.where(still, 1.0, alpha_s - ratio * alpha_t)) + off


def exact(schedule: Schedule) -> FlowMap:
    """The map of that."""
    return FlowMap(Exact(schedule), schedule, "x0")


class Frozen(nn.Module):
    """A network that says the same of everything."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.output.to(x)


class MLP(nn.Module):
    """A plane's worth of a network: Fourier features of both times."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 + 12, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        times = torch.stack([t, s], 1)
        waves = torch.cat([f(math.pi * k * times) for f in (torch.sin, torch.cos) for k in (0.5, 1, 2)], 1)
        return self.layers(torch.cat([x, waves], 1))


def small(**changes: object) -> tuple[FlowMap, Given]:
    """A flow map of a small class-conditional teacher, and what a method is given to train it."""
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 4, (8,), attention=(0,), classes=3), Cosine(), "v", shape=(1, 4, 4), classes=3).eval()
    teacher.requires_grad_(False)
    options = {"steps": 14, "batch": 8, "x": torch.randn(32, 1, 4, 4), "labels": torch.arange(32) % 3} | changes
    return flow_map_from_teacher(teacher), Given(teacher, Cosine(), **options)
