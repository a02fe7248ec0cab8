"""Do scores of one seed say what those of another say? Rank correlation and overlap of the top, by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch

from whence.errors import ConfigError
from whence.evaluate.rankings import positions
from whence.evaluate.statistics import Interval, bootstrap, correlation
from whence.scores import Scores

__all__ = ["Pairs", "Stability", "stability"]

Labels = Any


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How well members agree on some pairs of a query and an example; means over queries and pairs of members.

    Args:
        spearman: Rank correlation of two members' scores over the examples of a query.
        overlap: Share of one member's k largest scores that are among the other's.
        chance: What the overlap of random rankings is.
        count: Pairs of a query and an example.
    """

    spearman: Interval
    overlap: Interval
    chance: float
    count: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Stability:
    """Agreement of scores across seeds.

    Args:
        same: Examples of the query's class.
        different: Examples of other classes.
        every: All examples.
        members: M.
        k: The size of the top.
    """

    same: Pairs
    different: Pairs
    every: Pairs
    members: int
    k: int

    def to_frame(self) -> pd.DataFrame:
        """Return a frame: one row for the same class, different classes, and all pairs."""
        rows = {}
        for name, pairs in (("same class", self.same), ("different class", self.different), ("all", self.every)):
            rows[name] = {
                **{(figure, part): getattr(getattr(pairs, figure), part)
                   for figure in ("spearman", "overlap") for part in ("value", "low", "high")},
                ("overlap", "chance"): pairs.chance, ("pairs", "count"): pairs.count,
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index")


def stability(
    scores: Sequence[Scores], train_labels: Labels, query_labels: Labels, *, k: int = 10, resamples: int = 1000,
    seed: int = 0,
) -> Stability:  # fmt: skip
    """Compare the scores of several members, seeds or checkpoints, on the same queries and examples.

    Args:
        scores: M members' scores, matched by id with those of the first.
        train_labels: Classes of the examples [N] in the order of the first member's columns.
        query_labels: Classes of the queries [Q] in the order of its rows.
        k: Size of the top whose overlap is measured, within the pairs of one kind.
        resamples: Bootstrap resamples of the queries.
        seed: Seed of the bootstrap.

    Returns:
        Agreement over pairs of the same class, of different classes, and over all, with 95 % bootstrap intervals over
        queries. Ties take average ranks; in the top they count as if they stood in random order. A query without two
        examples of a kind is left out of it.

    Raises:
        ConfigError: There are fewer than two members, labels of another length, or no two examples of a kind.

    Cost: M² sorts of Q rows.
    Reference: Nguyen-Duc et al. (2023): scores are less stable across pairs of different classes.

    Example:
        >>> values = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
        >>> one = Scores(values=values, query_ids=np.arange(2), ids=np.arange(6), unit=None)
        >>> stability([one, one], [0, 1] * 3, [0, 1], k=2).different.spearman.value
        1.0
    """
    if len(scores) < 2:
        raise ConfigError(f"scores must be of at least 2 members, got {len(scores)}. Train more seeds.")
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}.")
    values = [_aligned(one, scores[0]) for one in scores]
    train, asked = _classes(train_labels, len(scores[0].ids)), _classes(query_labels, len(scores[0].query_ids))
    same = asked[:, None] == train[None]  # [Q, N]
    kinds = {"same": same, "different": ~same, "every": np.ones_like(same)}
    pairs = {name: _pairs(name, values, mask, k, (resamples, seed)) for name, mask in kinds.items()}
    return Stability(same=pairs["same"], different=pairs["different"], every=pairs["every"], members=len(values), k=k)


def _pairs(name: str, values: list[np.ndarray], mask: np.ndarray, k: int, bootstrapped: tuple[int, int]) -> Pairs:
    """Return the agreement on the pairs of a mask [Q, N]."""
    usable = np.flatnonzero(mask.sum(1) > 1)
    if not len(usable):
        raise ConfigError(f"{name} pairs must be two examples or more for some query, got none. Check the labels.")
    correlations, overlaps, chances = [], [], []
    for query in usable:
        chosen = [member[query, mask[query]] for member in values]
        ranks = [scipy.stats.rankdata(member) for member in chosen]
        tops = [_top(member, min(k, len(member))) for member in chosen]
        both = list(combinations(range(len(chosen)), 2))
        correlations.append(np.mean([correlation(ranks[a], ranks[b]) for a, b in both]))
        overlaps.append(np.mean([tops[a] @ tops[b] / tops[a].sum() for a, b in both]))
        chances.append(min(k, len(chosen[0])) / len(chosen[0]))
    resamples, seed = bootstrapped
    return Pairs(
        spearman=bootstrap(np.array(correlations), resamples=resamples, seed=seed),
        overlap=bootstrap(np.array(overlaps), resamples=resamples, seed=seed),
        chance=float(np.mean(chances)), count=int(mask[usable].sum()),
    )  # fmt: skip


def _top(values: np.ndarray, k: int) -> np.ndarray:
    """Return the chance of every value to be among the k largest when ties stand in random order [N]."""
    least = np.partition(values, -k)[-k]
    above, tied = values > least, values == least
    chances: np.ndarray = above + tied * ((k - above.sum()) / tied.sum())
    return chances


def _aligned(one: Scores, first: Scores) -> np.ndarray:
    """Return a member's scores in the rows and columns of the first, float64."""
    values = one.values.detach().cpu().to(torch.float64).numpy()
    rows, columns = positions(one.query_ids, first.query_ids, "query"), positions(one.ids, first.ids, "example")
    aligned: np.ndarray = values[np.ix_(rows, columns)]
    if not np.isfinite(aligned).all():
        raise ConfigError("scores must be finite, got NaN or infinity. Drop the member.")
    return aligned


def _classes(labels: Labels, count: int) -> np.ndarray:
    """Return classes as an array [count]."""
    given = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels).reshape(-1)
    if len(given) != count:
        raise ConfigError(f"labels must be one class a row ({count}), got {len(given)}.")
    return given
