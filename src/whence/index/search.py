"""Top-k while streaming: exact, in memory that does not depend on the number of examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.errors import ConfigError
from whence.index.block import Block
from whence.index.products import Products

__all__ = ["TopK", "best"]

_HEAD = 256
_PIECE = 4096
_WORTH_GATHERING = 0.35


@dataclass(frozen=True, eq=False)
class TopK:
    """The k largest values seen so far for every query, with their rows; ties go to the smaller row.

    Args:
        values: Descending [Q, ≤ K].
        rows: [Q, ≤ K].
        k: K.
    """

    values: list[np.ndarray]
    rows: list[np.ndarray]
    k: int

    @staticmethod
    def empty(queries: int, k: int) -> TopK:
        """Return the state before anything was seen."""
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        return TopK([np.empty(0)] * queries, [np.empty(0, dtype=np.int64)] * queries, k)

    @property
    def thresholds(self) -> np.ndarray:
        """What a value must reach to enter [Q]; −∞ until K values were seen."""
        return np.array([values[-1] if len(values) == self.k else -np.inf for values in self.values])

    def update(self, values: Tensor, rows: Tensor | np.ndarray) -> TopK:
        """Return the state after more rows.

        Args:
            values: [B, Q].
            rows: Row numbers [B], in any order, none of them seen before.
        """
        places = np.asarray(rows)
        kept_values, kept_rows = list(self.values), list(self.rows)
        cuts = self.thresholds
        largest = values.amax(0).double().numpy() if len(values) else np.full(len(cuts), -np.inf)
        for query in np.flatnonzero((largest >= cuts) & (largest > -np.inf)).tolist():
            column, cut = values[:, query], cuts[query]
            if len(column) > self.k:
                cut = max(cut, float(column.topk(self.k).values[-1]))
            inside = (column >= cut).nonzero()[:, 0].numpy()
            merged = np.concatenate([kept_values[query], column.numpy()[inside].astype(np.float64)])
            numbers = np.concatenate([kept_rows[query], places[inside]])
            order = np.lexsort((numbers, -merged))[: self.k]
            kept_values[query], kept_rows[query] = merged[order], numbers[order]
        return TopK(kept_values, kept_rows, self.k)

    def merge(self, other: TopK) -> TopK:
        """Return the state after the rows of both; associative."""
        values, rows = [], []
        for query in range(len(self.values)):
            merged = np.concatenate([self.values[query], other.values[query]])
            numbers = np.concatenate([self.rows[query], other.rows[query]])
            order = np.lexsort((numbers, -merged))[: self.k]
            values.append(merged[order])
            rows.append(numbers[order])
        return TopK(values, rows, self.k)


def best(
    blocks: Iterable[tuple[int, Block, np.ndarray | None]], products: Products, k: int, *, largest: bool = True
) -> TopK:
    """Return the k rows with the largest (or smallest) products, exactly.

    For few queries and features without positions, rows whose bound cannot reach the k-th best value so far are
    never multiplied out.

    Args:
        blocks: (first row, block, mask [B] of rows that count or None), each row once.
        products: The queries.
        k: K.
        largest: Largest or smallest products; the values of the state are negated for the smallest.
    """
    state = TopK.empty(products.queries, k)
    sign = 1.0 if largest else -1.0
    for first, block, mask in blocks:
        rows = torch.arange(len(block)) if mask is None else torch.from_numpy(np.flatnonzero(mask))
        if products.bounded and block.has_norms and len(rows) > 2 * _HEAD:
            state = _pruned(state, block, rows, first, products, sign)
        else:
            for start, piece in block.pieces(products.rows_a_piece(block)):
                values = products.inner(piece) * sign
                own = torch.arange(start, start + len(piece))
                if mask is not None:
                    inside = torch.from_numpy(mask[start : start + len(piece)])
                    values, own = values[inside], own[inside]
                state = state.update(values, own + first)
    return state


def _pruned(state: TopK, block: Block, rows: Tensor, first: int, products: Products, sign: float) -> TopK:
    """Return the state after the rows of a block, skipping those whose bound is too small."""
    begun = products.begin(block)
    bounds = begun.total.clone()  # [B, Q]
    if len(rows) < len(block):
        hidden = torch.ones(len(block), dtype=torch.bool)
        hidden[rows] = False
        bounds[hidden] = -torch.inf
    if not np.isfinite(state.thresholds).all():  # the most promising rows make the first thresholds
        head = bounds.amax(1).topk(_HEAD).indices
        state = state.update(products.finish(block, begun, head) * sign, head + first)
        bounds[head] = -torch.inf
    alive = _reaching(bounds, state)
    if len(alive) > _WORTH_GATHERING * len(block):
        values = products.finish(block, begun, torch.arange(len(block)))[alive] * sign
        return state.update(values, alive + first)
    for some in alive.split(_PIECE):
        cuts = torch.from_numpy(state.thresholds).to(bounds.dtype)
        reached, values = products.finish_reaching(block, begun, some, cuts, sign)
        state = state.update(values, reached + first)
    return state


def _reaching(bounds: Tensor, state: TopK) -> Tensor:
    """Return which rows may still enter, for any query."""
    reach = (bounds >= torch.from_numpy(state.thresholds).to(bounds.dtype)) & (bounds > -torch.inf)
    return reach.any(1).nonzero()[:, 0]
