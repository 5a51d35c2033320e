"""What the library says in Python is said on the shell as the shell takes it."""

from pathlib import Path

import pytest

from dsno.cli import VERBS
from dsno.cli.distill import Distill, with_options
from dsno.cli.generate import Generate
from dsno.cli.words import command, flags_of, on_the_shell, refuse_others
from shell import dsno


@pytest.mark.parametrize(
    "said, printed",
    [
        ("pass resume=True to continue it or overwrite=True", "pass --resume to continue it or --overwrite"),
        ("pass once=False, told='input', or name", "pass --no-once, --told input, or name"),
        ("take range=(-1, 1) to take them", "take --range -1 1 to take them"),
        ("inner_starts=0.5.", "--inner-starts 0.5."),
        ("lr=1e-3 and 4", "--train.lr 1e-3 and 4"),
        ("call generate(..., resume=True) to", "call `dsno generate --resume` to"),
        (
            "`distill(..., inner_starts=0.5)`, on `generate(..., targets=('x0', 'state'))`",
            "`dsno distill --inner-starts 0.5`, on `dsno generate --targets x0 state`",
        ),
        ("batch must be at least 1, got 0", "--batch must be at least 1, got 0"),
        ("warmup must be at least 0", "--train.warmup must be at least 0"),
        ("no_option=True, DSNO_UNCHECKED=1, a.resume=True", "no_option=True, DSNO_UNCHECKED=1, a.resume=True"),
        ("distance('perceptual', net.maps), load(path, weights_only=False)",) * 2,
        ("there is no batch", "there is no batch"),
        ("nowhere(...)", "nowhere(...)"),
    ],
)
def test_options_are_said_as_the_shell_takes_them(said: str, printed: str) -> None:
    flags = flags_of(with_options(["--method", "operator"])())
    assert on_the_shell(said, flags, VERBS) == printed


def test_flags_are_those_of_the_verb_and_its_method() -> None:
    own, plain, other = flags_of(with_options([])()), flags_of(Distill()), flags_of(Generate())
    assert own["inner_starts"] == "--inner-starts" and "inner_starts" not in plain
    # A verb's own name is before that of its training.
    assert own["steps"] == "--train.steps" and other["steps"] == "--steps"
    assert not {"train", "options"} & {*own, *other}


def test_the_same_refusal_is_said_in_each_dialect(tmp_path: Path) -> None:
    from dsno.outputs import prepare_folder

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="pass resume=True to continue it or overwrite=True to start again"):
        prepare_folder(tmp_path / "out")
    ran = dsno("teach", "--out", "out", at=tmp_path)
    assert ran.err == "dsno: out exists already: pass --resume to continue it or --overwrite to start again\n"


def test_a_command_can_be_pasted() -> None:
    options = {"teacher": "my runs/a", "null": None, "guided": True, "fresh": False, "crop": (4, 6), "t_1": 0.5}
    said = command("generate", "hf://datasets/org/name", Path("b"), **options)
    assert said == "dsno generate hf://datasets/org/name b --teacher 'my runs/a' --guided --crop 4 6 --t-1 0.5"
    assert command("sample") == "dsno sample"


def test_an_option_that_would_not_be_read_is_refused_if_it_was_given() -> None:
    verb = Generate(first_seed=3, steps=4)
    refuse_others(verb, {"frames", "count"}, "is another's")
    with pytest.raises(ValueError, match="--first-seed is another's: leave it out"):
        refuse_others(verb, {"count", "first_seed"}, "is another's")
