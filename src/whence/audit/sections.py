"""The parts of an evaluation: each compares what a run says with what happens, and puts it into words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from whence.audit.bench import Bench
from whence.audit.comparison import numbers
from whence.audit.folder import Run
from whence.curvature import Identity
from whence.data import LabelledData
from whence.errors import DataError
from whence.evaluate.agreement import agreement
from whence.evaluate.curves import (
    Curve,
    Sweep,
    correction_curve,
    correction_trainings,
    removal_curve,
    removal_trainings,
)
from whence.evaluate.detection import detection
from whence.evaluate.lds import lds
from whence.evaluate.leave_out import leave_one_out
from whence.evaluate.measurements import Margin
from whence.evaluate.rankings import Ranking
from whence.evaluate.retraining import Retraining
from whence.evaluate.subsets import sample_subsets, train_subsets
from whence.evaluate.treatments import Trainings
from whence.evaluate.verdict import verdict
from whence.methods import BM25, Influence, InfluenceAttribution, LossBaseline, RandomBaseline, Similarity
from whence.scores import Scores, Signal

__all__ = ["Fixed", "Judged", "LeftOut", "RankedSubsets", "Removed", "Section", "detected"]

_POINTS = 1_500
_CURVE = 120
_SIGNALS = ("suspicion", "loss", "self_influence", "leave_one_out_loss", "neighbour_disagreement")


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A run's model and scores, with what it takes to train again.

    Args:
        bench: Rows, queries and recipe.
        attribution: Of a model that was trained on the training rows.
        scores: The run's scores for the queries.
        retraining: How to train again.
        run: The audit.
        method: Name of its method.
    """

    bench: Bench
    attribution: InfluenceAttribution
    scores: Scores
    retraining: Retraining
    run: Run
    method: str

    def showing(self, step: Callable[[int, int], None] | None) -> Judged:
        """Return the same that tells of its progress."""
        return replace(self, retraining=replace(self.retraining, progress=step))

    def without(self, removed: list[Any]) -> Trainings:
        """Return the trainings without some sets of ids that measure the queries' loss."""
        train, queries = self.bench.train, self.bench.queries
        return Trainings(retraining=self.retraining, examples=train, queries=queries, removed=removed)


