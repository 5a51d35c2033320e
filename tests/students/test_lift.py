"""A lifted backbone is the backbone in M frames, and whatever it skips changes nothing."""

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dsno.nets.unet import Block, Head, Stem, UNet, time_embedding
from dsno.students.blocks import find_blocks
from dsno.students.lift import Lifted, lift
from dsno.students.temporal import TemporalFourier

BLOCKS = (Stem, Block, Head)
TIMES = torch.tensor([0.5625, 0.25, 0.0625, 0.0])
EXAMPLE = (torch.zeros(1, 1, 8, 8), torch.ones(1))

placements = pytest.mark.parametrize("where", ["every", "low", "none"])
onces = pytest.mark.parametrize("once", [False, True], ids=["all", "once"])
# Batching changes the order of sums in convolutions and attention: some units in the last place of values around one.
SAME = dict(rtol=1e-5, atol=1e-5)


def randomise(net: nn.Module) -> nn.Module:
    """Give every parameter weight in the result: the networks here start with zeros in many places."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=max(parameter[0].numel(), 2) ** -0.5)
    return net.eval()


def unet(classes: int | None = None, **options: object) -> UNet:
    made = UNet(1, 8, (8, 16), attention=(1,), head_dim=8, classes=classes, **options)  # type: ignore[arg-type]
    return randomise(made)  # type: ignore[return-value]


def lifted(where: str = "every", once: bool = False, init: str = "zero", **options: object) -> Lifted:
    made = lift(unet(), EXAMPLE, BLOCKS, where=where, once=once, **options)  # type: ignore[arg-type]
    if init == "random":
        for layer in made.temporal_layers().values():
            randomise(layer)
    return made.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 1, 8, 8)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


# The lifted network is the backbone


@placements
def test_at_initialisation_each_frame_is_the_backbone_at_its_time(where: str, x: Tensor) -> None:
    made = lifted(where)
    teacher = unet()
    teacher.load_state_dict(made.backbone.state_dict(), strict=False)
    frames = made(x, TIMES)
    assert frames.shape == (3, 4, 1, 8, 8)
    assert frames.diff(dim=1).abs().max() > 0.01  # the times matter
    for m, t in enumerate(TIMES):
        torch.testing.assert_close(frames[:, m], teacher(x, t.expand(3)), **SAME)


def unet_told(net: UNet, x: Tensor, t: Tensor, start: Tensor, until: int) -> Tensor:
    """`UNet.forward` with the first `until` blocks told the start instead of the time."""
    emb_t, emb_start = (net.emb(time_embedding(u.expand(len(x)), net.emb_in)) for u in (t, start))
    count = 1  # the stem

    def emb() -> Tensor:
        nonlocal count
        count += 1
        return emb_start if count <= until else emb_t

    h = net.stem(x)
    skips = [h]
    for block in net.down:
        skips.append(h := block(h, emb()))
    for block in net.mid:
        h = block(h, emb())
    for block in net.up:
        h = block(h, emb()) if block.resample else block(h, emb(), skips.pop())
    return net.head(h)


@pytest.mark.parametrize("where, until", [("every", 1), ("low", 3)])
def test_blocks_that_run_once_are_told_the_time_of_the_input(where: str, until: int, x: Tensor) -> None:
    # every: the stem; low: also the two blocks before the first at the lower resolution.
    made = lifted(where, once=True)
    teacher = unet()
    teacher.load_state_dict(made.backbone.state_dict(), strict=False)
    start = torch.tensor(0.8)
    frames = made(x, TIMES, start=start)
    for m, t in enumerate(TIMES):
        torch.testing.assert_close(frames[:, m], unet_told(teacher, x, t, start, until), **SAME)


def test_the_start_may_differ_from_sample_to_sample(x: Tensor) -> None:
    made = lifted("low", once=True, init="random")
    start = torch.tensor([1.0, 0.7, 0.4])
    together = made(x, TIMES, start=start)
    for i in range(3):
        torch.testing.assert_close(together[i], made(x[i : i + 1], TIMES, start=start[i])[0], **SAME)


def test_frames_meet_in_the_temporal_layers_only(x: Tensor) -> None:
    other = torch.tensor([0.9, 0.25, 0.0625, 0.0])
    for where, meet in {"every": True, "none": False}.items():
        made = lifted(where, init="random")
        change = (made(x, TIMES) - made(x, other)).abs().amax((0, 2, 3, 4))
        assert change[0] > 1e-3 and bool((change[1:] > 1e-4).all()) == meet


def test_samples_do_not_meet(x: Tensor) -> None:
    made = lifted(init="random")
    torch.testing.assert_close(made(x, TIMES)[1], made(x[1:2], TIMES)[0], **SAME)


# Skipping what is not asked for


@pytest.mark.parametrize("select", [[-1], [1, 3], [3, 1], [2, 2], [0, 1, 2, 3], [3, 2, 1, 0]], ids=str)
@placements
@onces
def test_selected_frames_are_those_of_the_full_pass(where: str, once: bool, select: list[int], x: Tensor) -> None:
    made = lifted(where, once, init="random")
    torch.testing.assert_close(made(x, TIMES, select=select), made(x, TIMES)[:, select], **SAME)


@onces
def test_a_backbone_whose_head_is_no_block_selects_too(once: bool, x: Tensor) -> None:
    made = lift(unet(), EXAMPLE, (Block,), once=once).eval()
    for layer in made.temporal_layers().values():
        randomise(layer)
    torch.testing.assert_close(made(x, TIMES, select=[-1]), made(x, TIMES)[:, [-1]], **SAME)


@pytest.mark.parametrize(
    "once, where, select, rows",
    [
        # stem, down.0, down.1 (halves), down.2 | mid, mid, up.0 to up.2 (doubles) | up.3, up.4, head
        (False, "low", None, [4] * 12),
        (False, "low", [-1], [4] * 8 + [1] * 4),
        (True, "low", None, [1] * 3 + [4] * 9),
        (True, "low", [-1], [1] * 3 + [4] * 5 + [1] * 4),
        (True, "every", [-1], [1] + [4] * 10 + [1]),
        (False, "every", [1, 3], [4] * 11 + [2]),
        (False, "none", [-1], [1] * 12),
    ],
)
def test_each_block_runs_on_the_rows_it_must(
    once: bool, where: str, select: list[int] | None, rows: list[int], x: Tensor
) -> None:
    made = lifted(where, once)
    seen: list[int] = []
    for block in made.backbone.modules():
        if isinstance(block, BLOCKS):
            block.register_forward_hook(lambda block, args, output: seen.append(len(output) // 3))
    made(x, TIMES, select=select)
    assert seen == rows


@onces
@pytest.mark.parametrize("M, J", [(1, 1), (2, 2), (3, 1), (8, 3)])
def test_any_number_of_frames(M: int, J: int, once: bool, x: Tensor) -> None:
    made = lifted(once=once, init="random", frames=M, modes=J)
    times = torch.linspace(0.9, 0, M)
    frames = made(x, times)
    assert frames.shape == (3, M, 1, 8, 8)
    torch.testing.assert_close(made(x, times, select=[-1]), frames[:, [-1]], **SAME)


# Weights and copies


def test_the_teachers_weights_load_into_the_lifted_network() -> None:
    teacher, made = unet(), lifted()
    result = made.backbone.load_state_dict(teacher.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys and all(".temporal." in key for key in result.missing_keys)


def test_the_state_dict_round_trips(x: Tensor) -> None:
    made, other = lifted(init="random"), lifted(init="random")
    other.load_state_dict(made.state_dict())
    torch.testing.assert_close(other(x, TIMES), made(x, TIMES), rtol=0, atol=0)


@onces
def test_a_deep_copy_is_independent(once: bool, x: Tensor) -> None:
    made = lifted("low", once, init="random")
    expected_3, expected_1 = made(x, TIMES), made(x[:1], TIMES, select=[-1])
    twin = copy.deepcopy(made)
    for _ in range(2):  # different batches and selections, in turn
        torch.testing.assert_close(twin(x, TIMES), expected_3, rtol=0, atol=0)
        torch.testing.assert_close(made(x[:1], TIMES, select=[-1]), expected_1, rtol=0, atol=0)
        torch.testing.assert_close(twin(x[:1], TIMES, select=[-1]), expected_1, rtol=0, atol=0)
        torch.testing.assert_close(made(x, TIMES), expected_3, rtol=0, atol=0)
    randomise(twin)
    torch.testing.assert_close(made(x, TIMES), expected_3, rtol=0, atol=0)


def test_temporal_layers_are_those_behind_the_chosen_blocks() -> None:
    low = {f"{name}.temporal" for name in ("down.2", "mid.0", "mid.1", "up.0", "up.1")}
    assert lifted("low").temporal_layers().keys() == low
    assert not lifted("none").temporal_layers()
    every = lifted("every").temporal_layers()
    assert not any(part in name for name in every for part in ("stem", "head", "down.1", "up.2"))
    assert len(every) == 8


def test_where_may_be_a_function_of_name_and_shape() -> None:
    made = lifted(where=lambda name, shape: name.startswith("mid") and shape[-1] == 4)  # type: ignore[arg-type]
    assert list(made.config["temporal"]) == ["mid.0", "mid.1"]


# Other backbones


@onces
def test_a_class_conditional_backbone(once: bool, x: Tensor) -> None:
    net = unet(classes=5)
    teacher = copy.deepcopy(net)
    labels = torch.tensor([4, 0, 2])
    made = lift(net, (*EXAMPLE, torch.zeros(1, dtype=torch.long)), BLOCKS, where="low", once=once).eval()
    frames = made(x, TIMES, labels, start=TIMES[2])
    # Where the start is the frame's own time, `once` makes no difference.
    torch.testing.assert_close(frames[:, 2], teacher(x, TIMES[2].expand(3), labels), **SAME)
    assert (frames - made(x, TIMES, labels.flip(0), start=TIMES[2])).abs().max() > 0.01


class ConvBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv1d(channels, channels, 3, padding=1), nn.Linear(1, channels)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        return h + torch.tanh(self.conv(h) + self.time(t)[..., None])


class ConvNet(nn.Module):
    """A user's own network of 1-D signals."""

    shape = (2, 10)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 2, 1)
        self.blocks = nn.ModuleList(ConvBlock(6) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, t[:, None])
        return self.head(h)


class TokenBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.mlp = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h) + emb[:, None]).chunk(3, -1)
        h = h + nn.functional.scaled_dot_product_attention(q, k, v)
        return h + torch.tanh(self.mlp(h))


class Transformer(nn.Module):
    """A user's own network of (B, tokens, channels)."""

    shape = (5, 3)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.time, self.head = nn.Linear(3, 8), nn.Linear(1, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(TokenBlock(8) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, emb = self.embed(x), self.time(t[:, None])
        for layer in self.layers:
            h = layer(h, emb=emb)
        return self.head(h)


@onces
@pytest.mark.parametrize("kind, block, channel_dim", [(ConvNet, ConvBlock, 1), (Transformer, TokenBlock, -1)])
def test_a_plain_user_module(kind: type, block: type, channel_dim: int, once: bool) -> None:
    net = randomise(kind())
    teacher = copy.deepcopy(net)
    x = torch.randn(3, *kind.shape)
    example = (x[:1], torch.ones(1))
    middle = sorted(find_blocks(net, example, block))[1]
    made = lift(net, example, block, where=lambda n, _: n == middle, once=once, channel_dim=channel_dim)
    frames = made(x, TIMES, start=TIMES[1])
    torch.testing.assert_close(frames[:, 1], teacher(x, TIMES[1].expand(3)), **SAME)
    for layer in made.temporal_layers().values():
        assert layer.channels == (6 if kind is ConvNet else 8)
        randomise(layer)
    torch.testing.assert_close(made(x, TIMES, select=[-1]), made(x, TIMES)[:, [-1]], **SAME)
    assert (made(x, TIMES, start=TIMES[1])[:, 1] - frames[:, 1]).abs().max() > 1e-3


# Where it runs


def test_gradients_reach_every_parameter(x: Tensor) -> None:
    made = lifted(init="random")
    with torch.enable_grad():
        made(x, TIMES).square().sum().backward()
    dead = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_runs_and_is_close(dtype: torch.dtype, x: Tensor) -> None:
    made = lifted("low", once=True, init="random")
    expected = made(x, TIMES)
    out = made.to(dtype)(x.to(dtype), TIMES)
    assert out.dtype == dtype
    # A dozen blocks of rounding at 2^-8 relative, on values of order one.
    atol = 0.1 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=atol)


def test_the_temporal_layers_take_the_precision_of_the_backbone(x: Tensor) -> None:
    example = tuple(e.double() for e in EXAMPLE)
    made = lift(unet().double(), example, BLOCKS)
    assert made(x.double(), TIMES).dtype == torch.float64


def test_half_precision_does_not_round_the_times(x: Tensor) -> None:
    made, seen = lifted().bfloat16(), []
    made.backbone.register_forward_pre_hook(lambda net, args: seen.append(args[1]))
    made(x.bfloat16(), torch.tensor([0.999, 0.5, 0.1, 0.0]))
    assert seen[0][:4].tolist() == pytest.approx([0.999, 0.5, 0.1, 0.0], abs=1e-6)  # bfloat16 would make the first 1


def test_it_compiles_as_one_graph(x: Tensor) -> None:
    made = lifted("low", once=True, init="random")
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, TIMES), made(x, TIMES), **SAME)
    torch.testing.assert_close(compiled(x, TIMES, select=[-1]), made(x, TIMES, select=[-1]), **SAME)


