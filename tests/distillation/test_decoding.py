"""Parallel decoding: exact heads leave no loss and are the teacher's solver, of its order, from any block."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conditional import given as drawn_on
from conditional import same, small_set, small_teacher
from dsno.denoise import Denoiser, Guided, Prediction
from dsno.distillation.decoding import Decoding, DecodingOptions, Recorded, decoding
from dsno.distillation.denoising import Denoising
from dsno.distillation.identity import Fresh
from dsno.distillation.run import distill
from dsno.distillation.stages import Given
from dsno.grids import even
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, Schedule
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student, notes_of
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.heads import ParallelDecoder, decoder_from_teacher
from dsno.students.samplers import DecoderSampler, sampler_of
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate
from gaussians import D64, MEAN, SCHEDULES, STD
from pretend import stop_at

STEPS = ["euler", "midpoint"]


class Exact(nn.Module):
    """Heads that take the steps of a Gaussian teacher, written down independently; off by `wrong`."""

    def __init__(self, schedule: Schedule, grid: Tensor, step: str, teacher: Denoiser | None = None) -> None:
        super().__init__()
        self.schedule, self.grid, self.step = schedule, grid.tolist(), step
        self.teacher = teacher or Gaussian(schedule, MEAN, STD)
        self.wrong = nn.Parameter(torch.zeros((), dtype=D64))

    def tau(self, t: float) -> float:
        alpha_t, sigma_t = self.schedule.at(t)
        return sigma_t / (alpha_t + sigma_t)

    def velocity(self, y: Tensor, tau: float) -> Tensor:
        ratio = torch.tensor((1 - tau) / tau, dtype=D64)
        t = self.schedule.time(2 * ratio.log())
        return (y - self.teacher(sum(self.schedule(t)) * y, t)) / tau

    def forward(
        self, x: Tensor, t: Tensor, block: tuple[int, int], shares: tuple[float, ...] | None, cond: Tensor | None = None
    ) -> Tensor:
        n, m = block
        start = y = x / sum(self.schedule.at(self.grid[n]))
        heads = []
        for k in range(n, m):
            a, b = self.tau(self.grid[k]), self.tau(self.grid[k + 1])
            u = self.velocity(y, a)
            if self.step == "midpoint":
                u = self.velocity(y + (b - a) / 2 * u, (a + b) / 2)
            y = y + (b - a) * u
            heads.append(start - self.tau(self.grid[n]) * u + self.wrong * torch.sin(3 * x + k))
        h = torch.stack(heads, 1)
        return h if shares is None else sum(w * h[:, [i]] for i, w in enumerate(shares))  # type: ignore[return-value]


def exact(
    schedule: Schedule, step: str = "euler", N: int = 8, least: int = 1, teacher: Denoiser | None = None
) -> ParallelDecoder:
    grid = even(schedule, N)
    return ParallelDecoder(Exact(schedule, grid, step, teacher), schedule, grid, "x0", least=least, shape=(3,))


def judged(decoder: ParallelDecoder, step: str, begin: str = "rollout") -> Decoding:
    z = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    rows = Fresh(decoder.schedule, (3,), batch=16)
    if begin == "samples":
        rows = Denoising(z, decoder.schedule, "x0", batch=16)  # type: ignore[assignment]
    return Decoding(rows, decoder, Gaussian(decoder.schedule, MEAN, STD), step)  # type: ignore[arg-type]


@torch.no_grad()
def losses(objective: Decoding | Recorded, decoder: ParallelDecoder, count: int = 8) -> Tensor:
    batches = islice(objective.batches(0), count)
    return torch.stack([objective(decoder, {k: _double(v) for k, v in b.items()}) for b in batches])


def _double(value: object) -> object:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


# The truth of a Gaussian


@pytest.mark.parametrize("begin", ["rollout", "samples"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_loss_vanishes_at_the_exact_heads_alone(schedule: Schedule, step: str, begin: str) -> None:
    decoder = exact(schedule, step)
    assert float(losses(judged(decoder, step, begin), decoder).max()) < 1e-8
    other = "euler" if step == "midpoint" else "midpoint"
    assert float(losses(judged(decoder, other, begin), decoder).max()) > 1e-5
    with torch.no_grad():
        decoder.net.wrong.add_(0.1)  # type: ignore[operator]
    assert float(losses(judged(decoder, step, begin), decoder).min()) > 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_exact_heads_are_the_solver_on_its_grid_in_any_number_of_passes(schedule: Schedule) -> None:
    decoder, z = exact(schedule), torch.randn(5, 3, dtype=D64)
    solved = SolverSampler(Gaussian(schedule, MEAN, STD), schedule, decoder.grid, keep=decoder.grid)(z).x
    for passes in (1, 2, 4, 8):
        found = DecoderSampler(decoder, passes)(z).x
        assert torch.allclose(found, solved[:, :: 8 // passes], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("step, order", [("euler", 1), ("midpoint", 2)])
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=repr)
def test_their_distance_from_the_flow_falls_with_the_order_of_the_step(
    schedule: Schedule, step: str, order: int
) -> None:
    # A mixture, since on a Gaussian the midpoint's third derivative and that of its slope cancel: it is of order 3.
    z, means = torch.randn(16, 3, dtype=D64), torch.stack([MEAN, -MEAN])
    mixture = GaussianMixture(schedule, means, 0.4)
    truth, *found = (exact(schedule, step, N, 1, mixture).sample(z) for N in (1024, 32, 64))
    coarse, fine = (float((x - truth).norm()) for x in found)
    assert 2**order * 0.8 < coarse / fine < 2**order * 1.25


def test_gradients_reach_the_head_that_is_taught_and_no_other() -> None:
    teacher = small_teacher()
    decoder = decoder_from_teacher(teacher, 4, 2)
    objective = Decoding(Fresh(Cosine(), (1, 4, 4), 2, 2, batch=4), decoder, teacher)
    batch = {**next(objective.batches(0)), "block": (2, 4), "heads": (3, 3, 3, 3)}
    with torch.no_grad():
        for parameter in decoder.net.parameters():
            parameter.add_(0.1)
    objective(decoder, batch).backward()
    weight = decoder.net.heads.layer.weight.grad  # type: ignore[union-attr, operator]
    assert float(weight[:3].abs().max()) == 0 < float(weight[3].abs().max())
    assert all(p.grad is None for p in teacher.parameters())


# Batches


def test_batches_are_functions_of_the_step_and_shared_evenly() -> None:
    decoder = exact(Cosine(), least=2)
    objective = judged(decoder, "euler")
    whole = list(islice(objective.batches(0), 48))
    for step, batch in enumerate(whole):
        again = next(objective.batches(step))
        shares = [next(objective.batches(step, rank, 2)) for rank in range(2)]
        assert batch["block"] == again["block"] == shares[0]["block"] == shares[1]["block"]
        assert batch["heads"] == again["heads"] == shares[0]["heads"] + shares[1]["heads"]
        assert torch.equal(batch["noise"], torch.cat([share["noise"] for share in shares]))
        (n, m), heads = batch["block"], batch["heads"]
        # Every head of the block is taught, and all alike.
        assert {heads.count(k) for k in range(n, m)} == {16 // (m - n)} and len(heads) == 16
    assert {b["block"] for b in whole} == {(0, 8), (0, 4), (4, 8), (0, 2), (2, 4), (4, 6), (6, 8)}


def test_blocks_begin_where_the_sampler_is() -> None:
    decoder, z = exact(Cosine()), torch.randn(4, 3, dtype=D64)
    objective = judged(decoder, "euler")
    states = DecoderSampler(decoder, 4)(z).x
    for n in (0, 2, 4, 6):
        assert torch.equal(objective.start(decoder, {"noise": z, "block": (n, n + 2)}), states[:, n // 2])
    noisy = objective.start(decoder, {"x0": z, "eps": -z, "block": (4, 8)})
    alpha_n, sigma_n = Cosine().at(float(decoder.grid[4]))
    assert torch.allclose(noisy, (alpha_n - sigma_n) * z)


# With networks


def test_one_head_is_one_step_of_the_teacher_and_has_nothing_to_learn() -> None:
    teacher = small_teacher()
    for p in teacher.parameters():
        nn.init.normal_(p, std=0.2)
    decoder = decoder_from_teacher(teacher, 1)
    objective = Decoding(Fresh(Cosine(), (1, 4, 4), 2, 2, batch=4), decoder, teacher, "euler")
    assert objective(decoder, next(objective.batches(0))).item() < 1e-10
    # And of several the first of a block.
    decoder = decoder_from_teacher(teacher, 4)
    objective = Decoding(Fresh(Cosine(), (1, 4, 4), 2, 2, batch=4), decoder, teacher, "euler")
    batch = next(objective.batches(0))
    assert objective(decoder, {**batch, "block": (0, 4), "heads": (0, 0, 0, 0)}).item() < 1e-10
    assert objective(decoder, {**batch, "block": (0, 4), "heads": (3, 3, 3, 3)}).item() > 1e-6


@pytest.mark.parametrize("begin", ["rollout", "samples"])
def test_training_lowers_the_loss(begin: str, tmp_path: Path) -> None:
    teacher = small_teacher()
    for p in teacher.parameters():
        nn.init.normal_(p, std=0.2)
    options = DecodingOptions(heads=4, least=2, begin=begin)  # type: ignore[arg-type]
    x = torch.randn(32, 1, 4, 4)
    given = Given(teacher, Cosine(), 40, 16, x=x, labels=torch.arange(32) % 2)
    decoder = options.student(teacher, given)
    (stage,) = decoding(decoder, given, options)
    _, objective = stage.make(decoder)

    def judge() -> float:
        with torch.no_grad():
            return float(sum(objective(decoder, b) for b in islice(objective.batches(1000), 6)))

    before, optimiser = judge(), torch.optim.Adam(decoder.parameters(), 3e-3)
    for batch in islice(objective.batches(0), 40):
        optimiser.zero_grad()
        objective(decoder, batch).backward()
        optimiser.step()
    assert judge() < 0.8 * before


def test_the_guidance_of_the_teacher_is_learnt_and_its_label_called_as_it_calls_it() -> None:
    inner = small_teacher()
    for p in inner.parameters():
        nn.init.normal_(p, std=0.2)
    null: dict[str, Tensor] = {"label": torch.tensor(2)}
    made = []
    for teacher in (Guided(inner, null, 2.0), Guided(inner, torch.tensor(2), 2.0), inner):
        decoder = decoder_from_teacher(inner, 4)
        (stage,) = decoding(decoder, Given(teacher, Cosine(), 4, 8), DecodingOptions(heads=4))
        _, objective = stage.make(decoder)
        batch = {**next(objective.batches(0)), "block": (0, 4), "heads": (0,) * 8}
        made.append((objective(decoder, batch), batch["cond"]))
    assert torch.equal(made[0][1]["label"], made[1][1]) and torch.equal(made[0][0], made[1][0])
    # Every head is the bare teacher: what it has to learn of its first interval is the guidance, and the middle.
    assert not torch.allclose(made[1][0], made[2][0], rtol=1e-2)


@pytest.mark.parametrize("begin", ["rollout", "samples", "trajectories"])
def test_a_run_that_was_cut_short_ends_alike_and_its_student_comes_back(begin: str, tmp_path: Path) -> None:
    teacher = small_teacher()
    data = None
    if begin != "rollout":
        times = torch.tensor([0.75, 0.5, 0.25, 0.0], dtype=D64)
        data = generate(teacher, tmp_path / "set", 16, times=times, steps=4, targets=("state",), batch=16, label=_label)

    def run(out: Path, **how: Any) -> ParallelDecoder:
        config = TrainConfig(steps=4, lr=1e-2, warmup=0, checkpoint_every=2, log_every=1)
        return distill(teacher, data, out, "decoding", config, batch=8, heads=4, begin=begin, **how)  # type: ignore[return-value]

    whole = run(tmp_path / "whole")
    assert not same(whole, decoder_from_teacher(teacher, 4))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", report=stop_at("decoding", 3))
    assert [p.name for p in (tmp_path / "again" / "training" / "decoding").glob("step-*")] == ["step-00000002"]
    assert same(run(tmp_path / "again", resume=True), whole)
    loaded, z = load_student(tmp_path / "whole"), torch.randn(2, 1, 4, 4)
    assert isinstance(loaded, ParallelDecoder) and loaded.spans == (1, 2, 4) and same(loaded, whole)
    for passes in (1, 2, 4):
        assert sampler_of(loaded, passes)(z, torch.tensor([0, 1])).nfe == passes
    assert notes_of(tmp_path / "whole")["references"] == ["shaul2026parallel"]


def _label(seeds: Tensor) -> Tensor:
    return seeds % 2


def test_a_decoder_goes_on_by_score_identity_at_one_pass(tmp_path: Path) -> None:
    teacher, config = small_teacher(), TrainConfig(steps=2, lr=1e-2, warmup=0)
    first = distill(teacher, None, tmp_path / "first", "decoding", config, batch=8, heads=4)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    made = distill(teacher, None, tmp_path / "second", "identity", config, batch=8, student=first)
    assert isinstance(made, ParallelDecoder) and made.spans == (4,) and made.net is first.net
    assert any(not torch.equal(before[name], value) for name, value in made.state_dict().items())


# Off the policy


def test_stored_steps_of_the_solver_leave_the_exact_heads_no_loss(tmp_path: Path) -> None:
    class Mean(nn.Module):
        """A Gaussian's denoiser as a network."""

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return Gaussian(Cosine(), MEAN.to(x), STD.to(x))(x, t)

    teacher, grid = Prediction(Mean(), Cosine(), "x0", shape=(3,)), even(Cosine(), 4)
    options = dict(solver="ddim", steps=4, grid="even", targets=("state",), dtype=torch.float32, batch=32)
    data = generate(teacher, tmp_path, 32, times=grid[1:], **options)  # type: ignore[arg-type]
    decoder = exact(Cosine(), "euler", 4)
    objective = Recorded(data, decoder, 16)
    assert float(losses(objective, decoder).max()) < 1e-9
    with torch.no_grad():
        decoder.net.wrong.add_(0.1)  # type: ignore[operator]
    assert float(losses(objective, decoder).min()) > 1e-5


