"""The layer is the truncated Fourier operator of the paper, and it runs everywhere."""

import copy
import io
import shutil

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from dsno.students.temporal import NATIVE, TemporalFourier, fourier_tables

CASES = [(M, J) for M in range(1, 17) for J in range(1, M // 2 + 2)]
LAYOUTS = {"0-D": (), "1-D": (5,), "2-D": (3, 4), "3-D": (2, 3, 2)}


def layer(
    M: int = 4, J: int = 2, C: int = 6, activation: str = "identity", dtype: torch.dtype = torch.float64, **options: int
) -> TemporalFourier:
    """A layer with parameters of order one, so that the temporal part weighs as much as the identity."""
    made = TemporalFourier(C, M, J, activation, "normal", **options).to(dtype).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=C**-0.5)
    return made


def features(M: int = 4, C: int = 6, shape: tuple[int, ...] = (3, 4), B: int = 2) -> Tensor:
    return torch.randn(B * M, C, *shape, dtype=torch.float64)


def fft_form(made: TemporalFourier, u: Tensor) -> Tensor:
    """Definition: rfft over frames, a complex matrix for each of the first modes, irfft, plus the input."""
    M = made.frames
    u_hat = torch.fft.rfft(u.unflatten(0, (-1, M)), dim=1)
    v_hat = torch.zeros_like(u_hat)
    for k in range(made.modes):
        # Where the layer has no imaginary part, none can reach the output: any value gives the same.
        has_imag = k > 0 and 2 * k != M
        imag = made.imag[k - 1] if has_imag else torch.randn_like(made.real[k])
        v_hat[:, k] = torch.einsum("bi...,io->bo...", u_hat[:, k], torch.complex(made.real[k], imag))
    return u + torch.fft.irfft(v_hat, n=M, dim=1).flatten(0, 1)


@pytest.mark.parametrize("M, J", CASES)
def test_the_layer_is_the_truncated_fft(M: int, J: int) -> None:
    made, u = layer(M, J), features(M)
    torch.testing.assert_close(made(u), fft_form(made, u), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("M, J", CASES)
def test_the_layer_is_the_truncated_fft_in_single_precision(M: int, J: int) -> None:
    made, u = layer(M, J, dtype=torch.float32), features(M).float()
    # Sums of some tens of terms of order one: a few units in the last place.
    torch.testing.assert_close(made(u), fft_form(made, u), rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("M, J", CASES)
def test_the_tables_project_on_the_kept_modes(M: int, J: int) -> None:
    analysis, synthesis = fourier_tables(M, J)
    P = synthesis @ analysis
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-13)
    if J == M // 2 + 1:
        torch.testing.assert_close(P, torch.eye(M, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("M, J", CASES)
def test_every_parameter_gets_a_gradient(M: int, J: int) -> None:
    made = layer(M, J, activation="silu")
    made(features(M)).square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in made.parameters())


@pytest.mark.parametrize("M, J, count", [(4, 2, 3), (4, 3, 4), (5, 3, 5), (1, 1, 1), (8, 5, 8)])
def test_it_has_as_many_matrices_as_real_coefficients(M: int, J: int, count: int) -> None:
    assert sum(p.numel() for p in layer(M, J).parameters()) == count * 6 * 6


# Layout


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_space_of_any_rank_is_mixed_pointwise(shape: tuple[int, ...]) -> None:
    made, u = layer(), features(shape=shape)
    out = made(u)
    assert out.shape == u.shape
    pointwise = torch.stack([made(point) for point in u.flatten(2).unbind(-1)] if shape else [made(u)], -1)
    torch.testing.assert_close(out.flatten(2) if shape else out[..., None], pointwise)


def test_tokens_carry_their_channels_last() -> None:
    u = features(shape=(7,))
    first = layer()
    last = layer(channel_dim=-1)
    last.load_state_dict(first.state_dict())
    torch.testing.assert_close(last(u.mT).mT, first(u))


def test_samples_do_not_meet() -> None:
    made, u = layer(), features(B=3)
    torch.testing.assert_close(made(u)[4:8], made(u[4:8]))


def test_rows_that_are_not_whole_trajectories_are_refused() -> None:
    with pytest.raises(RuntimeError, match="size of dim 0 \\(7\\)"):
        layer(M=4)(torch.zeros(7, 6, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("activation", ["identity", "silu", "leaky_relu"])
@pytest.mark.parametrize("M, J", [(4, 2), (5, 3), (8, 5)])
def test_shifting_the_frames_shifts_the_result(M: int, J: int, activation: str) -> None:
    made, u = layer(M, J, activation=activation), features(M)

    def shift(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, M)).roll(1, 1).flatten(0, 1)

    torch.testing.assert_close(made(shift(u)), shift(made(u)))


# Initialisation


@pytest.mark.parametrize("activation", ["identity", "silu", "leaky_relu"])
def test_zero_initialisation_is_the_exact_identity_and_still_learns(activation: str) -> None:
    made, u = TemporalFourier(6, 4, 2, activation, "zero"), features().float()
    out = made(u)
    assert torch.equal(out, u)
    (out * torch.randn_like(out)).sum().backward()
    assert all((parameter.grad != 0).all() for parameter in made.parameters())


def test_the_published_initialisation_is_uniform_over_c_squared() -> None:
    made = TemporalFourier(16, 8, 4, init="uniform")
    values = torch.cat([p.detach().flatten() for p in made.parameters()])
    assert values.min() >= 0 and values.max() <= 1 / 256
    assert float(values.mean()) == pytest.approx(1 / 512, rel=0.05)


def test_tables_are_not_in_the_state_dict() -> None:
    assert set(layer().state_dict()) == {"real", "imag"}


def test_tables_follow_casts_from_their_exact_values() -> None:
    made = layer(8, 4).bfloat16().double()
    torch.testing.assert_close(made.analysis, fourier_tables(8, 4)[0], rtol=0, atol=0)
    torch.testing.assert_close(made.synthesis, fourier_tables(8, 4)[1], rtol=0, atol=0)


def test_tables_survive_the_meta_device() -> None:
    with torch.device("meta"):
        made = TemporalFourier(6, 4)
    made.to_empty(device="cpu")
    torch.testing.assert_close(made.analysis, fourier_tables(4, 2)[0].float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((6, 4, 4), r"4 frames have 3 Fourier modes .* \[1, 3\], got 4"),
        ((6, 4, 0), "got 0"),
        ((6, 0, 1), "at least one frame"),
        ((6, 4, 2, "relu"), "unknown activation 'relu'"),
        ((6, 4, 2, "silu", "ones"), "unknown initialisation 'ones'"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemporalFourier(*arguments)


# Where it runs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_is_close(dtype: torch.dtype) -> None:
    made, u = layer(activation="silu", dtype=torch.float32), features().float()
    expected = made(u)
    out = made.to(dtype)(u.to(dtype))
    assert out.dtype == dtype
    # Three roundings of 2^-8 (bfloat16) or 2^-11 on sums of order one to three.
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_autocast_runs_and_is_close() -> None:
    made, u = layer(activation="silu", dtype=torch.float32), features().float()
    with torch.autocast("cpu", torch.bfloat16):
        out = made(u)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, made(u), rtol=0, atol=8 * 2**-8)


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """A half precision that the CPU does not multiply in."""
    monkeypatch.setitem(NATIVE, request.param, False)
    return request.param


def test_half_precision_that_is_emulated_is_mixed_in_single(emulated: torch.dtype) -> None:
    made, u = layer(4, 2, activation="silu", dtype=emulated), features(4).to(emulated)
    single = copy.deepcopy(made).float()
    wide, narrow = u.float().requires_grad_(), u.clone().requires_grad_()
    expected, out = single(wide), made(narrow)
    assert torch.equal(out, expected.to(emulated))
    for before, after in zip(
        torch.autograd.grad(expected.sum(), (wide, *single.parameters())),
        torch.autograd.grad(out.sum(), (narrow, *made.parameters())),
        strict=True,
    ):
        assert torch.equal(after, before.to(emulated))


def test_autocast_to_a_precision_that_is_emulated_changes_nothing(emulated: torch.dtype) -> None:
    made, u = layer(activation="silu", dtype=torch.float32), features().float()
    with torch.autocast("cpu", emulated):
        out, half = made(u), made(u.to(emulated))
    assert torch.equal(out, made(u))
    assert torch.equal(half, made(u.to(emulated).float()).to(emulated))


def test_what_is_emulated_compiles_and_exports(emulated: torch.dtype) -> None:
    made, u = layer(activation="silu", dtype=torch.float32), features().float()
    narrow, v = copy.deepcopy(made).to(emulated), u.to(emulated)
    assert torch.equal(torch.compile(narrow, fullgraph=True, backend="aot_eager")(v), narrow(v))
    assert torch.equal(torch.export.export(narrow, (v,)).module()(v), narrow(v))
    with torch.autocast("cpu", emulated):
        assert torch.equal(torch.compile(made, fullgraph=True, backend="aot_eager")(u), made(u))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(backend: str) -> None:
    made, u = layer(activation="silu"), features()
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend=backend)(u), made(u))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_it_compiles_with_inductor() -> None:
    made, u = layer(activation="silu"), features()
    torch.testing.assert_close(torch.compile(made, fullgraph=True)(u), made(u))


def test_it_exports_with_any_batch() -> None:
    made = layer(activation="silu")
    exported = torch.export.export(made, (features(),), dynamic_shapes={"u": {0: 4 * torch.export.Dim("B")}})
    u = features(B=5)
    torch.testing.assert_close(exported.module()(u), made(u))


def test_it_runs_in_onnxruntime() -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    made, u = layer(activation="silu", dtype=torch.float32), features().float()
    file = io.BytesIO()
    torch.onnx.export(made, (u,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: u.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), made(u), rtol=1e-5, atol=1e-5)


def test_forward_mode_derivative() -> None:
    made, u, v = layer(activation="silu"), features(), features()
    _, tangent = jvp(made, (u,), (v,))
    h = 1e-5
    torch.testing.assert_close(tangent, (made(u + h * v) - made(u - h * v)) / (2 * h), rtol=1e-7, atol=1e-7)
