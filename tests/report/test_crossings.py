"""A bridge, call by call: what is measured, what is on the page, and what is refused."""

from pathlib import Path

import pytest
import torch

from dsno.bridge.coefficients import BrownianBridge
from dsno.bridge.files import load_bridge, save_bridge
from dsno.bridge.prediction import BridgePrediction
from dsno.bridge.sampler import BridgeSampler
from dsno.bridge.student import student_from_bridge
from dsno.data.pairs import Pairs
from dsno.measure.fidelity import psnr
from dsno.measure.results import Result, load_results
from dsno.nets.features import FeatureNet, save_feature_net
from dsno.nets.paired import PairedUNet
from dsno.report.crossings import compare_calls
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.students.files import save_student
from pages import Page

PAIRS = Pairs(noise(range(10), (1, 8, 8)).clamp(-1, 1), noise(range(10, 20), (1, 8, 8)).clamp(-1, 1), "rough and fine")
FEW = {"calls": (1, 4, 5), "samplers": ("odes3", "ancestral"), "samples": 3, "repeats": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained bridge, its student and a feature network."""
    root = tmp_path_factory.mktemp("crossings")
    torch.manual_seed(0)
    net = PairedUNet({"in_channels": 1, "image_size": 8, "channels": [8], "attention": []})
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    bridge = BridgePrediction(net, BrownianBridge(), "ddbm", (0.7, 0.6, 0.2), shape=(1, 8, 8))
    save_bridge(root / "bridge", bridge, pairs="others")
    save_student(root / "student", student_from_bridge(bridge))
    save_feature_net(root / "features", FeatureNet("random_cnn", width=4))
    return root


@pytest.fixture(scope="module")
def measured(folders: Path) -> tuple[list[Result], Path]:
    out = folders / "evaluation"
    parts = {"student": folders / "student", "features": folders / "features"}
    return compare_calls(folders / "bridge", PAIRS, out, count=100, **parts, **FEW), out


def test_each_sampler_has_the_most_calls_of_a_budget(measured: tuple[list[Result], Path]) -> None:
    results, out = measured
    names = ["odes3-1", "odes3-4", "ancestral-1", "ancestral-4", "ancestral-5", "one pass", "input", "real, other half"]
    assert [r.name for r in results] == names and [r.cost.rounds for r in results] == [1, 4, 1, 4, 5, 1, 0, 0]
    assert load_results(out / "results.json") == results


def test_the_samples_are_those_of_the_sampler_and_held_against_their_own_references(
    folders: Path, measured: tuple[list[Result], Path]
) -> None:
    found = {r.name: r for r in measured[0]}
    bridge = load_bridge(folders / "bridge")
    # Of ten pairs half are measured, and the other half is what distances are to.
    start, clean = (half[:5].repeat_interleave(3, 0) for half in (PAIRS.start, PAIRS.x))
    sampler = BridgeSampler.of_calls(bridge, bridge.bridge, 4, "ancestral")
    made = sampler(start, seeds=seed_range(1 << 40, 15)).sample.clamp(-1, 1)
    held = found["ancestral-4"].fidelity
    assert held.psnr == pytest.approx(float(psnr(made, clean).mean()), abs=1e-4)
    assert held.spread == pytest.approx(float(made.reshape(5, 3, -1).var(1).mean().sqrt()), rel=1e-4)
    assert found["input"].fidelity.psnr == pytest.approx(float(psnr(PAIRS.start[:5], PAIRS.x[:5]).mean()))
    assert {r.protocol.count for r in found.values()} == {5} and found["input"].protocol.reference_count == 5
    # One call has no noise in it, and is what the bridge says of the input.
    assert found["odes3-1"].fidelity.spread == 0 < min(held.spread, found["one pass"].fidelity.spread)
    assert all(r.fidelity.feature_distance > 0 for r in found.values() if r.fidelity is not None)


def test_the_page_has_rows_of_pictures_plots_and_the_table(measured: tuple[list[Result], Path]) -> None:
    page = Page((measured[1] / "report.html").read_text())
    for word in ("A bridge, call by call, and in one pass", "Pictures", "Quality against calls", "PSNR", "spread"):
        assert word in page.words, word
    assert page.open == [] and all(link.startswith("data:") for link in page.loads)
    # Two sheets of pictures, and two plots, each for light pages and for dark ones.
    assert len(page.loads) == 2 + 2 * 2
    assert not any("trained on these pairs" in word for word in page.words)


def test_without_features_there_are_no_distances_and_all_pairs_count(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_bridge(tmp_path / "bridge", load_bridge(folders / "bridge"), pairs=PAIRS.name)
    few = {"calls": [3], "samplers": ["dbim2"], "samples": 1, "repeats": 0}
    made, plain = compare_calls(tmp_path / "bridge", PAIRS, **few)
    assert made.quality is None and made.fidelity.feature_distance is None and made.fidelity.spread is None
    assert made.protocol.count == plain.protocol.count == 10
    assert "bridge was trained on rough and fine" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["bridge"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"calls": ()}, r"nothing is measured of \['odes3', 'ancestral'\] at \[\] calls"),
        ({"calls": (0,)}, "odes3 makes 1, 2, 4, 6, ... calls, got 0"),
        ({"samplers": ("rk9",)}, "unknown sampler 'rk9' of bridges"),
        ({"student": shipped() / "student"}, "starts from noise alone: give the student of a bridge"),
        ({"first_seed": 0, "student": "seen"}, "are not held out: seen was trained on the noises of 5 to 8"),
        ({"pairs": Pairs(PAIRS.start[..., :4], PAIRS.x[..., :4], "thin")}, r"thin are pairs of shape \(1, 8, 4\), "),
        ({"pairs": Pairs(PAIRS.start[:7], PAIRS.x[:7], "few"), "features": "features"}, "need 8 pairs or more, got 7"),
        ({"out": "."}, "bridge is read, and lies in ."),
        ({"out": "mine"}, "results.json is of no evaluation: move it away"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    change: dict, message: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    if "seen" in change.values():
        save_student("seen", student_from_bridge(load_bridge("bridge")), origin={"seeds": [5, 9]})
    if "mine" in change.values():
        Path("mine").mkdir(exist_ok=True)
        Path("mine/results.json").write_text("mine")
    said: list[object] = []
    with pytest.raises((ValueError, FileExistsError), match=message):
        compare_calls(
            **{"bridge": "bridge", "pairs": PAIRS, "report": lambda *line: said.append(line), **FEW, **change}
        )
    assert said == []
