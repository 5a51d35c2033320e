"""What an installation has and lacks is found by what its metadata says."""

import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from dsno.runs import doctor
from dsno.runs.doctor import Need, checkup, mend

ROOT = Path(__file__).parents[2]

METADATA = """\
Metadata-Version: 2.4
Name: dsno
Version: 9.9
Requires-Dist: torch>=2.6
Requires-Dist: filelock>=999
Requires-Dist: nowhere-to-be-had>=1; python_version < "3"
Requires-Dist: rich>=13; extra == "cli"
Requires-Dist: nowhere-to-be-had>=1,<2; extra == "log"
Requires-Dist: rich; extra == "log"
Requires-Dist: never-on-this; extra == "log" and python_version < "3"
Provides-Extra: cli
Provides-Extra: log
"""


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation whose metadata wants other things."""
    folder = tmp_path / "dsno-9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "best_precision", lambda device: ("no", f"not measured on {device}"))
    return folder


def test_what_is_wanted_is_read_from_the_metadata(pretended: Path) -> None:
    found = checkup()
    assert found.dsno == "9.9" and not found.ok
    torch_, filelock = found.core
    assert torch_ == Need("torch", ">=2.6", doctor.metadata.version("torch"))
    assert (filelock.name, filelock.problem) == ("filelock", f"is {filelock.found}, >=999 is needed")
    assert {extra: [need.name for need in needs] for extra, needs in found.extras.items()} == {
        "cli": ["rich"],
        "log": ["nowhere-to-be-had", "rich"],
    }
    assert found.extras["log"][0].problem == "is not installed" and found.extras["log"][1].problem == ""
    pip = f"{sys.executable} -m pip install"
    assert found.lacking() == {"core": f"{pip} 'filelock>=999'", "log": f"{pip} 'nowhere-to-be-had<2,>=1'"}
    held = found.to_dict()
    assert (held["ok"], held["mend"], held["extras"]["cli"][0]["name"]) == (False, found.lacking(), "rich")


def test_a_core_that_cannot_be_imported_is_broken(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pretended / "METADATA").write_text(METADATA.replace("filelock>=999", "filelock"))
    assert checkup().ok
    monkeypatch.setitem(sys.modules, "filelock", None)
    found = checkup()
    assert not found.ok and found.core[1].problem.startswith("does not work: import of filelock halted")
    assert found.lacking()["core"].endswith("pip install --force-reinstall filelock")


def test_the_extras_of_the_project_are_all_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        name: {Requirement(text).name for text in texts} for name, texts in project["optional-dependencies"].items()
    }
    known = {name: {need.name for need in needs} for name, needs in checkup().extras.items()}
    assert known.keys() == wanted.keys()
    # An extra of extras is that of all of them.
    assert (
        all(known[name] >= wanted[name] - {"dsno"} for name in wanted) and known["all"] >= known["cli"] | known["onnx"]
    )


def test_the_processor_is_a_device_and_says_what_it_can_do(pretended: Path) -> None:
    cpu, *_ = checkup().devices
    assert cpu.name == "cpu" and cpu.model and cpu.memory > 1e8 and cpu.bf16 == "not measured on cpu"
    assert torch.backends.cpu.get_cpu_capability() in cpu.says and f"{torch.get_num_threads()} threads" in cpu.says


def test_a_cache_is_where_its_variable_says_and_nothing_is_left_there(
    pretended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep, file = tmp_path / "deep" / "er", tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setenv("DSNO_CACHE", str(deep))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(file / "x"))
    found = {cache.variable: cache for cache in checkup().caches}
    assert found.keys() == {"DSNO_CACHE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TMPDIR"}
    assert (found["DSNO_CACHE"].path, found["DSNO_CACHE"].problem) == (str(deep), "") and found["DSNO_CACHE"].free > 0
    assert not deep.parent.exists()
    assert found["HF_DATASETS_CACHE"].problem == f"{file} cannot be written to (Not a directory)"


def test_what_is_not_installed_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "distribution", missing)
    with pytest.raises(ImportError, match="dsno is not installed here"):
        checkup()


def test_a_command_that_mends_names_only_what_will_not_do() -> None:
    needs = (
        Need("a", ">=1", "2"),
        Need("b", "", None, "is not installed"),
        Need("c", ">=2", "1", "is 1, >=2 is needed"),
    )
    assert mend(needs) == f"{sys.executable} -m pip install b 'c>=2'"
