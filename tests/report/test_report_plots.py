"""Axes and curves: everything lies inside the plot, ticks are round and apart."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from whence.report.plots import Axis, axis, band, curve

NUMBER = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(NUMBER, max_size=8), st.booleans())
@example([1.0, 1.1125369292536007e-308], True)
@example([2.0, 1.1125369292536007e-308], True)
@example([1.1125369292536007e-308], True)
def test_values_lie_inside(values: list[float], log: bool) -> None:
    made = axis(values, log=log)
    places = [made.place(value) for value in values]
    assert made.low < made.high and all(0 <= place <= 100 for place in places)
    usable = sorted(value for value in values if value > 0 or not log)
    assert sorted(made.place(value) for value in usable) == [made.place(value) for value in usable]
    ticks = made.ticks()
    assert all(0 <= tick.at <= 100 for tick in ticks)
    assert all(b.at - a.at >= 8 for a, b in pairwise(ticks))


def test_ticks_of_both_kinds() -> None:
    assert [tick.text for tick in Axis(low=-0.2, high=1.0).ticks()] == ["−0.2", "0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [tick.text for tick in Axis(low=0.05, high=2000, log=True).ticks()] == ["0.1", "1", "10", "100", "1,000"]
    assert Axis(low=1, high=100, log=True).place(10) == 50


def test_values_that_are_not_numbers_are_passed_over() -> None:
    made = axis([float("nan"), 1.0, float("inf"), 3.0])
    assert made.low < 1 and 3 < made.high < 4
    assert axis([]).high > axis([]).low and axis([-1.0], log=True).low > 0


def test_curves_are_coordinates_from_the_top() -> None:
    x = y = Axis(low=0.0, high=1.0)
    assert curve(x, y, [0, 0.5, 1], [0, 1, 0.25], kind="k", name="n").points == "0.0,100.0 50.0,0.0 100.0,75.0"
    assert band(x, y, [0, 1], [0, 0], [1, 1]) == "0.0,0.0 100.0,0.0 100.0,100.0 0.0,100.0"
    with pytest.raises(ValueError, match="longer"):
        curve(x, y, [0], [0, 1], kind="k")
