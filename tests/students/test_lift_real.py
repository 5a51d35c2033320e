"""Students of real architectures: untrained they are the teacher, and whatever they skip changes nothing."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from architectures import MAKE, inputs, randomise, teacher
from dsno.checkpoint import read_json
from dsno.condition import Cond, map_cond
from dsno.denoise import Prediction, scale_input
from dsno.schedule import Cosine
from dsno.students.blocks import Told
from dsno.students.files import load_student, save_student
from dsno.students.lift import install, lift
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import OnePass

TIMES = [0.6, 0.3, 0.1, 0.0]
# Other batches sum in another order: units in the last place of values around one.
SAME = dict(rtol=1e-6, atol=1e-6)


backbones = pytest.mark.parametrize("name", MAKE)


def student(name: str, scatter: bool = False, **options: Any) -> TrajectoryStudent:
    made = student_from_teacher(teacher(name), TIMES, **options).eval()
    if scatter:
        torch.manual_seed(1)
        randomise(made.net.added())
        with torch.no_grad():
            for parameter in made.net.added().parameters():
                parameter.mul_(4)
    return made


@backbones
@pytest.mark.parametrize("told", ["input", "output"])
@torch.no_grad()
def test_untrained_it_is_the_teacher(name: str, told: Told) -> None:
    source, made = teacher(name), student(name, told=told, once=told == "input", where="every")
    z, cond = inputs(name)
    one = torch.ones(3)
    shown = scale_input(source.kind, z, one, source.schedule, 0.5)
    frames = made.net(shown, made.times, cond)
    assert frames.abs().max() > 0.05
    for m, t in enumerate(TIMES):
        args = (shown, one if told == "input" else t * one) + (() if cond is None else (cond,))
        torch.testing.assert_close(frames[:, m], source.net(*args), rtol=1e-6, atol=2e-6)


@backbones
def test_the_teachers_weights_load_into_it(name: str) -> None:
    made = student(name)
    result = made.net.backbone.load_state_dict(teacher(name).net.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys and all(".temporal." in key for key in result.missing_keys)


@backbones
@pytest.mark.parametrize("where", ["mid", "every"])
@torch.no_grad()
def test_what_runs_once_or_for_the_last_frame_alone_changes_nothing(name: str, where: str) -> None:
    made = student(name, scatter=True, where=where)
    assert made.net.once
    z, cond = inputs(name)
    # The same weights, with every block on all frames.
    plan = replace(made.net.plan, once=False, phases=dict.fromkeys(made.net.plan.phases, 1))
    whole = install(copy.deepcopy(teacher(name).net), plan).eval()
    whole.load_state_dict(made.net.state_dict())
    expected = whole(z, made.times, cond)
    assert expected.diff(dim=1).abs().max() > 1e-3
    torch.testing.assert_close(made.net(z, made.times, cond), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.sample(z, cond), OnePass(made, whole=True)(z, cond).sample, rtol=1e-5, atol=1e-4)
    for select in [(-1,), (1, 3), (2, 0)]:
        frames = made.net(z, made.times, cond, 1.0, select)
        torch.testing.assert_close(frames, expected[:, list(select)], rtol=1e-5, atol=1e-5)


@backbones
def test_most_blocks_run_once(name: str) -> None:
    made, rows = student(name), []
    for block in made.net.plan.phases:
        made.net.backbone.get_submodule(block).register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(
                next(len(a) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)) // 3
            ),
            with_kwargs=True,
        )
    made.sample(*inputs(name))
    # One sample alone, whose rows may share memory.
    z, cond = inputs(name)
    one = made.sample(z[:1], None if cond is None else map_cond(lambda c: c[:1], cond))
    torch.testing.assert_close(one, made.sample(z, cond)[:1], rtol=1e-5, atol=1e-5)
    rows = rows[: len(made.net.plan.phases)]
    # Of the middle alone, as in the plan: its first block still runs once, the frames part behind it.
    assert rows == [4 if phase == 1 else 1 for phase in made.net.plan.phases.values()]
    assert 0 < rows.count(4) <= len(rows) / 2


@backbones
@torch.no_grad()
def test_it_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    made = student(name, scatter=True, guidance=True)
    save_student(tmp_path, made)
    loaded = load_student(tmp_path)
    assert loaded.config == made.config and read_json(tmp_path / "config.json")["type"] == "student"
    z, cond = inputs(name, weight=True)
    assert torch.equal(OnePass(loaded, True)(z, cond).x, OnePass(made, True)(z, cond).x)


@backbones
@torch.no_grad()
def test_untrained_no_guidance_weight_changes_it(name: str) -> None:
    made, told = student(name), student(name, guidance=True)
    z, cond = inputs(name)
    named = {"label": cond} if isinstance(cond, Tensor) else dict(cond or {})
    for w in (0.0, 3.5):
        torch.testing.assert_close(
            told.sample(z, {**named, "weight": torch.full((3,), w)}), made.sample(z, cond), **SAME
        )
    randomise(told.net.added())
    samples = [told.sample(z, {**named, "weight": torch.full((3,), w)}) for w in (0.0, 3.5)]
    assert (samples[0] - samples[1]).abs().max() > 1e-4
    mixed = told.sample(z, {**named, "weight": torch.tensor([0.0, 3.5, 0.0])})
    torch.testing.assert_close(mixed, torch.stack([samples[0][0], samples[1][1], samples[0][2]]), rtol=1e-5, atol=1e-5)


def saved_bytes(made: TrajectoryStudent, z: Tensor, cond: Cond | None) -> tuple[int, list[Tensor]]:
    """Bytes kept for the backward pass, and the gradients."""
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in made.parameters()}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = made(z, cond).square().mean()
    # Another pass in between, of another size, must not disturb what is computed again.
    made(z[:1], None if cond is None else map_cond(lambda c: c[:1], cond), select=(-1,))
    return sum(kept.values()), list(torch.autograd.grad(loss, list(made.parameters()), allow_unused=True))


@backbones
def test_checkpointing_keeps_less_and_has_the_same_gradients(name: str) -> None:
    made = student(name, scatter=True, guidance=True, where="every", told="output")
    z, cond = inputs(name, weight=True)
    plain, expected = saved_bytes(made, z, cond)
    made.net.enable_gradient_checkpointing()
    twin = copy.deepcopy(made)
    for each in (made, twin):
        less, gradients = saved_bytes(each, z, cond)
        assert less < 0.6 * plain
        for gradient, g in zip(gradients, expected, strict=True):
            assert (gradient is None) == (g is None)
            if g is not None:
                torch.testing.assert_close(gradient, g, rtol=1e-5, atol=1e-6)
    made.net.disable_gradient_checkpointing()
    assert saved_bytes(made, z, cond)[0] == plain


@backbones
@torch.no_grad()
def test_half_precision_is_close(name: str) -> None:
    made = student(name, scatter=True)
    z, cond = inputs(name)
    expected = made.sample(z, cond)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made.sample(z, cond)
    half = copy.deepcopy(made).bfloat16()
    out = half.sample(
        z.bfloat16(), None if cond is None else map_cond(lambda c: c.bfloat16() if c.is_floating_point() else c, cond)
    )
    assert out.dtype == torch.bfloat16
    for other in (mixed, out):
        assert float((other.float() - expected).norm() / expected.norm()) < 2e-2


# Every backbone compiles as one graph (measured); two of them here, as it takes seconds.
@pytest.mark.parametrize("name", ["ADM", "DiT"])
@torch.no_grad()
def test_it_compiles_as_one_graph(name: str) -> None:
    made = student(name, scatter=True, guidance=True)
    z, cond = inputs(name, weight=True)
    torch._dynamo.reset()
    compiled = torch.compile(made.net, fullgraph=True, backend="eager")
    frames = compiled(z, made.times, cond, 1.0, (-1,))
    torch.testing.assert_close(frames, made.net(z, made.times, cond, 1.0, (-1,)), rtol=1e-5, atol=1e-5)


# Modules of the user's own


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(1, 6)
        self.out_channels = 6

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        return h + torch.tanh(self.conv(h) + self.time(t[:, None])[..., None])


class Own(nn.Module):
    """A network that says nothing of itself; with `outside`, it adds features of different blocks outside of them."""

    def __init__(self, outside: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 2, 1)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.outside, self.twice = outside, twice

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = first = self.layers[0](self.stem(x), t)
        for layer in [*self.layers[1:], *([self.layers[0]] if self.twice else [])]:
            h = layer(h, t)
        return self.head(h + first if self.outside else h)


def own(**options: bool) -> Prediction:
    torch.manual_seed(0)
    return Prediction(randomise(Own(**options)), Cosine(), "v", shape=(2, 10))


@torch.no_grad()
def test_a_module_that_says_nothing_comes_back_into_another(tmp_path: Path) -> None:
    made = student_from_teacher(own(), TIMES, blocks=Layer, where="every").eval()
    assert made.net.once and made.shape == (2, 10) and made.classes is None and len(made.net.plan.temporal) == 3
    randomise(made.net.added())
    z = torch.randn(3, 2, 10)
    save_student(tmp_path, made)
    loaded = load_student(tmp_path, backbone=Own())
    assert torch.equal(loaded.sample(z), made.sample(z)) and loaded.shape == made.shape
    with pytest.raises(ValueError, match="no `Backbone` and cannot be rebuilt .*pass one like it"):
        load_student(tmp_path)
    with pytest.raises(ValueError, match="the backbone has no module 'layers.0'"):
        load_student(tmp_path, backbone=nn.Conv1d(2, 2, 1))


@pytest.mark.parametrize("options", [{"outside": True}, {"twice": True}], ids=str)
@torch.no_grad()
def test_blocks_that_cannot_run_once_run_on_all_frames(options: dict[str, bool]) -> None:
    source = own(**options)
    made = student_from_teacher(source, TIMES, blocks=Layer, where=lambda name, _: name == "layers.1").eval()
    assert not made.net.once and set(made.net.plan.phases.values()) == {1}
    z = torch.randn(3, 2, 10)
    expected = source.net(z, torch.ones(3)).unsqueeze(1).expand(-1, 4, -1, -1)
    torch.testing.assert_close(made.net(z, made.times), expected, **SAME)
    randomise(made.net.added())
    torch.testing.assert_close(made.net(z, made.times, select=(-1,)), made.net(z, made.times)[:, [-1]], **SAME)
    assert (made.net(z, made.times) - expected).abs().max() > 1e-3
    assert OnePass(made, whole=True)(z).x.shape == (3, 5, 2, 10)
    with pytest.raises(ValueError, match="joins features of different blocks outside of them"):
        student_from_teacher(source, TIMES, blocks=Layer, told="output")


class Joint(nn.Module):
    """A block of two streams, nested arguments and nested outputs."""

    def forward(self, told: dict[str, Any], streams: tuple[Tensor, Any], table: Tensor) -> tuple[Any, Tensor, None]:
        text, (image, nothing) = streams
        image = image * told["t"][:, None, None] + table + text.mean(1, keepdim=True)
        return [text + 1], torch.tanh(image), nothing


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Joint() for _ in range(4))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        table = torch.linspace(0, 1, 5)[:, None]
        for block in self.blocks:
            [text], x, _ = block({"t": t, "nothing": None}, (text, (x * self.scale, None)), table)
        return x


@torch.no_grad()
def test_rows_are_picked_inside_tuples_lists_and_dictionaries() -> None:
    net = TwoStreams()
    example = (torch.zeros(1, 5, 3), torch.ones(1), torch.zeros(1, 2, 3))
    made = lift(
        copy.deepcopy(net),
        example,
        Joint,
        where=lambda name, _: name in ("blocks.1", "blocks.2"),
        once=True,
        told="output",
        channel_dim=-1,
        output=1,
    ).eval()
    x, text, times = torch.randn(3, 5, 3), torch.randn(3, 2, 3), torch.tensor(TIMES)
    assert list(made.plan.phases.values()) == [0, 1, 1, 2]
    frames = made(x, times, text, start=TIMES[1])
    # Where the start is the frame's own time, running once makes no difference.
    torch.testing.assert_close(frames[:, 1], net(x, times[1].expand(3), text), **SAME)
    randomise(made.added())
    torch.testing.assert_close(made(x, times, text, select=[-1]), made(x, times, text)[:, [-1]], **SAME)


def test_features_that_cannot_be_told_are_asked_for() -> None:
    example = (torch.zeros(1, 5, 3), torch.ones(1), torch.zeros(1, 2, 3))

    class Twins(Joint):
        def forward(self, *args: Any) -> Any:
            text, image, _ = super().forward(*args)
            return text[0], image

    class Net(TwoStreams):
        def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            for block in self.blocks:
                text, x = block({"t": t}, (text, (x * self.scale, None)), torch.zeros(5, 1))
            return x

    net = Net()
    net.blocks = nn.ModuleList([Twins()])
    with pytest.raises(ValueError, match="'blocks.0' returns several tensors: say with `output`"):
        lift(net, example, Twins, where=lambda name, _: True, channel_dim=-1)
    assert not net.blocks[0]._forward_hooks and not net.blocks[0]._forward_pre_hooks


# Only what was added


def test_only_the_temporal_layers_are_trained_and_kept(tmp_path: Path) -> None:
    source = teacher("DiT")
    made = student("DiT", guidance=True, train_only="temporal")
    before = {name: p.clone() for name, p in made.named_parameters()}
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        z, cond = inputs("DiT", weight=True)
        (made(z, cond) * torch.arange(4)[:, None, None, None]).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    changed = {name for name, p in made.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".temporal." in name or ".guidance." in name}
    save_student(tmp_path / "adapter", made, adapter_only=True, steps=3)
    save_student(tmp_path / "whole", made)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("adapter", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = load_student(tmp_path / "adapter", teacher=source)
    with torch.no_grad():
        assert torch.equal(loaded.sample(z, cond), made.sample(z, cond))
    save_student(tmp_path / "again", loaded, adapter_only=True)
    with pytest.raises(ValueError, match="holds an adapter: pass the teacher"):
        load_student(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds a student, expected a adapter"):
        load_student(tmp_path / "whole", teacher=source)
    other = copy.deepcopy(source)
    with torch.no_grad():
        next(other.net.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="adapter of another teacher"):
        load_student(tmp_path / "adapter", teacher=other)
    with pytest.raises(ValueError, match="is trained, too: freeze the backbone"):
        save_student(tmp_path / "all", student("DiT"), adapter_only=True)


def test_a_frozen_teacher_gives_a_student_that_learns() -> None:
    source = copy.deepcopy(teacher("DiT"))
    source.requires_grad_(False)
    assert all(p.requires_grad for p in student_from_teacher(source, TIMES).parameters())
    assert not any(p.requires_grad for p in source.parameters())
