"""A condition is one tensor or several by name, and nothing else has to know which."""

import pytest
import torch
from torch import Tensor

from dsno.condition import Cond, flat, label_of, map_cond, named, nested, rows_like, split_weight, unnamed

LABEL, WEIGHT, TEXT = torch.tensor([1, 0]), torch.tensor([0.5, 2.0]), torch.zeros(2, 4, 3)
CONDITIONS: list[Cond | None] = [None, LABEL, {"label": LABEL}, {"label": LABEL, "weight": WEIGHT}]


@pytest.mark.parametrize("cond", CONDITIONS, ids=["none", "alone", "one", "two"])
def test_names_are_taken_off_as_they_were_put_on(cond: Cond | None) -> None:
    # Of two lists Python asks whether their entries are the same before it asks whether they are equal.
    assert [unnamed(named(cond)), nested(flat(cond)).get("cond")] == [cond, cond]


def test_a_tensor_alone_has_the_empty_name() -> None:
    assert named(LABEL) == {"": LABEL} and named(None) == {} and unnamed({}) is None
    assert unnamed({"text": TEXT}) == {"text": TEXT}


def test_every_tensor_is_mapped_and_nothing_stays_nothing() -> None:
    def first(c: Tensor) -> Tensor:
        return c[0]

    assert map_cond(first, None) is None
    assert map_cond(first, WEIGHT) == 0.5
    assert map_cond(first, {"label": LABEL, "weight": WEIGHT}) == {"label": 1, "weight": 0.5}


def test_labels_are_alone_or_by_name() -> None:
    assert label_of(None) is None
    assert label_of(LABEL) is label_of({"label": LABEL, "weight": WEIGHT}) is LABEL
    with pytest.raises(KeyError, match="label"):
        label_of({"text": TEXT})


def test_the_weight_is_split_off_for_those_who_are_guided() -> None:
    assert split_weight({"label": LABEL, "weight": WEIGHT}, True) == (WEIGHT, {"label": LABEL})
    assert split_weight({"": LABEL, "weight": WEIGHT}, True) == (WEIGHT, LABEL)
    assert split_weight({"weight": WEIGHT}, True) == (WEIGHT, None)
    for cond in (None, LABEL, {"label": LABEL}):
        assert split_weight(cond, False) == (None, cond)
        with pytest.raises(ValueError, match=r"is told a guidance weight: give `weight` \(B,\) in the condition"):
            split_weight(cond, True)
    with pytest.raises(
        ValueError, match="takes no guidance weight: leave `weight` out, or make one with guidance=True"
    ):
        split_weight({"label": LABEL, "weight": WEIGHT}, False)


def test_the_null_condition_has_a_row_for_each_and_the_dtype_of_the_rest() -> None:
    text = torch.arange(12.0).reshape(4, 3)
    rows = rows_like({"label": torch.tensor(9), "text": text}, {"text": TEXT.half(), "label": LABEL})
    assert rows["label"].tolist() == [9, 9]
    assert rows["text"].dtype == torch.float16 and torch.equal(rows["text"], text.half().expand(2, 4, 3))
    assert rows_like(torch.tensor(9), LABEL)[""].tolist() == [9, 9]
    with pytest.raises(ValueError, match=r"names \[''\], the condition \['label'\]: they must be alike"):
        rows_like(torch.tensor(9), {"label": LABEL})


def test_the_names_in_a_shard_are_prefixed() -> None:
    assert flat({"label": LABEL, "text": TEXT}) == {"cond.label": LABEL, "cond.text": TEXT}
    assert flat(LABEL) == {"cond": LABEL} and flat(None) == {}
    rows = {"noise": TEXT, "cond.label": LABEL, "cond.text": TEXT}
    assert nested(rows) == {"noise": TEXT, "cond": {"label": LABEL, "text": TEXT}}
    assert nested({"noise": TEXT, "cond": LABEL}) == {"noise": TEXT, "cond": LABEL}
