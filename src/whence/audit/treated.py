"""A run's rows treated in several ways, each trained again and measured on rows that were held out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from whence.audit.again import Again
from whence.audit.bench import Watch
from whence.audit.comparison import data_card
from whence.data import Examples, LabelledData
from whence.evaluate.cost import estimate
from whence.evaluate.measurements import Accuracy, Several
from whence.evaluate.retraining import Corrections
from whence.evaluate.statistics import Interval, percentiles
from whence.report import content_of

__all__ = [
    "Measured",
    "RowsKept",
    "Treated",
    "Way",
    "measure_ways",
    "page_of",
    "random_ids",
    "signal_histogram",
    "told_rows",
    "verdict_on",
]

_RESAMPLES = 1_000
_SHOWN = 60
_BINS = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsKept:
    """What was found by leaving rows out, and the rows to write.

    Args:
        found: For the page, JSON-able.
        kept: Which rows of the data stay [N].
    """

    found: dict[str, Any]
    kept: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """One way to treat the training rows.

    Args:
        name: What to call it.
        removed: Ids that are left out.
        relabelled: Ids that get their new label.
        kind: "own" for what the command does, "control" for chance, "other" for what else one might do.
    """

    name: str
    removed: np.ndarray = field(default_factory=lambda: np.array([], dtype=str))
    relabelled: np.ndarray = field(default_factory=lambda: np.array([], dtype=str))
    kind: str = "own"


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A way with what training by it gave.

    Args:
        way: The way.
        accuracy: Share of the held-out rows that are predicted as labelled, by model and row [S, Q].
        loss: Their loss [S, Q].
    """

    way: Way
    accuracy: np.ndarray
    loss: np.ndarray

    def over(self, other: Measured, seed: int) -> Interval:
        """Return the gain in accuracy over another way, paired, with an interval over seeds and held-out rows."""
        return _interval(self.accuracy - other.accuracy, seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Treated:
    """Ways that were measured; the first is training on the rows as they are."""

    found: list[Measured]
    seed: int

    @property
    def before(self) -> Measured:
        """Training on the rows as they are."""
        return self.found[0]

    def of(self, name: str) -> Measured:
        """Return a way by its name."""
        return next(one for one in self.found if one.way.name == name)

    def on(self, rows: np.ndarray) -> Treated:
        """Return the same on some of the held-out rows."""
        found = [replace(one, accuracy=one.accuracy[:, rows], loss=one.loss[:, rows]) for one in self.found]
        return Treated(found=found, seed=self.seed)

    def told(self) -> list[dict[str, Any]]:
        """Return every way for JSON: accuracy and its change with intervals, and the change of the mean loss."""
        return [
            {
                "name": one.way.name, "kind": one.way.kind, "removed": len(one.way.removed),
                "relabelled": len(one.way.relabelled), "accuracy": _numbers(_interval(one.accuracy, self.seed)),
                "change": _numbers(one.over(self.before, self.seed)),
                "loss_change": _numbers(_interval(one.loss - self.before.loss, self.seed)),
            }
            for one in self.found
        ]  # fmt: skip


def measure_ways(
    prepared: Again, ways: Sequence[Way], *, labels: np.ndarray | None = None, watch: Watch | None = None
) -> Treated:
    """Train once for every way and seed, beside the rows as they are, and measure the held-out rows.

    Args:
        prepared: The run.
        ways: What to do.
        labels: New class positions of the training rows [N], for ways that relabel.
        watch: Who is told of progress and cost.

    Cost: (number of ways + 1) · seeds trainings, less those in the cache.
    """
    watch, bench = watch or Watch(), prepared.bench
    every = [Way(name="as they are", kind="before"), *ways]
    removed = [way.removed for way in every]
    retraining = replace(prepared.retraining, measurement=Several((None, Accuracy())))
    corrected = None
    if labels is not None:
        corrected = Corrections(labels=torch.from_numpy(labels.copy()), ids=[way.relabelled for way in every])
    cached = len(every) * len(retraining.seeds) - retraining.missing(
        bench.train, bench.queries, removed, corrected=corrected
    )
    watch.estimate(estimate(retraining, bench.train, bench.queries, len(every), cached=cached))
    step = watch.steps("training again", len(every) * len(retraining.seeds))
    values = replace(retraining, progress=step).measure(bench.train, bench.queries, removed, corrected=corrected)
    loss, accuracy = values.numpy().reshape(len(every), len(retraining.seeds), 2, -1).transpose(2, 0, 1, 3)
    found = [Measured(way=way, accuracy=a, loss=b) for way, a, b in zip(every, accuracy, loss, strict=True)]
    return Treated(found=found, seed=int(prepared.run.manifest["seed"]))


def random_ids(examples: Examples, count: int, seed: int) -> np.ndarray:
    """Return so many ids drawn at random."""
    generator = np.random.default_rng(seed)
    return np.asarray(examples.ids[generator.permutation(len(examples))[:count]])


def verdict_on(gain: Interval, *, subject: str, against: str) -> dict[str, Any]:
    """Say in words whether a treatment raised the accuracy: sentence, good, level."""
    points, low, high = (100 * value for value in (gain.value, gain.low, gain.high))
    bounds = f"({points:+.1f} points, 95 % {low:+.1f} to {high:+.1f})".replace("-", "−")
    if gain.low > 0:
        return {"sentence": f"{subject} raised held-out accuracy over {against} {bounds}.", "good": True, "level": ""}
    if gain.high < 0:
        sentence = f"{subject} lowered held-out accuracy against {against} {bounds}: do not do it."
        return {"sentence": sentence, "good": False, "level": "reversed"}
    sentence = f"{subject} cannot be told from {against} by held-out accuracy {bounds}."
    return {"sentence": sentence, "good": False, "level": "unclear"}


def page_of(prepared: Again, treated: Treated, kind: str, version: str, **more: Any) -> dict[str, Any]:
    """Return what the pages of all treatments share, for JSON."""
    bench = prepared.bench
    assert bench.queries is not None
    return {
        "format": 1, "kind": kind, "whence": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": data_card(prepared.data), "model": prepared.run.summary["model"], "rows": len(bench.train),
        "held_out": len(bench.queries), "seeds": len(prepared.retraining.seeds), "said": list(prepared.said),
        "ways": treated.told(), **more,
    }  # fmt: skip


def told_rows(data: LabelledData, ids: np.ndarray, more: dict[str, list[Any]], limit: int = _SHOWN) -> list[Any]:
    """Return rows with their content for JSON, and further values of each."""
    places = {id_: row for row, id_ in enumerate(data.ids.tolist())}
    return [
        {
            "id": str(id_), "label": data.classes[int(data.labels[places[id_]])],
            "content": content_of(data, places[id_], characters=300, cells=12),
            **{name: values[number] for name, values in more.items()},
        }
        for number, id_ in enumerate(ids.tolist()[:limit])
    ]  # fmt: skip


def signal_histogram(values: np.ndarray, marked: np.ndarray) -> dict[str, Any]:
    """Return counts of a signal over all rows and over the marked ones; logarithmic edges where it spans decades."""
    low, high = (float(bound) for bound in np.quantile(values, [0.002, 1.0]))
    positive = values[values > 0]
    if len(positive) >= 0.98 * len(values) and high > 30 * np.quantile(positive, 0.005):
        edges = np.geomspace(float(np.quantile(positive, 0.005)), high, _BINS + 1)
    else:
        low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
        edges = np.linspace(low, high, _BINS + 1)
    inside = np.clip(values, edges[0], edges[-1])
    counts = [np.histogram(part, edges)[0].tolist() for part in (inside, inside[marked])]
    return {"edges": edges.tolist(), "all": counts[0], "marked": counts[1]}


def _interval(values: np.ndarray, seed: int) -> Interval:
    """Return the mean of values [S, Q] with a bootstrap interval over both axes."""
    generator = np.random.default_rng(seed)
    seeds, rows = values.shape
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), _RESAMPLES) / seeds  # [R, S]
    means = [
        float(weights @ values[:, generator.integers(0, rows, rows)].mean(1)) for weights in drawn
    ]  # one resample at a time: R·Q numbers need not be held
    return percentiles(float(values.mean()), np.array(means))


def _numbers(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]
