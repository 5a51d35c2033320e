r"""The Fourier layer in time: how the frames of one pass see each other.

Features of M frames, $u[m]$ for $m = 0 \dots M-1$, are mixed along the frame index and the channels, pointwise in space
(Zheng et al., 2023, arXiv 2211.13449, section 3). With J modes and a complex $C \times C$ matrix $R_k$ for each,

$$ \hat u[k] = \sum_m u[m] e^{-2 \pi i k m / M}, \qquad \hat v[k] = R_k \hat u[k] \; (k < J), \qquad
   v = \mathrm{irfft}(\hat v), \qquad T(u) = u + \varphi(v). $$

For a handful of frames this is two small real products around one real matrix per mode,

$$ c = A u, \qquad \begin{pmatrix} c'_{\mathrm{re}} \\ c'_{\mathrm{im}} \end{pmatrix} =
   \begin{pmatrix} \mathrm{Re} R_k & -\mathrm{Im} R_k \\ \mathrm{Im} R_k & \mathrm{Re} R_k \end{pmatrix}
   \begin{pmatrix} c_{\mathrm{re}} \\ c_{\mathrm{im}} \end{pmatrix}, \qquad v = S c', $$

with tables $A$ of cosines and sines and $S$ of the same, scaled. It is the same function, faster, and it runs where the
FFT does not: bfloat16, `torch.compile(fullgraph=True)`, `torch.export`, ONNX, forward-mode differentiation. The
imaginary parts of mode 0 and of the Nyquist mode never reach the output, so they are not parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn

__all__ = ["TemporalFourier", "fourier_tables"]

Init = Literal["zero", "uniform", "normal"]

Activation = Literal["silu", "leaky_relu", "identity"]

_ONEDNN = torch.backends.mkldnn.is_available()

NATIVE: dict[torch.dtype, bool] = {
    torch.bfloat16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported(),
    torch.float16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}
"""Whether the CPU is known to multiply in half precision. Where it does not, products in it are emulated, up to twenty
times slower than in float32."""


def fourier_tables(frames: int, modes: int) -> tuple[Tensor, Tensor]:
    r"""Analysis table $A$ (K, M) and synthesis table $S$ (M, K), float64, of the first `modes` modes of M `frames`.

    The K real coefficients are ordered: mode 0 (cosine), mode 1 (cosine, sine), ..., and the Nyquist mode (cosine) when
    M is even and all modes are kept. $S A$ is the projection on the kept modes.

    Raises:
        ValueError: if `modes` is not in [1, M // 2 + 1].
    """
    if frames < 1:
        raise ValueError(f"a trajectory needs at least one frame, got {frames}")
    if not 1 <= modes <= frames // 2 + 1:
        raise ValueError(
            f"{frames} frames have {frames // 2 + 1} Fourier modes (M // 2 + 1), so modes must be in "
            f"[1, {frames // 2 + 1}], got {modes}"
        )
    m = torch.arange(frames, dtype=torch.float64)
    analysis, synthesis = [], []
    for k in range(modes):
        angle = 2 * math.pi * k * m / frames
        if k == 0 or 2 * k == frames:
            analysis.append(angle.cos())
            synthesis.append(angle.cos() / frames)
        else:
            analysis += [angle.cos(), -angle.sin()]
            synthesis += [2 * angle.cos() / frames, -2 * angle.sin() / frames]
    return torch.stack(analysis), torch.stack(synthesis, 1)


class TemporalFourier(nn.Module):
    r"""$T(u) = u + \varphi(v)$ on features whose M frames are folded into the batch.

    Arguments:
        channels: C.
        frames: M >= 1.
        modes: J in [1, M // 2 + 1].
        activation: $\varphi$. `leaky_relu` (slope 0.01) is the published layer.
        init: `zero` is an exact identity at the start; it learns because $\varphi'(0) \ne 0$. `uniform` is the
            published $U[0, 1) / C^2$; `normal` is $\mathcal N(0, 10^{-4}/C)$.
        channel_dim: Where the channels are: 1 for (B*M, C, *spatial), -1 for (B*M, tokens, C).
        offset: Learn a vector $e_m$ per frame, $T(u)[m] = u[m] + \varphi(v[m] + e_m)$, zero at the start. It tells
            frames apart that are not told their own times.

    Shape: (B*M, C, *spatial) to the same, any number of spatial dimensions, frame index fastest: row b*M + m.

    Raises:
        ValueError: for a bad number of modes, or an unknown activation or initialisation.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(
        self,
        channels: int,
        frames: int,
        modes: int = 2,
        activation: Activation = "silu",
        init: Init = "zero",
        channel_dim: int = 1,
        offset: bool = False,
    ) -> None:
        super().__init__()
        analysis, synthesis = fourier_tables(frames, modes)
        self.channels, self.frames, self.modes, self.channel_dim = channels, frames, modes, channel_dim
        self.register_buffer("analysis", analysis.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("synthesis", synthesis.to(torch.get_default_dtype()), persistent=False)
        self.pairs = (len(analysis) - 1) // 2
        self.nyquist = len(analysis) == 2 * self.pairs + 2
        self.real = nn.Parameter(torch.empty(modes, channels, channels))
        self.imag = nn.Parameter(torch.empty(self.pairs, channels, channels)) if self.pairs else None
        if activation not in ("silu", "leaky_relu", "identity"):
            raise ValueError(f"unknown activation {activation!r}: expected silu, leaky_relu or identity")
        self.activation = activation
        self.reset(init)
        self.offset = nn.Parameter(torch.zeros(frames, 1, channels)) if offset else None

    def reset(self, init: Init) -> None:
        """Set the parameters; see the class for the choices."""
        C = self.channels
        for parameter in (self.real, self.imag):
            if parameter is None:
                continue
            if init == "zero":
                nn.init.zeros_(parameter)
            elif init == "uniform":
                nn.init.uniform_(parameter, 0, 1 / C**2)
            elif init == "normal":
                nn.init.normal_(parameter, std=1e-2 / C**0.5)
            else:
                raise ValueError(f"unknown initialisation {init!r}: expected zero, uniform or normal")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The tables follow every cast and move from their exact values, not from what the last dtype left of them.
        super()._apply(fn, recurse)
        analysis, synthesis = fourier_tables(self.frames, self.modes)
        self.analysis, self.synthesis = analysis.to(self.real), synthesis.to(self.real)
        return self

    def extra_repr(self) -> str:
        return f"{self.channels}, frames={self.frames}, modes={self.modes}, activation={self.activation}"

    def forward(self, u: Tensor) -> Tensor:
        wanted = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else u.dtype
        if u.device.type != "cpu" or NATIVE.get(wanted, True):
            return self._transformed(u)
        with torch.autocast("cpu", enabled=False):
            return self._transformed(u.float()).to(u.dtype)

    def _transformed(self, u: Tensor) -> Tensor:
        """$T(u)$ in the dtype of `u`, or what autocast makes of it."""
        rows = u.movedim(self.channel_dim, -1)
        # Channels lie last in the memory of tokens and of `channels_last` images, first in that of others: either way
        # the features are mixed where they are, without a copy.
        last = rows.is_contiguous()
        x = rows if last else u.movedim(self.channel_dim, 1)
        pixels = (-1, self.channels) if last else (self.channels, -1)
        c = self.analysis.to(x.dtype) @ x.unflatten(0, (-1, self.frames)).flatten(2)
        v = self.synthesis.to(c.dtype) @ self._mix(c.unflatten(2, pixels), last).flatten(2)
        if self.offset is not None:
            v = v.unflatten(2, pixels) + (self.offset if last else self.offset.mT).to(v.dtype)
        v = v.reshape(x.shape).movedim(-1 if last else 1, self.channel_dim)
        if self.activation == "silu":
            v = nn.functional.silu(v)
        elif self.activation == "leaky_relu":
            v = nn.functional.leaky_relu(v, 0.01)
        return u + v

    def _mix(self, c: Tensor, last: bool) -> Tensor:
        """Apply $R_k$ to the real coefficients, shape (B, K, space, C) if the channels come `last`, else (B, K, C,
        space)."""

        def apply(R: Tensor, c_k: Tensor) -> Tensor:
            return c_k @ R if last else R.T @ c_k

        dtype = torch.promote_types(c.dtype, self.real.dtype)
        mixed = [apply(self.real[0].to(dtype), c[:, 0])]
        for k in range(self.pairs):
            re, im = self.real[k + 1].to(dtype), self.imag[k].to(dtype)  # type: ignore[index]
            a, b = c[:, 2 * k + 1], c[:, 2 * k + 2]
            # A complex product in three real ones (Gauss) instead of the block matrix's four.
            shared = apply(re, a + b)
            mixed += [shared - apply(re + im, b), shared + apply(im - re, a)]
        if self.nyquist:
            mixed.append(apply(self.real[-1].to(dtype), c[:, -1]))
        return torch.stack(mixed, 1)
