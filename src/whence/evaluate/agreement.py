"""Do predicted changes agree with real ones: slope, correlations and their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from whence.errors import ConfigError
from whence.evaluate.statistics import Interval, chance, correlation, percentiles
from whence.notebook import frame_html
from whence.scores import Scores

__all__ = ["Agreement", "Line", "agreement"]

_NUMBERS = 2**20  # of resampled changes at a time


@dataclass(frozen=True, kw_only=True)
class Line:
    """Actual against predicted changes, with 95 % bootstrap intervals.

    Args:
        slope: Least-squares slope of actual on predicted; 1 is right.
        intercept: Its intercept, in the measurement's unit; 0 is right.
        pearson: Linear correlation.
        spearman: Rank correlation, ties by average ranks.
        count: Points.
    """

    slope: Interval
    intercept: Interval
    pearson: Interval
    spearman: Interval
    count: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """Agreement of predicted with actual changes.

    Args:
        queries: One line a query, by query id.
        pooled: All queries and examples together.
        within: Mean over queries of Pearson's correlation: what is left of it where queries differ from one another in
            ways that all examples share.
        chance: How large ``within`` is by chance, for scores whose ids are shuffled: 95 % of shuffles stay below it.
        spread: Root mean square of the actual changes.
        unit: Unit of the intercepts and of the spread.
    """

    queries: dict[Any, Line]
    pooled: Line
    within: Interval
    chance: float
    spread: float
    unit: str | None

    def _repr_html_(self) -> str:
        """Return the lines for a notebook."""
        title = f"Predicted against actual changes · {len(self.queries):,} queries, {self.pooled.count:,} points"
        rows = self.to_frame().iloc[::-1].xs("value", axis=1, level=1)  # all queries together come first
        notes = ["whence.verdict(agreement) says it in words; .to_frame() has the intervals."]
        return frame_html(title, pd.DataFrame(rows), notes)

    def to_frame(self) -> pd.DataFrame:
        """Return a frame: one row a query and one called "pooled"; value, low and high of every figure."""
        rows = {**{str(id_): line for id_, line in self.queries.items()}, "pooled": self.pooled}
        named = ("slope", "intercept", "pearson", "spearman")
        return pd.DataFrame.from_dict(
            {
                name: {
                    (figure, part): getattr(getattr(line, figure), part)
                    for figure in named for part in ("value", "low", "high")
                }
                for name, line in rows.items()
            },
            orient="index",
        )  # fmt: skip


def agreement(predicted: Scores, actual: Scores, *, resamples: int = 1000, seed: int = 0) -> Agreement:
    """Compare predicted changes with those of real retraining.

    Args:
        predicted: Scores of any method; queries and examples are matched by id, others are left out.
        actual: What `leave_one_out`, `leave_group_out` or `pbrf` returned.
        resamples: Bootstrap resamples of the examples (the same ones for all queries).
        seed: Seed of the bootstrap.

    Returns:
        Slope and intercept of actual on predicted, Pearson's and Spearman's correlation, for every query and pooled.

    Raises:
        ConfigError: An id is missing, or there are fewer than 3 examples.

    Cost: Q·K·resamples operations; memory for some resamples at a time.

    Example:
        >>> import torch
        >>> ids, values = np.arange(5), torch.arange(5.0)[None]
        >>> scores = Scores(values=values, query_ids=np.array([0]), ids=ids, unit="nats")
        >>> round(agreement(scores, scores).pooled.slope.value, 6)
        1.0
    """
    if len(actual.ids) < 3:
        raise ConfigError(f"actual changes must cover at least 3 examples, got {len(actual.ids)}. Leave out more.")
    rows = _places(predicted.query_ids, actual.query_ids, "query")
    columns = _places(predicted.ids, actual.ids, "example")
    x = predicted.values.detach().cpu().double().numpy()[np.ix_(rows, columns)]  # [Q, K]
    y = actual.values.detach().cpu().double().numpy()
    count = len(columns)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, count, (resamples, count))
    ids = actual.query_ids.tolist()
    lines = {id_: _line(x[q], y[q], [(x[q][drawn], y[q][drawn])]) for q, id_ in enumerate(ids)}
    # a few resamples of all queries at a time: all at once would take Q·K·resamples numbers
    blocks = np.array_split(drawn, min(resamples, -(-x.size * resamples // _NUMBERS)))
    together = ([np.moveaxis(a[:, some], 0, 1).reshape(len(some), -1) for a in (x, y)] for some in blocks)
    pooled = _line(x.reshape(-1), y.reshape(-1), together)
    inner = [correlation(x[:, some], y[:, some]).mean(0) for some in blocks]
    within = percentiles(float(correlation(x, y).mean()), np.concatenate(inner))
    return Agreement(
        queries=lines, pooled=pooled, within=within, chance=chance(x, y), spread=float(np.sqrt(np.mean(y**2))),
        unit=actual.unit,
    )  # fmt: skip


def _line(x: np.ndarray, y: np.ndarray, resampled: Iterable[Sequence[np.ndarray]]) -> Line:
    """Return one line from the points [K] and their resamples, some [R, K] at a time."""
    many = np.concatenate([_figures(xs, ys) for xs, ys in resampled], 1)  # [4, R]
    slope, intercept, pearson, spearman = (
        percentiles(float(value), values) for value, values in zip(_figures(x, y), many, strict=True)
    )
    return Line(slope=slope, intercept=intercept, pearson=pearson, spearman=spearman, count=len(x))


def _figures(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return slope, intercept, Pearson's and Spearman's correlation along the last axis [4, ...]."""
    ranks = [scipy.stats.rankdata(a, axis=-1) for a in (x, y)]
    return np.stack([*_least_squares(x, y), correlation(x, y), correlation(*ranks)])


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slope and intercept of y on x along the last axis; slope 0 where x is constant."""
    centred = x - x.mean(-1, keepdims=True)
    spread = np.asarray((centred**2).sum(-1))
    slope = np.divide((centred * y).sum(-1), spread, out=np.zeros_like(spread), where=spread > 0)
    return slope, y.mean(-1) - slope * x.mean(-1)


def _places(have: np.ndarray, want: np.ndarray, what: str) -> np.ndarray:
    """Return the positions of the wanted ids."""
    position = {id_: place for place, id_ in enumerate(have.tolist())}
    missing = [id_ for id_ in want.tolist() if id_ not in position]
    if missing:
        raise ConfigError(f"predicted scores must cover every {what} of the actual ones, got none for {missing[0]!r}.")
    return np.array([position[id_] for id_ in want.tolist()])
