"""An index on disk: features of training examples that answer queries without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whence.errors import ConfigError, DataError, RunFormatError
from whence.index.block import Block
from whence.index.manifest import DTYPES, IndexManifest
from whence.index.products import Products
from whence.index.queries import QueryFeatures
from whence.index.removed import read_removed, write_removed
from whence.index.search import TopK, best
from whence.index.shards import Shard, read_shard, shard_path, verify_shard
from whence.scores import Scores, Signal

__all__ = ["Index", "frame_of", "open_index"]

_QUERIES = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """Stored features of N training examples: made by `whence.build_index` or `IndexWriter`, read by `open_index`.

    Shards are memory-mapped and read through buffers of a few megabytes, whatever N.

    Args:
        folder: Where it lies.
        manifest: What it belongs to.
        removed: Rows that are masked, ascending.
    """

    folder: Path
    manifest: IndexManifest
    removed: np.ndarray
    _mapped: dict[int, Shard] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        """Return place, count and storage type."""
        return f"Index({str(self.folder)!r}, {len(self):,} examples, {self.manifest.dtype})"

    def __len__(self) -> int:
        """Return the number of examples N that are not masked."""
        return self.stored - len(self.removed)

    @property
    def stored(self) -> int:
        """How many examples are stored, masked ones included."""
        return sum(rows for rows, _ in self.manifest.shards)

    @property
    def has_self_scores(self) -> bool:
        """Whether self-scores are stored."""
        return self.shard(0).self_scores is not None

    @cached_property
    def stored_ids(self) -> np.ndarray:
        """Ids of all stored examples, masked ones included."""
        return np.concatenate([shard.ids() for shard in self.shards()])

    @property
    def ids(self) -> np.ndarray:
        """Ids of the examples [N], in the order in which they were added."""
        kept: np.ndarray = np.delete(self.stored_ids, self.removed)
        return kept

    @property
    def storage_error(self) -> dict[str, float]:
        """√(Σ‖stored − computed‖² / Σ‖computed‖²) over all examples, by layer, measured while writing."""
        return {name: (wrong / max(whole, 1e-300)) ** 0.5 for name, (wrong, whole) in self.manifest.error.items()}

    def shards(self) -> Iterator[Shard]:
        """Yield every shard, memory-mapped, in row order."""
        for number in range(len(self.manifest.shards)):
            yield self.shard(number)

    def top(self, queries: QueryFeatures, k: int = 10) -> pd.DataFrame:
        """Return, for every query, the k examples whose removal raises the measurement the most.

        Exact over the stored features; ties are broken by row order.

        Args:
            queries: `whence.query_features`, or `QueryFeatures.flat`.
            k: How many; all where there are fewer.

        Returns:
            A frame with columns ``query, rank, id, score``.

        Raises:
            RunFormatError: The index belongs to other weights, another loss, other layers or another number of
                examples (both are named), or is damaged.

        Cost: one pass over the stored features, of which a bound skips most for a few queries; memory Q·k.
        """
        return self._extreme(queries, k, largest=True)

    def bottom(self, queries: QueryFeatures, k: int = 10) -> pd.DataFrame:
        """Return, for every query, the k examples whose removal lowers the measurement the most. See `top`."""
        return self._extreme(queries, k, largest=False)

    def scores(self, queries: QueryFeatures) -> Scores:
        """Return the score of every example for every query [Q, N].

        Cost: one pass over the stored features; memory Q·N.
        """
        parts = []
        for group in self._groups(queries):
            products = self._products(group)
            columns = [_kept(products.inner(block), mask) for _, block, mask in self._blocks()]
            parts.append(_finish(torch.cat(columns), group))
        return Scores(values=torch.cat(parts), query_ids=queries.ids, ids=self.ids, unit=queries.unit)

    def self_scores(self) -> Signal:
        """Return the stored self-scores of all examples [N].

        Raises:
            RunFormatError: The index was built without.
        """
        found = [shard.self_scores for shard in self.shards()]
        values = [part for part in found if part is not None]
        if len(values) != len(found):
            raise RunFormatError(
                f"index {str(self.folder)!r} must hold self-scores, got none. Build it with self_scores=True."
            )
        kept = np.delete(np.concatenate(values), self.removed)
        unit = self.manifest.extra.get("self_unit")
        return Signal(values=kept, ids=self.ids, name="self-influence", unit=unit)

    def group_scores(self, groups: Mapping[str, Iterable[Any]], queries: QueryFeatures) -> Scores:
        """Return the score of removing whole groups, (1/(N−k)) Σ_{i∈group} ⟨f_q, f_i⟩, offsets included.

        Args:
            groups: Name → ids.
            queries: As in `top`.

        Returns:
            Scores [Q, number of groups], the names as ids.

        Cost: reads the ids of all examples and the features of the groups' examples only.
        """
        if not groups:
            raise ConfigError("groups must name at least one group, got none.")
        members = {name: np.unique(self.rows_of(list(ids))) for name, ids in groups.items()}
        for name, rows in members.items():
            if len(rows) == 0 or (queries.count is not None and len(rows) >= queries.count):
                raise ConfigError(f"group {name!r} must hold some of the examples, got {len(rows)}.")
        products = self._products(queries)
        columns = [self._group_sum(rows, products, queries) for rows in members.values()]
        names = np.array(list(groups), dtype=str)
        return Scores(values=torch.stack(columns, 1), query_ids=queries.ids, ids=names, unit=queries.unit)

    def rows_of(self, ids: Sequence[Any]) -> np.ndarray:
        """Return the stored rows of ids, in their order.

        Raises:
            DataError: One is not in the index, or is masked.
        """
        wanted, found = set(ids), {}
        masked = set(self.removed.tolist())
        for shard in self.shards():
            for position, id_ in enumerate(shard.ids().tolist()):
                if id_ in wanted:
                    found[id_] = shard.start + position
        missing = [id_ for id_ in ids if id_ not in found or found[id_] in masked]
        if missing:
            raise DataError(f"id must be one of the {len(self)} examples of the index, got {missing[0]!r}.")
        return np.array([found[id_] for id_ in ids], dtype=np.int64)

    def remove(self, ids: Sequence[Any]) -> Index:
        """Mask examples: they are in no result any more. Nothing is recomputed; N in the scores stays the fit's.

        Returns:
            The index without them and without those that the folder's mask holds already; the mask is on disk,
            replaced in one step.
        """
        now = self.reopened()
        return now._masked(np.union1d(now.removed, now.rows_of(list(ids))))

    def restore(self, ids: Sequence[Any] | None = None) -> Index:
        """Undo `remove` for some ids, or for all; as in `remove`, the mask to begin with is the folder's."""
        now = self.reopened()
        if ids is None:
            return now._masked(now.removed[:0])
        everything = replace(now, removed=now.removed[:0])
        return now._masked(np.setdiff1d(now.removed, everything.rows_of(list(ids))))

    def reopened(self) -> Index:
        """Return the index as its folder holds it now: what was appended or masked since it was opened is there.

        Raises:
            RunFormatError: The folder holds another index by now.
        """
        now = open_index(self.folder)
        if now.manifest.shards[: len(self.manifest.shards)] != self.manifest.shards:
            raise RunFormatError(
                f"index {str(self.folder)!r} must be the one that was opened, got another one. Open it again."
            )
        return replace(now, _mapped=self._mapped)

    def verify(self) -> None:
        """Read every byte and compare it with the shards' SHA-256.

        Raises:
            RunFormatError: A shard is damaged; it is named.
        """
        for number, (rows, digest) in enumerate(self.manifest.shards):
            path = shard_path(self.folder, number)
            found = verify_shard(path)
            if (found.get("rows"), found.get("sha256")) != (rows, digest):
                raise RunFormatError(f"{path} must be the shard of its manifest, got another one. Build it again.")

    def summary(self) -> dict[str, Any]:
        """Return what is stored, JSON-able: rows, bytes, type, relative error of storage by layer, whose it is."""
        paths = [shard_path(self.folder, number) for number in range(len(self.manifest.shards))]
        return {
            "examples": len(self),
            "removed": len(self.removed),
            "extensions": len(self.manifest.parts) - 1,
            "shards": len(paths),
            "bytes": sum(path.stat().st_size for path in paths),
            "dtype": self.manifest.dtype,
            "layers": [layer.as_json() for layer in self.manifest.layers],
            "storage_error": self.storage_error,
            "self_scores": self.has_self_scores,
            "identity": dict(self.manifest.identity),
        }

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the ids of stored rows, reading no others."""
        starts = np.cumsum([0, *(count for count, _ in self.manifest.shards)])
        owner = np.searchsorted(starts, rows, side="right") - 1
        found = [self.shard(int(n)).ids(np.array([row - starts[n]]))[0] for n, row in zip(owner, rows, strict=True)]
        return np.array(found) if found else self.shard(0).ids(np.arange(0))

    def _extreme(self, queries: QueryFeatures, k: int, *, largest: bool) -> pd.DataFrame:
        frames = []
        for group in self._groups(queries):
            state = best(self._blocks(), self._products(group), k, largest=largest)
            frames.append(frame_of(state, group, self.ids_of, largest=largest))
        return pd.concat(frames, ignore_index=True)

    def _groups(self, queries: QueryFeatures) -> list[QueryFeatures]:
        """Return the queries, some at a time."""
        return [queries.rows(slice(start, start + _QUERIES)) for start in range(0, len(queries), _QUERIES)]

    def _products(self, queries: QueryFeatures) -> Products:
        """Return the queries' side of products, after checking that they belong to the index."""
        if not self.manifest.layers:
            raise RunFormatError(f"index {str(self.folder)!r} must hold features, got ids alone. Build it again.")
        self._require_same(queries)
        return Products.of(queries, self.manifest.layers, DTYPES[self.manifest.dtype])

    def _require_same(self, queries: QueryFeatures) -> None:
        """Raise unless queries come from the model and data of the index; what neither side says is not compared."""
        identity, where = self.manifest.identity, f"index {str(self.folder)!r}"
        expected = identity.get("weights")
        if expected != queries.weights:
            raise RunFormatError(
                f"weights must be those of {where} ({str(expected)[:12]}), got "
                f"{str(queries.weights)[:12]}. Use the model that the index was built with."
            )
        own = {"loss": queries.loss, "examples": queries.count, "layers": sorted(queries.parts)}
        for name, found in own.items():
            stored = identity.get(name)
            stored = sorted(stored) if isinstance(stored, list) else stored
            if None not in (stored, found) and stored != found:
                raise RunFormatError(
                    f"{name} must be that of {where} ({stored}), got {found}. "
                    "Use the loss, data and layers that the index was built with, or build it again."
                )

    def _blocks(self) -> Iterator[tuple[int, Block, np.ndarray | None]]:
        """Yield (first row, features, mask of the rows that count or None) shard by shard."""
        for shard in self.shards():
            inside = self.removed[(self.removed >= shard.start) & (self.removed < shard.start + shard.count)]
            mask = None
            if len(inside):
                mask = np.ones(shard.count, dtype=bool)
                mask[inside - shard.start] = False
            yield shard.start, shard.block, mask

    def _group_sum(self, rows: np.ndarray, products: Products, queries: QueryFeatures) -> Tensor:
        """Return one group's score for every query [Q]."""
        total = torch.zeros(len(queries), dtype=torch.float64)
        for shard in self.shards():
            own = rows[(rows >= shard.start) & (rows < shard.start + shard.count)] - shard.start
            if len(own):
                total += products.inner(shard.block.rows(torch.from_numpy(own))).double().sum(0)
        total += len(rows) * queries.offsets.double().cpu()
        return total if queries.count is None else total / (queries.count - len(rows))

    def shard(self, number: int) -> Shard:
        """Return a shard, mapped once."""
        if number not in self._mapped:
            rows, digest = self.manifest.shards[number]
            start = sum(count for count, _ in self.manifest.shards[:number])
            expected = {"start": start, "rows": rows, "sha256": digest}
            path = shard_path(self.folder, number)
            self._mapped[number] = read_shard(path, list(self.manifest.layers), expected)
        return self._mapped[number]

    def _masked(self, removed: np.ndarray) -> Index:
        """Return the index with another mask, written first."""
        write_removed(self.folder, removed)
        return replace(self, removed=removed)


