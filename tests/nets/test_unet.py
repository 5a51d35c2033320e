"""One U-Net for signals, images and volumes; the weights that ship are read as they always were."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsno.denoise import Prediction
from dsno.grids import quadratic
from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.nets.unet import UNet, depth_to_space, space_to_depth
from dsno.runs.shipped import shipped
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student, save_student
from dsno.students.lift import lift
from dsno.students.operator import student_from_teacher
from dsno.students.samplers import OnePass
from dsno.teachers.native import load_native, save_teacher
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store

SHAPES = {1: (2, 16), 2: (1, 8, 12), 3: (1, 4, 4, 8)}
SAME = dict(rtol=1e-5, atol=1e-5)

ranks = pytest.mark.parametrize("rank", [1, 2, 3])


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def randomise(net: nn.Module) -> nn.Module:
    """Give every parameter weight in the result: the networks here start with zeros in many places."""
    for parameter in net.parameters():
        parameter.normal_(std=max(parameter[0].numel(), 2) ** -0.5)
    return net.eval()


def unet(rank: int, **options: object) -> UNet:
    C, *spatial = SHAPES[rank]
    options = {"channels": (8, 16), "head_dim": 8, **options}
    return randomise(UNet(C, spatial, **options))  # type: ignore[arg-type,return-value]


@ranks
def test_any_rank_and_shape(rank: int) -> None:
    net = unet(rank)
    x, t = torch.randn(3, *SHAPES[rank]), torch.rand(3)
    assert net.shape == SHAPES[rank] and net(x, t).shape == x.shape and isinstance(net, Backbone)
    torch.testing.assert_close(net(x, t)[1:2], net(x[1:2], t[1:2]), **SAME)
    again = net_from_config(net.config)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config and torch.equal(again(x, t), net(x, t))


def test_a_signal_is_an_image_of_one_row() -> None:
    signals = unet(1, attention=(1,))
    # The two-dimensional network whose kernels are those of the signals in their middle row.
    images = UNet(2, (2, 16), (8, 16), head_dim=8, attention=(1,)).eval()
    for name, weight in images.state_dict().items():
        held = signals.state_dict()[name]
        if weight.shape == held.shape:
            weight.copy_(held)
        else:
            weight.zero_()
            weight[:, :, weight.shape[2] // 2] = held
    x, t = torch.randn(3, 2, 16), torch.rand(3)
    both = images(x[:, :, None].expand(3, 2, 2, 16), t)
    torch.testing.assert_close(both[:, :, 0], signals(x, t), **SAME)


@ranks
@pytest.mark.parametrize("where", ["every", "mid"])
def test_lifted_it_is_the_teacher_at_initialisation(rank: int, where: str) -> None:
    for patch in (1, 2):
        net = unet(rank, patch=patch, padding_mode="circular")
        x, times = torch.randn(3, *SHAPES[rank]), quadratic(4)[1:].float()
        lifted = lift(copy.deepcopy(net), example(net, x), net.blocks, where=where)
        frames = lifted(x, times)
        for m, t in enumerate(times):
            torch.testing.assert_close(frames[:, m], net(x, t.expand(3)), **SAME)
        torch.testing.assert_close(lifted(x, times, select=(-1,)), frames[:, -1:], **SAME)


def test_the_blocks_below_the_highest_resolution_are_the_same_with_patches() -> None:
    named = []
    for size, patch in ((8, 1), (16, 2)):
        net = UNet(1, size, (8, 16), attention=(), patch=patch)
        named.append(list(lift(net, example(net, torch.zeros(1)), net.blocks, where="low").temporal_layers()))
    assert named[0] == named[1] and 0 < len(named[0]) < 8


@ranks
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_are_a_rearrangement(rank: int, patch: int) -> None:
    x = torch.randn(2, 3, *[4 * patch, 2 * patch, 3 * patch][:rank])
    cells = space_to_depth(x, patch)
    assert cells.shape == (2, 3 * patch**rank, *[4, 2, 3][:rank])
    assert torch.equal(depth_to_space(cells, patch), x)
    if rank == 2:
        assert torch.equal(cells, F.pixel_unshuffle(x, patch))


def test_patches_make_a_network_cheap() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    flops = []
    for patch in (1, 2):
        with FlopCounterMode(display=False) as counter:
            UNet(1, 16, (8, 16), attention=(), patch=patch)(torch.zeros(1, 1, 16, 16), torch.zeros(1))
        flops.append(counter.get_total_flops())
    assert 3 < flops[0] / flops[1] < 4


@ranks
def test_a_periodic_network_knows_no_border(rank: int) -> None:
    x, t = torch.randn(2, *SHAPES[rank]), torch.rand(2)
    for padding_mode, moves in (("circular", False), ("zeros", True)):
        net = unet(rank, padding_mode=padding_mode)
        # By two, which the one halving turns into one.
        shifted = net(x.roll(2, -1), t).roll(-2, -1)
        assert float((shifted - net(x, t)).abs().max() > 1e-3) == moves


def test_labels_come_bare_or_by_name() -> None:
    net, x, t = unet(1, classes=3), torch.randn(3, 2, 16), torch.rand(3)
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(net(x, t, labels), net(x, t, {"label": labels}))
    assert not torch.allclose(net(x, t, labels), net(x, t, labels.flip(0)))
    with pytest.raises(ValueError, match="class conditional: pass labels"):
        net(x, t)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": (8, 8, 8, 8)}, r"one to three spatial directions, got the lengths \(8, 8, 8, 8\)"),
        ({"image_size": ()}, r"got the lengths \(\)"),
        ({"image_size": (16, 6)}, "images of 6 pixels cannot be halved 2 times: use fewer levels"),
        ({"image_size": 10, "patch": 4}, "10 pixels cannot be cut into patches of 4"),
        ({"image_size": 8, "patch": 4}, "images of 2 pixels cannot be halved 2 times"),
        ({"patch": 0}, "cannot be cut into patches of 0"),
        ({"padding_mode": "periodic"}, "unknown padding_mode 'periodic': expected zeros, circular"),
    ],
)
def test_shapes_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**options)  # type: ignore[arg-type]


def test_an_image_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        UNet(1, 6, (8, 8, 8))


def test_a_conditional_unet_asks_for_labels() -> None:
    with pytest.raises(ValueError, match="pass labels"):
        UNet(1, 8, (8, 16), classes=5)(torch.randn(3, 1, 8, 8), torch.ones(3))


def test_a_fresh_unet_predicts_zero() -> None:
    assert UNet(1, 8, (8, 16))(torch.randn(3, 1, 8, 8), torch.ones(3)).abs().max() == 0


@pytest.mark.parametrize("channels", [(6, 10), (18, 34), (32, 48)])
def test_any_width(channels: tuple[int, ...]) -> None:
    x = torch.randn(3, 1, 8, 8)
    assert UNet(1, 8, channels, attention=())(x, torch.ones(3)).shape == x.shape


def test_shipped_weights_are_read_as_before() -> None:
    teacher, student = load_native(shipped() / "teacher"), load_student(shipped() / "student")
    assert teacher.net.config["image_size"] == 8 and teacher.net.shape == (1, 8, 8)
    # Computed by the network that the weights were trained with.
    z = noise([0, 1], (1, 8, 8))
    got = torch.stack([teacher(z, torch.tensor(0.5)).std(), student.sample(z).std()])
    torch.testing.assert_close(got, torch.tensor([0.61991602, 0.75485170]), rtol=1e-4, atol=0)
    # The key that the two-dimensional network has always had.
    assert teacher.net.state_dict()["stem.conv.weight"].shape == (32, 1, 3, 3)


@pytest.mark.parametrize("rank", [1, 3])
def test_from_teacher_to_student_off_the_plane(rank: int, tmp_path: Path) -> None:
    shape = SHAPES[rank]
    teacher = Prediction(unet(rank, patch=2), Cosine(), "v")
    times = quadratic(4)[1:]
    sampler = SolverSampler(
        teacher, teacher.schedule, quadratic(8), SOLVERS["ddim"](), torch.cat([quadratic(8)[:1], times])
    )
    made = store(sampler, shape, tmp_path / "set", 5, targets=("x0", "state"), shard=4, batch=4, dtype=torch.float32)
    data = TrajectorySet(tmp_path / "set", verify=True)
    assert len(data) == len(made) == 5 and tuple(data[0]["noise"].shape) == shape
    z = noise([3], shape)
    assert torch.equal(data[3]["noise"][None], z)
    torch.testing.assert_close(data[3]["state"][-1], sampler(z).sample[0], **SAME)

    save_teacher(tmp_path / "teacher", teacher)
    assert torch.equal(load_native(tmp_path / "teacher")(z, torch.tensor(0.5)), teacher(z, torch.tensor(0.5)))
    student = student_from_teacher(teacher, times)
    randomise(student)
    save_student(tmp_path / "student", student)
    assert torch.equal(load_student(tmp_path / "student").sample(z), student.eval().sample(z))
    assert OnePass(student, whole=True)(z).x.shape == (1, 5, *shape)