class Section(Protocol):
    """A part of an evaluation that needs models to be trained again."""

    def trainings(self, judged: Judged) -> Trainings:
        """Return what will be trained."""

    def make(self, judged: Judged) -> dict[str, Any]:
        """Train, compare, and return the section for JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LeftOut:
    """Scores against real leave-one-out changes.

    Args:
        rows: Positions of the training rows to leave out.
        seed: Of bootstraps and of which points are shown.
    """

    rows: np.ndarray
    seed: int

    def trainings(self, judged: Judged) -> Trainings:
        """Return what will be trained."""
        return judged.without([[], *([id_] for id_ in judged.bench.train.ids[self.rows].tolist())])

    def make(self, judged: Judged) -> dict[str, Any]:
        """Train, compare, and return the section for JSON."""
        train, queries = judged.bench.train, judged.bench.queries
        return _left_out(judged, leave_one_out(judged.retraining, train, queries, train.ids[self.rows]), self.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedSubsets:
    """Summed scores against models trained on random halves, beside humble baselines.

    Args:
        count: Halves.
        seed: Of the draw and of bootstraps.
    """

    count: int
    seed: int

    def trainings(self, judged: Judged) -> Trainings:
        """Return what will be trained."""
        subsets = sample_subsets(judged.bench.train, self.count, seed=self.seed)
        return judged.without([subsets.ids[~kept] for kept in subsets.kept])

    def make(self, judged: Judged) -> dict[str, Any]:
        """Train, compare, and return the section for JSON."""
        return _ranked_subsets(judged, self.count, self.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Removed:
    """The most harmful and the most suspect rows removed, against prediction and chance.

    Args:
        sweep: How many rows.
    """

    sweep: Sweep

    def trainings(self, judged: Judged) -> Trainings:
        """Return what will be trained."""
        bench = judged.bench
        return removal_trainings(judged.retraining, bench.train, bench.queries, self._rankings(judged), self.sweep)

    def make(self, judged: Judged) -> dict[str, Any]:
        """Train, compare, and return the section for JSON."""
        scores, queries = judged.scores, judged.bench.queries
        measured = replace(judged.attribution.task, measurement=Margin())
        margins = judged.attribution.config.fit(measured, judged.bench.train).scores(queries)
        # one that ranks has no sizes
        predictions = {} if scores.unit is None else {"loss": scores, "accuracy": margins}
        return _curve(
            removal_curve(
                judged.retraining, judged.bench.train, queries, self._rankings(judged), predictions=predictions,
                sweep=self.sweep,
            )
        )  # fmt: skip

    def _rankings(self, judged: Judged) -> dict[str, Ranking]:
        return {"predicted harm": judged.scores, "suspicion": _suspicion(judged)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed:
    """The most suspect rows with their suggested label, against random rows.

    Args:
        sweep: How many rows.
    """

    sweep: Sweep

    def trainings(self, judged: Judged) -> Trainings:
        """Return what will be trained."""
        train, queries, labels = judged.bench.train, judged.bench.queries, _suggested(judged)
        return correction_trainings(judged.retraining, train, queries, _suspicion(judged), self.sweep, labels=labels)

    def make(self, judged: Judged) -> dict[str, Any]:
        """Train, compare, and return the section for JSON."""
        train, queries, labels = judged.bench.train, judged.bench.queries, _suggested(judged)
        ranking: dict[str, Ranking] = {"suspicion": _suspicion(judged)}
        return _curve(correction_curve(judged.retraining, train, queries, ranking, labels=labels, sweep=self.sweep))


def _left_out(judged: Judged, actual: Scores, seed: int) -> dict[str, Any]:
    """Compare scores with real leave-one-out changes."""
    scores, queries = judged.scores, judged.bench.queries
    assert queries is not None
    found = agreement(scores, actual, seed=seed)
    said = verdict(found)
    place = {id_: column for column, id_ in enumerate(scores.ids.tolist())}
    predicted = scores.values.detach().cpu().double()[:, [place[id_] for id_ in actual.ids.tolist()]]
    every = np.stack([predicted.numpy().ravel(), actual.values.double().numpy().ravel()], 1)
    generator = np.random.default_rng(seed)
    shown = generator.permutation(len(every))[:_POINTS]
    line = found.pooled
    return {
        **_said(said),
        "rows": len(actual.ids),
        "queries": len(queries),
        "unit": scores.unit,
        "slope": numbers(line.slope),
        "intercept": numbers(line.intercept),
        "pearson": numbers(line.pearson),
        "spearman": numbers(line.spearman),
        "points": [[float(a), float(b)] for a, b in every[np.sort(shown)]],
        "all_points": len(every),
    }


def _ranked_subsets(judged: Judged, count: int, seed: int) -> dict[str, Any]:
    """Compare summed scores with models trained on random halves, beside humble baselines."""
    bench, task = judged.bench, judged.attribution.task
    train, queries = bench.train, bench.queries
    subsets = sample_subsets(train, count, seed=seed)
    outputs = train_subsets(judged.retraining, train, queries, subsets)
    layers = judged.attribution.config.layers
    rivals: dict[str, Callable[[], Scores]] = {
        "gradient dot product": lambda: Influence(curvature=Identity(), layers=layers).fit(task, train).scores(queries),
        "feature similarity": lambda: Similarity().fit(task, train).scores(queries),
        "loss": lambda: LossBaseline().fit(task, train).scores(queries),
        "random": lambda: RandomBaseline(seed=seed).fit(task, train).scores(queries),
    }
    texts = bench.texts
    if texts is not None:
        rivals["BM25"] = lambda: BM25(texts=texts).fit(task, train).scores(queries)
    own = lds(judged.scores, subsets, outputs, seed=seed)
    found = {name: lds(make(), subsets, outputs, seed=seed).interval for name, make in rivals.items()}
    best_first = sorted(found.items(), key=lambda pair: -pair[1].value)
    bars = [{"name": judged.method, "own": True, "value": numbers(own.interval)}]
    bars += [{"name": name, "own": False, "value": numbers(interval)} for name, interval in best_first]
    return {
        **_said(verdict(own)),
        "subsets": count,
        "queries": len(outputs.query_ids),
        "ceiling": own.ceiling if np.isfinite(own.ceiling) else None,
        "bars": bars,
    }


def detected(run: Run, data: LabelledData, errors: np.ndarray, seed: int) -> dict[str, Any]:
    """Compare the run's suspicions, and the signals behind them, with labels known to be wrong."""
    if not errors.any() or errors.all():
        raise DataError(f"known errors must be some of the {len(errors):,} rows, got {int(errors.sum()):,}.")
    frame = run.suspects.set_index("id").loc[data.ids.tolist()]
    signals = {}
    for column in _SIGNALS:
        if column in frame:
            name, values = column.replace("_", " "), frame[column].to_numpy(dtype=np.float64)
            if np.isfinite(values).all():
                signals[name] = Signal(values=values, ids=data.ids, name=name, unit=None)
    found = detection(errors, signals, seed=seed)
    listed = frame["is_suspect"].to_numpy(dtype=bool)
    return {
        **_said(verdict(found, of="suspicion")),
        "errors": found.errors,
        "rows": found.count,
        "listed": int(listed.sum()),
        "right": int((listed & errors).sum()),
        "signals": [
            {
                "name": name,
                "auc": numbers(one.auc),
                "average_precision": numbers(one.average_precision),
                "curve": found.curve(name, _CURVE)[["share", "found"]].to_numpy().tolist(),
            }
            for name, one in found.detectors.items()
        ],
    }