def open_index(folder: str | Path) -> Index:
    """Open an index, or the index of a saved attribution.

    Raises:
        RunFormatError: It is incomplete, damaged, or of another kind or format.

    Cost: reads the manifest; shards are mapped when they are first used.
    """
    folder = Path(folder)
    manifest = IndexManifest.read(folder)
    if not manifest.complete or not manifest.shards:
        raise RunFormatError(
            f"index {str(folder)!r} must be complete, got an interrupted build. Build it again: it resumes."
        )
    return Index(folder=folder, manifest=manifest, removed=read_removed(folder, sum(r for r, _ in manifest.shards)))


def frame_of(state: TopK, queries: QueryFeatures, ids_of: Any, *, largest: bool) -> pd.DataFrame:
    """Return a search's outcome with columns ``query, rank, id, score``."""
    sign, count = (1.0 if largest else -1.0), 1 if queries.count is None else queries.count
    offsets = queries.offsets.double().tolist()
    lengths = [len(rows) for rows in state.rows]
    rows = np.concatenate(state.rows)
    scores = [(sign * values + offset) / count for values, offset in zip(state.values, offsets, strict=True)]
    return pd.DataFrame(
        {
            "query": np.repeat(queries.ids, lengths),
            "rank": np.concatenate([np.arange(1, length + 1) for length in lengths]),
            "id": ids_of(rows),
            "score": np.concatenate(scores),
        }
    )


def _kept(values: Tensor, mask: np.ndarray | None) -> Tensor:
    return values if mask is None else values[torch.from_numpy(mask)]


def _finish(inner: Tensor, queries: QueryFeatures) -> Tensor:
    """Return scores [Q, N] of products [N, Q]."""
    found = inner.T + queries.offsets.to(inner)[:, None]
    return found if queries.count is None else found / queries.count
