"""One query through the sub-networks of many training examples at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from whence.data import Batch, Examples
from whence.tasks import Loss, Task, masks

__all__ = ["sweep"]

_QUERIES = 256


def sweep(task: Task, examples: Examples, queries: Examples, batch_size: int) -> Tensor:
    """Return measurement in the flipped less in the own sub-network of every example, for every query [Q, N], float64.

    A query is one row until the first masked layer, where it meets the masks of 2·batch_size sub-networks: what lies
    before is computed once for all of them. Where a model or measurement does not take that (it is tried on two
    examples), the query is repeated.
    """
    found = torch.zeros(len(queries), len(examples), dtype=torch.float64)
    with torch.no_grad(), task.evaluating():
        shared = _can_share(task, examples.batch(np.arange(min(2, len(examples)))), _first(task, queries))
        for at, asked in _blocks(task, queries):
            for start in range(0, len(examples), batch_size):
                keys = examples.keys[start : start + batch_size]
                with masks(task.model, keys, flipped="both"):  # made once for all queries of a block
                    for number, query in enumerate(asked, at):
                        own, flipped = _measured(task, query, 2 * len(keys), shared).view(2, len(keys))
                        found[number, start : start + len(keys)] = flipped - own
    return found


def _measured(task: Task, query: Batch, rows: int, shared: bool) -> Tensor:
    """Return the measurement of one query in every sub-network [rows], float64."""
    repeated = query.repeated(rows)
    outputs = task.forward(query) if shared else None
    return task.measurements(repeated, outputs).double().cpu()


def _can_share(task: Task, examples: Batch, query: Batch) -> bool:
    """Whether a single row gives what the repeated query does; a measurement of the user's own calls the model itself.

    Models that look at the number of rows of their inputs raise or differ.
    """
    if not isinstance(task.loss if task.measurement is None else task.measurement, Loss):
        return False
    with masks(task.model, examples.keys, flipped="both"):
        rows = 2 * len(examples)
        truth = task.forward(query.repeated(rows))
        try:
            found = task.forward(query)
        except (RuntimeError, ValueError, IndexError):
            return False
    if found.shape != truth.shape:
        return False
    precision = 1e-9 if truth.dtype == torch.float64 else 1e-2 if truth.element_size() == 2 else 1e-4
    return float((found - truth).norm()) <= precision * float(truth.norm()) + torch.finfo(truth.dtype).tiny


def _first(task: Task, queries: Examples) -> Batch:
    """Return the first query."""
    return task.place(queries.batch(np.arange(1)))


def _blocks(task: Task, queries: Examples) -> Iterator[tuple[int, list[Batch]]]:
    """Yield the queries one by one, some at a time, with the number of the first."""
    for at, batch in enumerate(queries.batches(_QUERIES)):
        placed = task.place(batch)
        yield at * _QUERIES, [placed.row(number) for number in range(len(placed))]
