"""What a run changes comes back, and batches come in order."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import DistributedType

from dsno.engine import (
    accelerated,
    accumulating,
    agreed,
    as_like,
    is_sharded,
    local,
    of_each,
    on_device,
    tf32,
    whole,
)


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_come_in_order_and_one_ahead(ahead: bool) -> None:
    made: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for n in range(100):
            made.append(n)
            if n == 7:
                raise OSError("the disk has gone")
            yield {"x": torch.full((2,), n), "cond": {"label": torch.tensor([n])}, "frames": (n,), "start": 0.5}

    before = threading.active_count()
    stream = on_device(source(), torch.device("cpu"), ahead=ahead)
    for n in range(3):
        batch = next(stream)
        assert batch["x"].tolist() == [n, n] and batch["cond"]["label"].tolist() == [n]
        assert (batch["frames"], batch["start"]) == ((n,), 0.5)
    stream.close()
    assert made == [*range(4 if ahead else 3)] and threading.active_count() == before
    stream = on_device(source(), torch.device("cpu"), ahead=ahead)
    with pytest.raises(OSError, match="the disk has gone"):
        for _ in range(8):
            next(stream)
    assert threading.active_count() == before


def test_accelerates_own_accumulation_comes_back_even_after_an_error() -> None:
    accelerator = SimpleNamespace(gradient_accumulation_steps=3, step=7)
    with pytest.raises(KeyError), accumulating(accelerator, 2):
        assert (accelerator.gradient_accumulation_steps, accelerator.step) == (2, 0)
        raise KeyError
    assert accelerator.gradient_accumulation_steps == 3


def test_the_precision_of_products_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), tf32():
        torch.set_float32_matmul_precision("medium")
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    "kind, fsdp2, sharded",
    [
        ("NO", False, False),
        ("MULTI_GPU", False, False),
        ("FSDP", True, True),
        ("FSDP", False, None),
        ("DEEPSPEED", False, None),
        ("MEGATRON_LM", False, None),
    ],
)
def test_an_engine_that_is_not_supported_is_refused(kind: str, fsdp2: bool, sharded: bool | None) -> None:
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(activation_checkpointing=False))
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(value=kind), is_fsdp2=fsdp2, state=state)
    if sharded is None:
        with pytest.raises(ValueError, match=f"configured for {kind}, .* use DDP, or FSDP with fsdp_version: 2"):
            is_sharded(accelerator)
    else:
        assert is_sharded(accelerator) is sharded


def test_processes_that_share_a_row_are_refused() -> None:
    shared = ParallelismConfig(dp_shard_size=2, tp_size=2)
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(value="MULTI_GPU"), parallelism_config=shared)
    with pytest.raises(
        ValueError, match="processes that share a row of the batch \\(tp\\), .* leave dp_replicate_size"
    ):
        is_sharded(accelerator)
    accelerator.parallelism_config = ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
    assert not is_sharded(accelerator)


def test_a_run_behind_one_that_was_sharded_starts_afresh() -> None:
    # So accelerate leaves its state on GPUs, and a new one of it would lack the plugin.
    PartialState(cpu=True).distributed_type = DistributedType.FSDP
    made = accelerated(torch.device("cpu"), mixed_precision="bf16")
    assert made.distributed_type == DistributedType.NO and not is_sharded(made) and made.mixed_precision == "bf16"


def test_one_process_is_each_of_them() -> None:
    assert of_each("me") == ["me"] and agreed(lambda: "me") == "me"


def test_a_tensor_that_is_not_sharded_is_its_own_whole() -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    assert local(x) is x
    assert torch.equal(whole({"x": x})["x"], x) and not whole({"x": x})["x"].requires_grad
    assert whole({"x": x}, keep=False) == {}
    last = torch.empty(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    put = as_like(last, x.detach())
    assert torch.equal(put, x) and put.stride() == last.stride() and put.dtype == x.dtype
