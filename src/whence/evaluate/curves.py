"""Removal and correction curves: does treating the top of a ranking change held-out measurements as predicted?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor, nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.evaluate.rankings import Ranking, as_rankings, predicted_sums
from whence.evaluate.retraining import Retraining
from whence.evaluate.statistics import Interval, over_draws, over_seeds
from whence.evaluate.treatments import ACCURACY, Trainings, Treatments, corrections, default_measurements, removals
from whence.notebook import figures, frame_html
from whence.scores import Scores
from whence.tasks import Task

__all__ = [
    "Curve",
    "CurvePoint",
    "Sweep",
    "correction_curve",
    "correction_trainings",
    "removal_curve",
    "removal_trainings",
]

Treatment = Literal["removal", "correction"]
Totals = Callable[[Scores, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """How far to go along a ranking, and what to measure there.

    Args:
        shares: Shares of the training examples to treat, in (0, 1].
        controls: Random rankings to compare with, at least 1.
        measurements: What to measure of every query by name; by default "loss", the training loss ("measurement",
            that of the `Retraining`, where it has one), and "accuracy" for a classifier's loss with one class a query.
        seed: Seed of the random rankings and of the order of ties.
    """

    shares: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2)
    controls: int = 3
    measurements: Mapping[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ConfigError(f"shares must lie in (0, 1], at least one, got {list(self.shares)}.")
        if self.controls < 1:
            raise ConfigError(f"controls must be at least 1, got {self.controls}. Keep a random ranking.")
        if self.measurements is not None and not self.measurements:
            raise ConfigError("measurements must name at least one, got none.")


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One ranking's effect on one measurement after treating its first examples; all values are means over queries.

    Args:
        ranking: The ranking's name.
        measurement: The measurement's name.
        count: Examples treated.
        share: The same as a share of all.
        changed: How many of them the treatment changed: all that are removed, or whose label was another one.
        value: The measurement after it, mean over seeds.
        change: value − that of training on everything, paired by seed.
        predicted: What scores predict for the change, or None.
        control: The change when as many random examples are treated.
        advantage: change − control, paired by seed.
    """

    ranking: str
    measurement: str
    count: int
    share: float
    changed: int
    value: Interval
    change: Interval
    predicted: float | None
    control: Interval
    advantage: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Removal or correction curves of one or more rankings.

    Args:
        treatment: What was done: "removal" or "correction".
        points: One a ranking, measurement and number of examples.
        before: The measurements after training on everything as it is, by name.
        units: Their units.
        examples: N.
        queries: Q.
        seeds: S, the trainings behind every value.
        controls: Random rankings.
    """

    treatment: Treatment
    points: tuple[CurvePoint, ...]
    before: dict[str, Interval]
    units: dict[str, str | None]
    examples: int
    queries: int
    seeds: int
    controls: int

    def __repr__(self) -> str:
        """Return rankings, counts and measurements in one line."""
        counts = sorted({point.count for point in self.points})
        of = f"{counts[0]:,} to {counts[-1]:,} of {self.examples:,} examples" if counts else "no examples"
        told = f"{', '.join(self.rankings)}; {of}; {', '.join(self.measurements)}"
        return f"Curve({self.treatment} by {told}; {self.seeds} seeds, {self.controls} controls)"

    def _repr_html_(self) -> str:
        """Return the points for a notebook."""
        columns = ["ranking", "measurement", "count", "value", "change", "predicted", "control", "advantage"]
        return frame_html(repr(self), self.to_frame()[columns], ["whence.verdict(curve) says it in words."])

    def plot(self, measurement: str | None = None) -> Any:
        """Draw the change of a measurement over how many examples were treated, beside prediction and chance.

        Args:
            measurement: One of ``measurements``; None for the accuracy, or the first where there is none.

        Returns:
            A plotly figure.

        Raises:
            ConfigError: There is no such measurement.
            MissingExtraError: plotly is not installed (extra ``notebook``).
        """
        name = measurement or ("accuracy" if "accuracy" in self.before else self.measurements[0])
        if name not in self.before:
            raise ConfigError(f"measurement must be one of {', '.join(self.measurements)}, got {name!r}.")
        drawn: dict[str, tuple[np.ndarray, ...]] = {}
        for ranking in self.rankings:
            points = self.of(ranking, name)
            x = np.array([point.count for point in points])
            drawn[ranking] = (x, *_ends([point.change for point in points]))
            drawn["at random"] = (x, *_ends([point.control for point in points]))
            if all(point.predicted is not None for point in points):
                drawn[f"{ranking}, predicted"] = (x, np.array([point.predicted for point in points]))
        unit = self.units[name]
        axes = (f"examples treated of {self.examples:,}", f"change of {name}, {unit}" if unit else f"change of {name}")
        dashed = ["at random", *(one for one in drawn if one.endswith(", predicted"))]
        return figures.lines(drawn, title=f"{self.treatment.capitalize()} curve", axes=axes, dashed=dashed)

    @property
    def rankings(self) -> list[str]:
        """Names of the rankings."""
        return list(dict.fromkeys(point.ranking for point in self.points))

    @property
    def measurements(self) -> list[str]:
        """Names of the measurements."""
        return list(self.before)

    def of(self, ranking: str, measurement: str) -> list[CurvePoint]:
        """Return one ranking's points, the smallest number of examples first."""
        return [p for p in self.points if (p.ranking, p.measurement) == (ranking, measurement)]

    def to_frame(self) -> pd.DataFrame:
        """Return a frame: one row a point, intervals in columns ``name``, ``name_low`` and ``name_high``."""
        rows = []
        for point in self.points:
            row: dict[str, Any] = {}
            for name, value in vars(point).items():
                if isinstance(value, Interval):
                    row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
                else:
                    row[name] = value
            rows.append({**row, "unit": self.units[point.measurement]})
        return pd.DataFrame(rows).astype({"predicted": float})


