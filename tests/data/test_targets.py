from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from whence.data.targets import parse_labels
from whence.errors import DataError


def classes(values: list[object]) -> tuple[str, ...]:
    return parse_labels(pd.Series(values, dtype=object), "y").classes


def test_strings_are_stripped_and_sorted() -> None:
    targets = parse_labels(pd.Series([" b", "a ", "b"], dtype=object), "y")
    assert targets.classes == ("a", "b") and targets.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["10", "9", "10", "2"], ("2", "9", "10")),
        ([0.0, 1.0, 1.0], ("0", "1")),
        (["0.0", "1.0", "1.0"], ("0", "1")),
        (["007", "8", "007"], ("007", "8")),
        ([0.5, 1.0, 0.5], ("0.5", "1.0")),
        ([True, False, True], ("False", "True")),
        ([-1, 1, 1], ("-1", "1")),
        (["None", "some", "None"], ("None", "some")),
        (["inf", "1", "2"], ("1", "2", "inf")),
    ],
)
def test_class_names(values: list[object], expected: tuple[str, ...]) -> None:
    assert classes(values * 4) == expected


def test_few_missing_labels_are_left_out_with_a_note() -> None:
    targets = parse_labels(pd.Series([*(["a", "b"] * 100), None, "?"], dtype=object), "y")
    assert targets.kept.sum() == 200 and len(targets.labels) == 200
    assert targets.notes == ("2 rows without a label left out",)


@pytest.mark.parametrize("missing", [None, np.nan, "", " ", "NA", "nan", "?", pd.NA, pd.NaT])
def test_many_missing_labels_are_an_error(missing: object) -> None:
    with pytest.raises(DataError, match=r"'y' must name a class in \(nearly\) every row, got 2 of 6 rows without"):
        parse_labels(pd.Series(["a", "b", "a", "b", missing, missing], dtype=object), "y")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"at least one row, got none"),
        ([None] * 4, r"got 4 of 4 rows without one"),
        (["a"] * 5, r"at least two classes, got only 'a'"),
        (["a", ["b", "c"], "a"], r"one class per row, got a list in row 1: \['b', 'c'\]"),
        (["a", np.array([1, 2]), "a"], r"got a list in row 1"),
        (["a", {"x": 1}, "a"], r"got an object in row 1"),
        (["a", "b", "a;b"] * 5, r"got several in row 2: 'a;b'"),
        (["a", "b", "a, b"] * 5, r"got several in row 2: 'a, b'"),
        (["[0, 1]", "[1, 0]"] * 5, r"got several in row 0: '\[0, 1\]'"),
        (["a|b", "b|c", "a|c", "a|b|c", "d|a", "d"] * 5, r"got several in row 0: 'a\|b'"),
        (list(np.linspace(0, 1, 50)) * 10, r"got 50 different fractional numbers. .* cut a continuous target"),
        (list(range(0, 3000, 7)) * 10, r"got 429 different numbers between 0 and 2996"),
        ([f"user{i}" for i in range(30)], r"got 30 different values in 30 rows"),
        ([f"c{i}" for i in range(10_001)] * 3, r"at most 10000 classes, got 10001 different values"),
    ],
)
def test_what_is_not_one_class_per_row(values: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_labels(pd.Series(values, dtype=object), "y")


@pytest.mark.parametrize(
    "values",
    [
        [f"{size}, {colour}" for size in ("S", "M", "L") for colour in ("red", "blue")] * 3,  # pairs, not sets
        ["Tops; Shirts", "Shoes"] * 5,
        list(range(150)) * 10,  # class codes
        [0.5, 1.0, 1.5, 2.0] * 5,  # half-star ratings
        ["a", "b", "c", "d"],
        [">50K", "<=50K"],
    ],
)
def test_conservative_about_refusing(values: list[object]) -> None:
    assert len(classes(values)) == len(set(values))


def test_single_rows_are_noted() -> None:
    targets = parse_labels(pd.Series(["a"] * 5 + ["b", "c"], dtype=object), "y")
    assert targets.notes == ("2 of 3 classes have a single row: b, c",)


def test_one_hundred_thousand_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"got 100000 different values in 100000 rows"):
        parse_labels(pd.Series([f"v{i}" for i in range(100_000)]), "y")
