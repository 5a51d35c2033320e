"""A learned start comes near the exact posterior mean in one step, and without training is SDEdit."""

import pytest
import torch

from dsno.cost import Meter
from dsno.denoise import Prediction
from dsno.grids import uniform
from dsno.inverse.decoded import Decoded
from dsno.inverse.operators import Downsample, Mask
from dsno.inverse.start import LearnedStart, OneJump, pseudo_inverse
from dsno.inverse.start_net import STARTS, NoisePredictor, start_grid
from dsno.inverse.tiles import Tiled
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.run import solve
from dsno.students.heads import decoder_from_teacher
from dsno.teachers.closed import Gaussian
from dsno.teachers.latents import Latents
from maps import D64, exact
from maps import small as small_map
from pipelines import make_vae
from starting import PROBLEM, TEACHER, D, learned, measured, posterior_mean_of

SHAPE = (1, 4, 4)
FRESH = {"in_channels": 1, "image_size": 4, "channels": [8], "attention": []}


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_untrained_it_is_sdedit_from_the_pseudo_inverse(schedule: Schedule, eta: float) -> None:
    teacher, problem, seeds = Gaussian(schedule, torch.zeros(SHAPE), 0.5), Downsample(2), seed_range(0, 3)
    y, z, grid = torch.randn(3, 1, 2, 2), noise(seeds, SHAPE), start_grid(schedule, 3)
    made = LearnedStart(grid, NoisePredictor(FRESH), eta=eta, keep=grid[:1])(
        teacher, schedule, problem, y, z, seeds=seeds
    )
    alpha_t, sigma_t = schedule.at(float(grid[0]))
    begun = alpha_t * problem.A_dagger(y) + sigma_t * z
    assert made.trajectory is not None and torch.allclose(made.trajectory.noise, begun)
    plain = solve(teacher, schedule, begun, grid, Ancestral(eta), seeds=seeds)
    assert torch.allclose(made.x, plain.sample, atol=1e-6)
    assert (made.cost.rounds, made.cost.rows, made.cost.vjps) == (3, 9, 0)


def test_one_step_is_near_the_exact_mean_and_one_network_serves_every_number_of_steps() -> None:
    net, (x, y) = learned(), measured(2000, 2)
    z = torch.randn(2000, 1, D, generator=torch.Generator().manual_seed(3))
    best = float((posterior_mean_of(y) - x).square().mean())

    def error(net: NoisePredictor, steps: int, z: torch.Tensor) -> float:
        method = LearnedStart(start_grid(Cosine(), steps), net)
        return float((method(TEACHER, Cosine(), PROBLEM, y, z).x - x).square().mean()) / best

    found = [error(net, steps, z) for steps in STARTS]
    # No start is ahead of the exact mean, whatever it learned.
    assert 1 < found[0] < 1.4 and max(found) < 1.7
    untrained = NoisePredictor(net.config["net"])
    assert error(untrained, 1, z) > 3 and error(untrained, 1, torch.zeros_like(z)) > 2


def test_what_it_says_is_of_the_start_that_it_is_told() -> None:
    net, (x, y) = learned(), measured(1000, 2)
    y0, z = pseudo_inverse(PROBLEM, y), torch.randn(1000, 1, D, generator=torch.Generator().manual_seed(4))

    @torch.no_grad()
    def error(start: float, told: float) -> float:
        alpha_t, sigma_t = Cosine().at(start)
        x_t = alpha_t * y0 + sigma_t * net.noise(y0, torch.full((1000,), told), z)
        return float((TEACHER(x_t, torch.tensor(start)) - x).square().mean())

    for own, other in ((0.1, 0.25), (0.25, 0.1)):
        assert error(own, own) < 0.995 * error(own, other)


def test_of_a_singular_problem_with_noise_it_starts_from_a_mean_and_without_from_the_shortest_that_fits() -> None:
    y = torch.randn(2, *SHAPE)
    keep = torch.arange(4) < 2
    assert torch.equal(pseudo_inverse(Mask(keep), y), y * keep)
    assert torch.allclose(pseudo_inverse(Mask(keep, noise=0.5), y), y * keep / 1.25)


