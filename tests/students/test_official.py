"""A checkpoint of the official code, read by us, computes what the official code computes."""

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dsno.nets.backbone import example
from dsno.nets.iddpm import IDDPMUNet, published_blocks
from dsno.schedule import Cosine
from dsno.students.files import load_student, save_student
from dsno.students.lift import lift
from dsno.students.official import OFFICIAL, load_official, official_parameters, official_student
from dsno.students.operator import TrajectoryStudent

SOURCE = os.environ.get("DSNO_OFFICIAL_SOURCE")


def yaml(**model: Any) -> dict[str, dict[str, Any]]:
    """The content of an official configuration file, two levels of 32 and 64 channels on 8x8."""
    data = {"image_size": 8, "num_channels": 3, "t_dim": 17, "t_idx": [0, 4, 8, 12, 16], "num_steps": 512}
    common = {
        "logsnr_min": -20.0,
        "logsnr_max": 20.0,
        "dropout": 0.1,
        "num_classes": 0,
        "nonlinearity": "swish",
        "nf": 32,
        "temb_dim": 64,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "num_attn_heads": 1,
        "resamp_with_conv": False,
        "conditional": True,
        "resblock_type": "biggan",
        "init_scale": 0.0,
        "logsnr_type": "inv_cos",
        "fourier_feature": False,
        "mean_type": "x",
        "time_conv": True,
        "with_nin": False,
        "num_modes": 2,
        "pred_eps": False,
        "num_t": 4,
        "num_pad": 0,
    }
    return {"data": {**data, "time_step": "quad"}, "model": {**common, **model}}


