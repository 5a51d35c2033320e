"""EDM snapshots: read without running them, into networks that answer as the originals do."""

import collections
import copy
import math
import os
import pickle  # noqa: TID251 - to write the files that the reader must take, and those it must refuse.
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import ATTACKS, Call, attack, zipped
from dsno.denoise import Prediction
from dsno.nets.backbone import Backbone, net_from_config
from dsno.nets.preconditioned import PreconditionedUNet
from dsno.schedule import VE, Tabulated, VPLinear
from dsno.teachers.edm import Inert, load_edm, read_snapshot
from dsno.teachers.native import load_native, save_teacher
from nvlabs import TEACHERS, EasyDict, Persistent, dumps, made, snapshot


def loaded(name: str, folder: Path) -> tuple[Prediction, PreconditionedUNet]:
    precond, net, kwargs = made(name)
    path = folder / f"{name}.pkl"
    path.write_bytes(dumps(snapshot(net, precond, **kwargs)))
    return load_edm(path), net


@pytest.fixture(params=TEACHERS)
def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> Prediction:
    return loaded(request.param, tmp_path)[0]


# The preconditioners, by the formulas of the paper in float64


def original(
    name: str, net: PreconditionedUNet, x: Tensor, sigma: Tensor, label: Tensor | None, kwargs: dict
) -> Tensor:
    """D(x; sigma) of table 1, for x = x_0 + sigma noise."""
    s = sigma.reshape(-1, 1, 1, 1)
    K = net.classes
    hot = None if K is None else torch.zeros(len(x), K, dtype=x.dtype)
    if hot is not None and label is not None:
        hot[torch.arange(len(x)), label] = 1
    F = net.model.double()
    if name.startswith("edm"):
        sd = kwargs.get("sigma_data", 0.5)
        c_in = 1 / torch.sqrt(sd**2 + s**2)
        return sd**2 / (s**2 + sd**2) * x + s * sd * c_in * F(c_in * x, torch.log(sigma) / 4, hot)
    if name == "ve":
        return x + s * F(x, torch.log(sigma / 2), hot)
    c_in = 1 / torch.sqrt(s**2 + 1)
    if name == "vp":
        beta_d, beta_min = 15.9, 0.1
        t = (torch.sqrt(beta_min**2 + 2 * beta_d * torch.log(1 + sigma**2)) - beta_min) / beta_d
        return x - s * F(c_in * x, 999 * t, hot)
    u = torch.zeros(1001, dtype=torch.float64)
    for j in range(1000, 0, -1):
        bar = [math.sin(math.pi / 2 * i / 1000 / 1.008) ** 2 for i in (j - 1, j)]
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(bar[0] / bar[1], 0.001) - 1)
    j = (u[None] - sigma[:, None]).abs().argmin(1)
    return x - s * F(c_in * x, 999 - j.double(), hot)[:, :3]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", TEACHERS)
def test_a_loaded_teacher_is_the_papers_denoiser(name: str, labelled: bool, tmp_path: Path) -> None:
    teacher, net = loaded(name, tmp_path)
    if labelled and net.classes is None:
        pytest.skip("knows no classes")
    sigma = torch.tensor([0.03, 0.4, 1.0, 7.0, 40.0], dtype=torch.float64)
    x = torch.randn(5, *net.shape, dtype=torch.float64) * (1 + sigma.reshape(-1, 1, 1, 1))
    label = torch.tensor([0, 3, 1, 1, 2]) if labelled else None
    t = teacher.schedule.time(-2 * sigma.log())
    alpha_t, sigma_t = teacher.schedule(t)
    torch.testing.assert_close(sigma_t / alpha_t, sigma, rtol=1e-9, atol=0)
    wanted = original(name, copy.deepcopy(net), x, sigma, label, TEACHERS[name][2])
    x_t = alpha_t.reshape(-1, 1, 1, 1) * x
    with torch.no_grad():
        torch.testing.assert_close(teacher.double()(x_t, t, label), wanted, rtol=1e-7, atol=1e-7)
        single = teacher.float()(x_t.float(), t.float(), label)
        torch.testing.assert_close(single.double(), wanted, rtol=1e-3, atol=2e-4)


