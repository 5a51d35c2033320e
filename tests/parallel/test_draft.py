"""A draft says x0 at every step of the chain, at whatever times it has something to say."""

import pytest
import torch

from chains import CHAINS, D64, mixture, problem
from dsno.denoise import Prediction
from dsno.grids import quadratic, uniform
from dsno.nets.unet import UNet
from dsno.parallel.draft import x0_of_trajectory
from dsno.parallel.picard import Picard
from dsno.parallel.rounds import System
from dsno.parallel.taa import ParaTAA
from dsno.schedule import Cosine
from dsno.solvers.chain import Chain
from dsno.solvers.first_order import ddim_inverse
from dsno.solvers.run import SolverSampler, initial_state
from dsno.students.operator import student_from_teacher
from dsno.students.samplers import OnePass
from dsno.trajectory import Trajectory


def test_a_draft_says_x0_at_every_step() -> None:
    chain, teacher = CHAINS["ddim"], mixture(2)
    x, _ = problem(chain, 2)
    path = chain.run(teacher, x)
    system = System(chain, x, None)
    denoised = torch.stack([teacher(path.x[:, n], t) for n, t in enumerate(chain.grid[:-1])], 1)
    assert torch.allclose(x0_of_trajectory(path, system, x), denoised, atol=1e-9)
    # With x0 at half the times: exact there, between the neighbours in the middle.
    kept = SolverSampler(teacher, Cosine(), chain.grid, keep=chain.grid[::2], keep_x0=True)(x)
    filled = x0_of_trajectory(kept, system, x)
    assert torch.allclose(filled[:, ::2], denoised[:, ::2], atol=1e-9)
    assert torch.allclose(filled[:, 1], (denoised[:, 0] + denoised[:, 2]) / 2, atol=1e-9)
    # With states alone: the constant that leads from one to the next, so the recursion passes through them.
    states = Trajectory(path.x[:, ::8], chain.grid[::8])
    y, every, filled = x, torch.arange(len(x)), x0_of_trajectory(states, system, x)
    for n in range(len(chain)):
        y = system.step(y, filled[:, n], n, every)
        if (n + 1) % 8 == 0:
            assert torch.allclose(y, path.x[:, n + 1], atol=1e-9)


@pytest.mark.parametrize("target", ["x0", "state"])
def test_a_student_drafts_at_times_of_its_own(target: str) -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8, 16)), Cosine(), "v", shape=(1, 8, 8)).eval()
    student = student_from_teacher(teacher, quadratic(4)[1:], target).eval()
    chain, z = Chain(Cosine(), uniform(12)), torch.randn(3, 1, 8, 8)
    reference = chain.run(teacher, initial_state(chain.schedule, z))
    for draft in (student, OnePass(student, whole=True), OnePass(student)):
        made = ParaTAA(teacher, chain, tolerance=None, draft=draft)(z)
        assert torch.allclose(made.x, reference.x, atol=1e-4)
        assert made.trace is not None and made.trace.draft_rounds.tolist() == [1, 1, 1]
    # The states of its frames are on the recursion through what was filled in.
    frames, system = OnePass(student, whole=True)(z), System(chain, z, None)
    x0 = x0_of_trajectory(frames, system, initial_state(chain.schedule, z))
    assert x0.shape == (3, 12, 1, 8, 8)
    if target == "x0":
        assert frames.x0 is not None and torch.allclose(x0[:, 0], frames.x0[:, 1])
    else:
        assert torch.allclose(x0[:, 0], x0[:, 4])  # one constant before the first frame, t > 0.5625


def test_a_student_of_another_shape_is_refused() -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8,)), Cosine(), "v", shape=(1, 8, 8)).eval()
    student = student_from_teacher(teacher, quadratic(4)[1:]).eval()
    with pytest.raises(ValueError, match=r"samples of shape \(1, 8, 8\), the chain's have \(2,\)"):
        ParaTAA(mixture(2), CHAINS["ddim"], draft=student).solve(problem(CHAINS["ddim"], 2)[0].float())


def test_states_at_some_times_are_read_by_the_inverse_of_ddims_step() -> None:
    chain = CHAINS["ddim"]
    x, _ = problem(chain, 3)
    t = chain.grid[::6]
    states = torch.randn(8, len(t), 3, dtype=D64)
    x0 = x0_of_trajectory(Trajectory(states, t), System(chain, x, None), x)
    for m in range(len(t) - 1):
        later, now = t[m + 1].expand(8), t[m].expand(8)
        expected = ddim_inverse(chain.schedule, states[:, m + 1], states[:, m], now, later)
        for n in range(6 * m, 6 * m + 6):
            assert torch.equal(x0[:, n], expected)


def test_drafts_that_do_not_fit_are_refused() -> None:
    teacher, chain = mixture(2), CHAINS["ddim"]
    x, _ = problem(chain, 2)
    path = chain.run(teacher, x)
    for draft, message in (
        (Trajectory(path.x[:4], path.t), r"states have shape \(4, 25, 2\), expected \(8, 25, 2\)"),
        (Trajectory(path.x[..., :1], path.t), r"states have shape \(8, 25, 1\), expected \(8, 25, 2\)"),
        (Trajectory(path.x, path.t, path.x[:, :3]), "x0 have shape"),
        (Trajectory(path.x, uniform(24, 0.99)), "the draft has a state at t = 0.99, which is no time of the chain"),
        (Trajectory(path.x[:, :20], path.t[:20]), "expected some from 1 to 0, the chain's ends"),
    ):
        with pytest.raises(ValueError, match=message):
            ParaTAA(teacher, chain, draft=draft).solve(x)
    started = Chain(Cosine(), uniform(4, 0.5))
    with pytest.raises(ValueError, match="this draft starts from pure noise, the chain starts at t = 0.5"):
        Picard(teacher, started, draft=SolverSampler(teacher, Cosine(), uniform(4))).solve(x)
