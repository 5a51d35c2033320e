import signal

import pytest
import torch
from hypothesis import settings

import chromium
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear, linear_beta

torch.set_num_threads(1)
# A shell makes what runs in its background deaf to Ctrl-C, and the tests of it with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("dsno", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("dsno")

# One for all folders: playwright drives one at a time in a process.
browser = chromium.browser

# Built once: every test of "all schedules" means these five.
ALL_SCHEDULES = {
    "cosine": Cosine(),
    "linear_beta": linear_beta(),
    "vp_linear": VPLinear(),
    "ve": VE(),
    "flow": RectifiedFlow(),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ALL_SCHEDULES.values(), ids=ALL_SCHEDULES.keys(), scope="session")
def schedule(request: pytest.FixtureRequest) -> Schedule:
    """Each schedule in turn."""
    return request.param
