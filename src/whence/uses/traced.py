"""What an attribution says of rows: how much each explains itself, whom it harms, and what argues against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pandas as pd

from whence.data import Examples, LabelledData
from whence.uses.checks import check_reference
from whence.uses.class_based import class_based

__all__ = ["Attribution", "evidence_of", "influence_signals", "put_evidence", "trusted_rows"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_REFERENCE_PER_CLASS = 50
_QUERY_BLOCK = 256


@runtime_checkable
class Attribution(Protocol):
    """What is needed of an attribution: any method's that offers these."""

    @property
    def examples(self) -> Any:
        """Training examples with ids and targets."""

    def scores(self, queries: Any) -> Any:
        """Return scores [Q, N] with ids."""

    def self_scores(self) -> Any:
        """Return self-influence [N]."""


def influence_signals(attribution: Any, trusted: Examples, *, leave_one_out: bool) -> dict[str, Array]:
    """Return what an attribution says of every row."""
    signals: dict[str, Array] = {}
    if leave_one_out and hasattr(attribution, "leave_one_out"):
        signals["leave_one_out_loss"] = attribution.leave_one_out().losses
    signals["self_influence"] = np.asarray(attribution.self_scores())
    signals["class_influence"] = -class_based(attribution, trusted).values.astype(np.float64)
    return signals


def trusted_rows(
    reference: Any, data: LabelledData | None, attribution: Attribution, own: Array, given: Array
) -> Examples:
    """Return examples taken to be right: the user's, else the most consistently fitted rows of each class."""
    if isinstance(reference, Examples):
        return reference
    own_examples: Examples = attribution.examples
    if reference is None and data is not None and data.reference is not None:
        reference = data.reference
    if reference is not None:
        return own_examples.select(check_reference(reference, len(given)))
    best = [np.flatnonzero(given == c) for c in np.unique(given)]
    kept = [rows[np.argsort(-own[rows], kind="stable")[:_REFERENCE_PER_CLASS]] for rows in best]
    return own_examples.select(np.concatenate(kept))


def evidence_of(attribution: Attribution, asked: Examples, count: int) -> dict[Any, list[list[Any]]]:
    """Return, for every row that is asked about, the training rows that oppose it most as [id, score], by its id."""
    found: dict[Any, list[list[Any]]] = {}
    if count == 0:
        return found
    columns = {id_: column for column, id_ in enumerate(attribution.examples.ids.tolist())}
    for block in _blocks(np.arange(len(asked)), _QUERY_BLOCK):
        scores = attribution.scores(asked.select(block))
        values = scores.values.double().cpu()
        for row, query in enumerate(scores.query_ids.tolist()):
            if query in columns:  # no row is evidence against itself
                values[row, columns[query]] = float("inf")
        lowest, places = values.topk(min(count, values.shape[1] - 1), dim=1, largest=False)
        for query, scored, where in zip(scores.query_ids.tolist(), lowest.tolist(), places.tolist(), strict=True):
            ids = scores.ids[where].tolist()
            found[query] = [[other, score] for other, score in zip(ids, scored, strict=True) if score < 0]
    return found


def put_evidence(frame: pd.DataFrame, found: dict[Any, list[list[Any]]]) -> None:
    """Write evidence into ``evidence`` and ``evidence_scores`` of a frame with ``id``; [] where there is none."""
    ids = frame["id"].tolist()
    frame["evidence"] = [[other for other, _ in found.get(id_, [])] for id_ in ids]
    frame["evidence_scores"] = [[score for _, score in found.get(id_, [])] for id_ in ids]


def _blocks(rows: Array, size: int) -> Iterator[Array]:
    """Yield the positions, some at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
