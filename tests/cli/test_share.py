"""`dsno push` and `dsno pull`: there and back."""

from pathlib import Path

from refusals import Spoil, refusals, refuses
from shell import dsno


def test_a_set_goes_and_comes_back(here: Path) -> None:
    url = (here / "there").as_uri()
    ran = dsno("push", url, at=here)
    assert ran.code == 0 and ran.following == ["pull", url]
    ran = dsno("pull", url, "--out", "back", at=here)
    assert ran.code == 0 and "64 trajectories in back" in ran.out
    names = sorted(p.name for p in (here / "back").iterdir() if not p.name.startswith("."))
    assert all((here / "back" / n).read_bytes() == (here / "runs" / "trajectories" / n).read_bytes() for n in names)


@refusals(
    ("push nowhere://set --data runs/trajectories", None, "nowhere"),
    ("push file:///dev/null/set --data none", None, "none"),
    ("pull file:///nowhere/at/all --out new", None, "file:///nowhere/at/all"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
