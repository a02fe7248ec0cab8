"""The linear datamodelling score: do summed scores rank retrained models as they are?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from torch import Tensor

from whence.errors import ConfigError
from whence.evaluate.rankings import positions
from whence.evaluate.statistics import Interval, bootstrap, correlation, unit_rows
from whence.evaluate.subsets import SubsetOutputs, Subsets, removed_sums
from whence.notebook import card, facts
from whence.scores import Scores

__all__ = ["LDS", "gain", "lds"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LDS:
    """A linear datamodelling score.

    Args:
        per_query: Rank correlation of every query [Q].
        query_ids: [Q].
        interval: Mean over queries with a bootstrap interval.
        reliability: How well two sets of trainings with as many seeds each agree on average (rank correlation).
        ceiling: √reliability, what a method without any error would reach.
        chance: How large the score is by chance, for scores whose ids are shuffled: 95 % of shuffles stay below it.
        subsets: M.
    """

    per_query: np.ndarray
    query_ids: np.ndarray
    interval: Interval
    reliability: float
    ceiling: float
    chance: float
    subsets: int

    def _repr_html_(self) -> str:
        """Return the score beside its ceiling and chance for a notebook."""
        values = {
            "score": self.value, "95 % from": self.interval.low, "to": self.interval.high, "ceiling": self.ceiling,
            "chance stays below": self.chance, "queries": len(self.query_ids), "subsets": self.subsets,
        }  # fmt: skip
        return card("Linear datamodelling score", [facts(values)], ["whence.verdict(lds) says it in words."])

    @property
    def value(self) -> float:
        """The mean over queries."""
        return self.interval.value


def lds(scores: Scores, subsets: Subsets, outputs: SubsetOutputs, *, resamples: int = 2000, seed: int = 0) -> LDS:
    r"""Return the linear datamodelling score of attribution scores.

    For every query q the mean over Q of Spearman_m(Σ_{i∉S_m} s(q, i), mean over seeds of m_q(θ(S_m))): removing
    the examples outside the subset S_m is predicted to change the measurement by the sum of their scores. Ties
    take average ranks; a query whose predictions or measurements are all equal counts 0.

    Args:
        scores: Scores [Q, N]; queries and examples are matched by id.
        subsets: M subsets of the examples.
        outputs: What models trained on them say.
        resamples: Bootstrap resamples of the queries.
        seed: Seed of the bootstrap.

    Returns:
        The score in [−1, 1], with a 95 % bootstrap interval over queries. Its reliability follows from the mean
        rank correlation r̄ of single seeds by the Spearman–Brown formula S r̄ / (1 + (S − 1) r̄); NaN for one seed.

    Reference: Park et al. (2023), §2.3; the reliability is Spearman's (1910) for means of S parallel trainings.
    """
    if len(subsets) < 2 or len(outputs.values) != len(subsets):
        raise ConfigError(f"outputs must hold the {len(subsets)} subsets (at least 2), got {len(outputs.values)}.")
    rows = _rows(scores.query_ids, outputs.query_ids)
    predicted = removed_sums(scores.values[rows], scores.ids, subsets)  # [Q, M]
    actual = outputs.values.numpy()  # [M, S, Q]
    ranks = _ranked(actual.mean(1).T)
    per_query = correlation(_ranked(predicted), ranks)
    stable = reliability(actual)
    return LDS(
        per_query=per_query,
        query_ids=outputs.query_ids,
        interval=bootstrap(per_query, resamples=resamples, seed=seed),
        reliability=stable,
        ceiling=float(np.sqrt(max(stable, 0.0))) if np.isfinite(stable) else float("nan"),
        chance=_chance(scores.values[rows], scores.ids, subsets, ranks),
        subsets=len(subsets),
    )


def gain(one: LDS, other: LDS, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return how much higher the first score is, with a paired bootstrap interval over the same queries.

    Raises:
        ConfigError: The queries differ.
    """
    rows = _rows(other.query_ids, one.query_ids)
    return bootstrap(one.per_query - other.per_query[rows], resamples=resamples, seed=seed)


def reliability(actual: np.ndarray) -> float:
    """Return the Spearman–Brown reliability of means over S seeds, averaged over queries; ``actual`` [M, S, Q]."""
    seeds = actual.shape[1]
    if seeds < 2:
        return float("nan")
    ranks = _ranked(np.moveaxis(actual, 0, -1))  # [S, Q, M]
    pairs = [correlation(ranks[i], ranks[j]).mean() for i in range(seeds) for j in range(i)]
    mean = float(np.mean(pairs))
    stepped: float = seeds * mean / (1 + (seeds - 1) * mean)
    return stepped


def _chance(scores: Tensor, ids: np.ndarray, subsets: Subsets, actual: np.ndarray) -> float:
    """Return 1.96 standard deviations of the score over shuffles of the ids, with Pearson's correlation for the ranks.

    A shuffled sum is s_π · b for b = (centred subsets)ᵀ (unit actual ranks), whose variance over π is Hoeffding's.
    """
    columns = positions(ids, subsets.ids, "example")
    sums = unit_rows(scores.detach().cpu().double().numpy()[:, columns])  # [Q, N]
    centred = subsets.kept - subsets.kept.mean(0)
    weights = unit_rows(actual) @ centred  # [Q, N]
    variance = ((sums @ sums.T) * (weights @ weights.T)).sum() / len(sums) ** 2 / (centred**2).sum()
    return float(min(1.0, 1.96 * np.sqrt(variance)))  # few subsets: a correlation is at most 1


def _ranked(values: np.ndarray) -> np.ndarray:
    """Return average ranks along the last axis."""
    ranks: np.ndarray = scipy.stats.rankdata(values, axis=-1)
    return ranks


def _rows(have: np.ndarray, want: np.ndarray) -> list[int]:
    """Return where the wanted ids are."""
    position: dict[Any, int] = {id_: row for row, id_ in enumerate(have.tolist())}
    missing = [id_ for id_ in want.tolist() if id_ not in position]
    if missing:
        raise ConfigError(f"scores must cover every query, got none for {missing[0]!r}. Score the same queries.")
    return [position[id_] for id_ in want.tolist()]
