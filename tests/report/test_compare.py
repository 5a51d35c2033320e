"""A student beside its teacher, from folders to a page."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsno.checkpoint import tensor_sha
from dsno.data.load import load_data
from dsno.data.originals import as_png
from dsno.data.samples import Samples, split
from dsno.denoise import Prediction
from dsno.grids import quadratic
from dsno.measure.results import load_results, save_results
from dsno.measure.table import BIAS, COPYING
from dsno.nets.features import FeatureNet, load_feature_net, save_feature_net
from dsno.nets.unet import UNet
from dsno.report.compare import EVALUATION, by_class, compare, set_apart
from dsno.report.page import html_report
from dsno.schedule import Cosine
from dsno.seeds import seed_range
from dsno.students.files import save_student
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.operator import student_from_teacher
from dsno.students.origin import sha_of
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.trajectories.labels import shared_labels
from pages import Page


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    teacher = Prediction(UNet(1, 8, (8, 8)), Cosine(), "v", clip=1.0)
    save_teacher(root / "teacher", teacher)
    save_student(root / "student", student_from_teacher(teacher, quadratic(2)[1:]))
    save_student(root / "map", flow_map_from_teacher(teacher))
    save_feature_net(root / "features", FeatureNet("tiny_cnn", width=4))
    return root


def test_compare_writes_numbers_and_a_report(folders: Path, tmp_path: Path) -> None:
    said: list[tuple[str, int, int, str]] = []
    parts = folders / "teacher", folders / "student", folders / "features"
    few = {"ddim": (1, 2, 4), "multistep": (2, 4), "fine_steps": 8, "repeats": 0}
    results = compare(*parts, "digits", 8, tmp_path / "out", lambda *line: said.append(line), **few)
    assert load_results(tmp_path / "out" / "results.json") == results
    assert results[0].name == "DSNO" and results[0].cost.rounds == 1 and results[0].path_error > 0
    assert {r.family for r in results} == {"DSNO", "DDIM", "DPM-Solver++", "UniPC", "teacher, fine", "real, other half"}
    assert len({r.protocol.fine_sha for r in results[:-2]}) == 1
    assert (results[-1].protocol.count, results[-1].protocol.reference_count) == (8, 1789)
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.open == [] and len(page.loads) == 9 and "Trajectories" in page.words
    # In network calls: the fine solution's, the student's, those of the solvers.
    assert [line[:3] for line in said] == [("evaluate", n, 28) for n in (0, 8, 9, 10, 12, 16, 18, 22, 24, 28)]
    assert [line[3] for line in said[1:-1]] == [r.name for r in results[:-2]] and said[-1][3] == "done"
    assert BIAS in page.words and "real, other half" in page.words


def test_files_of_others_and_inputs_are_not_replaced(folders: Path, tmp_path: Path) -> None:
    parts = folders / "teacher", folders / "student", folders / "features"
    for name, text in (("results.json", '{"mine": 1}'), ("report.html", "<p>mine</p>")):
        (tmp_path / name).write_text(text)
        with pytest.raises(FileExistsError, match=f"{name} is of no evaluation: move it away"):
            compare(*parts, "digits", 8, tmp_path)
        assert (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()
    with pytest.raises(FileExistsError, match="page.html is of no evaluation"):
        (tmp_path / "page.html").write_text("mine")
        compare(*parts, "digits", 8, page=tmp_path / "page.html")
    with pytest.raises(FileExistsError, match="teacher is read, and lies in"):
        compare(*parts, "digits", 8, folders)
    written = html_report(tmp_path / "report.html", "One", [])
    save_results([], tmp_path / "results.json")
    assert EVALUATION.own(tmp_path) == [tmp_path / "results.json", written]


def test_a_flow_map_is_compared_at_several_passes(folders: Path, tmp_path: Path) -> None:
    parts = folders / "teacher", folders / "map", folders / "features"
    few = {"ddim": (1,), "multistep": (), "fine_steps": 4, "repeats": 0}
    results = compare(*parts, "digits", 8, page=tmp_path / "page.html", passes=(1, 3), **few)
    assert [(r.name, r.family, r.cost.rounds) for r in results] == [
        ("flow map-1", "flow map", 1),
        ("flow map-3", "flow map", 3),
        ("DDIM-1", "DDIM", 1),
        ("teacher, fine", "teacher, fine", 0),
        ("real, other half", "real, other half", 0),
    ]
    # An untrained flow map is its teacher's DDIM.
    assert results[0].path_error == pytest.approx(results[2].path_error, rel=1e-4)
    page = Page((tmp_path / "page.html").read_text())
    assert "Few passes beside its teacher: digits" in page.words and "Trajectories" not in page.words
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_compare_refuses_other_data(folders: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (9, 16, 16), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"makes \(1, 8, 8\), x.npy has \(1, 16, 16\)"):
        compare(folders / "teacher", folders / "student", folders / "features", str(tmp_path / "x.npy"), 8)


def test_the_noises_are_those_that_the_student_has_not_seen(folders: Path, tmp_path: Path) -> None:
    teacher = load_teacher(folders / "teacher")
    note = {"teacher": {"sha256": sha_of(teacher)}, "seeds": [40, 60]}
    save_student(tmp_path / "student", student_from_teacher(teacher, quadratic(2)[1:]), origin=note)
    parts = folders / "teacher", tmp_path / "student", folders / "features"
    few = {"ddim": (1,), "multistep": (), "fine_steps": 4, "repeats": 0}
    said: list[str] = []
    with pytest.raises(ValueError, match=r"seeds 53 to 60 are not held out: .* trained on the noises of 40 to 59"):
        compare(*parts, "digits", 8, first_seed=53, report=lambda *line: said.append(line[3]), **few)
    assert said == []
    compare(*parts, "digits", 8, page=tmp_path / "page.html", first_seed=60, **few)
    words = Page((tmp_path / "page.html").read_text()).words
    text = "of seeds 60 to 67, none of which the student was trained on (its trajectories are of 40 to 59)"
    assert any(text in word for word in words)


def test_another_teacher_is_said_and_one_of_another_shape_refused(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = load_teacher(folders / "teacher")
    save_student(
        tmp_path / "student", student_from_teacher(teacher, quadratic(2)[1:]), origin={"teacher": {"sha256": "other"}}
    )
    few = {"ddim": (1,), "multistep": (), "fine_steps": 4, "repeats": 0}
    compare(folders / "teacher", tmp_path / "student", folders / "features", "digits", 8, **few)
    assert f"{folders / 'teacher'} is not the teacher that {tmp_path / 'student'} was made from" in caplog.text
    save_teacher(tmp_path / "wide", Prediction(UNet(1, 16, (8, 8)), Cosine(), "v"))
    with pytest.raises(
        ValueError, match=r"wide makes \(1, 16, 16\), and the student \(1, 8, 8\): give its own teacher"
    ):
        compare(tmp_path / "wide", tmp_path / "student", folders / "features", "digits", 8, **few)


# What is held out


def test_a_share_is_held_out_of_the_reference_and_measured_against(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = folders / "teacher", folders / "student", folders / "features"
    few = {"ddim": (1,), "multistep": (), "fine_steps": 4, "repeats": 0}
    results = compare(*parts, "digits", 8, tmp_path, held_out=0.1, **few)
    assert load_results(tmp_path / "results.json") == results
    assert {r.name for r in results if r.held_out is not None} == {r.name for r in results}
    rest, held = split(load_data("digits"), 0.1)
    protocol = results[0].protocol
    assert (protocol.reference_sha, protocol.held_out_sha) == (tensor_sha(rest.x), tensor_sha(held.x))
    assert (protocol.reference_count, protocol.held_out_count, protocol.held_out_shared) == (1617, 180, 0)
    assert results[-1].held_out.copying == pytest.approx(1, abs=0.3)
    page = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "1617 images in the features of tiny_cnn; held out of them: 180 images, a share of 0.1 of digits." in page
    assert COPYING in page
    assert "are to unseen images if student and teacher were trained on the rest" in caplog.text


def test_what_is_held_out_is_a_set_or_a_share(tmp_path: Path) -> None:
    data = load_data("digits")
    rest, held = split(data, 0.1)
    assert set_apart(data, None) == (data, None) and set_apart(rest, held) == (rest, held)
    np.save(tmp_path / "held.npy", held.x.numpy())
    assert torch.equal(set_apart(rest, str(tmp_path / "held.npy"))[1].x, held.x)
    with pytest.raises(ValueError, match="180 of the 180 held-out images are in the reference set"):
        set_apart(data, held)
    for share in (0, 0.51, 1, -0.1, float("nan")):
        with pytest.raises(
            ValueError, match=r"held_out must be an image set or a share of the data in \(0, 0.5\], got"
        ):
            set_apart(data, share)
    with pytest.raises(ValueError, match="the held-out set has 18 images, expected 32 or more"):
        set_apart(data, 0.01)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\), the reference set of \(1, 8, 8\): load both alike"):
        set_apart(data, Samples(torch.zeros(40, 1, 4, 4), None, "small"))


# Students that are told a class


def says_the_class() -> Prediction:
    """A teacher whose prediction of x0 is a picture of the class alone, whatever the state and the time: one step of
    its ODE is the solution."""
    torch.manual_seed(1)
    net = UNet(1, 8, (8, 8), attention=(), classes=10, null=True)
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, 0, 0.3) if "norm" not in name else None
    for part in (net.stem.conv, net.emb[-1]):
        nn.init.zeros_(part.weight), nn.init.zeros_(part.bias)
    return Prediction(net, Cosine(), "x0", shape=(1, 8, 8), classes=10).eval()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of such a teacher, of its exact student, and of one that is told a weight and does not heed it."""
    root, teacher = tmp_path_factory.mktemp("told"), says_the_class()
    save_teacher(root / "teacher", teacher)
    save_student(root / "student", student_from_teacher(teacher, quadratic(2)[1:]))
    options = {"options": {"guidance": [0.0, 4.0]}, "null": 10}
    save_student(root / "guided", flow_map_from_teacher(teacher, guidance=True), **options)
    torch.manual_seed(2)
    save_feature_net(root / "features", FeatureNet("digits_cnn", width=4), data="digits")
    save_feature_net(root / "turns", FeatureNet("digits_turns", width=4), data="digits", labelled=False)
    return root


