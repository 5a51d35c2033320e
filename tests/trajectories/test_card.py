"""The card says what the set is, and how to load it."""

import shutil
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest

from dsno.trajectories.card import card, human_size, is_card
from dsno.trajectories.manifest import read_manifest
from dsno.trajectories.share import push
from far import far


def test_the_card_says_what_the_set_is(made: Path, url: str) -> None:
    push(made, url, license="cc-by-4.0")
    found = huggingface_hub.DatasetCard(far(url)["README.md"].decode())
    assert found.data.license == "cc-by-4.0"
    assert found.data.size_categories == "n<1K"
    assert "dsno" in found.data.tags
    facts = ["44, of the seeds 0 to 43", "1 x 4 x 4", "0.5, 0 (1 is noise", "DDIM, 4 steps", "`cond.label`"]
    facts += ["three blobs", "GaussianMixture", "float16", "in 6 shards", read_manifest(made)["fingerprint"]]
    for fact in facts:
        assert fact in found.text, fact
    lines = found.text.split("```python\n")[1].split("```")[0]
    space: dict[str, Any] = {}
    exec(lines, space)
    assert space["rows"]["seeds"].tolist() == [0, 1, 2]


def test_text_of_the_manifest_is_text_in_the_card(made: Path, url: str) -> None:
    manifest = read_manifest(made)
    evil = "<img src=x onerror=alert(1)> | `"
    teacher = {**manifest["teacher"], "class": evil, "description": {evil: evil}}
    found = card({**manifest, "teacher": teacher, "schedule": {"name": evil}}, url, "unknown")
    rows = [line for line in found.splitlines() if "onerror" in line]
    assert len(rows) == 3 and all(line.count("|") == 3 for line in rows)
    for line in rows:
        # What is not escaped is code, which ends where it should.
        assert "<img" not in "".join(line.split("`")[::2]) and line.count("`") in (0, 2)
    assert is_card(found.encode()) and not is_card(b"mine")


def test_a_card_of_ones_own_is_kept(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    fs.pipe_file(f"{root}/README.md", b"mine")
    for overwrite in (False, True):
        push(made, url, overwrite=overwrite)
        assert far(url)["README.md"] == b"mine"
    folder = tmp_path / "set"
    shutil.copytree(made, folder)
    (folder / "README.md").write_text("ours")
    push(folder, url)
    assert far(url)["README.md"] == b"ours"


@pytest.mark.parametrize(
    "count, category",
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**5, "100K<n<1M"), (10**6, "1M<n<10M"), (10**7, "10M<n<100M")],
)
def test_sizes_have_the_names_of_the_hub(made: Path, count: int, category: str) -> None:
    text = card({**read_manifest(made), "count": count}, "hf://datasets/org/name", "unknown")
    found = huggingface_hub.DatasetCard(text)
    assert found.data.size_categories == category
    assert f"# {count:,} diffusion trajectories" in found.text


def test_bytes_are_read_in_the_unit_of_their_size() -> None:
    assert [human_size(n) for n in (0, 12_345, 123_456, 99_900_000, 10**8, 2_340_000_000)] == [
        "0.0 kB",
        "12.3 kB",
        "0.1 MB",
        "99.9 MB",
        "0.1 GB",
        "2.3 GB",
    ]
