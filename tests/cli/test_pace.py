"""The pace of a stage by a clock that tests turn."""

import pytest

from dsno.cli.pace import Pace, spelled


def told(*reports: tuple[float, int], total: int = 100) -> Pace:
    pace = Pace()
    for now, done in reports:
        pace.add(now, done, total)
    return pace


def test_nothing_is_said_before_it_means_something() -> None:
    # One long part and then quick ones, as where a comparison begins: 1485 s after the first, 50 s in truth.
    reports = [(100.0, 0), (115.0, 1), (115.5, 2), (116.0, 3), (116.5, 4)]
    assert [told(*reports[:n]).left(reports[n - 1][0]) is None for n in range(1, 6)] == [True, True, True, False, False]
    # Three reports within a blink say nothing, two over a minute do.
    assert told((0, 0), (0.1, 1), (0.2, 2), (0.3, 3)).left(0.3) is None
    assert told((0, 0), (60, 50)).left(60) == 60


def test_a_steady_pace_is_said_and_counts_down_to_nothing() -> None:
    pace = told(*((0.5 * n, n) for n in range(21)))
    assert pace.rate == 2 and pace.settled
    assert [pace.left(10 + later) for later in (0, 15, 40, 99)] == [40, 25, 0, 0]


def test_the_last_part_decides() -> None:
    slow = [(10.0 * n, n) for n in range(4)]
    quick = [(30.0 + n, 3 + n) for n in range(1, 41)]
    pace = told(*slow, *quick)
    assert pace.rate == pytest.approx(1) and pace.left(70) == pytest.approx(57)
    # Of a stage that reports seldom, the last reports, however long ago.
    assert told(*((50.0 * n, n) for n in range(9))).rate == pytest.approx(1 / 50)


def test_the_end_has_its_mean_pace_and_nothing_left() -> None:
    pace = told(*((10.0 * n, n) for n in range(5)), (41.0, 50), total=50)
    assert pace.took == 41 and pace.rate == pytest.approx(50 / 41) and pace.left(41) is None


def test_a_stage_that_goes_on_or_starts_again_counts_from_there() -> None:
    assert told((0, 500), (1, 501), (2, 502), (3, 503), total=603).left(3) == 100
    # Said twice at the beginning, as behind an estimate of the best grid.
    assert told((0, 0), (90, 0), (91, 1), (92, 2), (93, 3)).rate == 1
    again = told((0, 0), (9, 9), (10, 0), (12, 1))
    assert again.took == 2 and again.rate == 0.5
    assert told((0, 0)).rate == 0 and told((5, 0), (5, 0), total=0).rate == 0


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5000, "83 min"), (7200, "2.0 h")]
)
def test_a_time_is_spelled_as_it_is_read(seconds: float, text: str) -> None:
    assert spelled(seconds) == text