def _ends(found: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, lower and upper ends."""
    value, low, high = (np.array([getattr(one, end) for one in found]) for end in ("value", "low", "high"))
    return value, low, high


def removal_curve(
    retraining: Retraining, train: Any, queries: Any, rankings: Ranking | Mapping[str, Ranking], *,
    predictions: Mapping[str, Scores] | None = None, sweep: Sweep | None = None,
) -> Curve:  # fmt: skip
    r"""Remove the first k examples of a ranking, train again, and compare with what was predicted and with chance.

    The predicted change of a query's measurement is the group's score, (N/(N−k)) Σ_{i removed} s(q, i), and its mean
    over queries is what is shown; that of the accuracy is the share of queries whose margin, moved by the sum of
    margin scores, comes to lie above 0, less the share now.

    Args:
        retraining: How to train, with which seeds.
        train: Training examples: anything that `as_examples` takes.
        queries: Held-out examples to measure, likewise; None for a measurement of the model alone.
        rankings: What to remove first, by name or a single one: `Scores` (the most harmful first: the lowest mean over
            their queries), a `Signal` (the largest first), or ids in order. Ties stand in random order.
        predictions: Scores by measurement: their sums predict it. For "accuracy" they must be of `Margin`. Scores that
            rank also predict the first measurement, where they have a unit and hold these queries.
        sweep: How far to go and what to measure.

    Returns:
        Measurements, changes, predictions and random controls, with 95 % intervals over seeds (Student's t; those of
        random controls hold the spread of the draws too); a positive change is a rise of the measurement.

    Raises:
        ConfigError: A ranking or prediction does not cover the examples, or a set would hold all of them.

    Cost: (1 + K·(rankings + controls))·S trainings for K shares, less those in the cache. See `estimate`.
    Reference: Koh et al. (2019) on group effects; random rankings as the control.

    Example:
        >>> import torch, whence as wh
        >>> recipe = wh.Recipe(build=lambda: torch.nn.Linear(3, 2), epochs=1)
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> curve = removal_curve(Retraining(recipe=recipe), train, train, [5, 1, 7], sweep=Sweep(shares=(0.1,)))
        >>> curve.to_frame()[["ranking", "measurement", "count"]].values.tolist()
        [['ids', 'loss', 2], ['ids', 'accuracy', 2]]
    """
    treatments = _treatments(retraining, train, queries, rankings, sweep or Sweep())
    examples, measured = treatments.examples, removals(treatments).measure()

    def totals(scores: Scores, rows: np.ndarray) -> np.ndarray:
        scale = len(examples) / (len(examples) - len(rows))
        return scale * predicted_sums(scores, examples, treatments.query_ids, rows)

    predicting = {name: {**treatments.predictable(name), **(predictions or {})} for name in treatments.rankings}
    points = _Points(treatments, treatments.split(measured), predicting, totals)
    return points.curve("removal", len)


def correction_curve(
    retraining: Retraining, train: Any, queries: Any, rankings: Ranking | Mapping[str, Ranking], *,
    labels: Tensor, predictions: Mapping[str, Scores] | None = None, sweep: Sweep | None = None,
) -> Curve:  # fmt: skip
    """Give the first k examples of a ranking their right labels, train again, and compare with chance.

    Args:
        retraining: As in `removal_curve`.
        train: Training examples, with the labels as they are.
        queries: Held-out examples with right labels.
        rankings: What to inspect first: as in `removal_curve`; a `Signal` of suspicion as a rule.
        labels: Right targets [N, ...] in row order; an inspected example gets its own.
        predictions: Scores by measurement that say how correcting an example changes it: (score of the example as it
            is) − (score of the corrected one). Their sums over corrected examples predict the change.
        sweep: How far to go and what to measure.

    Returns:
        As `removal_curve`; ``changed`` says how many labels were wrong.

    Raises:
        ConfigError: The labels have another number of rows, or the examples have none.

    Cost: as `removal_curve`; sets of examples whose labels are all right already are trained once.
    Reference: Koh & Liang (2017), §5.4.

    Example:
        >>> import torch, whence as wh
        >>> recipe = wh.Recipe(build=lambda: torch.nn.Linear(3, 2), epochs=1)
        >>> x, right = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> train, queries = (x, torch.cat([1 - right[:4], right[4:]])), (x, right)
        >>> settings, sweep = Retraining(recipe=recipe), Sweep(shares=(0.25,))
        >>> correction_curve(settings, train, queries, range(20), labels=right, sweep=sweep).points[0].changed
        4
    """
    treatments = _treatments(retraining, train, queries, rankings, sweep or Sweep())
    examples, (right, wrong) = treatments.examples, _compared(treatments.examples, labels)
    measured = corrections(treatments, right, wrong).measure()

    def totals(scores: Scores, rows: np.ndarray) -> np.ndarray:
        return predicted_sums(scores, examples, treatments.query_ids, rows[wrong[rows]])

    predicting = {name: dict(predictions or {}) for name in treatments.rankings}
    points = _Points(treatments, treatments.split(measured), predicting, totals)
    return points.curve("correction", lambda rows: int(wrong[rows].sum()))


def removal_trainings(
    retraining: Retraining, train: Any, queries: Any, rankings: Ranking | Mapping[str, Ranking], sweep: Sweep
) -> Trainings:
    """Return what `removal_curve` will train."""
    return removals(_treatments(retraining, train, queries, rankings, sweep))


def correction_trainings(
    retraining: Retraining, train: Any, queries: Any, rankings: Ranking | Mapping[str, Ranking], sweep: Sweep, *,
    labels: Tensor,
) -> Trainings:  # fmt: skip
    """Return what `correction_curve` will train."""
    treatments = _treatments(retraining, train, queries, rankings, sweep)
    return corrections(treatments, *_compared(treatments.examples, labels))


def _compared(examples: Examples, labels: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return right labels like the examples' own, and which of these are wrong [N]."""
    given = examples.targets
    if given is None or len(labels) != len(given):
        raise ConfigError(f"labels must be right targets of all {len(examples)} examples, got {len(labels)}.")
    right = labels.reshape(given.shape).to(given.dtype)
    return right, (right != given).reshape(len(given), -1).any(1).numpy()


def _treatments(
    retraining: Retraining, train: Any, queries: Any, rankings: Ranking | Mapping[str, Ranking], sweep: Sweep
) -> Treatments:
    """Return what to treat and to measure."""
    examples = as_examples(train)
    asked = None if queries is None else as_examples(queries)
    measured = default_measurements(retraining, asked) if sweep.measurements is None else dict(sweep.measurements)
    return Treatments(
        retraining=retraining, examples=examples, queries=asked, rankings=as_rankings(rankings),
        counts=sorted({max(1, round(share * len(examples))) for share in sweep.shares}), controls=sweep.controls,
        measurements=measured, seed=sweep.seed,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Points:
    """Turns measurements [R, J, S, Q] of all treatments into points; treatment 0 is none."""

    treatments: Treatments
    measured: np.ndarray
    predicting: dict[str, dict[str, Scores]]
    totals: Totals

    def curve(self, treatment: Treatment, changed: Callable[[np.ndarray], int]) -> Curve:
        """Return the curves of all rankings."""
        given = self.treatments
        units = {
            name: Task(nn.Identity(), given.retraining.recipe.loss, measurement=what).unit
            for name, what in given.measurements.items()
        }
        points = [
            self._point(name, number, measurement, place, changed)
            for name in given.rankings
            for number in range(len(given.counts))
            for place, measurement in enumerate(given.measurements)
        ]
        return Curve(
            treatment=treatment, points=tuple(points), units=units,
            before={m: over_seeds(self.measured[r, 0].mean(-1)) for r, m in enumerate(given.measurements)},
            examples=len(given.examples), queries=len(given.query_ids), seeds=len(given.retraining.seeds),
            controls=given.controls,
        )  # fmt: skip

    def _point(
        self, ranking: str, number: int, measurement: str, place: int, changed: Callable[[np.ndarray], int]
    ) -> CurvePoint:
        """Return the point after the ``number``-th count."""
        given, width = self.treatments, len(self.treatments.counts)
        values = self.measured[place].mean(-1)  # [J, S]
        first = list(given.rankings).index(ranking)
        after = values[1 + first * width + number]
        drawn = values[1 + (len(given.rankings) + np.arange(given.controls)) * width + number] - values[0]  # [C, S]
        rows = given.orders[first][: given.counts[number]]
        return CurvePoint(
            ranking=ranking, measurement=measurement, count=len(rows), share=len(rows) / len(given.examples),
            changed=changed(rows), value=over_seeds(after), change=over_seeds(after - values[0]),
            predicted=self._predicted(self.predicting[ranking].get(measurement), measurement, rows),
            control=over_draws(drawn.mean(0), drawn),
            advantage=over_draws(after - values[0] - drawn.mean(0), drawn),
        )  # fmt: skip

    def _predicted(self, scores: Scores | None, measurement: str, rows: np.ndarray) -> float | None:
        """Return the predicted change of the mean over queries."""
        if scores is None:
            return None
        totals = self.totals(scores, rows)
        if measurement == ACCURACY and self.treatments.margins:
            margins = self.measured[-1, 0]  # [S, Q]
            return float((margins + totals > 0).mean() - (margins > 0).mean())
        return float(totals.mean())