FEW = {"ddim": (1, 2), "multistep": (), "fine_steps": 4, "repeats": 0}


def pictures_of(teacher: Prediction, labels: Tensor) -> Tensor:
    """What it says of each class."""
    with torch.no_grad():
        return teacher(torch.zeros(len(labels), 1, 8, 8), torch.ones(len(labels)), labels)


def test_the_exact_student_of_classes_is_at_no_distance_from_its_teacher(told: Path, tmp_path: Path) -> None:
    parts = told / "teacher", told / "student", told / "features"
    results = compare(*parts, "digits", 24, tmp_path / "out", **FEW)
    assert load_results(tmp_path / "out" / "results.json") == results
    student, one, _, fine, data = results
    assert student.name == "DSNO" and student.path_error < 1e-4 and one.path_error < 1e-4
    # Pictures of other classes are far away, so both were told the same.
    apart = pictures_of(says_the_class(), torch.arange(10))
    assert torch.pdist(apart.flatten(1)).min() / 8 > 0.1
    assert {r.protocol.told for r in results[:-1]} == {"classes as often as in digits"} and data.protocol.told == ""
    # What the classifier says of them is the share of those that it takes for their own class.
    labels = shared_labels(torch.bincount(load_data("digits").labels))(seed_range(1 << 40, 24))
    told_by = load_feature_net(told / "features")(apart.clamp(-1, 1)).argmax(1)
    assert student.accuracy == fine.accuracy == float((told_by[labels] == labels).double().mean())
    assert data.accuracy is not None
    page = Page((tmp_path / "out" / "report.html").read_text())
    words = " ".join(page.words)
    assert page.open == [] and "as is what it is told: classes as often as in digits" in words
    assert "A row for each class, a column for the noise of each seed from 1099511627776 on" in words
    assert "of one class each" in words and "as asked" in words


