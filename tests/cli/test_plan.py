"""`dsno plan`: the costs of a recipe, and of a teacher."""

from pathlib import Path

import numpy as np

from dsno.checkpoint import read_json
from refusals import Spoil, refusals, refuses
from shell import QUICK, dsno


def test_a_plan_of_a_recipe_and_of_a_teacher(here: Path) -> None:
    quick = ("--seconds", 0.1, "--device", "cpu", "--out", "plan.json", "--overwrite")
    before = set(here.rglob("*"))
    ran = dsno("plan", "digits", "--budget-hours", 1e-6, "--count", 1000, "--train-steps", 7, *quick, at=here)
    assert ran.code == 0 and "over the budget" in " ".join(ran.out.split())
    made = read_json(here / "plan.json")
    assert ran.following == ["reproduce", "digits"]
    assert [s["evaluations"] for s in made["stages"]] == [3000 * 128, 16_000, 7 * 128, 300 * 64]
    heun = ("--count", 10, "--frames", 2, "--solver", "heun", "--steps", 4)
    ran = dsno("plan", "runs/teacher", *heun, "--guided", *quick, at=here)
    assert ran.following == ["generate", "--teacher", "runs/teacher", *map(str, heun)]
    assert ran.code == 0 and read_json(here / "plan.json")["stages"][0]["evaluations"] == 10 * 7 * 2
    assert set(here.rglob("*")) - before == {here / "plan.json"}


def test_a_plan_of_a_bridge_of_pairs_and_of_a_start(here: Path) -> None:
    quick = ("--seconds", 0.05, "--device", "cpu", "--out", "plan.json", "--overwrite")
    np.save(here / "rough.npy", np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8))
    pairs = ("--pairs", "rough.npy", "rough.npy", "--channels", 4, 8)
    ran = dsno("plan", *pairs, "--teach-steps", 3, "--count", 10, "--train-steps", 2, *quick, at=here)
    assert ran.code == 0, ran.said
    assert ran.following == ["teach", "--pairs", "rough.npy", "rough.npy", "--channels", "4", "8"]
    made = read_json(here / "plan.json")
    assert [(s["name"], s["evaluations"]) for s in made["stages"]] == [
        ("teach", 3 * 128),
        ("generate", 10 * 20),
        ("distill", 2 * 256),
    ]
    assert dsno("teach", *pairs, "--out", "bridge", *QUICK, at=here).code == 0
    ran = dsno("plan", "bridge", "--count", 10, "--train-steps", 2, *quick, at=here)
    assert ran.code == 0 and ran.following[:3] == ["generate", "--teacher", "bridge"]
    bridge = read_json(here / "plan.json")
    assert bridge["stages"] != made["stages"] and [s["flop"] for s in bridge["stages"]] == [
        s["flop"] for s in made["stages"][1:]
    ]
    ran = dsno("plan", "runs/teacher", "--start", "--channels", 4, 8, "--train-steps", 5, *quick, at=here)
    assert ran.code == 0, ran.said
    assert [(s["name"], s["evaluations"]) for s in read_json(here / "plan.json")["stages"]] == [("start", 5 * 128)]
    assert ran.following == ["teach", "--start", "runs/teacher", "--channels", "4", "8", "--out", "runs/start"]
    for command, said in (
        ("plan bridge --start", "--start is of a teacher that starts from noise, and bridge is a bridge: leave it out"),
        ("plan bridge --solver heun", "--solver is no option of the plan of a bridge: leave it out"),
        ("plan bridge --teach-steps 3", "bridge is a teacher already: leave out --teach-steps"),
    ):
        ran = dsno(*command.split(), at=here)
        assert ran.code == 2 and said in ran.err, ran.said


@refusals(
    ("plan --pairs a b --start", None, "--start is of a teacher that starts from noise, and --pairs are of one"),
    ("plan --size 3", None, "--size is no option of a plan without --pairs or --start: leave it out"),
    ("plan --start --steps 4", None, "--steps is no option of a plan of --start: leave it out"),
    ("plan --pairs a b --frames 4", None, "--frames is no option of a plan of --pairs: leave it out"),
    ("plan --pairs nowhere.npy nowhere.npy", None, "no data 'nowhere.npy'"),
    ("plan nowhere", None, "there is no folder nowhere, and no other teacher of that name"),
    ("plan --count -1", None, "a run has 0 or more trajectories"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
