"""A folder holds a whole model or says what is missing."""

import errno
import hashlib
import json
import os
import re
import stat
import struct
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

from dsno.checkpoint import (
    build,
    check_keys,
    digest,
    fill,
    load_model,
    raw_bytes,
    read_json,
    read_tensors,
    save_model,
    seal,
    tensor_sha,
    version_of,
    write_atomically,
    write_json,
    write_tensors,
)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write_atomically(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []
    write_atomically(tmp_path / "a", lambda p: p.write_text("old"))
    with pytest.raises(RuntimeError, match="on fire"):
        write_atomically(tmp_path / "a", fail)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are posix")
def test_files_get_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_json(tmp_path / "a.json", {})
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)})
    assert len({stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}) == 1


def test_json_and_tensors_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"times": [0.1, 1 / 3], "none": None})
    assert read_json(tmp_path / "a.json") == {"times": [0.1, 1 / 3], "none": None}
    tensors = {"w": torch.randn(3, 4).T, "half": torch.ones(2, dtype=torch.bfloat16), "none": torch.ones(0, 3)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    read = read_tensors(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k], tensors[k]) and read[k].dtype == tensors[k].dtype for k in tensors)


def test_tensors_that_share_memory_come_back_one_by_one(tmp_path: Path) -> None:
    base = torch.randn(6)
    tensors = {"a": base[:4], "b": base[2:], "tied": base[:4]}
    write_tensors(tmp_path / "a.safetensors", tensors)
    read = read_tensors(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], v) for k, v in tensors.items())