def test_bad_input(tmp_path: Path) -> None:
    teacher = small_teacher()
    decoder = decoder_from_teacher(teacher, 4)
    given = Given(teacher, Cosine(), 4, 8)
    with pytest.raises(ValueError, match="unknown step 'heun': expected euler or midpoint"):
        decoding(decoder, given, DecodingOptions(step="heun"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown begin 'noise': expected rollout, samples or trajectories"):
        decoding(decoder, given, DecodingOptions(begin="noise"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this method noises clean samples and there are none"):
        decoding(decoder, given, DecodingOptions(begin="samples"))
    with pytest.raises(ValueError, match="learns from the teacher's trajectories and there are none"):
        DecodingOptions(begin="trajectories").student(teacher, given)
    with pytest.raises(ValueError, match="decoding trains a decoder, got a flow map: make the student with decoder_"):
        distill(teacher, None, tmp_path / "out", "decoding", student=flow_map_from_teacher(teacher))
    with pytest.raises(ValueError, match="leave `passes` out, choose heads, least and most"):
        distill(teacher, None, tmp_path / "out", "decoding", passes=2)
    data = small_set(teacher, tmp_path / "set")
    for stored in (drawn_on(teacher, data),):
        with pytest.raises(ValueError, match=r"these trajectories hold \('x0',\): generate them with targets"):
            decoding(decoder, stored, DecodingOptions(begin="trajectories"))
    states = generate(teacher, tmp_path / "states", 16, times=[0.5, 0.0], steps=2, targets=("state",), label=_label)
    with pytest.raises(ValueError, match=r"the trajectories have times \[0.5, 0.0\], the decoder \[0.75, 0.5, 0.25"):
        Recorded(states, decoder, 8)
    with pytest.raises(ValueError, match="a batch of 8 cannot be shared evenly by 3 processes"):
        next(Decoding(Fresh(Cosine(), (1, 4, 4), batch=8), decoder, teacher).batches(0, 0, 3))
    assert DecodingOptions(heads=6).student(teacher, given).least == 3  # six heads in one or two passes
    told = UNet(1, 4, (4,), attention=())
    assert decoder_from_teacher(Prediction(told, Cosine(), "v"), 4).classes is None
