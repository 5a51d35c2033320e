"""EDM snapshots: read without running them, into networks that answer as the originals do."""

import collections
import copy
import io
import math
import os
import pickle  # noqa: TID251 - to write the files that the reader must take, and those it must refuse.
import sys
import types
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.nets.edm import DhariwalUNet, SongUNet
from dsno.nets.edm2 import MagnitudeUNet
from dsno.nets.preconditioned import PreconditionedUNet, iddpm_sigmas
from dsno.schedule import VE, Tabulated, VPLinear
from dsno.students.lift import lift
from dsno.teachers.edm import Inert, load_edm, read_snapshot
from dsno.teachers.native import load_native, save_teacher

SMALL = dict(img_resolution=8, model_channels=16, num_blocks=1, attn_resolutions=[4])
NCSNPP = dict(
    embedding_type="fourier",
    channel_mult_noise=2,
    encoder_type="residual",
    resample_filter=[1, 3, 3, 1],
)


# The format: objects that pickle as those of NVlabs' code do, without that code.


class Persistent:
    """Pickles like an instance of a class decorated by `torch_utils.persistence`."""

    def __init__(self, class_name: str, state: dict, source: str = "raise RuntimeError('this source was run')") -> None:
        self.meta = dict(type="class", version=6, module_src=source, class_name=class_name, state=state)

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,), None


def module_state(module: nn.Module, **more: object) -> dict:
    """The state of a module as torch pickles it, its children persistent objects or containers of torch."""
    keep = {k: module.__dict__[k] for k in ("training", "_parameters", "_buffers", "_non_persistent_buffers_set")}
    children = {k: frozen(v) for k, v in module.named_children()}
    return {**keep, "_modules": children, "skip_scale": np.sqrt(0.5), **more}


def frozen(module: nn.Module, name: str | None = None) -> object:
    if type(module) is nn.ModuleDict:
        container = nn.ModuleDict()
        container.__dict__["_modules"] = {k: frozen(v) for k, v in module.named_children()}
        return container
    return Persistent(name or type(module).__name__, module_state(module))


def dumps(value: object, protocol: int = 4) -> bytes:
    """Pickle with the modules of NVlabs' code in place, and take them away again."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        exec(meta["module_src"])

    _reconstruct_persistent_obj.__module__ = persistence.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    EasyDict.__module__ = util.__name__
    util.EasyDict = EasyDict
    fakes = {"torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib")}
    fakes |= {m.__name__: m for m in (persistence, util)}
    assert not fakes.keys() & sys.modules.keys()
    sys.modules.update(fakes)
    try:
        return pickle.dumps(value, protocol)
    finally:
        for name in fakes:
            del sys.modules[name]


class EasyDict(dict):
    pass


def snapshot(net: PreconditionedUNet, precond: str, **kwargs: object) -> object:
    """What NVlabs' code would save for `net` under the preconditioner `precond`."""
    arguments = {k: v for k, v in net.config["net"].items() if k not in ("type", "in_channels", "out_channels")}
    given = dict(arguments, img_channels=net.shape[0], use_fp16=False, **kwargs)
    inner_name = "UNet" if precond == "Precond" else net.config["net"]["type"]
    shell = nn.Module()
    if precond == "iDDPMPrecond":
        shell.register_buffer("u", iddpm_sigmas().float())
    state = module_state(shell, _init_args=(), _init_kwargs=given)
    state["_modules"] = {"unet" if precond == "Precond" else "model": frozen(net.model, inner_name)}
    if precond == "Precond":
        state["_modules"]["logvar_linear"] = frozen(nn.Linear(4, 1))
    network = Persistent(precond, state)
    return EasyDict(ema=network, loss_fn=Persistent("EDMLoss", {"P_mean": -1.2}), dataset_kwargs=EasyDict(path="x.zip"))


