"""Each block is handed the rows that its place in the pass calls for: the start's, all frames', or the wanted ones'."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dsno.students.rows import AddWeight, After, Before, Call, Rows


def rows_of(once: bool = False, select: tuple[int, ...] = (0, 2)) -> Rows:
    """Of three frames, in a pass of two samples."""
    made = Rows(3, once)
    made.call = Call(2, select)
    return made


def folded(rows: int, samples: int = 2) -> Tensor:
    """Row r of sample b is 10 b + r, of shape (1,)."""
    return torch.tensor([[10.0 * b + r] for b in range(samples) for r in range(rows)])


@pytest.mark.parametrize(
    "once, given, phase, expected",
    [
        # One row a sample serves them all.
        (False, 1, 0, [0, 10]),
        (False, 1, 1, [0, 0, 0, 10, 10, 10]),
        (False, 1, 2, [0, 0, 10, 10]),
        # All frames; before the layers the first stands for them, as all are the same there.
        (False, 3, 0, [0, 10]),
        (False, 3, 1, [0, 1, 2, 10, 11, 12]),
        (False, 3, 2, [0, 2, 10, 12]),
        # The start's row and all frames'.
        (True, 4, 0, [0, 10]),
        (True, 4, 1, [1, 2, 3, 11, 12, 13]),
        (True, 4, 2, [1, 3, 11, 13]),
        # Behind a layer all frames are left, and behind the first block after the last layer the wanted ones.
        (True, 3, 1, [0, 1, 2, 10, 11, 12]),
        (True, 3, 2, [0, 2, 10, 12]),
        (True, 2, 2, [0, 1, 10, 11]),
        (False, 2, 2, [0, 1, 10, 11]),
    ],
)
def test_rows_are_those_of_the_phase(once: bool, given: int, phase: int, expected: list[int]) -> None:
    assert rows_of(once).pick(folded(given), phase).flatten().tolist() == expected


def test_one_wanted_frame_and_all_of_them() -> None:
    assert rows_of(select=(2,)).pick(folded(3), 2).flatten().tolist() == [2, 12]
    assert rows_of(True, select=(1,)).pick(folded(4), 2).flatten().tolist() == [2, 12]
    for value, phase in ((folded(3), 2), (folded(3), 1), (folded(1), 0)):
        assert rows_of(select=(0, 1, 2)).pick(value, phase) is value


def test_what_is_not_batched_stays_as_it_is() -> None:
    for value in (torch.tensor(3.0), torch.arange(5), torch.arange(10), folded(7), None, "text", 2):
        for phase in (0, 1, 2):
            assert rows_of().pick(value, phase) is value


class Pair(NamedTuple):
    a: Tensor


def test_rows_are_picked_inside_plain_containers_alone() -> None:
    value = folded(3)
    picked = rows_of().pick((value, [value, None], {"a": (value, 1)}), 0)
    assert type(picked) is tuple and type(picked[1]) is list and picked[1][1] is None and picked[2]["a"][1] == 1
    for inside in (picked[0], picked[1][0], picked[2]["a"][0]):
        assert inside.flatten().tolist() == [0, 10]
    # A type of somebody's own is made by nobody knows what.
    own = Pair(value)
    assert rows_of().pick(own, 0) is own


def test_picked_rows_own_their_memory_and_keep_their_layout() -> None:
    picked = rows_of().pick(torch.randn(2, 3, 4, 4), 1)
    assert picked.is_contiguous() and picked.untyped_storage().nbytes() == 6 * 3 * 4 * 4 * 4
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert rows_of().pick(images, 1).is_contiguous(memory_format=torch.channels_last)


def test_a_block_and_its_layer_see_their_rows() -> None:
    class Block(nn.Module):
        def forward(self, h: Tensor, scale: Tensor) -> tuple[str, Tensor]:
            seen.append((h.flatten().tolist(), scale.flatten().tolist()))
            return "text", h * scale

    seen: list[Any] = []
    block, rows = Block(), rows_of()
    block.temporal = nn.Flatten(0)
    block.register_forward_pre_hook(Before(rows, 0), with_kwargs=True)
    block.register_forward_hook(After(rows, 1))
    text, mixed = block(folded(3), scale=torch.full((2, 1), 2.0))
    assert seen == [([0, 10], [2, 2])]
    assert text == "text" and mixed.tolist() == [0, 0, 0, 20, 20, 20]


def test_the_weight_is_added_to_all_rows_of_its_sample() -> None:
    rows, embedded = rows_of(), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    hook, output = AddWeight(rows, 1), torch.zeros(6, 2, dtype=torch.float64)
    assert hook(nn.Identity(), (), output) is output
    rows.call = Call(2, (0,), (torch.zeros(2, 2), embedded))
    added = hook(nn.Identity(), (), output)
    assert added.dtype == torch.float64 and added.tolist() == [[1, 2]] * 3 + [[3, 4]] * 3