CONFIGS = {
    "one head": yaml(),
    "two and four heads, classes": yaml(head_dim=16, num_classes=5, attn_resolutions=[8, 4]),
    "three levels, two blocks": yaml(ch_mult=[1, 1, 2], num_res_blocks=2, num_attn_heads=2),
    "three frames, one mode": yaml(num_t=3, num_modes=1),
    "four frames, all modes": yaml(num_modes=3),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


class Reference:
    """The official network as plain functions of its state dict, which the first pass draws at random."""

    def __init__(self, config: dict[str, dict[str, Any]], state: dict[str, Tensor] | None = None) -> None:
        self.data, self.model, self.state = config["data"], SimpleNamespace(**config["model"]), state or {}

    def __call__(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        model, self.index = self.model, -1
        B, M = len(x), len(log_snr)
        u = torch.atan(torch.exp(-log_snr / 2)) / (math.pi / 2)
        half = model.nf // 2
        angle = 1000 * u[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
        emb = self.linear(torch.cat([angle.sin(), angle.cos()], -1), model.temb_dim)
        emb = self.linear(F.silu(emb), model.temb_dim).expand(B, M, -1)
        if model.num_classes:
            emb = emb + self.linear(F.one_hot(label, model.num_classes).float(), model.temb_dim)[:, None]
        self.emb = emb.reshape(B * M, -1)
        self.frames = M
        h = self.conv(self.next(), x, model.nf).repeat_interleave(M, 0)
        levels, size = len(model.ch_mult), self.data["image_size"]
        skips = [h]
        for level, multiple in enumerate(model.ch_mult):
            for _ in range(model.num_res_blocks):
                h = self.layers(h, model.nf * multiple, size >> level in model.attn_resolutions)
                skips.append(h)
            if level < levels - 1:
                h = self.residual(h, h.shape[1], lambda v: F.avg_pool2d(v, 2))
                skips.append(h)
        h = self.residual(self.layers(h, h.shape[1], True), h.shape[1])
        for level, multiple in reversed(list(enumerate(model.ch_mult))):
            for _ in range(model.num_res_blocks + 1):
                h = torch.cat([h, skips.pop()], 1)
                h = self.layers(h, model.nf * multiple, size >> level in model.attn_resolutions)
            if level > 0:
                h = self.residual(h, h.shape[1], lambda v: F.interpolate(v, scale_factor=2))
        h = F.silu(self.norm(self.next(), h, 32))
        return self.conv(self.next(), h, 3).unflatten(0, (B, M))

    def next(self) -> str:
        self.index += 1
        return f"all_modules.{self.index}."

    def tensor(self, name: str, *shape: int, fan: int = 0) -> Tensor:
        return self.state.setdefault(name, torch.randn(*shape) * (fan**-0.5 if fan else 0.1))

    def linear(self, x: Tensor, width: int, name: str = "") -> Tensor:
        name = name or self.next()
        weight = self.tensor(f"{name}weight", width, x.shape[-1], fan=x.shape[-1])
        return F.linear(x, weight, self.tensor(f"{name}bias", width))

    def conv(self, name: str, x: Tensor, width: int) -> Tensor:
        weight = self.tensor(f"{name}weight", width, x.shape[1], 3, 3, fan=9 * x.shape[1])
        return F.conv2d(x, weight, self.tensor(f"{name}bias", width), padding=1)

    def norm(self, name: str, x: Tensor, groups: int) -> Tensor:
        weight = self.state.setdefault(f"{name}weight", 1 + 0.1 * torch.randn(x.shape[1]))
        return F.group_norm(x, groups, weight, self.tensor(f"{name}bias", x.shape[1]), eps=1e-6)

    def nin(self, name: str, x: Tensor, width: int) -> Tensor:
        y = torch.einsum("bihw,io->bohw", x, self.tensor(f"{name}W", x.shape[1], width, fan=x.shape[1]))
        return y + self.tensor(f"{name}b", width)[:, None, None]

    def residual(self, x: Tensor, width: int, resample: Callable[[Tensor], Tensor] = lambda v: v) -> Tensor:
        name = self.next()
        h = F.silu(self.norm(f"{name}GroupNorm_0.", x, min(x.shape[1] // 4, 32)))
        h = self.conv(f"{name}Conv_0.", resample(h), width)
        scale, shift = self.linear(F.silu(self.emb), 2 * width, f"{name}Dense_0.")[..., None, None].chunk(2, 1)
        h = F.silu(self.norm(f"{name}GroupNorm_1.", h, min(width // 4, 32)) * (scale + 1) + shift)
        h = self.conv(f"{name}Conv_1.", h, width)
        x = resample(x)
        return h + (x if x.shape[1] == width else self.nin(f"{name}NIN_0.", x, width))

    def attention(self, x: Tensor) -> Tensor:
        name, (N, C, H, W) = self.next(), x.shape
        heads = C // self.model.head_dim if hasattr(self.model, "head_dim") else self.model.num_attn_heads
        rows = self.nin(f"{name}NINs.", self.norm(f"{name}GroupNorm_0.", x, 32), 3 * C)
        q, k, v = rows.reshape(N, heads, 3 * (C // heads), H * W).chunk(3, 2)
        weights = (torch.einsum("nhcp,nhcq->nhpq", q, k) / (C // heads) ** 0.5).softmax(-1)
        return x + self.nin(f"{name}NIN_3.", torch.einsum("nhpq,nhcq->nhcp", weights, v).reshape(x.shape), C)

    def temporal(self, x: Tensor) -> Tensor:
        C, modes = x.shape[1], self.model.num_modes
        R = torch.view_as_complex(self.tensor(f"{self.next()}t_conv.weights1", C, C, modes, 2, fan=4 * C))
        spectrum = torch.fft.rfft(x.unflatten(0, (-1, self.frames)), dim=1)[:, :modes]
        mixed = torch.einsum("bkihw,iok->bkohw", spectrum, R)
        return x + F.leaky_relu(torch.fft.irfft(mixed, n=self.frames, dim=1), 0.01).flatten(0, 1)

    def layers(self, x: Tensor, width: int, attends: bool) -> Tensor:
        h = self.residual(x, width)
        return self.temporal(self.attention(h) if attends else h)


def drawn(config: dict[str, dict[str, Any]]) -> tuple[dict[str, Tensor], tuple[Tensor, ...], Tensor, Tensor]:
    """A random state dict, an input with its labels if any, the output times and the official output."""
    x, classes = torch.randn(2, 3, 8, 8), config["model"]["num_classes"]
    cond = (torch.tensor([classes - 1, 0]),) if classes else ()
    times = torch.tensor([0.5625, 0.25, 0.0625, 0.0])[-config["model"]["num_t"] :]
    reference = Reference(config)
    return reference.state, (x, *cond), times, reference(x, Cosine().log_snr(times), *cond)


def error(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).abs().max() / expected.abs().max())


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


# The same function


@configs
def test_the_student_computes_what_the_official_code_does(config: dict) -> None:
    state, inputs, times, expected = drawn(config)
    student = official_student(state, config)
    assert expected.std() > 0.1 and expected.diff(dim=1).std() > 0.05
    torch.testing.assert_close(student.times.float(), times)
    assert error(student(*inputs), expected) < 1e-5
    assert error(student.sample(*inputs), expected[:, -1]) < 1e-5
    assert error(student.to(memory_format=torch.channels_last)(*inputs), expected) < 1e-5


@pytest.mark.parametrize("heads, scrambled", [(1, False), (2, True), (4, True)])
def test_the_order_of_attention_rows_matters_from_two_heads_on(heads: int, scrambled: bool) -> None:
    config = yaml(num_attn_heads=heads)
    state, inputs, _, expected = drawn(config)
    assert (error(official_student(state, config, attention="teacher")(*inputs), expected) > 1e-2) == scrambled
    # The same network with its rows in the teacher's order.
    for name in [n for n in state if ".NINs." in n]:
        rows = state[name].unflatten(-1, (heads, 3, -1))
        state[name] = torch.cat([rows[..., part, :].flatten(-2) for part in range(3)], -1)
    assert error(official_student(state, config, attention="teacher")(*inputs), expected) < 1e-5


def test_the_imaginary_part_that_is_dropped_does_nothing() -> None:
    config = yaml(num_modes=3)
    state, inputs, times, expected = drawn(config)
    for name in [n for n in state if "t_conv" in n]:
        state[name][:, :, [0, 2], 1] += 1  # mode 0 and, of four frames, the Nyquist mode
    assert error(Reference(config, state)(inputs[0], Cosine().log_snr(times)), expected) < 1e-6
    state[name][:, :, 1, 1] += 1
    assert error(Reference(config, state)(inputs[0], Cosine().log_snr(times)), expected) > 1e-2


@pytest.mark.parametrize(
    "time_step, t_dim, kept, steps, expected",
    [
        ("quad", 17, [0, 4, 8, 12, 16], 512, OFFICIAL["cifar10"][1]),
        ("uniform", 9, [0, 2, 4, 6, 8], 16, OFFICIAL["imagenet64"][1]),
        ("uniform", 17, [0, 4, 8, 12, 16], 512, OFFICIAL["imagenet64"][1]),
    ],
)
def test_the_output_times_are_those_of_the_file(
    time_step: str, t_dim: int, kept: list[int], steps: int, expected: tuple[float, ...]
) -> None:
    config = yaml()
    config["data"] |= {"time_step": time_step, "t_dim": t_dim, "t_idx": kept, "num_steps": steps}
    student = official_student(drawn(config)[0], config)
    assert student.times.tolist() == list(expected)
    assert (student.target, student.kind, student.schedule) == ("x0", "x0", Cosine(-20.0, 20.0))


@pytest.mark.parametrize(
    "name, size, layers, widths",
    [
        ("cifar10", 65_771_267, 22, 22 * 256**2),
        ("imagenet64", 329_225_091, 29, 7 * 192**2 + 7 * 384**2 + 7 * 576**2 + 8 * 768**2),
    ],
)
def test_the_published_models_have_their_size(name: str, size: int, layers: int, widths: int) -> None:
    config, times = OFFICIAL[name]
    with torch.device("meta"):
        net = IDDPMUNet(**config)
    names = published_blocks(net)
    made = lift(net, example(net, next(net.parameters())), net.blocks, where=lambda n, shape: n in names, once=True)
    student = TrajectoryStudent(made, net.schedule, times, kind="x0")
    assert len(made.temporal_layers()) == layers
    assert official_parameters(student) == size
    # One real matrix in four is the imaginary part of mode 0.
    assert sum(p.numel() for p in student.parameters()) == size - widths


# Files


def checkpoint(path: Path, config: dict[str, dict[str, Any]], **more: Any) -> tuple[tuple[Tensor, ...], Tensor]:
    """Write a file as the official scripts do, with other weights under `model`; an input and the `ema` output."""
    state, inputs, _, expected = drawn(config)
    model = {f"module.{name}": torch.randn_like(value) for name, value in state.items()}
    torch.save({"model": model, "ema": state, **more}, path)
    return inputs, expected


def test_a_file_of_the_training_script_loads(tmp_path: Path) -> None:
    path, config = tmp_path / "solver-model_10.pt", yaml(head_dim=16)
    optimizer = torch.optim.Adam([torch.zeros(2)])
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])
    args = argparse.Namespace(config="cifar.yaml", log=False, local_rank=0)
    inputs, expected = checkpoint(
        path, config, args=args, optim=optimizer.state_dict(), scheduler=scheduler.state_dict()
    )
    student = load_official(str(path), config)
    assert not student.training
    assert error(student(*inputs), expected) < 1e-5
    assert error(load_official(path, config, which="model")(*inputs), expected) > 1e-2


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict_loads_with_the_prefix_of_parallel_training(tmp_path: Path, zipped: bool) -> None:
    config = yaml()
    state, inputs, _, expected = drawn(config)
    path = tmp_path / "weights.pt"
    parallel = {f"module.{name}": value for name, value in state.items()}
    torch.save(parallel, path, _use_new_zipfile_serialization=zipped)
    assert error(load_official(path, config)(*inputs), expected) < 1e-5


def test_the_student_is_saved_and_loaded_like_any(tmp_path: Path) -> None:
    config = yaml(num_classes=5)
    state, inputs, _, expected = drawn(config)
    save_student(tmp_path, official_student(state, config))
    loaded = load_student(tmp_path)
    assert error(loaded(*inputs), expected) < 1e-5


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_objects_in_a_file_are_named_and_not_made(tmp_path: Path) -> None:
    path, harm = tmp_path / "solver-model_10.pt", tmp_path / "harm"
    checkpoint(path, yaml(), args=Harm(harm))
    with pytest.raises(ValueError, match="holds a Python object .*mkdir.*save its weights alone"):
        load_official(path, yaml())
    assert not harm.exists()


def test_files_that_are_no_checkpoints_say_so(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    with pytest.raises(FileNotFoundError, match="no file .*file.pt"):
        load_official(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged or was not written by torch.save"):
        load_official(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        load_official(path)
    torch.save({"state_dict": {}, "step": 3}, path)
    with pytest.raises(ValueError, match="has no 'ema' \\(it has state_dict, step\\)"):
        load_official(path)
    checkpoint(path, yaml())
    with pytest.raises(ValueError, match="unknown weights 'last'"):
        load_official(path, which="last")  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="damaged"):
        load_official(path)


def test_weights_of_another_architecture_say_where_they_differ() -> None:
    config = yaml()
    state = drawn(config)[0]

    def changed(**changes: Tensor | None) -> dict[str, Tensor]:
        merged = {**state, **{k.replace("__", "."): v for k, v in changes.items()}}
        return {k: v for k, v in merged.items() if v is not None}

    cases: list[tuple[dict[str, Tensor], str]] = [
        (
            changed(all_modules__3__GroupNorm_0__bias=None),
            "all_modules.3.GroupNorm_0.bias is missing, expected \\(32,\\)",
        ),
        (
            changed(all_modules__2__weight=torch.zeros(32, 3, 1, 1)),
            "2.weight is of shape \\(32, 3, 1, 1\\), expected \\(32, 3, 3, 3\\)",
        ),
        (changed(all_modules__99__weight=torch.zeros(1)), "more than its configuration says: all_modules.99.weight"),
    ]
    for held, message in cases:
        with pytest.raises(ValueError, match=message):
            official_student(held, config)
    with pytest.raises(ValueError, match="all_modules.4"):
        official_student(state, yaml(time_conv=True, attn_resolutions=[8, 4]))
    with pytest.raises(ValueError, match="fits neither cifar10 nor imagenet64"):
        official_student(state)
    with pytest.raises(ValueError, match="all_modules.0.weight is of shape \\(64, 32\\), expected \\(1024, 256\\)"):
        official_student(state, "cifar10")


@pytest.mark.parametrize(
    "config, message",
    [
        ("cifar100", "unknown configuration 'cifar100': expected one of cifar10, imagenet64"),
        ({"model": {}}, "lacks 'data'"),
        ({"data": yaml()["data"], "model": {"nf": 32}}, "lacks '"),
        (yaml(pred_eps=True), "pred_eps=True is not supported: the published models have False"),
        (yaml(resblock_type="ddpm"), "resblock_type='ddpm' is not supported"),
    ],
)
def test_configurations_that_cannot_be_read_say_why(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official_student({}, config)
    with pytest.raises(ValueError, match="unknown order of attention rows 'mixed'"):
        official_student({}, config, attention="mixed")  # type: ignore[arg-type]


# The official modules themselves


def official_net(config: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The official network with weights that all matter."""
    monkeypatch.syspath_prepend(SOURCE)
    for name in [n for n in sys.modules if n.split(".")[0] == "models"]:
        monkeypatch.delitem(sys.modules, name)
    space = SimpleNamespace(**{key: SimpleNamespace(**part) for key, part in config.items()})
    net = importlib.import_module("models.tddpmm").TDDPMm(space).eval()
    for name, parameter in net.named_parameters():
        transposed = "NIN" in name or "weights1" in name
        fan = parameter.shape[0] if transposed else parameter[0].numel()
        parameter.normal_(std=(fan**-0.5 if parameter.ndim > 1 else 0.1) * (0.5 if "weights1" in name else 1))
    return net


@pytest.mark.slow
@pytest.mark.skipif(SOURCE is None, reason="DSNO_OFFICIAL_SOURCE names no checkout of the official repository")
@pytest.mark.parametrize("config", [*CONFIGS.values(), *OFFICIAL], ids=[*CONFIGS, *OFFICIAL])
def test_the_student_equals_the_official_modules(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    named = config
    if isinstance(config, str):
        read = pytest.importorskip("yaml").safe_load
        config = read(Path(SOURCE or "", "configs", f"{named}-dsno-t4.yaml").read_text())
    net = official_net(config, monkeypatch)
    student = official_student(net.state_dict(), named)
    assert official_parameters(student) == sum(p.numel() for p in net.parameters())
    if isinstance(named, str):
        read_too = official_student(net.state_dict(), config)
        assert str(read_too) == str(student) and read_too.times.tolist() == student.times.tolist()
    classes, B = config["model"]["num_classes"], 1 if named == "imagenet64" else 2
    x = torch.randn(B, *student.shape)
    cond = (torch.arange(B) % classes,) if classes else ()
    expected = net(x, Cosine().log_snr(student.times.float()), *cond)
    assert error(student(x, *cond), expected) < 1e-5
