"""What machines leave among the files of users is no data."""

from pathlib import Path

import pytest

from dsno.checkpoint import read_json
from dsno.listing import entries, is_litter, read_text
from dsno.outputs import prepare_folder

LITTER = (".DS_Store", "._a.png", ".ipynb_checkpoints", "__MACOSX", "Thumbs.db", "desktop.ini", "Desktop.INI")


def test_a_folder_is_listed_without_litter_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "cats/0.png", "cats/._0.png", "__MACOSX/cats/0.png", ".hidden/1.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in entries(tmp_path)] == ["a.png", "b.png", "cats"]
    assert entries(tmp_path, "*/*") == [tmp_path / "cats/0.png"]
    assert [p.name for p in entries(tmp_path, "**/*.png")] == ["a.png", "b.png", "0.png"]
    # The folder itself may be hidden: somebody named it.
    assert entries(tmp_path / ".hidden") == [tmp_path / ".hidden/1.png"]
    assert all(map(is_litter, LITTER)) and not any(map(is_litter, ("a.png", "__init__", "desktop", "thumbs.png")))


def test_a_folder_of_litter_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    assert prepare_folder(tmp_path) == tmp_path
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="exists already"):
        prepare_folder(tmp_path)


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What `open` would take without being told: an encoding that has a meaning for every byte.
    monkeypatch.setattr("io.text_encoding", lambda encoding, stacklevel=2: encoding or "latin-1")
    for start in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.txt").write_bytes(start + "ein Käfer\r\nein Hund\n".encode())
        assert read_text(tmp_path / "a.txt") == "ein Käfer\nein Hund\n"
        (tmp_path / "a.json").write_bytes(start + '{"name": "Käfer"}'.encode())
        assert read_json(tmp_path / "a.json") == {"name": "Käfer"}
    (tmp_path / "a.txt").write_bytes("Käfer".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is no text in UTF-8 .*: save it as such"):
        read_text(tmp_path / "a.txt")