def test_it_exports_with_any_batch(x: Tensor) -> None:
    made = lifted("low", once=True, init="random")
    shapes = {"x": {0: torch.export.Dim("B", min=2)}, "times": None}
    exported = torch.export.export(made, (x, TIMES), dynamic_shapes=shapes)
    y = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(exported.module()(y, TIMES), made(y, TIMES), **SAME)
    torch.testing.assert_close(copy.deepcopy(made)(y, TIMES), made(y, TIMES), rtol=0, atol=0)


def test_it_runs_in_onnxruntime(x: Tensor) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    made = lifted("low", once=True, init="random")
    file = io.BytesIO()
    torch.onnx.export(made, (x, TIMES, None, 1.0, (-1,)), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    (out,) = session.run(None, dict(zip(names, (x.numpy(), TIMES.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(out), made(x, TIMES, select=[-1]), rtol=1e-4, atol=1e-4)


# Errors


@pytest.mark.parametrize("where", ["every", "none"])
def test_a_lifted_backbone_is_not_lifted_again(where: str) -> None:
    with pytest.raises(ValueError, match="lifted already"):
        lift(lifted(where).backbone, EXAMPLE, BLOCKS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"modes": 4}, "modes must be in"),
        ({"blocks": ["down.0", "down.9"]}, "no module 'down.9'"),
        ({"blocks": nn.Conv3d}, "none of the blocks runs"),
        ({"blocks": Stem}, "no block gets a temporal layer with where='every'"),
        ({"where": lambda name, shape: False}, "no block gets a temporal layer"),
    ],
)
def test_a_refused_lift_leaves_the_backbone_as_it_was(options: dict, message: str, x: Tensor) -> None:
    net = unet()
    expected = net(x, torch.ones(3))
    with pytest.raises(ValueError, match=message):
        lift(net, EXAMPLE, **{"blocks": BLOCKS, **options})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not any(isinstance(m, TemporalFourier) for m in net.modules())
    torch.testing.assert_close(net(x, torch.ones(3)), expected, rtol=0, atol=0)


def test_a_frame_that_does_not_exist_cannot_be_selected(x: Tensor) -> None:
    with pytest.raises(IndexError):
        lifted()(x, TIMES, select=[4])
