"""Parallel decoders: untrained they are the teacher's Euler step, and heads fuse into their mean at its cost."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from architectures import MAKE, inputs, teacher
from dsno.denoise import Kind, Prediction
from dsno.grids import even
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear
from dsno.solvers.run import SolverSampler, initial_state
from dsno.students.files import load_student, save_student
from dsno.students.heads import ParallelDecoder, add_heads, decoder_from_teacher, last_layer
from dsno.students.samplers import DecoderSampler, sampler_of

HEADED = [name for name in MAKE if name != "EDM2"]


def scattered(decoder: ParallelDecoder) -> ParallelDecoder:
    """Each head another."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in decoder.net.heads.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return decoder.eval()


def small(kind: Kind = "v", schedule: Schedule | None = None) -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 4, (4, 8), attention=()).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return Prediction(net, schedule or Cosine(), kind, data_std=0.5, shape=(1, 4, 4)).eval()


@pytest.mark.parametrize("name", HEADED)
def test_untrained_every_block_is_a_step_of_the_teacher(name: str) -> None:
    decoder, (z, cond) = decoder_from_teacher(teacher(name), 4).eval(), inputs(name)
    with torch.no_grad():
        for passes in (1, 2, 4):
            found = DecoderSampler(decoder, passes)(z, cond)
            grid = decoder.grid[:: 4 // passes]
            expected = SolverSampler(teacher(name), decoder.schedule, grid, keep=grid)(z, cond)
            assert torch.equal(found.t, expected.t) and found.nfe == found.rounds == passes
            scale = float(expected.x.abs().max())
            assert torch.allclose(found.x, expected.x, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("kind", ["x0", "v", "flow", "edm", "eps"])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VPLinear(), VE(10.0)], ids=repr)
def test_heads_are_read_as_the_teacher_is_on_any_path(kind: Kind, schedule: Schedule) -> None:
    solved = small(kind, schedule)
    decoder, z = decoder_from_teacher(solved, 8), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    n = 0
    if kind == "eps":  # which is blind where all is noise, and there it is finite
        assert bool(decoder.one_pass(z).isfinite().all())
        n = next(n for n, t in enumerate(decoder.grid.tolist()) if schedule.at(t)[0] >= 0.25)
    grid = decoder.grid[[n, 8]]
    x_n = initial_state(schedule, z, float(grid[0]))
    expected = SolverSampler(solved, schedule, grid)(z).sample
    assert torch.allclose(decoder(x_n, n, 8), expected, atol=1e-6)
    h = decoder(x_n, n, 8, each=True)
    assert h.shape == (3, 8 - n, 1, 4, 4) and torch.allclose(h, h[:, :1].expand_as(h), atol=1e-12)


