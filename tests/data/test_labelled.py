from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from whence.data import LabelledData, ReadOptions, from_arrays
from whence.errors import ConfigError, DataError


def table(**changes: object) -> LabelledData:
    values: dict[str, object] = {
        "ids": np.array(["a", "b", "c"]),
        "kind": "tabular",
        "content": pd.DataFrame({"x": [1.0, np.nan, 3.0], "c": pd.Series(["u", None, "v"], dtype=object)}),
        "labels": np.array([0, 1, 0]),
        "classes": ("no", "yes"),
        "split": np.array(["train", "train", "test"]),
        "reference": np.array([True, False, False]),
    }
    return LabelledData(**(values | changes))  # type: ignore[arg-type]


def test_rows_keep_everything_together() -> None:
    part = table().rows([2, 0])
    assert part.ids.tolist() == ["c", "a"]
    assert isinstance(part.content, pd.DataFrame)
    assert part.content["x"].tolist() == [3.0, 1.0]
    assert part.content.index.tolist() == [0, 1]
    assert part.labels.tolist() == [0, 0]
    assert part.split is not None and part.split.tolist() == ["test", "train"]
    assert part.reference is not None and part.reference.tolist() == [False, True]
    assert part.classes == ("no", "yes")


def test_rows_take_masks_and_nothing() -> None:
    data = table()
    assert data.rows(np.array([True, False, True])).ids.tolist() == ["a", "c"]
    assert len(data.rows([])) == 0
    images = from_arrays(np.zeros((3, 4, 4), dtype=np.uint8), [0, 1, 0])
    assert images.rows([1]).content.shape == (1, 4, 4, 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("index", [[3], [-1], [0.5], np.array([True, False])])
def test_rows_refuse_other_positions(index: object) -> None:
    with pytest.raises(ConfigError, match=r"index must hold row positions|mask must have shape"):
        table().rows(index)  # type: ignore[arg-type]


def test_rows_twice_are_refused_because_ids_are_unique() -> None:
    with pytest.raises(DataError, match=r"ids must be unique, got 'a' 2 times"):
        table().rows([0, 0])


def test_with_labels_changes_labels_only() -> None:
    data = table()
    other = data.with_labels([1, 1, 1])
    assert other.labels.tolist() == [1, 1, 1] and data.labels.tolist() == [0, 1, 0]
    assert other.fingerprint != data.fingerprint
    with pytest.raises(DataError, match=r"labels must lie in 0 … 1"):
        data.with_labels([0, 1, 2])
    with pytest.raises(DataError, match=r"labels must have one entry per id \(3\), got 2"):
        data.with_labels([0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array(["a", "b", "b"])}, r"ids must be unique, got 'b' 2 times"),
        ({"ids": np.array(["a", "b"])}, r"content must have one entry per id \(2\), got 3"),
        ({"ids": np.array([["a"], ["b"], ["c"]])}, r"ids must be one-dimensional"),
        ({"ids": np.array(["a", "b", "x" * 2000])}, r"ids must be at most 1024 characters"),
        ({"labels": np.array([0.0, 1.0, 0.0])}, r"labels must be a one-dimensional array of class positions"),
        ({"content": ["a", "b", "c"]}, r"content of kind 'tabular' must be a DataFrame, got list"),
        ({"kind": "image", "content": np.zeros((3, 2, 2))}, r"must be a uint8 array .* got float64 \(3, 2, 2\)"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        table(**change)


def test_fingerprint_sees_ids_content_labels_and_classes_only() -> None:
    base = table().fingerprint
    assert base == table(notes=("x",), source="y", split=None, reference=None).fingerprint
    changed = [
        table(ids=np.array(["a", "b", "d"])),
        table(labels=np.array([0, 1, 1])),
        table(classes=("no", "maybe")),
        table(content=pd.DataFrame({"x": [1.0, 2.0, 3.0], "c": pd.Series(["u", None, "v"], dtype=object)})),
        table(content=pd.DataFrame({"x": [1.0, np.nan, 3.0], "c": pd.Series(["u", "", "v"], dtype=object)})),
    ]
    assert len({base, *(data.fingerprint for data in changed)}) == 6
    assert len(base) == 64


def test_fingerprint_of_texts_has_no_ambiguity() -> None:
    first = from_arrays(["ab", "c"], ["x", "y"])
    second = from_arrays(["a", "bc"], ["x", "y"])
    assert first.fingerprint != second.fingerprint


def test_nan_payload_and_minus_zero_do_not_change_the_fingerprint() -> None:
    strange = np.array([0x7FF8000000000001], dtype=np.uint64).view(np.float64)[0]
    first = table(content=pd.DataFrame({"x": [0.0, np.nan, 3.0]}))
    second = table(content=pd.DataFrame({"x": [-0.0, strange, 3.0]}))
    assert first.fingerprint == second.fingerprint


def test_repr_is_one_line() -> None:
    assert repr(table(source="f.csv")) == "LabelledData(3 rows, tabular, 2 classes, source='f.csv')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "a", "text": "a"}, r"text must be another column than label, got 'a' for both"),
        ({"text": "a", "image": "b"}, r"only one of text and image"),
        ({"label": "a", "drop": ("a",)}, r"drop must not hold a column in use, got 'a', which is the label"),
        ({"size": 0}, r"size must be at least 1 pixel, got 0"),
    ],
)
def test_options_that_contradict_each_other(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReadOptions(**arguments)  # type: ignore[arg-type]


def test_drop_may_be_one_name() -> None:
    assert ReadOptions(drop="a").drop == ("a",)  # type: ignore[arg-type]