def test_of_latents_it_starts_from_what_the_encoder_makes_of_the_pseudo_inverse() -> None:
    latents, problem = Latents(make_vae()), Downsample(2)
    decoded = Decoded(problem, latents)
    y = 0.3 * torch.randn(2, 3, 4, 4)
    assert torch.equal(pseudo_inverse(decoded, y), latents.encode(problem.A_dagger(y)))
    shape = pseudo_inverse(decoded, y).shape[1:]
    net = NoisePredictor({"in_channels": shape[0], "image_size": shape[1], "channels": [8], "attention": []})
    teacher = Gaussian(Cosine(), torch.zeros(shape), 0.5)
    made = LearnedStart(start_grid(Cosine(), 1), net)(teacher, Cosine(), decoded, y, torch.randn(2, *shape))
    assert made.x.shape == (2, *shape) and bool(made.x.isfinite().all())
    with pytest.raises(ValueError, match="give Decoded the Latents of load_decoder"):
        pseudo_inverse(Decoded(problem, latents.decode), y)


def test_a_student_goes_to_data_from_where_it_is_in_one_pass() -> None:
    map, x = exact(Cosine()), torch.randn(4, 3, dtype=D64)
    t = torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=D64)
    assert torch.allclose(OneJump(map)(x, t), map(x, t, 0.0))
    assert not OneJump(map).from_noise and OneJump(map.trained_for("grid", 1)).from_noise


def test_a_decoder_makes_all_of_its_steps_in_one_call() -> None:
    teacher = Prediction(UNet(1, 4, (4, 8), attention=()).double(), Cosine(), "v", shape=SHAPE)
    decoder, z = decoder_from_teacher(teacher, 4), torch.randn(2, *SHAPE, dtype=D64)
    jump = OneJump(decoder)
    with torch.no_grad():
        assert jump.from_noise and torch.equal(jump(decoder.levels[0][1] * z, 1.0), decoder.one_pass(z))
    with pytest.raises(ValueError, match=r"trained for spans \(1, 2\), and not for all in one call"):
        OneJump(decoder.trained_for(1, 2))


def test_a_student_that_starts_from_noise_alone_is_restored_with_from_there() -> None:
    map, _ = small_map()
    teacher_like = OneJump(map.trained_for("grid", 1))
    net = NoisePredictor(FRESH, (1.0,))
    y, z, cond = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    made = LearnedStart(uniform(1), net)(teacher_like, Cosine(), Downsample(2), y, z, cond)
    with torch.no_grad():
        alpha_1, sigma_1 = Cosine().at(1.0)
        x_1 = alpha_1 * Downsample(2).A_dagger(y) + sigma_1 * z
        assert torch.allclose(made.x, map(x_1, 1.0, 0.0, cond), atol=1e-3)
    assert made.cost.rounds == 1
    with pytest.raises(ValueError, match=r"starts from noise alone: restore with it on the grid \[1, 0\]"):
        LearnedStart([1.0, 0.5, 0.0], net)(teacher_like, Cosine(), Downsample(2), y, z, cond)


# Larger pictures


