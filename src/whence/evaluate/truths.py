"""What methods are judged by: retrained subsets, leave-one-out, or labels known to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import scipy.stats

from whence.errors import ConfigError
from whence.evaluate.agreement import agreement
from whence.evaluate.detection import detection
from whence.evaluate.lds import gain, lds, reliability
from whence.evaluate.statistics import Interval, bootstrap, correlation
from whence.evaluate.subsets import SubsetOutputs, Subsets
from whence.scores import Scores, Signal

__all__ = ["ErrorTruth", "Judgement", "LeaveOneOutTruth", "SubsetTruth", "Truth"]

Found = Mapping[str, Scores | Signal]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """How well every method did.

    Args:
        accuracy: By name, with a 95 % interval.
        gain: (one, other) -> how much better the first is, with a paired interval.
        ceiling: What a method without any error would reach, where it is known.
        chance: By name, what 95 % of shuffles of a method's ids stay below, where it is known.
        details: More figures by name of method and of figure.
    """

    accuracy: Mapping[str, Interval]
    gain: Callable[[str, str], Interval]
    ceiling: float | None = None
    chance: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)


class Truth(Protocol):
    """A ground truth: names its figure of accuracy and judges results."""

    @property
    def figure(self) -> str:
        """What accuracy is called."""

    def judge(self, found: Found) -> Judgement:
        """Judge the results of all methods, by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SubsetTruth:
    """The linear datamodelling score on models trained on random subsets; see `lds`.

    Args:
        subsets: M subsets of the training examples.
        outputs: What models trained on them say of the queries.
        resamples: Bootstrap resamples of the queries, the same ones for all methods.
        seed: Seed of the bootstrap.
    """

    subsets: Subsets
    outputs: SubsetOutputs
    resamples: int = 2000
    seed: int = 0

    @property
    def figure(self) -> str:
        """What accuracy is called."""
        return "LDS"

    def judge(self, found: Found) -> Judgement:
        """Return the mean rank correlation over queries of every method's scores."""
        settings: dict[str, Any] = {"resamples": self.resamples, "seed": self.seed}
        results = {
            name: lds(_pairwise(name, scores), self.subsets, self.outputs, **settings)
            for name, scores in found.items()
        }
        ceiling = next((one.ceiling for one in results.values() if np.isfinite(one.ceiling)), None)
        return Judgement(
            accuracy={name: one.interval for name, one in results.items()},
            gain=lambda one, other: gain(results[one], results[other], **settings),
            ceiling=ceiling,
            chance={name: one.chance for name, one in results.items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LeaveOneOutTruth:
    """Spearman's correlation of scores with real leave-one-out changes, the mean over queries.

    Args:
        actual: What `leave_one_out` returned.
        by_seed: The changes of every seed [S, Q, K], for the ceiling; None for no ceiling.
        resamples: Bootstrap resamples of the queries, the same ones for all methods.
        seed: Seed of the bootstrap.
    """

    actual: Scores
    by_seed: np.ndarray | None = None
    resamples: int = 2000
    seed: int = 0

    @property
    def figure(self) -> str:
        """What accuracy is called."""
        return "LOO rank correlation"

    def judge(self, found: Found) -> Judgement:
        """Return rank correlations, and slopes of actual on predicted of methods with a unit."""
        ranked = scipy.stats.rankdata(self.actual.values.double().numpy(), axis=1)
        each, details = {}, {}
        for name, result in found.items():
            scores = _pairwise(name, result)
            each[name] = correlation(scipy.stats.rankdata(self._predicted(scores), axis=1), ranked)
            if scores.unit is not None:
                details[name] = {"slope": agreement(scores, self.actual, seed=self.seed).pooled.slope}
        settings: dict[str, Any] = {"resamples": self.resamples, "seed": self.seed}
        return Judgement(
            accuracy={name: bootstrap(values, **settings) for name, values in each.items()},
            gain=lambda one, other: bootstrap(each[one] - each[other], **settings),
            ceiling=self._ceiling(),
            details=details,
        )

    def _predicted(self, scores: Scores) -> np.ndarray:
        """Return the scores of the examples that were left out [Q, K]."""
        rows = {id_: place for place, id_ in enumerate(scores.query_ids.tolist())}
        columns = {id_: place for place, id_ in enumerate(scores.ids.tolist())}
        wanted = np.ix_(
            [rows[id_] for id_ in self.actual.query_ids.tolist()], [columns[id_] for id_ in self.actual.ids.tolist()]
        )
        values: np.ndarray = scores.values.detach().cpu().double().numpy()[wanted]
        return values

    def _ceiling(self) -> float | None:
        """Return √reliability of the mean over seeds; None for one seed."""
        if self.by_seed is None or len(self.by_seed) < 2:
            return None
        return float(max(reliability(np.moveaxis(self.by_seed, (0, 1, 2), (1, 2, 0))), 0.0) ** 0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorTruth:
    """Average precision at finding labels that are known to be wrong; see `detection`.

    Args:
        known: Whether the label of row i is wrong [N], in the order of the signals.
        resamples: Bootstrap resamples of the rows, the same ones for all methods.
        seed: Seed of the bootstrap.
    """

    known: np.ndarray
    resamples: int = 500
    seed: int = 0

    @property
    def figure(self) -> str:
        """What accuracy is called."""
        return "average precision"

    def judge(self, found: Found) -> Judgement:
        """Return average precision, and the area under the ROC curve, of every method's suspicions."""
        signals = {name: _single(name, result) for name, result in found.items()}
        result = detection(self.known, signals, resamples=self.resamples, seed=self.seed)
        return Judgement(
            accuracy={name: one.average_precision for name, one in result.detectors.items()},
            gain=lambda one, other: result.gain(one, other, "average_precision"),
            details={name: {"auc": one.auc} for name, one in result.detectors.items()},
        )


def _pairwise(name: str, result: Scores | Signal) -> Scores:
    """Return scores; raise for a signal."""
    if not isinstance(result, Scores):
        raise ConfigError(f"{name} must give scores for queries with this ground truth, got a signal. Leave it out.")
    return result


def _single(name: str, result: Scores | Signal) -> Signal:
    """Return a signal; raise for scores."""
    if not isinstance(result, Signal):
        raise ConfigError(f"{name} must give one number a row with this ground truth, got scores. Leave it out.")
    return result
