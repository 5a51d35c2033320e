"""`dsno plan`: the costs of a recipe, and of a teacher."""

from pathlib import Path

from dsno.checkpoint import read_json
from refusals import Spoil, refusals, refuses
from shell import dsno


def test_a_plan_of_a_recipe_and_of_a_teacher(here: Path) -> None:
    quick = ("--seconds", 0.1, "--device", "cpu", "--out", "plan.json", "--overwrite")
    before = set(here.rglob("*"))
    ran = dsno("plan", "digits", "--budget-hours", 1e-6, "--count", 1000, "--train-steps", 7, *quick, at=here)
    assert ran.code == 0 and "over the budget" in " ".join(ran.out.split())
    made = read_json(here / "plan.json")
    assert ran.following == ["reproduce", "digits"]
    assert [s["evaluations"] for s in made["stages"]] == [3000 * 128, 16_000, 7 * 128]
    heun = ("--count", 10, "--frames", 2, "--solver", "heun", "--steps", 4)
    ran = dsno("plan", "runs/teacher", *heun, "--guided", *quick, at=here)
    assert ran.following == ["generate", "--teacher", "runs/teacher", *map(str, heun)]
    assert ran.code == 0 and read_json(here / "plan.json")["stages"][0]["evaluations"] == 10 * 7 * 2
    assert set(here.rglob("*")) - before == {here / "plan.json"}


@refusals(
    ("plan nowhere", None, "there is no folder nowhere, and no other teacher of that name"),
    ("plan --count -1", None, "a run has 0 or more trajectories"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
