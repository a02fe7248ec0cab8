"""Geometry of scatter plots, curves and intervals, in per cent of the plot, so that a template only has to draw it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from whence.report.charts import Tick, round_step, tick_text

__all__ = ["Axis", "Dot", "Line", "Plot", "axis", "band", "curve"]

_LEAST_APART = 8.0
_LEAST_POSITIVE = 1e-100  # on a logarithmic axis; quotients of smaller numbers overflow


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear or logarithmic axis.

    Args:
        low: Value at 0 %.
        high: Value at 100 %, above ``low``.
        log: Whether places follow the logarithm; both values are then positive.
    """

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, in per cent; values outside lie on the edge."""
        ends = np.array([self.low, self.high])
        if self.log:
            value, ends = float(np.log10(max(value, self.low))), np.log10(ends)
        return round(float(np.clip(100 * (value - ends[0]) / (ends[1] - ends[0]), 0, 100)), 2)

    def ticks(self, count: int = 7) -> tuple[Tick, ...]:
        """About so many round values along the axis, at least 8 % of it apart."""
        if self.log:
            steps = np.array([1.0, 2, 5]) if self.high < 30 * self.low else np.array([1.0])
            powers = 10.0 ** np.arange(np.floor(np.log10(self.low)), np.ceil(np.log10(self.high)) + 1)
            values = np.sort((powers[:, None] * steps).ravel())
        else:
            step = round_step((self.high - self.low) / count)
            values = np.arange(np.ceil(self.low / step - 1e-9), np.floor(self.high / step + 1e-9) + 1) * step
        found: list[Tick] = []
        for value in values[(values >= self.low * (1 - 1e-9 if self.low > 0 else 1 + 1e-9)) & (values <= self.high)]:
            at = self.place(float(value))
            if not found or at - found[-1].at >= _LEAST_APART:
                found.append(Tick(at=at, text=tick_text(float(f"{value:.10g}"))))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point; ``low`` and ``high`` are the ends of its interval from the bottom, None without one."""

    x: float
    y: float
    title: str = ""
    text: str = ""
    kind: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve: ``points`` and, where there is one, the ``band`` around it, as coordinates of an SVG."""

    points: str
    kind: str
    name: str = ""
    band: str = ""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What a template draws."""

    x: Axis
    y: Axis
    dots: tuple[Dot, ...] = ()
    lines: tuple[Line, ...] = ()


def curve(x: Axis, y: Axis, xs: Sequence[float], ys: Sequence[float], *, kind: str, name: str = "") -> Line:
    """A curve through points."""
    return Line(points=_coordinates(x, y, xs, ys), kind=kind, name=name)


def band(x: Axis, y: Axis, xs: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    """The outline of what lies between two curves."""
    return f"{_coordinates(x, y, xs, high)} {_coordinates(x, y, xs[::-1], low[::-1])}"


def axis(values: Iterable[float], *, log: bool = False, pad: float = 0.06, include: Iterable[float] = ()) -> Axis:
    """An axis that holds the finite ones of the values (and ``include``), with some room on both sides."""
    found = np.array([value for value in (*values, *include) if np.isfinite(value) and (value > 0 or not log)])
    if not len(found):
        return Axis(low=0.1 if log else 0.0, high=1.0, log=log)
    low, high = float(found.min()), float(found.max())
    if log:
        low, high = max(low, _LEAST_POSITIVE), max(high, _LEAST_POSITIVE)
        room = max((high / low) ** pad, 1.3)
        return Axis(low=low / room, high=high * room, log=True)
    room = pad * (high - low) or max(abs(high), 1.0) * 0.1
    return Axis(low=low - room, high=high + room)


def _coordinates(x: Axis, y: Axis, xs: Sequence[float], ys: Sequence[float]) -> str:
    """Points as an SVG takes them, from the top."""
    return " ".join(f"{x.place(a)},{round(100 - y.place(b), 2)}" for a, b in zip(xs, ys, strict=True))
