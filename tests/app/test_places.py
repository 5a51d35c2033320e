"""A name leads to what its owner opened, and nowhere else."""

from pathlib import Path

import pytest

from dsno.app.places import Places
from dsno.checkpoint import write_json


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `runs` with a student, a pipeline and what is neither; a teacher beside it."""
    for folder, kind in (("runs/student", "student"), ("runs/many/one", "flow map"), ("else/teacher", "teacher")):
        (tmp_path / folder).mkdir(parents=True)
        write_json(tmp_path / folder / "config.json", {"type": kind})
    for folder in ("runs/pipe", "runs/broken", "runs/features"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "runs/pipe/model_index.json", {})
    write_json(tmp_path / "runs/features/config.json", {"type": "features"})
    (tmp_path / "runs/broken/config.json").write_text("{")
    (tmp_path / "runs/way").symlink_to(tmp_path / "else")
    (tmp_path / "runs/back").symlink_to(tmp_path / "runs/student")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def places(here: Path, **changes: object) -> Places:
    return Places(**{"folders": (Path("runs"),), "known": {"mine": "module:made"}, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["runs/student", "runs/./student", "runs/../runs/student", "runs/back", "digits"])
def test_what_lies_in_a_folder_is_opened_by_its_name(name: str, here: Path) -> None:
    assert places(here).opened(name) == name
    assert places(here).opened(str(here / "runs" / "student")) == str(here / "runs" / "student")
    assert places(here).opened("mine") == "module:made" and places(here).allows("module:made")


@pytest.mark.parametrize(
    "name",
    [
        "else/teacher", "else/nothing", "/etc", "/", "..", "", ".", "runs/../else/teacher", "runs/way/teacher",
        "runs/way", "runs2/student", "module:other", "os:system", "a\x00b", "org/name", "https://127.0.0.1/x", "~root",
    ],
)  # fmt: skip
def test_what_lies_elsewhere_is_refused_in_the_same_words_whatever_it_is(name: str, here: Path) -> None:
    with pytest.raises(PermissionError) as refused:
        places(here).opened(name)
    assert str(refused.value) == f"{name!r} is not opened here: models are opened from runs"
    assert not places(here).allows(name)


def test_names_on_the_hub_are_opened_where_that_is_asked_for(here: Path) -> None:
    hub = places(here, hub=True)
    assert hub.opened("org/name@main") == "org/name@main"
    # A folder of that name is a folder, and one elsewhere.
    with pytest.raises(PermissionError, match="'else/teacher' is not opened here: .* from runs, or on the Hub"):
        hub.opened("else/teacher")
    with pytest.raises(PermissionError, match="are opened from no folder"):
        Places().opened("org/name")


def test_a_folder_that_holds_nothing_of_the_name_says_so(here: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no model runs/nothing"):
        places(here).opened("runs/nothing")


def test_models_are_found_that_may_be_opened(here: Path) -> None:
    found = places(here).found()
    assert found == ["mine", "digits", "digits-classes", "runs/back", "runs/many/one", "runs/pipe", "runs/student"]
    assert [name for name in found if not places(here).allows(name)] == []
