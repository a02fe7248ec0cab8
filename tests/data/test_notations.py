"""Numbers and days in columns of text, as people write them."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.data import ReadOptions, from_frame
from whence.data.columns import profile


def column(*cells: str | None) -> pd.Series:
    return pd.Series(list(cells), dtype=object)


@given(st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 2)), min_size=6, max_size=30, unique=True))
def test_decimal_commas_are_what_pandas_reads(values: list[float]) -> None:
    cells = [f"{value:.2f}".replace(".", ",") for value in values]
    found = profile(column(*cells), "wage")
    assert found.part == "numeric" and "read as numbers with a decimal comma" in str(found.note)
    np.testing.assert_array_equal(found.values, [float(cell.replace(",", ".")) for cell in cells])
    grouped = [f"{value:,.2f}" for value in values]
    german = [cell.replace(",", " ").replace(".", ",").replace(" ", ".") for cell in grouped]
    np.testing.assert_array_equal(profile(column(*german), "wage").values, found.values)
    english = profile(column(*grouped, "1,234.5"), "wage").values
    np.testing.assert_array_equal(english[:-1], found.values)


DAYS = st.dates(datetime.date(1900, 1, 1), datetime.date(2199, 12, 31))


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y"])
@given(st.lists(DAYS, min_size=6, max_size=20, unique=True))
def test_days_are_counted_as_a_parquet_column_of_dates_is(form: str, days: list[datetime.date]) -> None:
    known = [datetime.date(2001, 2, 28), datetime.date(2003, 5, 31), *days]  # 28 and 31 are no months
    found = profile(column(*(day.strftime(form).zfill(10) for day in known)), "signup")
    dates = pd.Series(pd.to_datetime([day.isoformat() for day in known]))
    if found.part == "numeric":  # consecutive days number the rows
        np.testing.assert_array_equal(found.values, profile(dates, "signup").values)
        assert "as days since 1970-01-01" in str(found.note)
    assert found.part == profile(dates, "signup").part


def test_times_of_the_day_and_zones() -> None:
    cells = [f"2020-01-0{day}T12:00:00{zone}" for day, zone in zip(range(1, 7), ("", "Z", "+02:00", "-0600", ".5", " "),
             strict=True)]  # fmt: skip
    found = profile(column(*cells), "t").values
    clock = np.array([0.5, 0.5, 10 / 24, 0.75, 0.5 + 0.5 / 86400, 0.5])
    np.testing.assert_allclose(found, 18262 + np.arange(6) + clock)


def test_strays_become_missing_and_are_named() -> None:
    cells = [*(f"{day:02d}.03.2020" for day in range(1, 29)), "00.00.0000", None]
    found = profile(column(*cells), "signup")
    assert found.part == "numeric" and np.isnan(found.values).sum() == 2
    assert found.note == (
        "column signup: '01.03.2020' and the like read as dates (day.month.year) as days since 1970-01-01; "
        "1 values that are not numbers taken as missing ('00.00.0000')"
    )


@pytest.mark.parametrize(
    "cells",
    [
        ("1,2", "2,3", "1,3", "1"),  # of several choices: few different ones are categories
        ("a,1", "b,2", "c,3", "d,4", "e,5", "f,6"),
        ("31.02.2020", "30.02.2020", "32.01.2020", "01.13.2020", "00.01.2020", "99.99.2020"),
        ("1.2.3", "1.2.4", "1.2.5", "1.3.0", "2.0.0", "2.0.1"),
        ("10:30", "11:30", "12:30", "13:30", "14:30", "15:30"),
    ],
)
def test_what_only_looks_like_numbers_stays_text(cells: tuple[str, ...]) -> None:
    assert profile(column(*(cells * 4)), "odd").part == "categorical"


def test_the_exported_cells_are_not_touched_and_the_notes_say_all() -> None:
    frame = pd.DataFrame({
        "wage": [f"{i},{i % 7}5" for i in range(60)], "day": [f"{1 + i % 28:02d}.0{1 + i % 9}.2020" for i in range(60)],
        "place": [f"town {i}" for i in range(30)] * 2, "label": ["x", "y ", "y"] * 20,
    })  # fmt: skip
    data = from_frame(frame, ReadOptions(label="label"))
    assert isinstance(data.content, pd.DataFrame)
    assert [data.content[name].dtype.kind for name in ("wage", "day", "place")] == ["f", "f", "O"]
    assert data.classes == ("x", "y")
    assert "20 rows with spaces around their label merged ('y ' is 'y')" in data.notes
    many = from_frame(frame.assign(place=[f"town {i % 55}" for i in range(60)]).loc[[*range(60)] * 3].reset_index(
        drop=True).assign(place=[f"t{i % 150}" for i in range(180)]))  # fmt: skip
    assert "column place has 150 categories" in many.notes