def test_schedules_and_kinds_follow_from_the_preconditioner(tmp_path: Path) -> None:
    found = {name: loaded(name, tmp_path)[0] for name in TEACHERS}
    assert {
        name: (t.schedule, t.kind, t.data_std, t.shape, t.classes) for name, t in found.items() if name != "iddpm"
    } == {
        "edm-song": (VE(80), "edm", 0.6, (3, 8, 8), 4),
        "edm-adm": (VE(80), "edm", 0.5, (3, 8, 8), 4),
        "edm2": (VE(80), "edm", 0.5, (4, 8, 8), 4),
        "vp": (VPLinear(0.1, 16.0), "eps", 1.0, (3, 8, 8), None),
        "ve": (VE(50), "eps", 1.0, (3, 8, 8), None),
    }
    assert isinstance(found["iddpm"].schedule, Tabulated) and found["iddpm"].kind == "eps"
    assert not any(t.training for t in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ends_of_time_are_finite(teacher: Prediction, dtype: torch.dtype) -> None:
    x = torch.randn(2, *teacher.shape).to(dtype)
    for t in (0.0, 1.0):
        with torch.no_grad():
            x0_hat = teacher(x, torch.tensor(t))
        assert x0_hat.dtype == dtype and bool(x0_hat.isfinite().all())
    with torch.no_grad():
        torch.testing.assert_close(teacher(x, torch.tensor(0.0)), x, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_can_be_stored_and_rebuilt(name: str, tmp_path: Path) -> None:
    teacher, net = loaded(name, tmp_path)
    assert isinstance(teacher.net, Backbone)
    again = load_native(save_teacher(tmp_path / "folder", teacher))
    x, t = torch.randn(2, *net.shape), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        assert torch.equal(again(x, t), teacher(x, t))
    assert net_from_config(teacher.net.config).config == teacher.net.config


# The reader


def test_a_snapshot_is_read_as_inert_data(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pkl"
    content = {
        "ema": nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Sequential(nn.BatchNorm1d(3))}),
        "encoder": Persistent("Encoder", {"scale": np.float32([1, 2]) / 3, "table": np.asfortranarray(np.eye(2, 3))}),
        "numbers": [np.float64(0.5), np.int64(3), np.bool_(True), (1, {"x": torch.arange(6)[::2]})],
        "kwargs": EasyDict(a={1, 2}, b=collections.OrderedDict(c=None)),
    }
    for protocol in (3, 4, 5):
        path.write_bytes(dumps(content, protocol))
        read = read_snapshot(path)
        assert isinstance(read["ema"], Inert) and read["ema"].kind == "ModuleDict"
        own = content["ema"].state_dict()
        tensors = read["ema"].tensors()
        assert tensors.keys() == own.keys() and all(torch.equal(tensors[k], own[k]) for k in own)
        assert read["encoder"].kind == "Encoder"
        for key, value in read["encoder"].state.items():
            wanted = content["encoder"].meta["state"][key]
            assert value.dtype == wanted.dtype and np.array_equal(value, wanted)
        assert read["numbers"][:3] == [0.5, 3, True] and read["numbers"][3][1]["x"].tolist() == [0, 2, 4]
        assert read["kwargs"] == {"a": {1, 2}, "b": {"c": None}}
        assert not {"torch_utils", "dnnlib"} & sys.modules.keys()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_that_would_run_something_is_refused(name: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "attack.pkl"
    path.write_bytes(attack(name, marker))
    with suppress(Exception):
        pickle.loads(path.read_bytes())
    assert marker.exists(), "the attack is one: plain pickle runs it"
    marker.unlink()
    for read in (read_snapshot, load_edm):
        with pytest.raises(ValueError, match=r"attack\.pkl"):
            read(path)
        assert not marker.exists()


def test_a_refusal_names_the_global_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "attack.pkl"
    path.write_bytes(dumps({"ema": Call(os.getcwd)}))
    with pytest.raises(ValueError, match=r"refused .*attack\.pkl, and ran nothing of it: it needs posix\.getcwd"):
        read_snapshot(path)


def test_the_source_in_a_file_is_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "snapshot.pkl"
    source = f"open({str(marker)!r}, 'w').close()"
    exec(source)
    assert marker.exists()
    marker.unlink()
    path.write_bytes(dumps({"ema": Persistent("EDMPrecond", {}, source)}))
    assert read_snapshot(path)["ema"].kind == "EDMPrecond"
    with pytest.raises(ValueError, match="the EDMPrecond in .* does not fit"):
        load_edm(path)
    assert not marker.exists()


KNOWN = [
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("dnnlib.util", "EasyDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.nn.modules.linear", "Linear"),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"),
]


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("module, name", KNOWN)
def test_no_known_name_takes_a_state(module: str, name: str, slots: bool, tmp_path: Path) -> None:
    # BUILD on a class or a function would set attributes of what everybody else uses.
    state = pickle.dumps((None, {"evil": 1}) if slots else {"evil": 1}, 2)[2:-1]
    path = tmp_path / "attack.pkl"
    path.write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b.")
    with pytest.raises(ValueError, match=r"attack\.pkl"):
        read_snapshot(path)
    for owner in (torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes, nn.Linear, np.ndarray, Inert):
        assert not hasattr(owner, "evil")
    assert repr(read_snapshot(_written(tmp_path, {"x": nn.Linear(1, 1)}))["x"]) == "Inert('Linear')"


def _written(folder: Path, value: object) -> Path:
    path = folder / "written.pkl"
    path.write_bytes(dumps(value))
    return path


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: {"a": np.array([1, "x"], dtype=object)}, "a NumPy array of 'O8' instead of numbers"),
        (lambda: {"a": np.array(["x"])}, "a NumPy array of 'U1'"),
        (lambda: {"a": Call(torch._utils._rebuild_tensor_v2, 1, 0, (2,), (1,), False, {})}, "a int where a storage"),
        (
            lambda: {
                "a": Call(torch._utils._rebuild_tensor_v2, torch.ones(2)._typed_storage(), 1, (9,), (1,), False, {})
            },
            r"a tensor of shape \(9,\) in a storage of 2 numbers",
        ),
        (
            lambda: {
                "a": Call(
                    torch._utils._rebuild_tensor_v2, torch.ones(2)._typed_storage(), 0, (10**12,), (0,), False, {}
                )
            },
            r"a tensor of shape \(1000000000000,\) in a storage of 2 numbers",
        ),
        (
            lambda: {
                "a": Call(torch._utils._rebuild_tensor_v2, torch.ones(2)._typed_storage(), 1, (2,), (1,), False, {})
            },
            "out of bounds",
        ),
        (
            lambda: {
                "a": Call(torch._utils._rebuild_tensor_v2, torch.ones(2)._typed_storage(), 0, (2,), (-1,), False, {})
            },
            "not a snapshot of EDM, or damaged",
        ),
        (lambda: {"a": Call(torch.storage._load_from_bytes, zipped({"x": torch.ones(2)}))}, "a dict where tensor data"),
        (lambda: {"a": Call(torch.storage._load_from_bytes, b"nonsense")}, "does not take for plain weights"),
        (lambda: {"a": Persistent("X", [1])}, "the state of a X is a list, not a dict"),
        (lambda: [1, 2], "holds a list: expected the dictionary of a snapshot"),
        (lambda: {"a": torch.float32}, "it needs torch.float32"),
    ],
)
def test_what_is_no_plain_data_is_refused(content, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_snapshot(_written(tmp_path, content()))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x02}p2147483647\n.",
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
    ],
)
def test_nothing_is_made_room_for_that_is_not_there(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a note number 2147483647 in a file|a\.pkl is not a snapshot of EDM, or damaged"
    ):
        read_snapshot(tmp_path / "a.pkl")


