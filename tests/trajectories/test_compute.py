"""How a network is evaluated changes the manifest, and nothing that is left behind."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.cost import Meter
from dsno.denoise import Guided, Prediction
from dsno.trajectories.compute import PLAIN, Compute
from pretend import Rank
from stored import COSINE, Net, contents, make, mixture, sampler


def test_dropout_is_off_meanwhile_and_back_afterwards(tmp_path: Path) -> None:
    net = Prediction(Net(), COSINE).train()
    net.net.net[0].eval()
    make(tmp_path / "a", sampler=sampler(net))
    assert net.training
    assert [m.training for m in net.net.net] == [False, True, True, True]
    make(tmp_path / "b", sampler=sampler(Prediction(Net(), COSINE).eval()))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_mixed_precision_is_part_of_the_manifest(tmp_path: Path) -> None:
    net = Prediction(Net(), COSINE)
    exact = make(tmp_path / "exact", sampler=sampler(net), dtype=torch.float32)
    mixed = make(tmp_path / "mixed", sampler=sampler(net), dtype=torch.float32, compute=Compute(torch.bfloat16))
    assert mixed.manifest["compute"] == {"autocast": "bfloat16"}
    a, b = (data.__getitems__(range(20))["state"] for data in (exact, mixed))
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.03, rtol=0.03)
    with pytest.raises(ValueError, match=r'compute: expected null, found \{"autocast": "bfloat16"\}'):
        make(tmp_path / "mixed", sampler=sampler(net), dtype=torch.float32, resume=True)


@pytest.mark.parametrize("option", ["channels_last", "compile"])
def test_what_is_done_to_the_network_is_undone(tmp_path: Path, option: str) -> None:
    net = Prediction(Net(), COSINE)
    seen: list[tuple[bool, bool]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last = inputs[0].is_contiguous(memory_format=torch.channels_last)
        seen.append((last, net.net._compiled_call_impl is not None))

    hook = net.net.net[2].register_forward_pre_hook(look)  # behind a layer of eight channels
    # The call goes through the compiled entry, without the compiler.
    eager = torch.compiler.set_stance("force_eager") if option == "compile" else contextlib.nullcontext()
    with eager:
        data = make(tmp_path / "set", sampler=sampler(net), compute=Compute(**{option: True}))
    hook.remove()
    assert set(seen) == {(option == "channels_last", option == "compile")}
    assert data.manifest["compute"] == {option: True}
    assert net.net._compiled_call_impl is None
    assert all(p.is_contiguous() for p in net.parameters())
    plain = make(tmp_path / "plain", sampler=sampler(net))
    torch.testing.assert_close(data[7]["state"], plain[7]["state"], atol=2e-3, rtol=2e-3)


def test_what_is_noted_is_what_is_not_the_default() -> None:
    net = Prediction(Net(), COSINE)
    assert Compute() == PLAIN and PLAIN.noted(net) == Compute(device="cpu").noted(net) == {}
    noted = Compute(torch.float16, channels_last=True, compile=True).noted(Guided(Meter(net), torch.tensor(0)))
    assert noted == {"autocast": "float16", "channels_last": True, "compile": True}
    with pytest.raises(ValueError, match="autocast must be torch.bfloat16, torch.float16 or None, got torch.float32"):
        Compute(torch.float32)
    with pytest.raises(ValueError, match="need a network, a torch module: GaussianMixture has none"):
        Compute(channels_last=True).noted(mixture())


def test_where_it_is_solved() -> None:
    net, rank = Prediction(Net(), COSINE).to("meta"), Rank(0)
    assert PLAIN.place(net) == torch.device("meta") and PLAIN.place(mixture()) == torch.device("cpu")
    assert PLAIN.place(net, rank) == torch.device("cpu")
    assert Compute(device="meta").place(mixture(), rank) == torch.device("meta")


def test_a_network_that_was_compiled_before_stays_so() -> None:
    net = Prediction(Net(), COSINE)
    net.net.compile()
    compiled = net.net._compiled_call_impl
    with pytest.raises(KeyError), Compute(compile=True).applied(sampler(net), torch.device("cpu")):
        assert net.net._compiled_call_impl is compiled
        raise KeyError
    assert net.net._compiled_call_impl is compiled
