"""Results on disk, and what makes two of them comparable."""

import dataclasses
import json
from pathlib import Path

import pytest

from dsno.measure.results import RESULTS, Cost, Fidelity, HeldOut, Protocol, Result, load_results, save_results
from pretend import result

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1"


def test_results_round_trip(tmp_path: Path) -> None:
    nothing = Result("images", "images", Cost(), Protocol(count=3))
    beside = dataclasses.replace(
        nothing, name="beside", fidelity=Fidelity(20.5, None, 0.1), held_out=HeldOut(3.0, -0.1, 0.04), accuracy=0.9
    )
    results = [result("DDIM-8", 8, 0.1 + 0.2, 1e-17, seeds="0..63"), result("fine", 0, 2.0, None), nothing, beside]
    path = save_results(results, tmp_path / "deep" / RESULTS)
    assert load_results(path) == results
    assert json.loads(path.read_text())["results"][0]["protocol"]["extractor"] == "tiny_cnn"
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_results_of_version_0_1_are_read() -> None:
    student, ddim = load_results(FIXTURES / RESULTS)
    assert (student.name, student.family, student.cost.rounds) == ("DSNO", "DSNO", 1)
    assert (ddim.name, ddim.family, ddim.cost.rounds, ddim.cost.flops) == ("DDIM-4", "DDIM", 4, 570368)
    assert student.quality is not None and student.quality.frechet == 0.016356092858170586
    assert student.held_out is None and student.protocol.held_out_count == 0
    assert student.path_error == 0.8070916718902539 and student.cost.latency is None
    assert student.protocol.scale == ddim.protocol.scale and student.protocol.dsno == "0.1.0"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '"results"',
        '{"results": ["DDIM"]}',
        '{"results": [{"name": "x"}]}',
        '{"results": [{"quality": null, "x": 1}]}',
    ],
)
def test_a_foreign_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="not a file of dsno results"):
        load_results(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        load_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    "change",
    [
        {"count": 65},
        {"reference_sha": "b"},
        {"held_out_sha": "b"},
        {"extractor_sha": "b"},
        {"rounding": "256 levels"},
        {"neighbours": 5},
        {"kernel_subsets": "9 x 9"},
        {"fine_sha": "b"},
        {"told": "classes evenly"},
    ],
)
def test_what_changes_the_numbers_changes_the_scale(change: dict[str, object]) -> None:
    protocol = Protocol(count=64, seeds="0..63", reference_count=9, device="here", batch=8)
    assert dataclasses.replace(protocol, **change).scale != protocol.scale
    assert dataclasses.replace(protocol, device="there", batch=9, torch="3", seeds="1..64").scale == protocol.scale
