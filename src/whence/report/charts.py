"""Geometry of the page's histograms, in per cent of the plot, so that a template only has to draw it.

No plotting library: two histograms as a few kilobytes of SVG print well, follow the page's colours and
work offline, where a charting script would add megabytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whence.report.formats import count, number

__all__ = ["Bar", "Histogram", "Tick", "histogram", "round_step", "tick_text"]

_ROOT_WHEN = 40.0  # the tallest bar over the median bar from which heights are drawn as square roots


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar; ``left``, ``width``, ``height`` and ``marked`` (the highlighted part) in per cent."""

    left: float
    width: float
    height: float
    marked: float
    range: str
    count: int
    marked_count: int


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled position on an axis, in per cent from the left or from the bottom."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A drawn histogram; ``line`` is the position of a threshold in per cent, ``root`` says how heights go."""

    bars: tuple[Bar, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    root: bool
    line: float | None


def histogram(
    edges: Sequence[float], counts: Sequence[int], marked: Sequence[int], line: float | None = None
) -> Histogram:
    """Lay out a histogram whose bars are equally wide on the page, whatever scale their edges follow.

    Args:
        edges: Increasing edges, one more than bars; equally spaced or not (logarithmic).
        counts: Rows per bar.
        marked: Rows per bar to highlight, each at most the bar's count.
        line: A value on the axis to mark, None for none.

    Returns:
        Positions in per cent. Heights are proportional to counts, or to their square roots where the tallest
        bar would hide the others.
    """
    bounds = np.asarray(edges, dtype=float)
    height = np.asarray(counts, dtype=float)
    filled = height[height > 0]
    root = bool(filled.size) and float(filled.max() / np.median(filled)) > _ROOT_WHEN
    top = max(float(height.max(initial=0)), 1.0)

    def tall(value: float) -> float:
        share = value / top
        return float(round(100 * (share**0.5 if root else share), 2))

    width = 100 / len(counts)
    bars = tuple(
        Bar(
            left=round(i * width, 3),
            width=round(width, 3),
            height=tall(counts[i]),
            marked=tall(counts[i]) * marked[i] / counts[i] if counts[i] else 0.0,
            range=f"{number(bounds[i])} to {number(bounds[i + 1])}",
            count=int(counts[i]),
            marked_count=int(marked[i]),
        )
        for i in range(len(counts))
    )
    place = None if line is None else float(np.clip(_place(line, bounds), 0, 100))
    up = tuple(Tick(at=tall(value), text=count(int(value))) for value in _up(top, root))
    return Histogram(bars=bars, across=_across(bounds), up=up, root=root, line=place)


def _place(value: float, bounds: np.ndarray) -> float:
    return float(np.interp(value, bounds, np.linspace(0, 100, len(bounds))))


def _across(bounds: np.ndarray) -> tuple[Tick, ...]:
    """Round values along the axis, at least 9 % of it apart."""
    low, high = float(bounds[0]), float(bounds[-1])
    gaps = np.diff(bounds)
    if np.allclose(gaps, gaps[0], rtol=1e-3):
        step = round_step((high - low) / 5)
        values = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step
    else:
        powers = 10.0 ** np.arange(-12, 13)
        values = np.sort(np.concatenate([-powers, [0.0], powers, 3 * powers if high < 100 * low else []]))
        values = values[(values >= low) & (values <= high)]
    ticks: list[Tick] = []
    for value in values:
        place = _place(float(value), bounds)
        if not ticks or place - ticks[-1].at >= 9:
            ticks.append(Tick(at=round(place, 2), text=tick_text(float(value))))
    return tuple(ticks)


def tick_text(value: float) -> str:
    """A round value as it stands at an axis."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.10g}".replace("-", "−")
    return number(value, 1).replace("1×", "")


def _up(top: float, root: bool) -> list[float]:
    if root:
        return [value for value in 10.0 ** np.arange(0, 10) if top / 400 <= value <= top][-3:]
    step = max(1.0, round_step(top / 3))
    return [float(value) for value in np.arange(step, top + 1e-9, step)]


def round_step(rough: float) -> float:
    """The least of 1, 2, 5 × a power of ten that is not below ``rough``."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(rough))
    return float(power * min((f for f in (1, 2, 5, 10) if f * power >= rough * 0.999), default=10))
