"""What a scheduler's file says of a model is read although its class would drop it, and its noise table as it is."""

from typing import Any

import pytest
import torch

from dsno.schedule import Tabulated
from dsno.teachers.schedulers import grid_from_scheduler, load_scheduler, read_convention

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


def table(scheduler: Any) -> torch.Tensor:
    schedule = read_convention(scheduler).schedule
    assert isinstance(schedule, Tabulated)
    return torch.exp(-schedule.B[1:])


OLD = {"_class_name": "DDPMScheduler", "predict_epsilon": False}


def test_predict_epsilon_false_is_a_network_that_gives_x0() -> None:
    assert read_convention(OLD).kind == "x0"
    # One in memory states its defaults, too, but says that they are.
    assert read_convention(diffusers.DDPMScheduler.from_config(OLD)).kind == "x0"
    assert read_convention({**OLD, "prediction_type": "sample"}).kind == "x0"
    for said in (True, None):
        assert read_convention({**OLD, "predict_epsilon": said}).kind == "eps"
        assert read_convention({**OLD, "predict_epsilon": said, "prediction_type": "v_prediction"}).kind == "v"
    with pytest.raises(ValueError, match="predict_epsilon = false, so .* and prediction_type = 'epsilon': leave in"):
        load_scheduler({**OLD, "prediction_type": "epsilon"})


def test_original_sample_is_the_first_name_of_sample() -> None:
    assert read_convention({"_class_name": "EulerDiscreteScheduler", "prediction_type": "original_sample"}).kind == "x0"


@pytest.mark.parametrize("steps", [2000, 3000, 4000])
def test_a_long_table_is_taken_as_it_is(steps: int) -> None:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=steps)
    assert torch.allclose(table(scheduler), scheduler.alphas_cumprod.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("settings", [{"beta_start": 1e-8}, {"num_train_timesteps": 12_000}], ids=["starts", "ends"])
def test_what_float32_does_not_tell_apart_is_computed_in_float64(settings: dict[str, Any]) -> None:
    scheduler = diffusers.DDPMScheduler(**settings)
    found, own = table(scheduler), scheduler.alphas_cumprod.double()
    assert own[0] == 1 or own[-1] == 0
    assert torch.allclose(found.log(), torch.log1p(-scheduler.betas.double()).cumsum(0), rtol=1e-9, atol=0)
    assert torch.allclose(found, own, rtol=1e-4, atol=1e-38)


NAMES = ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep", "DDPM"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_zero_terminal_snr_is_one_table_whoever_samples(name: str, betas: str) -> None:
    expected = table(diffusers.DDIMScheduler(beta_schedule=betas, **ZERO))
    assert expected[-1] == pytest.approx(1e-12)
    assert torch.equal(table(getattr(diffusers, f"{name}Scheduler")(beta_schedule=betas, **ZERO)), expected)


@pytest.mark.parametrize("name", ["PNDM", "HeunDiscrete", "LMSDiscrete"])
def test_it_counts_where_the_class_drops_it(name: str) -> None:
    ddim = diffusers.DDIMScheduler(beta_start=0.001, beta_end=0.02, **ZERO)
    made = getattr(diffusers, f"{name}Scheduler").from_config(ddim.config)
    assert made.alphas_cumprod[-1] > 1e-5
    assert torch.equal(table(made), table(ddim))


def test_the_last_level_lies_below_the_one_before() -> None:
    found = table(diffusers.DDIMScheduler(num_train_timesteps=4000, **ZERO))
    assert found[-2] < 1e-12 and found[-1] == pytest.approx(float(found[-2]) / 2)
    assert table(diffusers.DDIMScheduler(trained_betas=[0.5, 1.0])).tolist() == pytest.approx([0.5, 1e-12])


@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_their_grid_starts_from_pure_noise(name: str) -> None:
    grid = grid_from_scheduler(getattr(diffusers, f"{name}Scheduler")(**ZERO), 4)
    assert grid.tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
