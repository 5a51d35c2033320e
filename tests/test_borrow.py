"""A module of somebody else is used without its wrappers and without changing it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dsno.borrow import borrowed, called_with, own_copy, plain_names, state_of, unwrapped, without_wrappers
from processes import succeed


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(2))
        self.dropout = 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


Wrap = Callable[[nn.Module], nn.Module]
WRAPS: dict[str, Wrap] = {
    "none": lambda m: m,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "both": lambda m: nn.DataParallel(compiled(m)),
    "inside": lambda m: nn.Sequential(compiled(m)),
    "everywhere": lambda m: compiled(nn.Sequential(nn.DataParallel(m))),
}


def bare(name: str) -> nn.Module:
    return nn.Sequential(Block()) if name in ("inside", "everywhere") else Block()


@pytest.mark.parametrize("name", WRAPS)
def test_stored_names_are_those_of_the_module_alone(name: str) -> None:
    wrapped = WRAPS[name](Block())
    assert state_of(wrapped).keys() == bare(name).state_dict().keys()
    named = dict(wrapped.named_parameters())
    assert [*plain_names(wrapped, named).values()] == [n for n, _ in bare(name).named_parameters()]
    file = wrapped.state_dict()
    file.pop("n_averaged", None)
    assert without_wrappers(file, bare(name).state_dict()).keys() == bare(name).state_dict().keys()


@pytest.mark.parametrize("name", WRAPS)
def test_borrowing_takes_wrappers_off_and_shares_the_weights(name: str) -> None:
    wrapped = WRAPS[name](Block())
    made = borrowed(wrapped)
    assert [type(m) for m in made.modules()] == [type(m) for m in bare(name).modules()]
    mine, theirs = made.state_dict(), state_of(wrapped)
    assert all(mine[n].data_ptr() == theirs[n].data_ptr() for n in theirs)
    apart = own_copy(wrapped).state_dict()
    assert all(torch.equal(apart[n], theirs[n]) and apart[n].data_ptr() != theirs[n].data_ptr() for n in theirs)


def test_what_is_borrowed_is_changed_alone() -> None:
    block = Block()
    block.inner.bias.requires_grad_(False)
    made = borrowed(block)
    assert [p.requires_grad for p in made.parameters()] == [True, False]
    made.eval().requires_grad_(False).to(torch.bfloat16)
    made.dropout = 0.0
    assert block.training and block.inner.training and block.dropout == 0.1
    assert block.inner.weight.dtype == block.scale.dtype == torch.float32
    assert block.inner.weight.requires_grad
    assert {t.dtype for t in made.state_dict().values()} == {torch.bfloat16}


def test_tied_weights_stay_tied() -> None:
    pair = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    pair[1].weight = pair[0].weight
    for made in (borrowed(pair), own_copy(pair)):
        assert made[1].weight is made[0].weight is not pair[0].weight


def test_what_is_no_wrapper_is_itself() -> None:
    block = Block()
    assert unwrapped(block) is block and unwrapped(None) is None
    assert unwrapped(nn.DataParallel(compiled(block))) is block
    # A module may have a part called `module`.
    named = nn.ModuleDict({"module": copy.deepcopy(block)})
    assert state_of(named).keys() == named.state_dict().keys()
    assert without_wrappers(named.state_dict(), named.state_dict()).keys() == named.state_dict().keys()


def test_names_that_would_meet_are_left() -> None:
    both = {"a": torch.zeros(1), "module.a": torch.ones(1)}
    assert without_wrappers(both, {"a"}) == both


def call_shards(out: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    module = nn.Linear(2, 2)
    shards = {n: distribute_tensor(p.detach(), init_device_mesh("cpu", (1,))) for n, p in module.named_parameters()}
    with pytest.raises(RuntimeError, match="a Linear is called with other weights than it holds, .*Undivided"):
        called_with(shards, module, torch.ones(1, 2))


def test_other_weights_answer_unless_fsdp_would_put_back_its_own(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    doubled = {name: 2 * value for name, value in module.named_parameters()}
    assert torch.equal(called_with(doubled, module, torch.ones(1, 2)), 2 * module(torch.ones(1, 2)))
    succeed(call_shards, tmp_path / "run", world=1)
