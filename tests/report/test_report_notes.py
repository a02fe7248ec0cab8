"""What was done to the data, in few words and at the top of the page."""

from __future__ import annotations

from whence.report.html import _threshold
from whence.report.notes import digest


def test_columns_of_which_the_same_is_said_stand_together() -> None:
    notes = [
        "features: 3 numeric, 0 categorical, 0 missing values", "column a left out: always 1",
        "column b c left out: numbers the rows", "column d left out: always 'x'",
        "column e: '1,5' and the like read as numbers with a decimal comma",
        "column f: '2,5' and the like read as numbers with a decimal comma", "column g has 1234 categories",
        "column h has 200 categories", "column i left out: free text; use --text i to audit it instead",
    ]  # fmt: skip
    assert digest(notes) == [
        notes[0], "columns a, d left out: always the same value", notes[2],
        "columns e, f read as numbers with a decimal comma", "many categories in columns g (1,234), h (200)", notes[8],
    ]  # fmt: skip
    many = digest([f"column c{i} left out: always {i}" for i in range(50)])
    assert many == ["columns c0, c1, c2, c3, c4, c5 and 44 more left out: always the same value"]
    assert digest([]) == []


def test_a_threshold_near_one_is_told_from_one() -> None:
    assert [_threshold(value) for value in (0.5, 0.994, 0.998, 0.99996, 1.0, None)] == [
        "0.50", "0.99", "0.998", "0.99996", "1.00", "–",
    ]  # fmt: skip