@pytest.mark.parametrize(
    "value, found",
    [
        ({"a": 1}, "a dict"),
        (torch.eye(3).to_sparse(), "a tensor of layout torch.sparse_coo"),
        (torch.ones(3, dtype=torch.complex128), "a tensor of dtype torch.complex128"),
        (torch.empty(3, device="meta"), "on the meta device, without data"),
        (torch.zeros(1).expand(4), "an expanded tensor, whose numbers are one in memory"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_safetensors_cannot_hold_is_named(value: object, found: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"a\.safetensors cannot be written: 'x' is {re.escape(found)}, and"):
        write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(1), "x": value})
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: expected a model folder with config.json"):
        read_json(tmp_path / "nowhere" / "config.json")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"has no config.json \(it has notes.txt\)"):
        read_json(tmp_path / "config.json")
    for content in (b"{", b"\xff\xfe\x00", b"", b"[" * 50_000 + b"]" * 50_000, b"[" * 99 + b"]" * 99):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match="not valid JSON"):
            read_json(tmp_path / "config.json")


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_truncated_weights_are_refused(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.randn(100)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated or damaged"):
        read_tensors(path)


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    def make(channels: int, dropout: float = 0.0) -> tuple[int, float]:
        return channels, dropout

    assert build(make, {"channels": 3}) == (3, 0.0)
    with pytest.raises(ValueError, match=r"unknown key 'chanels' in .*make: did you mean 'channels'\?"):
        build(make, {"chanels": 3})
    with pytest.raises(ValueError, match="unknown key 'zzz' in that file: known: channels, dropout"):
        check_keys({"zzz": 1}, ["channels", "dropout"], "that file")
    with pytest.raises(ValueError, match="the configuration of make lacks channels"):
        build(make, {"dropout": 0.5})


def test_weights_must_be_all_of_them_and_nothing_else() -> None:
    net = nn.Linear(2, 3)
    weight, bias = torch.ones(3, 2), torch.ones(3)
    fill(net, {"weight": weight, "bias": bias})
    assert torch.equal(net.weight, weight)
    for tensors, message in [
        ({"weight": weight}, "file holds another architecture than its configuration says: bias is missing"),
        ({"weight": weight, "bias": bias, "extra": bias}, "extra is not part of the model"),
        ({"weight": weight.T, "bias": bias}, r"weight has shape \(2, 3\), the model has \(3, 2\)"),
        ({f"other{i}": bias for i in range(3)}, r"\(and 2 more\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            fill(net, tensors, "file")


def test_a_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    save_model(tmp_path / "a" / "b", {"type": "line", "out": 3}, net)

    def make(config: dict[str, int]) -> tuple[nn.Linear, nn.Linear]:
        made = nn.Linear(2, config["out"])
        return made, made

    loaded = load_model(tmp_path / "a" / "b", "line", make)
    assert torch.equal(loaded.weight, net.weight)
    with pytest.raises(ValueError, match="holds a line, expected a student, as `dsno distill` writes it"):
        load_model(tmp_path / "a" / "b", "student", make)
    (tmp_path / "a" / "b" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds a foreign model, expected a line"):
        load_model(tmp_path / "a" / "b", "line", make)


def test_a_model_does_not_take_the_place_of_another_kind(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    save_model(tmp_path, {"type": "student"}, net)
    save_model(tmp_path, {"type": "flow map"}, net)
    with pytest.raises(FileExistsError, match="holds a flow map, not a teacher: choose another folder"):
        save_model(tmp_path, {"type": "teacher"}, net)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(FileExistsError, match="holds a foreign model, not a student"):
        save_model(tmp_path, {"type": "student"}, net)
    assert "UNet2DModel" in (tmp_path / "config.json").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    def fill_the_disk(path: Path) -> None:
        with Path("/dev/full").open("w", buffering=1) as file:
            file.write("x\n")

    with pytest.raises(OSError, match=r"cannot write .*a\.json \(No space left on device\): make room") as caught:
        write_atomically(tmp_path / "a.json", fill_the_disk)
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


# What was changed


def line(config: dict[str, int]) -> tuple[nn.Linear, nn.Linear]:
    made = nn.Linear(2, config["out"])
    return made, made


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def note(path: Path, place: int) -> None:
    write_json(path, {**read_json(path), "notes": {"guidance": [0, 9]}})


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [("model.safetensors", flip, -1), ("model.safetensors", flip, -20), ("config.json", note, 0)],
)
def test_a_model_that_was_changed_is_refused_unless_that_is_meant(
    name: str, change: Callable[[Path, int], None], place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, {"type": "line", "out": 3, "notes": {}}, nn.Linear(2, 3))
    load_model(tmp_path, "line", line)
    change(tmp_path / name, place)
    with pytest.raises(ValueError, match=r"was changed after it was written .*unchecked=True, or set DSNO_UNCHECKED=1"):
        load_model(tmp_path, "line", line)
    assert load_model(tmp_path, "line", line, unchecked=True).out_features == 3
    monkeypatch.setenv("DSNO_UNCHECKED", "1")
    load_model(tmp_path, "line", line)


def test_what_was_never_sealed_opens(tmp_path: Path) -> None:
    save_model(tmp_path, {"type": "line", "out": 3}, nn.Linear(2, 3))
    config = read_json(tmp_path / "config.json")
    assert config.pop("sha256") == seal(config, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {**config, "notes": {"more": 1}})
    load_model(tmp_path, "line", line)


def test_a_network_is_that_of_the_weights_before_it_takes_memory(tmp_path: Path) -> None:
    save_model(tmp_path, {"type": "line"}, nn.Linear(2, 3))

    def of(*layers: int) -> Callable[[dict[str, object]], tuple[nn.Module, nn.Module]]:
        def make(config: dict[str, object]) -> tuple[nn.Module, nn.Module]:
            made = nn.Sequential(*(nn.Linear(n, n) for n in layers))
            return made, made

        return make

    with pytest.raises(
        ValueError, match=r"holds another architecture than its configuration says: 0\.weight is missing"
    ):
        load_model(tmp_path, "line", of(10**8))
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"config\.json describes a network of more than the 2 weights"):
        load_model(tmp_path, "line", lambda config: of(*[1] * 10**5)(config))
    assert time.perf_counter() - began < 5
    with pytest.raises(ValueError, match=r"config\.json describes no network \(RuntimeError: .*negative"):
        load_model(tmp_path, "line", of(-3))


# Fingerprints


def test_tensor_sha_sees_values_shape_and_dtype() -> None:
    x = torch.arange(6.0)
    shas = [x, x + 1, x.reshape(2, 3), x.double(), torch.tensor(3), x.bfloat16(), x > 2]
    assert len({tensor_sha(s) for s in shas}) == len(shas)
    assert tensor_sha(x) == tensor_sha(x.clone())
    assert tensor_sha(x.reshape(2, 3).T) == tensor_sha(x.reshape(2, 3).T.contiguous())


def test_fingerprints_are_those_that_files_hold() -> None:
    """Manifests, results and adapters of version 0.1 hold them: the text before the bytes may not change."""
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    raw = b"".join(struct.pack("<f", n) for n in range(6))
    assert tensor_sha(x) == hashlib.sha256(b"torch.float32(2, 3)" + raw).hexdigest()
    named = b"a torch.uint8 (1,)\n\x07" + b"b torch.float32 (2, 3)\n" + raw
    tensors = {"b": x, "a": torch.tensor([7], dtype=torch.uint8)}
    assert digest(tensors) == digest(dict(sorted(tensors.items()))) == hashlib.sha256(named).hexdigest()
    assert digest({}) == hashlib.sha256(b"").hexdigest()


def test_raw_bytes_are_in_c_order_whatever_the_strides_and_the_dtype() -> None:
    x = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    assert bytes(raw_bytes(x.T)) == struct.pack("<6h", 0, 3, 1, 4, 2, 5)
    assert bytes(raw_bytes(torch.tensor(1.0, dtype=torch.bfloat16, requires_grad=True))) == b"\x80\x3f"


def test_the_version_of_a_package_or_none() -> None:
    assert version_of("torch") == metadata.version("torch")
    assert version_of("no-such-package") == "not installed"
