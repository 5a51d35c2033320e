r"""Parallel decoders: N heads on one backbone, each a step of the path, in as many calls as one likes.

Any path is straight in the coordinates

$$ y = \frac{x_t}{\alpha_t + \sigma_t}, \qquad \tau = \frac{\sigma_t}{\alpha_t + \sigma_t}, \qquad
   \frac{dy}{d\tau} = u = \epsilon - x_0 = \frac{y - \hat x_0}{\tau}, $$

whose Euler step is DDIM's. On a grid $\tau_0 > \dots > \tau_N$ from noise to data, the backbone runs once at $x_n$, and
only its last layer is there N times: head k gives the mean velocity of the interval $[\tau_{k+1}, \tau_k]$, read
from its raw output as the teacher's would be at the *input*,

$$ u_n(k) = \frac{y_n - h_k}{\tau_n}, \qquad k = n, \dots, m - 1, $$

with $h_k$ what `dsno.denoise` makes $\hat x_0$ of. Noise (`eps`) says nothing of it where all is noise; there
$h = (x_n - \sigma_n F) / \max(\alpha_n, 1/4)$, as of a flow map. A call moves over the block $[n, m)$,

$$ y_m = y_n + \sum_{k=n}^{m-1} (\tau_{k+1} - \tau_k) \, u_n(k)
       = \frac{\tau_m}{\tau_n} y_n + \Big( 1 - \frac{\tau_m}{\tau_n} \Big) \bar h, \qquad
   \bar h = \sum_k \Delta_k h_k, \quad \Delta_k = \frac{\tau_k - \tau_{k+1}}{\tau_n - \tau_m}, $$

and since h is affine in the output and the last layer linear in its weights, the heads of a block *fuse* into one layer

$$ W = \sum_k \Delta_k W_k : $$

the network of a call is the teacher's, layer by layer. At the start every head is the teacher, and so a call is the
teacher's Euler step over its block, whichever block that is.

Source: Shaul, Liu, Vahdat, Berner, 2026 (arXiv 2607.26004), on the straight path of rectified flow; other schedules by
the coordinates above.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsno.borrow import called_with, own_copy, unwrapped
from dsno.condition import Cond
from dsno.denoise import Kind, Prediction, evaluating, scale_input, x0_from
from dsno.grids import check_grid, even
from dsno.nets.backbone import Backbone, example
from dsno.schedule import Schedule
from dsno.students.inputs import check_inputs, computing, in_parts

__all__ = ["Headed", "Heads", "ParallelDecoder", "add_heads", "decoder_from_teacher", "last_layer"]


class Heads(nn.Module):
    """The last layer of a backbone, its weights there N times: (N, *shape) for every parameter.

    What it does is set before a call: the heads of `block` fused by `shares`, or, without shares, each for itself, the
    rows of a sample next to each other.

    Arguments:
        layer: A linear layer or convolution, whose parameters become the stacked ones.
        count: N.
    """

    def __init__(self, layer: nn.Module, count: int) -> None:
        super().__init__()
        self.layer, self.count = layer, count
        self.block, self.shares = (0, 1), cast(tuple[float, ...] | None, (1.0,))
        self._copies: dict[tuple[Any, ...], Tensor] = {}
        # Of a convolution the channels come second, of a linear layer last.
        self.channels = -1 if cast(Tensor, layer.weight).ndim == 2 else 1
        for name, parameter in [*layer.named_parameters()]:
            stacked = parameter.detach().expand(count, *parameter.shape).clone()
            setattr(layer, name, nn.Parameter(stacked, parameter.requires_grad))

    def forward(self, features: Tensor, *rest: Any) -> Tensor:
        n, m = self.block
        own = {name: parameter[n:m] for name, parameter in self.layer.named_parameters()}
        if self.shares is not None:
            fused = {name: self._mean(parameter, self.shares) for name, parameter in own.items()}
            return cast(Tensor, called_with(fused, self.layer, features, *rest))
        wide = {name: parameter.flatten(0, 1) for name, parameter in own.items()}
        output: Tensor = called_with(wide, self.layer, features, *rest)
        output = output.unflatten(self.channels, (m - n, -1))
        return output.movedim(-2 if self.channels == -1 else 1, 1).flatten(0, 1)

    def _mean(self, stacked: Tensor, shares: tuple[float, ...]) -> Tensor:
        """The mean of the rows; of one row, that one."""
        if len(shares) == 1:
            return stacked[0]
        # On a device they are kept: to copy them at every call would make the host wait for it each time.
        key = shares, stacked.dtype, stacked.device
        w = self._copies.get(key)
        if w is None:
            w = torch.tensor(shares, dtype=stacked.dtype, device=stacked.device)
            if not torch.compiler.is_compiling() and stacked.device.type not in ("cpu", "meta"):
                self._copies[key] = w
        return (w.reshape(-1, *[1] * (stacked.ndim - 1)) * stacked).sum(0)


class Headed(nn.Module):
    """A backbone whose last layer are `Heads`.

    Call: `net(x, t, block, shares, cond)` with x (B, *shape), t (B,), a block (n, m) of the heads, and m - n shares, or
    None; returns (B, 1, *shape) for the fused heads, (B, m - n, *shape) for each.

    Arguments:
        backbone: The network; its module `last` is replaced.
        last: The name of its last layer.
        count: N.
    """

    def __init__(self, backbone: nn.Module, last: str, count: int) -> None:
        super().__init__()
        self.backbone, self.last, self.count = backbone, last, count
        parent, _, name = last.rpartition(".")
        owner = backbone.get_submodule(parent)
        setattr(owner, name, Heads(getattr(owner, name), count))

    @property
    def heads(self) -> Heads:
        """The layer."""
        return cast(Heads, self.backbone.get_submodule(self.last))

    def forward(
        self, x: Tensor, t: Tensor, block: tuple[int, int], shares: tuple[float, ...] | None, cond: Cond | None = None
    ) -> Tensor:
        heads = self.heads
        heads.block, heads.shares = block, shares
        output: Tensor = self.backbone(x, t) if cond is None else self.backbone(x, t, cond)
        return output.unsqueeze(1) if shares is not None else output.unflatten(0, (-1, block[1] - block[0]))


class ParallelDecoder(nn.Module):
    r"""A student of N heads (`DecoderSampler` makes it a `Sampler` of one to N calls).

    Arguments:
        net: Called as `Headed` is.
        schedule: The teacher's path.
        grid: N + 1 decreasing times, from noise to the sample's.
        kind: What the backbone's teacher predicts, so how raw outputs are read.
        data_std: $\sigma_d$ of the kind `edm`.
        least: The least span of a block, in intervals: blocks begin at its multiples.
        most: The greatest span; N by default, which is one call for all.
        shape: The shape of one sample, (C, *spatial), of a backbone that does not say.
        classes: The number of classes it may be told, of a backbone that does not say.

    Raises:
        ValueError: for a grid that does not decrease or fit the heads, a kind that has no heads, or spans of which none
            divides N.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        grid: Sequence[float] | Tensor,
        kind: Kind = "v",
        data_std: float = 1.0,
        least: int = 1,
        most: int | None = None,
        shape: Sequence[int] | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.grid = check_grid(grid)
        N = len(self.grid) - 1
        if isinstance(headed := unwrapped(net), Headed) and headed.count != N:
            raise ValueError(f"the network has {headed.count} heads but the grid {N} intervals: one is for one")
        if kind not in ("x0", "eps", "v", "flow", "edm"):
            raise ValueError(f"no heads for a teacher that predicts {kind!r}: expected x0, eps, v, flow or edm")
        self.net, self.schedule, self.kind, self.data_std = net, schedule, kind, data_std
        self.least, self.most = least, N if most is None else most
        self.own_shape, self.own_classes = None if shape is None else tuple(shape), classes
        # Numbers of the host, worked out once: a call neither reads the grid nor asks the schedule.
        self.times = tuple(self.grid.tolist())
        self.levels = tuple(schedule.at(t) for t in self.times)
        self.tau = tuple(sigma / (alpha + sigma) for alpha, sigma in self.levels)
        with torch.device("cpu"):
            self.readings = tuple(self._reading(n) for n in range(N))
        if least < 1 or not self.spans:
            raise ValueError(
                f"a block spans a multiple of `least` intervals, at most `most`, that divides all {N}: got least = "
                f"{least} and most = {self.most}"
            )

    @property
    def count(self) -> int:
        """N, the number of heads."""
        return len(self.tau) - 1

    @property
    def spans(self) -> tuple[int, ...]:
        """The spans of blocks that it is trained for, increasing: N over one of them is a number of passes."""
        spans = range(self.least, min(self.most, self.count) + 1, max(self.least, 1))
        return tuple(L for L in spans if self.count % L == 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, *spatial).

        Raises:
            ValueError: if the backbone does not say.
        """
        if (backbone := self._backbone()) is not None:
            return backbone.shape
        if self.own_shape is None:
            raise ValueError("this network does not say what it makes: pass shape=(C, ...) to ParallelDecoder")
        return self.own_shape

    @property
    def classes(self) -> int | None:
        """The number of classes of a class-conditional decoder, or None."""
        backbone = self._backbone()
        return self.own_classes if backbone is None else backbone.classes

    @property
    def guided(self) -> bool:
        """Whether it is told a guidance weight: never."""
        return False

    def _backbone(self) -> Backbone | None:
        """The network that says what it makes and is told, if it does."""
        net = unwrapped(self.net)
        backbone = unwrapped(net.backbone) if isinstance(net, Headed) else None
        return backbone if isinstance(backbone, Backbone) else None

    def shares(self, n: int, m: int) -> tuple[float, ...]:
        r"""$\Delta_k$ of a block, summing to one."""
        tau = self.tau
        return tuple((a - b) / (tau[n] - tau[m]) for a, b in pairwise(tau[n : m + 1]))

    def forward(self, x_n: Tensor, n: int, m: int, cond: Cond | None = None, each: bool = False) -> Tensor:
        r"""$x_m$, (B, *shape) from $x_n$ (B, *shape): one call over the block [n, m).

        With `each` what every head says instead, $h_n, \dots, h_{m-1}$, (B, m - n, *shape).
        """
        a, b, c = self.readings[n]
        # Half precision tells only a few hundred times apart; and exports keep a batch open whose length is not taken.
        t = x_n.new_full((x_n.shape[0],), self.times[n], dtype=torch.promote_types(x_n.dtype, torch.float32))
        F = self.net(c * x_n, t, (n, m), None if each else self.shares(n, m), cond)
        h = a * x_n.unsqueeze(1) + b * F
        if each:
            return cast(Tensor, h)
        (alpha_n, sigma_n), (alpha_m, sigma_m) = self.levels[n], self.levels[m]
        ratio = sigma_m / sigma_n
        return cast(Tensor, ratio * x_n + (alpha_m - ratio * alpha_n) * h[:, 0])

    def _reading(self, n: int) -> tuple[float, float, float]:
        r"""$(a, b, c)$ of $h = a x_n + b F(c x_n)$, in float64."""
        t, (alpha_n, sigma_n) = self.times[n], self.levels[n]
        if self.kind == "eps":
            return 1 / max(alpha_n, 0.25), -sigma_n / max(alpha_n, 0.25), 1.0
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        a, b = (float(x0_from(self.kind, F, x, t, self.schedule, self.data_std)) for x, F in ((one, zero), (zero, one)))
        return a, b, float(scale_input(self.kind, one, t, self.schedule, self.data_std))

    def one_pass(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The sample of one call, (B, *shape) from noise (B, *shape), with its graph: what exports trace."""
        return cast(Tensor, self(self.levels[0][1] * z, 0, self.count, cond))

    @torch.no_grad()
    def sample(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The sample in the fewest calls that it is trained for, (B, *shape) from noise (B, *shape).

        Raises:
            ValueError: as `check_inputs` does.
        """
        self.check(z, cond)
        with computing(z, self):
            return in_parts(self._sampled, z, cond)

    def _sampled(self, z: Tensor, cond: Cond | None) -> Tensor:
        x, L = self.levels[0][1] * z, self.spans[-1]
        for n in range(0, self.count, L):
            x = self(x, n, n + L, cond)
        return x

    def check(self, z: Tensor, cond: Cond | None = None) -> None:
        """Refuse noise or a condition that it does not take, as `check_inputs` does."""
        check_inputs(z, cond, self._backbone(), False)

    def trained_for(self, least: int, most: int) -> ParallelDecoder:
        """The same decoder, its network shared, said to be trained for these spans."""
        own: dict[str, Any] = {"shape": self.own_shape, "classes": self.own_classes}
        made = ParallelDecoder(self.net, self.schedule, self.grid, self.kind, self.data_std, least, most, **own)
        made.training = self.training
        return made

    @property
    def config(self) -> dict[str, object]:
        """Everything but the weights, JSON-able; `backbone` is None where it cannot be rebuilt."""
        net, backbone = unwrapped(self.net), self._backbone()
        own: dict[str, object] = {} if backbone else {"shape": self.own_shape, "classes": self.own_classes}
        return {
            "schedule": self.schedule.config,
            "grid": self.grid.tolist(),
            "kind": self.kind,
            "data_std": self.data_std,
            "least": self.least,
            "most": self.most,
            "last": net.last if isinstance(net, Headed) else None,
            "backbone": None if backbone is None else backbone.config,
            **own,
        }


def decoder_from_teacher(
    teacher: Prediction,
    heads: int = 16,
    least: int = 1,
    most: int | None = None,
    grid: Sequence[float] | Tensor | None = None,
    last: str | None = None,
) -> ParallelDecoder:
    """A parallel decoder around a copy of a teacher, its weights included: each head is its last layer.

    `grid` is the even one of `heads` intervals by default; `last` names the last layer of a network, which is looked
    for where none is named. The other arguments are those of `ParallelDecoder`.

    Raises:
        ValueError: if there is no last layer that heads can be made of, the network has its own time units, or as
            `ParallelDecoder` does.
    """
    teacher = unwrapped(teacher)
    if teacher.time is not None:
        raise ValueError("a student's network is told t in [0, 1]: put the teacher's `time` into its network's forward")
    net = own_copy(teacher.net)
    if not any(p.requires_grad for p in net.parameters()):
        net.requires_grad_()
    known = isinstance(net, Backbone)
    if not known and teacher.shape is None:
        raise ValueError(f"a {type(net).__name__} does not say what shape it makes: pass shape=(C, ...) to Prediction")
    if heads < 1:
        raise ValueError(f"a decoder has at least one head, got {heads}")
    times = even(teacher.schedule, heads) if grid is None else check_grid(grid)
    headed = add_heads(net, _example(teacher, net), len(times) - 1, last)
    own = {} if known else {"shape": teacher.shape, "classes": teacher.classes}
    return ParallelDecoder(
        headed, teacher.schedule, times, teacher.kind, teacher.data_std, least, most, **cast(Any, own)
    )


def _example(teacher: Prediction, net: nn.Module) -> tuple[Cond, ...]:
    like = next(net.parameters())
    if isinstance(net, Backbone):
        return example(net, like)
    assert teacher.shape is not None
    x, t = like.new_zeros(1, *teacher.shape), like.new_zeros(1)
    label = torch.zeros(1, dtype=torch.int64, device=like.device)
    return (x, t) if teacher.classes is None else (x, t, label)


def add_heads(net: nn.Module, example: Sequence[Cond], count: int, last: str | None = None) -> Headed:
    """Give a network `count` heads, in place; `example` are its positional arguments, a batch of one.

    Raises:
        ValueError: if its output is not linear in the weights of its last layer, or does not keep the rows apart.
    """
    name = last_layer(net, example) if last is None else last
    if name not in dict(net.named_modules()) or not _is_linear(net.get_submodule(name)):
        raise ValueError(f"{name!r} is no linear layer or convolution of a {type(net).__name__}: name its last one")
    headed = Headed(net, name, count)
    layer = headed.heads.layer
    kept = {key: parameter.detach().clone() for key, parameter in layer.named_parameters()}
    refusal = ValueError(
        f"the output of a {type(net).__name__} is not linear in the weights of {name!r}, its last layer, so heads "
        "would not fuse: name another, last=..., or take a method without heads (`dsno methods`)"
    )
    x, t, *cond = example
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(cast(Tensor, x).shape, generator=g).to(cast(Tensor, x))
    with torch.no_grad(), evaluating(net):
        try:
            for parameter in layer.parameters():
                # Last layers often start at zero, which would hide what comes behind them.
                drawn = torch.randn(parameter.shape[1:], generator=g)
                parameter.copy_(torch.linspace(1, 2, count).reshape(-1, *[1] * drawn.ndim) * drawn)
            one = headed(noise, cast(Tensor, t), (0, 1), (1.0,), *cond)
            each = headed(noise, cast(Tensor, t), (0, count), None, *cond)
        except RuntimeError as error:  # what comes behind adds the rows of something else
            raise refusal from error
        finally:
            for key, parameter in layer.named_parameters():
                parameter.copy_(kept[key])
    expected = torch.linspace(1, 2, count).to(one).reshape(1, -1, *[1] * (one.ndim - 2)) * one
    if each.shape != expected.shape or float((each - expected).abs().max()) > 1e-2 * float(expected.abs().max()):
        raise refusal
    return headed


def last_layer(net: nn.Module, example: Sequence[Cond]) -> str:
    """The name of the linear layer or convolution that finishes last in a call on `example`.

    Raises:
        ValueError: if none runs.
    """
    finished: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: finished.append(name))
        for name, module in net.named_modules()
        if _is_linear(module)
    ]
    try:
        with torch.no_grad(), evaluating(net):
            net(*example)
    finally:
        for hook in hooks:
            hook.remove()
    if not finished:
        raise ValueError(f"a {type(net).__name__} has no linear layer or convolution that heads could be made of")
    return finished[-1]


def _is_linear(module: nn.Module) -> bool:
    """Whether a module looks like a linear layer or convolution: weights of two dimensions or more, nothing inside."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim >= 2 and not [*module.children()] and not isinstance(module, nn.Embedding)