def test_a_guided_teacher_is_solved_under_the_weight_and_both_its_rows_are_counted(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsno.report.compare.SHOWN", 4)
    parts = told / "teacher", told / "guided", told / "turns"
    plain = compare(*parts, "digits", 16, **FEW)
    under = compare(*parts, "digits", 16, page=tmp_path / "page.html", guidance=1.5, **FEW)
    assert [r.protocol.told for r in plain[:1]] == ["classes as often as in digits, guidance weight 0"]
    assert [r.protocol.told for r in under[:1]] == ["classes as often as in digits, guidance weight 1.5"]
    for (student, *solved), evaluations in ((plain, 1), (under, 2)):
        assert [(r.cost.nfe, r.cost.rounds) for r in solved[:2]] == [(evaluations, 1), (2 * evaluations, 2)]
        assert solved[1].cost.flops == 2 * solved[0].cost.flops
        assert (student.cost.nfe, student.cost.rounds) == (1, 1) and max(r.path_error for r in solved[:2]) < 1e-4
    assert under[1].cost.flops == 2 * plain[1].cost.flops and under[0].cost.flops == plain[0].cost.flops
    # The student says D at any weight, and the teacher D + w (D - D(null)).
    teacher, labels = says_the_class(), shared_labels(torch.bincount(load_data("digits").labels))
    label = labels(seed_range(1 << 40, 16))
    missed = 1.5 * (pictures_of(teacher, label) - pictures_of(teacher, torch.full_like(label, 10)))
    assert plain[0].path_error < 1e-4
    assert under[0].path_error == pytest.approx(float(missed.square().mean().sqrt()), rel=1e-3)
    # Features that tell how images are turned tell no class.
    assert {r.accuracy for r in (*plain, *under)} == {None}
    assert "A row for 4 of 10 classes" in " ".join(Page((tmp_path / "page.html").read_text()).words)


def test_a_weight_outside_is_refused_before_any_work(told: Path, tmp_path: Path) -> None:
    said: list[str] = []
    parts = told / "teacher", told / "guided", told / "features"
    with pytest.raises(ValueError, match="guided was not trained for the guidance weight 5: expected 0 to 4"):
        compare(*parts, "digits", 8, tmp_path, lambda *line: said.append(line[3]), guidance=5.0, **FEW)
    assert said == [] and [*tmp_path.iterdir()] == []


def test_classes_are_shown_under_several_weights_behind_a_comparison(
    told: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []
    monkeypatch.setattr(
        "dsno.report.compare.image_grid", lambda x, columns=8, captions=(): drawn.append(x) or as_png(x[0])
    )
    sections = by_class(told / "teacher", told / "guided", (0.0, 1.5), columns=3, fine_steps=4)
    assert [s.title for s in sections] == [f"Told a class, guidance weight {w}" for w in ("0", "1.5")]
    # The student does not heed the weight, and the teacher D + w (D - D(null)) does.
    labels = torch.arange(10).repeat_interleave(3)
    own = pictures_of(says_the_class(), labels)
    guided = own + 1.5 * (own - pictures_of(says_the_class(), torch.full_like(labels, 10)))
    for made, expected in zip(drawn, (own, own, own, guided), strict=True):
        assert (made - expected).abs().max() < 1e-4 * expected.abs().max()
    monkeypatch.undo()
    parts = folders / "teacher", folders / "student", folders / "features"
    compare(*parts, "digits", 8, page=tmp_path / "page.html", more=sections, **FEW)
    words = " ".join(Page((tmp_path / "page.html").read_text()).words)
    assert words.count("Told a class") == 2 and "A row for each class, a column for the noise of each seed" in words
    with pytest.raises(ValueError, match="student is told no class, and only students of classes are compared"):
        by_class(folders / "teacher", folders / "student", (0.0,))
