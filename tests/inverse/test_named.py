"""Every restorer has a name, a default for all but its grid, and a formula."""

import dataclasses

from dsno.grids import uniform
from dsno.inverse.named import CHOICES, RESTORERS, START


def test_restorers_are_made_from_a_grid_alone_and_are_frozen_dataclasses_of_their_options() -> None:
    assert {"constrained", "dps", "pigdm", "diffpir", "replacement", "mpgd", "blind"} <= RESTORERS.keys()
    for name, make in RESTORERS.items():
        made = make(uniform(3))
        assert dataclasses.is_dataclass(made) and made.grid.tolist() == uniform(3).tolist()  # type: ignore[attr-defined]
        assert "$$" in (make.__doc__ or ""), f"{name} says no formula"


def test_of_every_restorer_is_said_when_to_choose_it() -> None:
    assert [*CHOICES] == [*RESTORERS] and START not in CHOICES.values()
