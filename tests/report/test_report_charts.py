from itertools import pairwise

import numpy as np
import pytest

from whence.report.charts import histogram


def test_bars_fill_the_width_and_the_tallest_the_height() -> None:
    chart = histogram([0, 1, 2, 3, 4], [4, 8, 2, 0], [0, 4, 2, 0])
    assert [bar.left for bar in chart.bars] == [0, 25, 50, 75]
    assert [bar.height for bar in chart.bars] == [50, 100, 25, 0]
    assert [bar.marked for bar in chart.bars] == [0, 50, 25, 0]
    assert not chart.root


def test_heights_turn_to_square_roots_when_one_bar_hides_the_rest() -> None:
    chart = histogram([0, 1, 2, 3], [10000, 100, 100], [0, 0, 25])
    assert chart.root and [bar.height for bar in chart.bars] == [100, 10, 10]


def test_the_line_lies_where_its_value_is() -> None:
    assert histogram(np.linspace(0, 1, 41), [1] * 40, [0] * 40, 0.62).line == pytest.approx(62)
    assert histogram(np.geomspace(1e-4, 1, 41), [1] * 40, [0] * 40, 1e-2).line == pytest.approx(50)


@pytest.mark.parametrize("edges", [np.linspace(0, 1, 41), np.geomspace(1e-5, 20, 41), np.linspace(-3, 900, 41),
                                   np.sinh(np.linspace(-3, 9, 41)), np.linspace(-0.5, 0.5, 41)])  # fmt: skip
def test_ticks_are_few_round_and_inside(edges) -> None:
    ticks = histogram(edges, [5] * 40, [0] * 40).across
    assert 2 <= len(ticks) <= 12
    assert all(0 <= tick.at <= 100 for tick in ticks)
    assert all(b.at - a.at >= 9 for a, b in pairwise(ticks))
    assert all(len(tick.text) <= 6 for tick in ticks)


def test_a_tick_at_zero_has_no_sign() -> None:
    assert histogram(np.linspace(0, 1, 41), [1] * 40, [0] * 40).across[0].text == "0"


def test_no_rows_at_all() -> None:
    chart = histogram([0, 1, 2], [0, 0], [0, 0])
    assert all(bar.height == 0 for bar in chart.bars)
