"""The blocks of a backbone in the order they finish, those that get a temporal layer, and when each runs."""

import pytest
import torch
from torch import Tensor, nn

from dsno.students.blocks import Block, Told, embedding_dim, find_blocks, phases, place, site


def test_find_blocks_returns_them_in_the_order_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(1, 1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.a(self.b(x))

    net = Backwards().train()
    found = find_blocks(net, (torch.zeros(1, 2), torch.ones(1)), nn.Linear)
    assert [(name, block.given, block.shape) for name, block in found.items()] == [
        ("b", (1, 2), (1, 3)),
        ("a", (1, 3), (1, 2)),
    ]
    assert net.training and not net.a._forward_hooks


class Layer(nn.Conv1d):
    """A residual block, as far as placing is concerned: it has `out_channels`."""


class Hourglass(nn.Module):
    """Down and up again, on signals of eight values; the layer at the bottom, `mid`, runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(1, 4, 1), nn.Conv1d(4, 1, 1)
        self.fine, self.last, self.mid = (Layer(4, 4, 1) for _ in range(3))
        self.down, self.up = Layer(4, 4, 2, stride=2), nn.ConvTranspose1d(4, 4, 2, stride=2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.down(self.fine(self.stem(x)))
        return self.head(self.last(self.up(self.mid(self.mid(h)))))


ORDER = ["stem", "fine", "down", "mid", "up", "last", "head"]
LISTED = [Layer, "stem", "up", "head"]


def hourglass() -> tuple[Hourglass, dict[str, Block]]:
    net = Hourglass()
    return net, find_blocks(net, (torch.zeros(1, 1, 8), torch.ones(1)), LISTED)


def test_blocks_say_what_they_are_given_and_return_and_how_often_they_run() -> None:
    _, found = hourglass()
    assert [*found] == ORDER
    assert found["stem"] == Block(torch.Size([1, 4, 8]), None, torch.Size([1, 1, 8]), 1)
    assert found["down"] == Block(torch.Size([1, 4, 4]), None, torch.Size([1, 4, 8]), 1)
    assert found["mid"] == Block(torch.Size([1, 4, 4]), None, torch.Size([1, 4, 4]), 2)


def test_the_features_in_a_tuple_are_the_tensor_shaped_like_the_input() -> None:
    class Tuples(nn.Module):
        def __init__(self, *returned: int) -> None:
            super().__init__()
            self.returned = returned

        def forward(self, x: Tensor) -> tuple[Tensor | None, ...]:
            return (None, *(torch.zeros(1, n) for n in self.returned))

    def index(*returned: int) -> int | None:
        return find_blocks(nn.Sequential(Tuples(*returned)), (torch.zeros(1, 3),), Tuples)["0"].index

    # One of that shape, or one alone; of two alike it cannot be told.
    assert (index(2, 3), index(2), index(3, 3)) == (2, 1, -1)


@pytest.mark.parametrize(
    "where, expected",
    [
        # The stem and the head are named for their rows alone, `down` and `up` change the resolution.
        ("every", ["fine", "mid", "last"]),
        ("low", ["mid"]),
        ("mid", ["mid"]),
        ("none", []),
        (lambda name, shape: shape[-1] == 4, ["down", "mid"]),
    ],
)
def test_layers_are_placed_behind_residual_blocks(where: object, expected: list[str]) -> None:
    net, found = hourglass()
    assert place(net, found, LISTED, where, dict.fromkeys(found, 1), 3) == expected


def test_where_no_block_is_called_mid_the_middle_third_is() -> None:
    net, shape = nn.Sequential(*(nn.Identity() for _ in range(6))), torch.Size([1, 5, 3])
    found = {str(n): Block(shape, None, shape) for n in range(6)}
    assert place(net, found, [nn.Identity], "mid", dict.fromkeys(found, -1), 4) == ["2", "3"]


def test_a_layer_has_to_have_a_place() -> None:
    net, found = hourglass()
    dims = dict.fromkeys(found, 1)
    with pytest.raises(ValueError, match="unknown where 'top': expected every, low, mid, none, or a function"):
        place(net, found, LISTED, "top", dims, 3)
    with pytest.raises(ValueError, match="no block gets a temporal layer with where='every'"):
        place(net, {"down": found["down"]}, LISTED, "every", dims, 3)


@pytest.mark.parametrize(
    "temporal, once, told, expected",
    [
        (["mid"], False, "output", [1, 1, 1, 1, 2, 2, 2]),
        (["mid"], True, "output", [0, 0, 0, 1, 2, 2, 2]),
        # Told the same time, the frames are the same up to the first layer, which is behind its block.
        (["mid"], True, "input", [0, 0, 0, 0, 2, 2, 2]),
        (["fine", "last"], True, "input", [0, 0, 1, 1, 1, 1, 2]),
        ([], False, "output", [2] * 7),
        ([], True, "output", [0] * 7),
    ],
)
def test_blocks_run_before_between_and_after_the_layers(
    temporal: list[str], once: bool, told: Told, expected: list[int]
) -> None:
    assert phases(hourglass()[1], temporal, once, told) == dict(zip(ORDER, expected, strict=True))


def test_of_blocks_in_blocks_the_outermost_has_the_phase() -> None:
    found = {name: Block(torch.Size([1, 4])) for name in ("a.inner", "a", "ab")}
    # The layer is inside, so all of `a` runs on all frames.
    assert phases(found, ["a.inner"], True, "input") == {"a": 1, "ab": 2}


def test_a_layer_finds_the_channels_and_their_place_in_a_tuple() -> None:
    shape = torch.Size([1, 5, 3])
    found = {"plain": Block(shape), "told": Block(shape, 1), "unknown": Block(shape, -1)}
    assert site("plain", found, -1, 0) == {"channels": 3, "channel_dim": -1, "index": None}
    assert site("told", found, 1, None) == {"channels": 5, "channel_dim": 1, "index": 1}
    assert site("told", found, -1, 0)["index"] == 0
    # The other blocks tell.
    assert site("unknown", found, -1, None)["index"] == 1
    with pytest.raises(ValueError, match="'unknown' returns several tensors: say with `output` which one"):
        site("unknown", {"plain": found["plain"], "unknown": found["unknown"]}, -1, None)


def test_an_embedding_of_time_is_a_row_a_sample() -> None:
    assert embedding_dim("emb", Block(torch.Size([1, 6]))) == 6
    with pytest.raises(ValueError, match=r"'emb' is no time embedding \(B, D\): it returns shape \(1, 4, 8\)"):
        embedding_dim("emb", Block(torch.Size([1, 4, 8])))
