"""Every restorer has a name, a default for all but its grid, and a formula."""

import dataclasses

import pytest

from dsno.grids import uniform
from dsno.inverse.blind import FastEM
from dsno.inverse.named import CHOICES, RESTORERS, START, restorer_named, usual


def test_restorers_are_made_from_a_grid_alone_and_are_frozen_dataclasses_of_their_options() -> None:
    assert {"constrained", "dps", "pigdm", "diffpir", "replacement", "mpgd", "blind"} <= RESTORERS.keys()
    for name, make in RESTORERS.items():
        made = make(uniform(3))
        assert dataclasses.is_dataclass(made) and made.grid.tolist() == uniform(3).tolist()  # type: ignore[attr-defined]
        assert "$$" in (make.__doc__ or ""), f"{name} says no formula"


def test_of_every_restorer_is_said_when_to_choose_it() -> None:
    assert [*CHOICES] == [*RESTORERS] and START not in CHOICES.values()


@pytest.mark.parametrize(
    "name, problem, message",
    [
        ("best", "inpaint", "unknown method 'best': expected one of blind, "),
        ("dps", "blind", "the method dps needs a kernel that is known, and the problem is blind: take method=blind"),
        ("blind", "super", "the method blind estimates a kernel, and the problem is super: take another"),
    ],
)
def test_a_restorer_that_is_not_for_a_problem_is_refused(name: str, problem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restorer_named(name, problem)


def test_the_first_one_to_try_is_for_its_problem_and_estimates_noise_that_nobody_stated() -> None:
    for problem in ("inpaint", "blind"):
        for latents in (False, True):
            assert restorer_named(usual(problem, latents), problem)(uniform(2)) is not None
    learns = [restorer_named("blind", "blind", noise)(uniform(2)) for noise in (0.0, 0.1)]
    assert all(isinstance(made, FastEM) for made in learns)
    assert [made.step.learn_noise for made in learns] == [True, False]  # type: ignore[attr-defined]
