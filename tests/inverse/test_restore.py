"""What restoring makes is frozen, and holds nothing that was not asked for."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from dsno.cost import Cost
from dsno.inverse.restore import Restored


def test_a_restoration_is_frozen_and_has_no_kernel_or_trajectory_of_its_own() -> None:
    made = Restored(torch.zeros(1, 2), Cost(rounds=3), torch.zeros(1))
    assert made.trajectory is None and made.kernel is None and made.cost == Cost(3, 0, 0, 0, 0, 0.0, None)
    with pytest.raises(FrozenInstanceError):
        made.x = torch.ones(1, 2)  # type: ignore[misc]