def _suggested(judged: Judged) -> Tensor:
    """Return the labels that the run suggests for its suspects, and the given ones of all other training rows [N]."""
    bench = judged.bench
    frame = judged.run.suspects.set_index("id").loc[bench.train.ids.tolist()]
    place = {name: number for number, name in enumerate(bench.data.classes)}
    suggested = frame["suggested_label"].map(place).to_numpy()
    assert bench.train.targets is not None
    return torch.from_numpy(np.where(frame["is_suspect"], suggested, bench.train.targets.numpy()).astype(np.int64))


def _suspicion(judged: Judged) -> Signal:
    """Return the run's suspicion of every training row."""
    ids = judged.bench.train.ids
    values = judged.run.suspects.set_index("id").loc[ids.tolist(), "suspicion"].to_numpy(dtype=np.float64)
    return Signal(values=values, ids=ids, name="suspicion", unit=None)


def _curve(curve: Curve) -> dict[str, Any]:
    """Return a curve for JSON, with a verdict on each ranking."""
    return {
        "sentences": [_said(verdict(curve, of=name)) for name in curve.rankings],
        "queries": curve.queries,
        "seeds": curve.seeds,
        "controls": curve.controls,
        "rows": curve.examples,
        "measurements": [
            {
                "name": name,
                "unit": curve.units[name],
                "before": numbers(curve.before[name]),
                "rankings": [{"name": ranking, "points": _points(curve, ranking, name)} for ranking in curve.rankings],
            }
            for name in curve.measurements
        ],
    }


def _points(curve: Curve, ranking: str, measurement: str) -> list[dict[str, Any]]:
    return [
        {
            "share": point.share,
            "count": point.count,
            "changed": point.changed,
            "change": numbers(point.change),
            "predicted": point.predicted,
            "control": numbers(point.control),
            "advantage": numbers(point.advantage),
        }
        for point in curve.of(ranking, measurement)
    ]


def _said(found: Any) -> dict[str, Any]:
    """Return a verdict for JSON."""
    return {"sentence": found.sentence, "level": found.level, "good": found.good}
