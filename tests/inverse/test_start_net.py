"""The predictor of noise begins as a standard normal, tells its halves apart, and is read back as it was written."""

import json
from pathlib import Path

import pytest
import torch

from dsno.inverse.start_net import PHASES, STARTS, NoisePredictor, load_start, save_start, start_grid
from dsno.inverse.tiles import Tiling
from dsno.schedule import Cosine, Schedule, Tabulated

SMALL = {"in_channels": 2, "image_size": [8], "channels": [8], "attention": []}


@pytest.mark.parametrize("size", [[8], [8, 4], [4, 4, 4]])
def test_untrained_it_says_a_standard_normal_of_any_shape(size: list[int]) -> None:
    net = NoisePredictor({**SMALL, "image_size": size, "patch": 2, "channels": [16]})
    y0, z = torch.randn(3, 2, *size), torch.randn(3, 2, *size)
    mean, log_variance = net(y0, torch.tensor(PHASES[:3]))
    assert mean.abs().max() == 0 and log_variance.abs().max() == 0
    assert torch.equal(net.noise(y0, torch.full((3,), 0.2), z), z)


def test_mean_and_log_variance_are_channels_of_their_own_where_pixels_are_patched() -> None:
    net = NoisePredictor({**SMALL, "patch": 4, "channels": [8]})
    with torch.no_grad():
        net.unet.head.conv.bias[8:] = 1.0  # 2 channels of 4 pixels before, as many behind
    mean, log_variance = net(torch.randn(3, 2, 8), torch.full((3,), 0.2))
    assert mean.abs().max() == 0 and bool((log_variance == 1).all())


def test_the_grids_are_the_papers_in_phases_on_every_schedule(schedule: Schedule) -> None:
    for steps, phases in STARTS.items():
        grid = start_grid(schedule, steps)
        assert len(grid) == steps + 1 and grid[-1] == 0
        assert torch.allclose(schedule.phase(grid[:-1]), torch.tensor(phases, dtype=torch.float64), atol=1e-6)
    assert float(schedule.phase(start_grid(schedule, 5, 0.5))[0]) == pytest.approx(0.5)


def test_the_papers_steps_are_these_phases_of_the_schedule_that_it_counts_them_on() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    latents = Tabulated((1 - betas).cumprod(0).tolist())
    steps = (torch.tensor([250, 200, 150, 100, 50], dtype=torch.float64) + 1) / 1000
    phases = torch.tensor([0.4, 0.35, 0.28, 0.22, 0.15], dtype=torch.float64)
    assert (latents.phase(steps) - phases).abs().max() < 0.01
    alpha_t, sigma_t = latents.at(float(steps[0]))
    assert alpha_t / sigma_t == pytest.approx(1.44, abs=0.01)  # the threshold that the paper gives
    alpha_t, sigma_t = Cosine().at(0.25)
    assert sigma_t / alpha_t == pytest.approx(0.41, abs=0.01)


def test_a_canvas_is_told_what_its_tiles_say_and_has_one_noise() -> None:
    net, canvas = NoisePredictor(SMALL), (2, 20)
    y0, z, p = torch.randn(3, *canvas), torch.randn(3, *canvas), torch.full((3,), 0.2)
    assert torch.equal(net.noise(y0, p, z, Tiling(net.shape, canvas)), z)
    with torch.no_grad():
        net.unet.head.conv.bias.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    made = net.noise(y0, p, z, Tiling(net.shape, canvas))
    assert torch.allclose(made[:, 0], 0.5 + torch.tensor(1.0).exp() * z[:, 0], atol=1e-6)
    assert torch.allclose(made[:, 1], -1 + z[:, 1], atol=1e-6)


def test_it_is_read_back_and_what_was_changed_is_refused(tmp_path: Path) -> None:
    net = NoisePredictor(SMALL, (0.3, 0.2))
    with torch.no_grad():
        net.unet.head.conv.bias.fill_(0.5)
    save_start(tmp_path, net, problem="a mask")
    made = load_start(tmp_path)
    y0, p = torch.randn(2, 2, 8), torch.full((2,), 0.2)
    assert made.phases == (0.3, 0.2) and all(map(torch.equal, made(y0, p), net(y0, p)))
    assert not any(parameter.requires_grad for parameter in made.parameters())
    held = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**held, "phases": [0.9]}))
    with pytest.raises(ValueError, match="was changed after it was written"):
        load_start(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**held, "type": "teacher"}))
    with pytest.raises(ValueError, match="holds a teacher, expected a start"):
        load_start(tmp_path)
    with pytest.raises(FileExistsError, match="holds a teacher, not a start"):
        save_start(tmp_path, net)


def test_what_cannot_be_is_said_in_a_line() -> None:
    with pytest.raises(ValueError, match=r"start at phases in \(0, 1\], 1 is noise: got \[0\]"):
        NoisePredictor(SMALL, (0,))
    with pytest.raises(ValueError, match="leave `classes` out"):
        NoisePredictor({**SMALL, "classes": 3})
    with pytest.raises(ValueError, match=r"trained for samples \(2, 8\), and these are \(2, 4\)"):
        NoisePredictor(SMALL)(torch.zeros(1, 2, 4), torch.ones(1))
    with pytest.raises(ValueError, match="takes 1 to 5 steps, got 6"):
        start_grid(Cosine(), 6)
    with pytest.raises(ValueError, match="the highest start is a phase"):
        start_grid(Cosine(), 1, 1.5)