class Local(NoisePredictor):
    """Says of each point what that point says, of samples of any size."""

    def forward(self, y0: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.3 * y0 - 0.1, y0 + p.reshape(-1, 1, 1, 1)


def eager(shape: tuple[int, ...] = SHAPE) -> NoisePredictor:
    """A network that looks at a whole tile, and says something."""
    net = NoisePredictor({**FRESH, "image_size": shape[1]}).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return net.requires_grad_(False)


def flat() -> Gaussian:
    """Treats every point alike, of samples of any shape."""
    return Gaussian(Cosine(), torch.tensor(0.2, dtype=D64), 0.5)


def test_of_a_picture_as_large_as_a_tile_tiles_change_no_bit() -> None:
    net, problem = eager(), Downsample(2)
    y, z = (noise(seed_range(n, 3), size, dtype=D64) for n, size in ((0, (1, 2, 2)), (5, SHAPE)))
    method = LearnedStart(start_grid(Cosine(), 3), net)
    whole, tiled = (method(denoiser, Cosine(), problem, y, z) for denoiser in (flat(), Tiled(flat(), SHAPE, SHAPE)))
    assert torch.equal(whole.x, tiled.x) and not torch.allclose(
        whole.x,
        LearnedStart(start_grid(Cosine(), 3), NoisePredictor(FRESH).double())(flat(), Cosine(), problem, y, z).x,
    )


@pytest.mark.parametrize("overlap, limit", [(None, None), (1, 7), (0, 1)])
def test_a_predictor_that_looks_at_single_points_needs_no_tiles_and_has_the_same_answer(
    overlap: int | None, limit: int | None
) -> None:
    canvas, problem = (1, 10, 14), Downsample(2)
    y, z = (noise(seed_range(n, 2), size, dtype=D64) for n, size in ((0, (1, 5, 7)), (5, canvas)))
    grid, net = start_grid(Cosine(), 2), Local(FRESH)
    made = LearnedStart(grid, net, keep=grid[:1])(Tiled(flat(), SHAPE, canvas, overlap, limit), Cosine(), problem, y, z)
    y0, t = problem.A_dagger(y), float(grid[0])
    alpha_t, sigma_t = Cosine().at(t)
    f = 0.3 * y0 - 0.1 + (0.5 * (y0 + 0.2)).exp() * z
    assert made.trajectory is not None
    assert torch.allclose(made.trajectory.noise, alpha_t * y0 + sigma_t * f, atol=1e-12)
    assert torch.allclose(made.x, solve(flat(), Cosine(), made.trajectory.noise, grid, DDIM()).sample, atol=1e-12)
    assert (made.cost.rounds, made.cost.rows) == (2, 2 * 2 * Tiled(flat(), SHAPE, canvas, overlap).tiles)


def test_a_predictor_that_is_wrong_at_its_borders_leaves_no_seams() -> None:
    class Ramp(NoisePredictor):
        """Says how far a point is from the left of its tile."""

        def forward(self, y0: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            ramp = torch.linspace(0, 1, 8, dtype=y0.dtype).expand(y0.shape)
            return ramp, torch.full_like(y0, -20.0)

    net, canvas, problem = Ramp({**FRESH, "image_size": 8}), (1, 8, 40), Downsample(2)

    def jump(overlap: int) -> float:
        """The largest step between neighbours, over that within a tile alone."""
        method = LearnedStart(start_grid(Cosine(), 1), net)
        y, z = (torch.zeros(1, 1, *size, dtype=D64) for size in ((4, 20), (8, 40)))
        x = method(Tiled(flat(), (1, 8, 8), canvas, overlap), Cosine(), problem, y, z).x
        steps = x.diff(dim=-1).abs()
        return float(steps.max() / steps[..., 0].max())

    assert jump(0) > 6.9
    assert jump(4) < 1.5


def test_a_start_is_cut_as_its_teacher_is_and_a_picture_of_another_size_is_refused_without() -> None:
    problem, net = Downsample(2), NoisePredictor(FRESH)
    y, z = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8)
    method = LearnedStart(start_grid(Cosine(), 1), net)
    with pytest.raises(ValueError, match=r"trained for samples \(1, 4, 4\), and these are \(1, 8, 8\)"):
        method(Gaussian(Cosine(), torch.zeros(1, 8, 8), 0.5), Cosine(), problem, y, z)
    with pytest.raises(ValueError, match=r"trained for samples \(1, 4, 4\), and these are \(1, 6, 6\)"):
        method(Tiled(flat(), (1, 6, 6), (1, 8, 8)), Cosine(), problem, y, z)
    student = Tiled(OneJump(exact(Cosine()).trained_for("grid", 1)), (1, 4, 4), (1, 8, 8))
    with pytest.raises(ValueError, match=r"starts from noise alone: restore with it on the grid \[1, 0\]"):
        method(student, Cosine(), problem, y, z)


def test_where_it_was_not_trained_to_start_is_refused_before_the_teacher_is_asked() -> None:
    teacher = Meter(Gaussian(Cosine(), torch.zeros(SHAPE), 0.5))
    net, y, z = NoisePredictor(FRESH), torch.randn(2, 1, 2, 2), torch.randn(2, *SHAPE)
    with pytest.raises(ValueError, match=r"phases of 0\.1 to 0\.25, and the grid begins at 0\.5"):
        LearnedStart([0.5, 0.0], net)(teacher, Cosine(), Downsample(2), y, z)
    with pytest.raises(ValueError, match="eta in"):
        LearnedStart([0.2, 0.0], net, eta=2.0)
    with pytest.raises(ValueError, match="takes noise in its steps: give `seeds`"):
        LearnedStart([0.2, 0.0], net, eta=1.0)(teacher, Cosine(), Downsample(2), y, z)
    assert teacher.rounds == 0
