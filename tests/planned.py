"""What a page does with plans, in Python: small students and teachers of every kind, and their samplers as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsno.denoise import Kind, Prediction
from dsno.grids import even
from dsno.inverse.problem import Problem, posterior_mean
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.seeds import noise
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.heads import decoder_from_teacher
from dsno.students.operator import student_from_teacher
from dsno.students.samplers import Student
from dsno.web.graphs import Network
from dsno.web.plans import Pass, Restoring, Step


def shaken(module: nn.Module) -> nn.Module:
    """Weights that say something wherever they start at zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def teacher(kind: Kind = "v", classes: int | None = None, null: bool = False, clip: float | None = None) -> Prediction:
    net = shaken(UNet(1, 4, (8,), attention=(), classes=classes, null=null))
    schedules: dict[str, Schedule] = {"edm": VE(80.0), "flow": RectifiedFlow()}
    schedule = schedules.get(kind, Cosine())
    return Prediction(net, schedule, kind, data_std=0.5, clip=clip, shape=(1, 4, 4), classes=classes).eval()


def operator(kind: Kind = "v", target: str = "x0", classes: int | None = None, guidance: bool = False) -> Student:
    made = student_from_teacher(teacher(kind, classes), [0.6, 0.3, 0.1, 0.0], target, guidance=guidance)
    return shaken(made).restarting()


def flow_map(kind: Kind = "v", way: str = "any", steps: int | None = None, guidance: bool = False) -> Student:
    classes = 3 if guidance else None
    return shaken(flow_map_from_teacher(teacher(kind, classes), guidance)).trained_for(way, steps)


def decoder(kind: Kind = "v") -> Student:
    return shaken(decoder_from_teacher(teacher(kind), heads=4, grid=even(teacher(kind).schedule, 4))).eval()


def told() -> tuple[Student, Prediction]:
    """A student that is told all that a page can say, and its teacher; milder, for pictures that are not saturated."""
    model = teacher(classes=3, null=True, clip=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.4)
    made = student_from_teacher(model, [0.6, 0.3, 0.1, 0.0], "state", guidance=True)
    for parameter in made.net.added().parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval().restarting(), model


def combined(row: Sequence[float], *terms: Tensor) -> Tensor:
    return sum(w * term for w, term in zip(row, terms, strict=True))


@torch.no_grad()
def run_passes(plan: Sequence[Pass], sigma: float, network: Network, seeds: Tensor, told: dict[str, Tensor]) -> Tensor:
    """The states (B, T, *shape) of a student's plan."""
    shape = network.example["x"].shape[1:]
    states = [sigma * noise(seeds, shape)]
    for n, call in enumerate(plan):
        x = states[-1]
        later = {} if call.later is None else {"later": torch.tensor([call.later])}
        F = network(call.scale * x, torch.tensor([call.t]), *(later | told).values()).unbind(1)
        states += [combined(row, x, *F) for row in call.states]
        if call.fresh:
            states[-1] = states[-1] + call.fresh * noise(seeds, shape, n + 1)
    return torch.stack(states, 1)


@torch.no_grad()
def run_steps(
    plan: Sequence[Step], sigma: float, network: Network, z: Tensor, clip: float | None, *told: Tensor
) -> Tensor:
    """The states (B, N + 1, *shape) of a teacher's plan."""
    states, before = [sigma * z], torch.zeros_like(z)
    for step in plan:
        x = states[-1]
        x0_hat = combined(step.reading, x, network(step.scale * x, torch.tensor([step.t]), *told)[:, 0])
        x0_hat = x0_hat if clip is None else x0_hat.clamp(-clip, clip)
        states.append(combined(step.weights, x, x0_hat, before))
        before = x0_hat
    return torch.stack(states, 1)


@torch.no_grad()
def run_restoring(
    plan: Sequence[Restoring], model: Prediction, network: Network, problem: Problem, y: Tensor, seeds: Tensor
) -> Tensor:
    """The restorations (B, *shape) of a restorer's plan."""
    shape = network.example["x"].shape[1:]
    x = model.schedule.at(1.0)[1] * noise(seeds, shape)
    for n, step in enumerate(plan, start=1):
        x0_hat = model.clipped(combined(step.reading, x, network(step.scale * x, torch.tensor([step.t]))[:, 0]))
        x0 = posterior_mean(problem, x0_hat, y, step.variance)
        x = combined(step.weights, x, x0, noise(seeds, shape, n))
    return x
