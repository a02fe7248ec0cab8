"""In which order to treat training examples, and what scores predict of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from whence.data import Examples, uniform
from whence.errors import ConfigError
from whence.scores import Scores, Signal

__all__ = ["Ranking", "as_rankings", "order", "positions", "predicted_sums", "random_order"]

Ranking: TypeAlias = "Scores | Signal | Sequence[Any] | np.ndarray[Any, Any]"


def as_rankings(rankings: Ranking | Mapping[str, Ranking]) -> dict[str, Ranking]:
    """Return rankings by name; a single one is called "scores", by its signal's name, or "ids".

    Raises:
        ConfigError: There are none.
    """
    if isinstance(rankings, Mapping):
        if not rankings:
            raise ConfigError("rankings must name at least one, got none. Pass Scores, a Signal or ids in order.")
        return dict(rankings)
    if isinstance(rankings, Signal):
        return {rankings.name: rankings}
    return {"scores" if isinstance(rankings, Scores) else "ids": rankings}


def order(ranking: Ranking, examples: Examples, seed: int) -> np.ndarray:
    """Return row positions, the first to be treated first.

    Scores rank by their mean over queries, the most harmful (lowest) first; a signal ranks by value, the largest
    first; ids are taken as they come. Ties stand in a random order that depends on the seed and the ids alone.

    Raises:
        ConfigError: An example has no value, or one that is not finite; or an id comes twice.
        DataError: An id is not that of an example.
    """
    if isinstance(ranking, Scores):
        values = ranking.values.detach().cpu().double().mean(0).numpy()
    elif isinstance(ranking, Signal):
        values = -np.asarray(ranking.values, dtype=np.float64)
    else:
        rows = examples.rows_of(ranking)
        if len(set(rows.tolist())) != len(rows):
            raise ConfigError("a ranking of ids must hold every id once, got one twice. Drop the duplicates.")
        return rows
    values = values[positions(ranking.ids, examples.ids, "example")]
    if not np.isfinite(values).all():
        raise ConfigError("a ranking must be finite, got NaN or infinity. Drop or fill those examples.")
    return np.lexsort((uniform(examples.keys, seed), values))


def random_order(examples: Examples, seed: int, draw: int) -> np.ndarray:
    """Return row positions in random order, a function of (seed, draw, ids)."""
    return np.argsort(uniform(examples.keys, seed, 1 + draw), kind="stable")


def positions(have: np.ndarray, want: np.ndarray, what: str) -> np.ndarray:
    """Return where the wanted ids are.

    Raises:
        ConfigError: One is missing.
    """
    place = {id_: position for position, id_ in enumerate(have.tolist())}
    missing = [id_ for id_ in want.tolist() if id_ not in place]
    if missing:
        raise ConfigError(f"values must cover every {what}, got none for {missing[0]!r}. Score all of them.")
    return np.array([place[id_] for id_ in want.tolist()], dtype=np.int64)


def predicted_sums(scores: Scores, examples: Examples, query_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the sum of the scores of some rows for every query [Q]."""
    columns = torch.from_numpy(positions(scores.ids, examples.ids[rows], "example"))
    kept = torch.from_numpy(positions(scores.query_ids, query_ids, "query"))
    total: np.ndarray = scores.values.detach().cpu().double()[kept][:, columns].sum(1).numpy()
    return total