def test_damaged_files_and_other_files_are_told_from_snapshots(tmp_path: Path) -> None:
    whole = dumps({"ema": nn.Linear(8, 8), "n": 3})
    path = tmp_path / "broken.pkl"
    for content in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"version https://git-lfs.github.com/spec/v1\n",
        zipped({"a": 1}),
        b"\x80\x04.",
        b"\x80\x04P1\n.",
        b"\x80\x04\x8e" + b"\xff" * 8,
        *(whole[: len(whole) * k // 10] for k in range(10)),
        whole[:-1],
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.pkl is not a snapshot of EDM, or damaged .*get it again"):
            read_snapshot(path)
    path.write_bytes(whole)
    assert read_snapshot(path)["n"] == 3
    with pytest.raises(FileNotFoundError):
        read_snapshot(tmp_path / "none.pkl")


def test_containers_within_themselves_are_read_and_modules_within_themselves_are_not(tmp_path: Path) -> None:
    ring: list = [np.float64(1)]
    ring.append((ring, np.float64(2)))
    module = nn.ModuleDict()
    module.__dict__["_modules"] = {"again": module}
    read = read_snapshot(_written(tmp_path, {"ring": ring, "ema": module}))
    assert read["ring"][0] == 1.0 and read["ring"][1][0] is read["ring"] and read["ring"][1][1] == 2.0
    with pytest.raises(ValueError, match="the module 'again' contains itself"):
        read["ema"].tensors()


# Conversion


def test_a_snapshot_without_the_network_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"written.pkl has no network under 'ema' \(it has 'net', 'epoch'\)"):
        load_edm(_written(tmp_path, {"net": 1, "epoch": 2}))
    precond, net, kwargs = made("vp")
    path = _written(tmp_path, {"net": snapshot(net, precond, **kwargs)["ema"]})
    assert load_edm(path, "net").kind == "eps"


def doubled(times: int) -> list:
    """A list that a few hundred bytes spell out, of 2^times numbers."""
    made: list = [1]
    for _ in range(times):
        made = [made, made]
    return made


def nested(times: int) -> Persistent:
    made = Persistent("SongUNet", {"_modules": {}})
    for _ in range(times):
        made = Persistent("SongUNet", {"_modules": {"a": made, "b": made}})
    return made


def edit(name: str, change) -> object:
    precond, net, kwargs = made(name)
    content = snapshot(net, precond, **kwargs)
    change(content["ema"].meta)
    return content


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("vp", lambda m: m.update(class_name="GAN"), "the GAN in .* does not fit: expected EDMPrecond"),
        ("vp", lambda m: m["state"]["_init_kwargs"].update(chanels=3), "chanels"),
        ("vp", lambda m: m["state"]["_init_kwargs"].update(num_blocks=2), "the file holds another architecture"),
        ("vp", lambda m: m["state"].update(_init_kwargs=None), "does not say what it was made with"),
        ("vp", lambda m: m["state"].update(_modules={}), "holds no network of its own"),
        ("vp", lambda m: m["state"]["_init_kwargs"].pop("img_channels"), "img_channels"),
        ("vp", lambda m: m["state"]["_modules"]["model"].meta.update(class_name="VNet"), "unknown architecture 'VNet'"),
        ("vp", lambda m: m["state"]["_modules"]["model"].meta["state"].update(_modules=3), "does not fit"),
        ("vp", lambda m: m["state"]["_init_kwargs"].update(num_blocks=10**8), "than the .* weights that are there"),
        ("vp", lambda m: m["state"]["_init_kwargs"].update(channel_mult=[1] * 10**4), "than the .* weights that are"),
        (
            "vp",
            lambda m: m["state"]["_init_kwargs"].update(model_channels=10**6),
            "the file holds another architecture",
        ),
        ("vp", lambda m: m["state"]["_init_kwargs"].update(model_channels=-16), "describes no network"),
        (
            "vp",
            lambda m: m["state"]["_init_kwargs"].update(model_channels="many"),
            "must be a whole number, got 'many'",
        ),
        ("vp", lambda m: m["state"]["_init_kwargs"].update(dropout=None), "dropout must be a number, got None"),
        (
            "vp",
            lambda m: m["state"]["_init_kwargs"].update(channel_mult=doubled(30)),
            "made with more than 100000 settings",
        ),
        ("vp", lambda m: m["state"]["_modules"].update(model=nested(30)), "has more than 100000 modules"),
        ("iddpm", lambda m: m["state"]["_init_kwargs"].update(M=10**9), "M must be a whole number from 1 to 65536"),
        ("iddpm", lambda m: m["state"]["_init_kwargs"].update(C_2=0.1), "noise levels are not those"),
        ("iddpm", lambda m: m["state"]["_buffers"].pop("u"), "noise levels are not those"),
    ],
)
def test_a_network_that_is_not_what_it_says_is_refused(name: str, change, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_edm(_written(tmp_path, edit(name, change)))


def test_positional_arguments_count_and_half_precision_weights_become_single(tmp_path: Path) -> None:
    def change(meta: dict) -> None:
        given = meta["state"]["_init_kwargs"]
        meta["state"]["_init_args"] = tuple(given.pop(k) for k in ("img_resolution", "img_channels", "label_dim"))

    precond, net, kwargs = made("edm2")
    content = snapshot(copy.deepcopy(net).half(), precond, **kwargs)
    change(content["ema"].meta)
    teacher = load_edm(_written(tmp_path, content))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    for ours, theirs in zip(teacher.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


# Beside the original code, where there is a checkout of it


@pytest.mark.skipif(
    "DSNO_EDM_SOURCE" not in os.environ, reason="DSNO_EDM_SOURCE names no checkout of NVlabs/edm or edm2"
)
@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_are_the_originals(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(os.environ["DSNO_EDM_SOURCE"])
    second = (root / "training" / "networks_edm2.py").exists()
    precond, net, kwargs = made(name)
    if second != (precond == "Precond"):
        pytest.skip("the other repository's")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(root))
    from importlib import import_module

    try:
        source = import_module("training.networks_edm2" if second else "training.networks")
        arguments = {k: v for k, v in net.config["net"].items() if k not in ("type", "in_channels", "out_channels")}
        kind = {} if second else {"model_type": net.config["net"]["type"]}
        theirs = getattr(source, precond)(**{**arguments, **kind, **kwargs, "img_channels": net.shape[0]}).eval()
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
        path = tmp_path / "original.pkl"
        with path.open("wb") as file:
            pickle.dump({"ema": theirs}, file)
        sigma = torch.tensor([0.03, 0.4, 1.0, 7.0, 40.0])
        x = torch.randn(5, *net.shape) * (1 + sigma.reshape(-1, 1, 1, 1))
        label = None if net.classes is None else torch.tensor([0, 3, 1, 1, 2])
        with torch.no_grad():
            wanted = theirs(x, sigma, None if label is None else nn.functional.one_hot(label, 4))
    finally:
        for module in set(sys.modules) - before:
            if module.split(".")[0] in ("training", "torch_utils", "dnnlib"):
                del sys.modules[module]
    teacher = load_edm(path)
    t = teacher.schedule.time(-2 * sigma.double().log())
    alpha_t = teacher.schedule(t)[0].float().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        ours = teacher(alpha_t * x, t.float(), label)
    assert float((ours - wanted).abs().max() / wanted.abs().max()) < 1e-5
