"""The networks of NVlabs' code, small, and snapshots of them that pickle as that code's do, without that code."""

import pickle  # noqa: TID251 - to write the files that the reader must take, and those it must refuse.
import sys
import types
import zlib

import numpy as np
import torch
from torch import nn

from dsno.nets.preconditioned import PreconditionedUNet, iddpm_sigmas

SMALL = dict(img_resolution=8, model_channels=16, num_blocks=1, attn_resolutions=[4])
NCSNPP = dict(
    embedding_type="fourier",
    channel_mult_noise=2,
    encoder_type="residual",
    resample_filter=[1, 3, 3, 1],
)


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


def answer(net: nn.Module, label: torch.Tensor | None) -> list[float]:
    """Six numbers, and the mean size of all, of what settled weights say of two images at two noise levels."""
    x = torch.sin(0.1 * torch.arange(2 * 3 * 64, dtype=torch.float64)).float().reshape(2, 3, 8, 8)
    with torch.no_grad():
        out = settle(net)(x, torch.tensor([-0.5, 0.7]), label).flatten()
    return [*out[torch.linspace(0, len(out) - 1, 6).long()].tolist(), float(out.abs().mean())]


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