def settle(net: nn.Module) -> nn.Module:
    """Weights that depend on nothing but their names and places."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if not name.endswith("resample_filter"):
                n = torch.arange(value.numel(), dtype=torch.float64)
                wave = torch.sin(0.37 * n + zlib.crc32(name.encode()) % 1000)
                value.copy_(0.3 * wave.reshape(value.shape))
    return net.eval()


SONG = dict(SMALL, type="SongUNet", in_channels=3, out_channels=3, channel_mult=[1, 2])
ADM = dict(SMALL, type="DhariwalUNet", in_channels=3, out_channels=6, channel_mult=[1, 4])
EDM2 = dict(SMALL, type="MagnitudeUNet", img_channels=4, channel_mult=[1, 2], channels_per_head=8)
# The preconditioner's class, our network, and more arguments of the former.
TEACHERS = {
    "edm-song": ("EDMPrecond", dict(net=dict(SONG, label_dim=4, augment_dim=9)), dict(sigma_data=0.6)),
    "edm-adm": ("EDMPrecond", dict(net=dict(ADM, out_channels=3, label_dim=4)), dict()),
    "edm2": ("Precond", dict(net=dict(EDM2, label_dim=4)), dict(logvar_channels=4)),
    "vp": ("VPPrecond", dict(net=SONG, precond="vp"), dict(beta_d=15.9)),
    "ve": (
        "VEPrecond",
        dict(net=dict(SONG, **NCSNPP), precond="ve", sigma_max=50.0, sigma_min=0.02),
        dict(sigma_max=50),
    ),
    "iddpm": ("iDDPMPrecond", dict(net=dict(ADM, label_dim=4), precond="iddpm"), dict()),
}


def made(name: str) -> tuple[str, PreconditionedUNet, dict]:
    precond, config, kwargs = TEACHERS[name]
    net = PreconditionedUNet(**config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1 if parameter.ndim > 1 else 0.5)
    return precond, net.eval(), kwargs


def loaded(name: str, folder: Path) -> tuple[Prediction, PreconditionedUNet]:
    precond, net, kwargs = made(name)
    path = folder / f"{name}.pkl"
    path.write_bytes(dumps(snapshot(net, precond, **kwargs)))
    return load_edm(path), net


@pytest.fixture(params=TEACHERS)
def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> Prediction:
    return loaded(request.param, tmp_path)[0]


# The architectures: numbers that NVlabs' own code gave for these weights, input and arguments.

PINNED = [
    (SongUNet, dict(channel_mult=[1, 2]), 189347, [0.37257, 0.3058, -0.1762, 0.31355, 0.16658, -0.0988, 0.16509]),
    (
        SongUNet,
        dict(channel_mult=[1, 2], label_dim=4, augment_dim=9, **NCSNPP),
        191267,
        [0.52294, 0.25047, -0.19494, 0.3729, 0.30399, -0.25914, 0.22601],
    ),
    (
        SongUNet,
        dict(channel_mult=[1, 2, 2], encoder_type="skip", decoder_type="skip", resample_filter=[1, 3, 3, 1]),
        319753,
        [0.15369, -0.18497, -0.61239, -0.06889, -0.1468, -0.25629, 0.24863],
    ),
    (
        DhariwalUNet,
        dict(channel_mult=[1, 4], out_channels=6, label_dim=4),
        642182,
        [0.29901, 0.22811, -0.07554, 0.45965, -0.08919, -0.26915, 0.1705],
    ),
    (
        MagnitudeUNet,
        dict(channel_mult=[1, 2], channels_per_head=8),
        181243,
        [0.68495, -2.1874, 2.1418, 0.0894, 13.32301, -4.7561, 4.47079],
    ),
    (
        MagnitudeUNet,
        dict(
            channel_mult=[1, 2],
            label_dim=4,
            channels_per_head=16,
            channel_mult_noise=2,
            channel_mult_emb=3,
            label_balance=0.3,
            concat_balance=0.4,
            res_balance=0.4,
            attn_balance=0.2,
            clip_act=1.5,
            resample_filter=[1, 3, 3, 1],
        ),
        186555,
        [0.399, -0.82124, 0.13336, -1.41857, 2.10338, -0.87908, 1.21618],
    ),
]


@pytest.mark.parametrize("make, arguments, parameters, numbers", PINNED)
def test_architectures_answer_as_the_original_code_did(make, arguments: dict, parameters: int, numbers: list) -> None:
    channels = dict(img_channels=3) if make is MagnitudeUNet else dict(in_channels=3, out_channels=3)
    net = settle(make(**{**SMALL, **channels, **arguments}))
    assert sum(p.numel() for p in net.parameters()) == parameters
    x = torch.sin(0.1 * torch.arange(2 * 3 * 64, dtype=torch.float64)).float().reshape(2, 3, 8, 8)
    label = torch.eye(4)[[0, 2]] if "label_dim" in arguments else None
    with torch.no_grad():
        out = net(x, torch.tensor([-0.5, 0.7]), label).flatten()
    picked = [*out[torch.linspace(0, len(out) - 1, 6).long()].tolist(), float(out.abs().mean())]
    assert picked == pytest.approx(numbers, rel=1e-4, abs=2e-5)


CIFAR = dict(img_resolution=32, in_channels=3, out_channels=3, channel_mult=[2, 2, 2], augment_dim=9)
LATENTS = dict(img_resolution=64, img_channels=4, label_dim=1000)


@pytest.mark.parametrize(
    "make, arguments, parameters",
    [  # What the original classes count; EDM2's preconditioner adds the 128 of its uncertainty.
        (SongUNet, CIFAR, 55_733_891),
        (SongUNet, dict(CIFAR, label_dim=10), 55_735_299),
        (SongUNet, dict(CIFAR, **NCSNPP), 56_397_827),
        (SongUNet, dict(CIFAR, img_resolution=64, channel_mult=[1, 2, 2, 2]), 61_805_571),
        (DhariwalUNet, dict(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000), 295_899_267),
        (DhariwalUNet, dict(img_resolution=64, in_channels=3, out_channels=6, label_dim=1000), 295_904_454),
        (MagnitudeUNet, dict(LATENTS, model_channels=128), 124_713_125),
        (MagnitudeUNet, dict(LATENTS, model_channels=192), 280_212_709),
        (MagnitudeUNet, dict(LATENTS, model_channels=448), 1_523_164_645),
    ],
    ids=["ddpmpp", "ddpmpp-cond", "ncsnpp", "ffhq", "adm", "adm-iddpm", "edm2-xs", "edm2-s", "edm2-xxl"],
)
def test_published_configurations_have_the_published_sizes(make, arguments: dict, parameters: int) -> None:
    with torch.device("meta"):
        net = make(**arguments)
    assert sum(p.numel() for p in net.parameters()) == parameters


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


def test_iddpm_steps_are_told_by_their_number_and_times_between_by_the_nearest() -> None:
    net = made("iddpm")[1]
    t = torch.arange(1, 1001) / 1000
    assert net.noise_label(t).tolist() == list(range(1000))
    assert net.noise_label(t - 1e-4).tolist() == list(range(1000))
    assert net.noise_label(torch.zeros(1)).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ends_of_time_are_finite(teacher: Prediction, dtype: torch.dtype) -> None:
    x = torch.randn(2, *teacher.shape).to(dtype)
    for t in (0.0, 1.0):
        with torch.no_grad():
            x0_hat = teacher(x, torch.tensor(t))
        assert x0_hat.dtype == dtype and bool(x0_hat.isfinite().all())
    with torch.no_grad():
        torch.testing.assert_close(teacher(x, torch.tensor(0.0)), x, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("name", ["edm-song", "ve", "edm2"])
def test_half_precision_keeps_the_noise_embedding(name: str) -> None:
    net = made(name)[1]
    x, t = torch.randn(4, *net.shape), torch.tensor([0.01, 0.1, 0.5, 1.0])
    with torch.no_grad():
        wanted = net(x, t)
        half = copy.deepcopy(net).to(torch.bfloat16)(x.bfloat16(), t)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - wanted).norm() / wanted.norm()) < 0.05


def test_frequencies_survive_a_cast_to_half() -> None:
    net = made("ve")[1]
    before = net.model.map_noise.freqs.clone()
    assert torch.equal(net.half().model.map_noise.freqs, before)
    assert net.double().model.map_noise.freqs.dtype == torch.float64


# Labels


def test_no_condition_is_the_label_behind_the_last(tmp_path: Path) -> None:
    net = loaded("edm2", tmp_path)[1]
    x, t = torch.randn(3, *net.shape), torch.full((3,), 0.1)
    with torch.no_grad():
        told = net(x, t, torch.tensor([1, 4, 2]))
        torch.testing.assert_close(told[1], net(x, t)[1])
        torch.testing.assert_close(net(x, t, {"label": torch.tensor([1, 4, 2])}), told)
        assert float((told[0] - net(x, t)[0]).norm() / told[0].norm()) > 0.01


@pytest.mark.parametrize(
    "name, label, message",
    [
        ("edm2", [0, 5], "label 5 is not a class: expected 0 to 3, or 4 for none"),
        ("edm2", [-1, 0], "label -1 is not a class"),
        ("edm2", [0], "integers of shape \\(2,\\), got torch.int64 of shape \\(1,\\)"),
        ("edm2", [0.0, 1.0], "integers of shape \\(2,\\), got torch.float32"),
        ("vp", [0, 1], "knows no classes"),
    ],
)
def test_wrong_labels_say_what_is_wrong(name: str, label: list, message: str) -> None:
    net = made(name)[1]
    with pytest.raises(ValueError, match=message):
        net(torch.randn(2, *net.shape), torch.rand(2), torch.tensor(label))


# Backbones


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_can_be_stored_and_rebuilt(name: str, tmp_path: Path) -> None:
    teacher, net = loaded(name, tmp_path)
    assert isinstance(teacher.net, Backbone)
    again = load_native(save_teacher(tmp_path / "folder", teacher))
    x, t = torch.randn(2, *net.shape), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        assert torch.equal(again(x, t), teacher(x, t))
    assert net_from_config(teacher.net.config).config == teacher.net.config


@pytest.mark.parametrize("told", ["output", "input"])
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("name", ["edm-song", "ve", "iddpm", "edm2", "skip"])
def test_lifted_backbones_are_the_backbone_frame_by_frame(name: str, once: bool, told: str) -> None:
    if name == "skip":
        skip = dict(SONG, encoder_type="skip", decoder_type="skip", channel_mult=[1, 2, 2])
        net = settle(PreconditionedUNet(skip))
    else:
        net = made(name)[1]
    x, weight = torch.randn(2, *net.shape), {"weight": torch.tensor([0.5, 3.0])}
    label = {} if net.classes is None else {"label": torch.tensor([0, 2])}
    times, start = torch.tensor([0.9, 0.3, 0.0]), torch.tensor(1.0)
    lifted = lift(
        copy.deepcopy(net), example(net, x), net.blocks, 3, 2, where="mid", once=once, told=told, guidance=net.embedding
    )
    layers = lifted.temporal_layers()
    assert layers and all("4x4" in n or "2x2" in n for n in layers)
    with torch.no_grad():
        frames = lifted(x, times, label | weight, start)
        last = lifted(x, times, label | weight, start, select=[2])
        assert torch.allclose(last[:, 0], frames[:, 2], atol=1e-5)
        for m, t in enumerate(times):
            if once and told == "output":
                break  # The first blocks are told the start: another function, on purpose.
            time = (start if told == "input" else t).expand(2)
            wanted = net(x, time, label or None)
            torch.testing.assert_close(frames[:, m], wanted, rtol=1e-4, atol=1e-5)


def test_every_parameter_takes_part(teacher: Prediction) -> None:
    # Distributed training stops at a parameter that has no gradient.
    teacher.train().requires_grad_(True)
    teacher.net(torch.randn(1, *teacher.shape), torch.rand(1)).sum().backward()
    assert [n for n, p in teacher.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(net=dict(SONG, type="VNet")), "unknown architecture 'VNet': expected one of SongUNet, DhariwalUNet"),
        (dict(net=dict(SONG, model_chanels=8)), "model_chanels.*did you mean.*model_channels"),
        (dict(net=dict(SONG, encoder_type="dense")), "encoder_type must be one of 'standard', .*got 'dense'"),
        (dict(net=SONG, precond="ddpm"), "unknown precond 'ddpm'"),
        (dict(net=SONG, sigma_min=90), "sigma_min must be positive and below sigma_max"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreconditionedUNet(**arguments)


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


class Call:
    """Pickles as a call of `fn`, which is a function or another such call."""

    def __init__(self, fn: object, *args: object, state: object = None) -> None:
        self.reduced = (fn, args, state)

    def __reduce__(self):
        return self.reduced

    def __call__(self) -> None:
        """Only what can be called may be pickled as a function."""


def attack(name: str, marker: Path) -> bytes:
    command = f"touch {marker}"
    source = f"open({str(marker)!r}, 'w').close()"
    system = Call(os.system, command)
    return {
        "reduce": lambda: dumps({"ema": system}),
        "exec": lambda: dumps({"ema": Call(exec, source)}),
        "eval": lambda: dumps({"ema": Call(eval, source)}),
        "getattr": lambda: dumps({"ema": Call(Call(getattr, Call(__import__, "os"), "system"), command)}),
        "old opcode": lambda: b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "dotted name": lambda: (
            b"\x80\x04"
            + text("torch.nn.modules.module")
            + text("inspect.os.system")
            + b"\x93"
            + text(command)
            + b"\x85R."
        ),
        "module of torch": lambda: (
            b"\x80\x04" + text("torch.serialization") + text("os.system") + b"\x93" + text(command) + b"\x85R."
        ),
        "storage": lambda: dumps({"ema": Call(torch.storage._load_from_bytes, dumps(system, 2))}),
        "storage in zip": lambda: dumps({"ema": Call(torch.storage._load_from_bytes, zipped(system))}),
        "hook": lambda: dumps({"ema": Call(torch._utils._rebuild_parameter, torch.ones(2), True, {0: system})}),
        "state of a tensor": lambda: dumps(
            {
                "ema": Call(
                    torch._utils._rebuild_tensor_v2,
                    torch.ones(2)._typed_storage(),
                    0,
                    (2,),
                    (1,),
                    False,
                    {},
                    state=(False, None, {0: system}),
                )
            }
        ),
        "object array": lambda: dumps({"ema": np.array([system], dtype=object)}),
        "method of a module": lambda: dumps({"ema": Call(nn.Module.apply, nn.Linear(1, 1), Call(exec, source))}),
        "hub": lambda: dumps({"ema": Call(torch.hub._import_module, "evil", str(evil(marker, source)))}),
        "pickle in pickle": lambda: dumps({"ema": Call(pickle.loads, dumps(system))}),
    }[name]()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def zipped(value: object) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def evil(marker: Path, source: str) -> Path:
    path = marker.parent / "evil.py"
    path.write_text(source)
    return path


ATTACKS = [
    "reduce",
    "exec",
    "eval",
    "getattr",
    "old opcode",
    "dotted name",
    "module of torch",
    "storage",
    "storage in zip",
    "hook",
    "state of a tensor",
    "object array",
    "method of a module",
    "hub",
    "pickle in pickle",
]


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