@pytest.mark.parametrize("name", HEADED)
def test_fused_heads_are_the_mean_of_what_they_say(name: str) -> None:
    decoder, (z, cond) = scattered(decoder_from_teacher(teacher(name), 4)), inputs(name)
    with torch.no_grad():
        for n, m in ((0, 4), (2, 4), (1, 2)):
            x = initial_state(decoder.schedule, z, float(decoder.grid[n]))
            h = decoder(x, n, m, cond, each=True)
            mean = sum(share * h[:, i] for i, share in enumerate(decoder.shares(n, m)))
            ratio = decoder.schedule.at(float(decoder.grid[m]))[1] / decoder.schedule.at(float(decoder.grid[n]))[1]
            alpha_n, alpha_m = (decoder.schedule.at(float(decoder.grid[i]))[0] for i in (n, m))
            expected = ratio * x + (alpha_m - ratio * alpha_n) * mean
            assert torch.allclose(decoder(x, n, m, cond), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
            if m - n > 1:
                assert not torch.allclose(h[:, 0], h[:, 1], rtol=1e-2)


def flops(run: object, *arguments: object) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(*arguments)  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("name", HEADED)
def test_a_call_costs_what_the_teachers_costs(name: str) -> None:
    decoder, (z, cond) = decoder_from_teacher(teacher(name), 16).eval(), inputs(name)
    asked = flops(teacher(name), z, torch.tensor(1.0), cond)
    assert asked > 0 and flops(decoder, z, 0, 16, cond) == asked == flops(decoder, z, 4, 8, cond)


def test_shares_are_those_of_the_straight_path() -> None:
    decoder = decoder_from_teacher(small(schedule=RectifiedFlow()), grid=[1.0, 0.7, 0.4, 0.0])
    assert decoder.tau == pytest.approx([1.0, 0.7, 0.4, 0.0])
    assert decoder.shares(0, 3) == pytest.approx([0.3, 0.3, 0.4])
    assert decoder.shares(1, 3) == pytest.approx([3 / 7, 4 / 7])
    # VE ends at noise of a finite level, and the path of the cosine is that of the angle.
    assert decoder_from_teacher(small(schedule=VE(9.0)), 4).tau[0] == pytest.approx(0.9)
    tau = decoder_from_teacher(small(), 2).tau
    assert tau[1] == pytest.approx(0.5, abs=1e-4)


class Own(nn.Module):
    """A network that says nothing of itself; it may end with something that is not linear, or mixes rows."""

    def __init__(self, odd: str = "") -> None:
        super().__init__()
        self.inner, self.out, self.odd = nn.Linear(4, 8), nn.Linear(8, 3), odd

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.out(torch.cat([x, t[:, None]], 1).matmul(self.inner.weight.T).tanh())
        if self.odd == "rows":
            return torch.cat([out, x], 1)[:, :3]
        return out.tanh() if self.odd else out


def test_a_module_of_ones_own_gets_heads_by_the_name_of_its_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    solved = Prediction(Own(), RectifiedFlow(), "flow", shape=(3,))
    decoder = scattered(decoder_from_teacher(solved, 4, last="out"))
    assert decoder.shape == (3,) and decoder.classes is None
    assert decoder.config == decoder_from_teacher(solved, 4).config  # which finds it
    save_student(tmp_path, decoder)
    z = torch.randn(5, 3)
    loaded = load_student(tmp_path, backbone=Own())
    assert isinstance(loaded, ParallelDecoder) and torch.equal(loaded.sample(z), decoder.sample(z))
    with pytest.raises(ValueError, match="cannot be rebuilt from a configuration: pass one like it"):
        load_student(tmp_path)
    with pytest.raises(ValueError, match="the backbone has no module 'out', whose place the heads are to take"):
        load_student(tmp_path, backbone=nn.Linear(3, 3))


@pytest.mark.parametrize("name", ["UNet", "DDPM++"])
def test_it_comes_back_from_its_folder_and_draws_in_all_its_passes(name: str, tmp_path: Path) -> None:
    made, (z, cond) = scattered(decoder_from_teacher(teacher(name), 8, 2)), inputs(name)
    save_student(tmp_path, made, steps=7)
    loaded = load_student(tmp_path)
    assert isinstance(loaded, ParallelDecoder) and not any(m.training for m in loaded.modules())
    assert loaded.config == made.config and torch.equal(loaded.grid, made.grid) and loaded.spans == (2, 4, 8)
    samples = []
    for passes in (1, 2, 4):
        drawn = sampler_of(loaded, passes)(z, cond)
        assert torch.equal(drawn.x, sampler_of(made, passes)(z, cond).x) and drawn.nfe == passes
        assert drawn.x.shape[1] == passes + 1 and torch.equal(drawn.t, made.grid[:: 8 // passes])
        samples.append(drawn.sample)
    assert torch.equal(samples[0], made.sample(z, cond)) and torch.equal(sampler_of(loaded)(z, cond).sample, samples[0])
    assert not torch.allclose(samples[0], samples[1], rtol=1e-2)
    with pytest.raises(ValueError, match=r"this decoder makes 1, 2, 4 pass\(es\), got 8: distil one with other"):
        sampler_of(loaded, 8)
    with pytest.raises(ValueError, match="never jumps to t = 0 and back: leave `fresh` out"):
        sampler_of(loaded, 1, fresh=True)
    with pytest.raises(ValueError, match="a decoder has no adapter"):
        save_student(tmp_path / "adapter", made, adapter_only=True)


def test_a_decoder_of_short_blocks_makes_the_fewest_passes_by_default() -> None:
    decoder, z = scattered(decoder_from_teacher(small(), 8, 1, 2)), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert decoder.spans == (1, 2) and sampler_of(decoder)(z).nfe == 4
    assert torch.equal(decoder.sample(z), sampler_of(decoder, 4)(z).sample)
    assert decoder.trained_for(8, 8).spans == (8,) and decoder.trained_for(8, 8).net is decoder.net


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"linear in the weights of '.*', its last layer, so heads would not fuse"):
        decoder_from_teacher(teacher("EDM2"), 4)
    for odd in ("tanh", "rows"):
        with pytest.raises(ValueError, match="the output of a Own is not linear in the weights of 'out'"):
            decoder_from_teacher(Prediction(Own(odd), Cosine(), "v", shape=(3,)), 4)
    with pytest.raises(ValueError, match="'inner.x' is no linear layer or convolution of a Own: name its last one"):
        decoder_from_teacher(Prediction(Own(), Cosine(), "v", shape=(3,)), 4, last="inner.x")
    with pytest.raises(ValueError, match="a Identity has no linear layer or convolution"):
        last_layer(nn.Identity(), (torch.zeros(1, 3),))
    with pytest.raises(ValueError, match="does not say what shape it makes"):
        decoder_from_teacher(Prediction(Own(), Cosine(), "v"), 4)
    with pytest.raises(ValueError, match="a decoder has at least one head, got 0"):
        decoder_from_teacher(small(), 0)
    for least, most in ((0, None), (3, None), (8, 4)):
        with pytest.raises(ValueError, match=f"got least = {least} and most = {most or 8}"):
            decoder_from_teacher(small(), 8, least, most)
    with pytest.raises(ValueError, match="no heads for a teacher that predicts 'score'"):
        decoder_from_teacher(small("score"), 4)
    with pytest.raises(ValueError, match="the network has 2 heads but the grid 4 intervals"):
        net = Own()
        ParallelDecoder(add_heads(net, (torch.zeros(1, 3), torch.zeros(1)), 2), Cosine(), even(Cosine(), 4))
