"""What a manifest says of a set, and what follows when it says something else."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsno.cost import Meter
from dsno.denoise import Guided, Prediction, Threshold
from dsno.solvers.multistep import DPMSolverPP
from dsno.trajectories.manifest import (
    MANIFEST,
    describe,
    determines,
    differences,
    fingerprint,
    join,
    read_manifest,
    write_manifest,
)
from stored import COSINE, LabelledNet, Net, labels, make, named_labels, sampler


def test_the_description_of_the_teacher_is_taken_as_json(tmp_path: Path) -> None:
    make(tmp_path / "set", description={10: (1, 2), 9: None})
    data = make(tmp_path / "set", description={9: None, 10: [1, 2]}, resume=True)
    assert data.manifest["teacher"]["description"] == {"9": None, "10": [1, 2]}


def test_the_manifest_is_a_format(tmp_path: Path) -> None:
    """A change of this fingerprint means that folders written before can no longer be resumed."""
    made = make(
        tmp_path / "set", label=labels, description={"name": "mixture"}, sampler=sampler(step=DPMSolverPP(2))
    ).manifest
    solved = ["format", "teacher", "schedule", "solver", "grid", "times"]
    stored = ["targets", "shape", "count", "first_seed", "shard", "batch", "dtype", "cond"]
    assert [*determines(made)] == [*solved, *stored]
    assert made["solver"] == {"name": "DPMSolverPP", "order": 2}
    made["teacher"]["sha256"] = ""  # linspace may differ in the last bit between machines
    assert fingerprint(made) == "1e83e52cf2b76253416e1e6596c7b0d803cd6e0e5e6afef7bd999e8bd1dbe40e"


def test_what_is_new_leaves_old_fingerprints_alone(tmp_path: Path) -> None:
    plain = describe(Prediction(Net(), COSINE, clip=1.0), {})
    assert plain == {"class": "Prediction", "kind": "x0", "clip": 1.0, "sha256": plain["sha256"], "description": {}}
    scaled = describe(Prediction(Net(), COSINE, "edm", clip=Threshold(0.9, 2.0), data_std=0.5), {})
    assert scaled["clip"] == {"ratio": 0.9, "maximum": 2.0}
    assert scaled["data_std"] == 0.5
    assert scaled["sha256"] == plain["sha256"]
    assert "compute" not in make(tmp_path / "set").manifest


def test_guided_trajectories_know_their_teacher(tmp_path: Path) -> None:
    def guided(weight: float | None = 2.0, null: Any = 2, clip: float | None = None) -> Guided:
        absent = {name: torch.tensor(v) for name, v in null.items()} if isinstance(null, dict) else torch.tensor(null)
        return Guided(Prediction(LabelledNet(), COSINE, clip=clip), absent, weight)

    data = make(tmp_path / "set", sampler=sampler(Meter(guided())), label=labels, resume=True)
    teacher = data.manifest["teacher"]
    assert (teacher["class"], teacher["weight"], teacher["null"]) == ("Guided", 2.0, 2)
    assert (teacher["denoiser"]["class"], teacher["denoiser"]["kind"]) == ("Prediction", "x0")
    data.check_teacher(guided())
    for other, difference in (
        (guided(1.0), "teacher.weight: expected 1.0, found 2.0"),
        (guided(null=1), "teacher.null: expected 1, found 2"),
        (guided(clip=1.0), "teacher.denoiser.clip: expected 1.0, found null"),
        (guided().denoiser, 'teacher.class: expected "Prediction", found "Guided"'),
    ):
        with pytest.raises(ValueError, match="holds trajectories of another teacher") as caught:
            data.check_teacher(other)
        assert difference in str(caught.value)
    # A weight per row, in the condition: the null condition is told without it.
    free = guided(None, {"label": 2})
    varied = make(tmp_path / "varied", sampler=sampler(free), label=named_labels)
    assert varied.manifest["teacher"]["null"] == {"label": 2}
    assert varied.manifest["teacher"]["weight"] is None
    varied.check_teacher(free)


def test_differences_are_named_by_field() -> None:
    expected = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "grid": [*range(10)]}
    assert differences(expected, json.loads(json.dumps(expected))) == []
    found = {"a": 1, "b": {"c": [1, 3], "d": None}, "grid": [*range(9)], "new": True}
    # A list is looked at last.
    assert differences(expected, found) == [
        'b.d: expected "x", found null',
        "b.c.1: expected 2, found 3",
        "new: expected null, found true",
        "grid: expected 10 values, found 9 values",
    ]
    assert differences(1, 2, "count") == ["count: expected 1, found 2"]
    assert join(["a", "b", "c", "d"]) == "a; b; c; d"
    assert join(["a", "b", "c", "d", "e", "f"], ", ") == "a, b, c, d, and 2 more"


def test_a_fingerprint_is_of_what_determines_and_of_no_order() -> None:
    manifest = {"format": 1, "count": 2, "made": {"torch": "1"}, "fingerprint": "f"}
    assert determines(manifest) == {"format": 1, "count": 2}
    text = b'{"count":2,"format":1}'
    assert fingerprint(manifest) == fingerprint({"count": 2, "format": 1}) == hashlib.sha256(text).hexdigest()
    assert fingerprint({**manifest, "count": 3}) != fingerprint(manifest)


def test_a_manifest_is_written_as_it_is_read(tmp_path: Path) -> None:
    manifest = make(tmp_path / "set").manifest
    (tmp_path / "again").mkdir()
    write_manifest(tmp_path / "again", manifest)
    assert (tmp_path / "again" / MANIFEST).read_bytes() == (tmp_path / "set" / MANIFEST).read_bytes()
    assert read_manifest(tmp_path / "again") == manifest
    with pytest.raises(OSError, match=r"cannot write .*nowhere.manifest\.json .*make room and call pull\(\) again"):
        write_manifest(tmp_path / "nowhere", manifest, "pull() again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 10**12}, "manifest.json: 1000000000000 rows in shards of 8 are more than 1048576 files. Delete"),
        ({"count": "many"}, "count must be a whole number from 1 to 1099511627776, got 'many'"),
        ({"count": -1}, "count must be a whole number from 1 to 1099511627776, got -1"),
        ({"shard": 0}, "shard must be a whole number from 1 to 1099511627776, got 0"),
        ({"shape": [1, None]}, r"shape\[1\] must be a whole number from 1 to 1048576, got None"),
        ({"shape": [10**9, 4]}, r"shape\[0\] must be a whole number from 1 to 1048576, got 1000000000"),
        ({"times": [0.5, 0.5]}, "times must decrease"),
        ({"times": []}, "times must be a list of a number from 0 to 1 of 1 to 65536 items"),
        ({"grid": None}, "grid must be a list"),
        ({"targets": ["x1"]}, r"targets\[0\] must be one of 'x0', 'state', got 'x1'"),
        ({"dtype": "float8"}, "dtype must be one of 'float16', 'bfloat16', 'float32', got 'float8'"),
        ({"cond": {"shape": [], "dtype": "object"}}, "cond is of 'object', expected one of float64"),
        ({"cond": {"shape": [-1], "dtype": "int64"}}, r"cond.shape\[0\] must be a whole number"),
        ({"format": 2, "cond": None}, "cond must be an object"),
        ({"made": {"pulled": {"count": 10**6}}}, "1000000 rows were pulled of 20"),
        ({"made": None}, "made must be an object, got None"),
    ],
    ids=str,
)
def test_a_manifest_makes_sense_whatever_its_fingerprint_says(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = {**make(tmp_path / "set").manifest, **changes}
    write_manifest(tmp_path / "set", {**made, "fingerprint": fingerprint(made)})
    with pytest.raises(ValueError, match=f"manifest.json: .*{message}" if "manifest" not in message else message):
        read_manifest(tmp_path / "set")
