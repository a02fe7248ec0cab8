"""Building an index from an attribution, extending it, and searching with or without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from whence.data import Examples
from whence.errors import ConfigError, RunFormatError
from whence.index import Block, Index, IndexWriter, Products, QueryFeatures, TopK, best, frame_of
from whence.methods import InfluenceAttribution
from whence.methods.packed import pack
from whence.methods.saved import append_rows, feature_rows, identity_of, settled, write_attribution

__all__ = ["build_index", "extend_index", "top"]

Progress = Callable[[int, int], None]


def build_index(
    attribution: InfluenceAttribution,
    folder: str | Path,
    *,
    dtype: str = "float32",
    shard_rows: int | None = None,
    self_scores: bool = True,
    on_progress: Progress | None = None,
) -> Index:
    r"""Write the features of all training examples to a folder, shard by shard, and open it.

    The folder is a saved attribution too: `whence.load` reads it. Killed at any moment and called again with the
    same model, data and settings, it verifies the finished shards, goes on behind them and ends with the same bytes;
    at most one shard of work is lost. Called on a finished index it verifies it.

    Args:
        attribution: A fitted attribution.
        folder: A new folder, or one that an earlier call began.
        dtype: How features are stored: "float32", "float16", "bfloat16" or "float64". Products are always taken in
            float32 (float64 for float64); the error of storage is in ``index.summary()``.
        shard_rows: Rows a shard; by default shards take about 64 MiB.
        self_scores: Store gᵀH⁻¹g of every example too, so that the index answers it without a model. Curvatures
            that solve for every product take one solve an example.
        on_progress: Called with (rows done, rows).

    Returns:
        The index.

    Raises:
        RunFormatError: The folder holds an index of another model, data, version or settings (both are named), or
            other files; or the disk refuses.
        NumericalError: A feature is not finite.

    Cost: one pass over the training data (none where the fit kept the factors); memory of two shards.

    Example:
        >>> import tempfile, whence as wh
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> attribution = wh.Influence().fit(wh.Task(torch.nn.Linear(3, 2)), train)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index = wh.build_index(attribution, folder + "/index")
        ...     len(index.top(attribution.query_features(train), k=3))
        60
    """
    return write_attribution(
        attribution,
        Path(folder),
        dtype=dtype,
        shard_rows=shard_rows,
        self_scores=self_scores,
        whole=True,
        on_progress=on_progress,
    )


def extend_index(
    index: Index, attribution: InfluenceAttribution, more: Any, *, on_progress: Progress | None = None
) -> Index:
    """Append the features of more examples; what is stored is not touched, and an interrupted call resumes.

    The curvature and the N of the scores stay those of the fit, which has not seen these examples: a score says what
    the example would have done among the training data as it was.

    Args:
        index: A finished index.
        attribution: The attribution that it was built from.
        more: Examples whose ids are not in the index.
        on_progress: Called with (rows done, rows).

    Raises:
        RunFormatError: The index belongs to another model, curvature or fit; both are named.
        DataError: An id is in the index already, whenever it was appended.
    """
    examples = attribution.task.examples(more)
    own = identity_of(attribution, attribution.examples)
    with_self = index.has_self_scores
    index.manifest.require({**own, "self_scores": with_self}, index.folder)
    if not index.manifest.layers:
        raise RunFormatError(f"index {str(index.folder)!r} must hold features, got ids alone. Build it first.")
    writer = IndexWriter(
        folder=index.folder,
        identity={**own, "data": examples.fingerprint, "extends": own["data"], "rows": len(examples)},
        dtype=index.manifest.dtype,
        shard_rows=index.manifest.shard_rows,
        extends=index,
    )
    attribution = settled(attribution, index.folder, index.manifest.extra) or attribution
    append_rows(attribution, examples, writer, list(index.manifest.layers), with_self, on_progress)
    return writer.close()


def top(
    attribution: InfluenceAttribution,
    queries: Any = None,
    k: int = 10,
    *,
    largest: bool = True,
    index: Index | None = None,
    candidates: int | None = None,
) -> pd.DataFrame:
    """Return, for every query, the k training examples with the largest (or smallest) scores, in bounded memory.

    Without an index the training examples are streamed once and no [Q, N] is ever held. With one the stored features
    are searched; with ``candidates`` too, that many examples a query are taken from the index and ranked again by
    scores computed from the model, in the attribution's own precision (two stages). Candidates that the attribution
    does not know, because the index was extended by them, keep the score of their stored features.

    Args:
        attribution: A fitted attribution.
        queries: As in ``attribution.scores``.
        k: How many; all where there are fewer.
        largest: The examples whose removal raises the measurement the most, or lowers it the most.
        index: An index of this attribution's features; it may be compressed ("float16").
        candidates: How many examples a query to rank again, at least k.

    Returns:
        A frame with columns ``query, rank, id, score``; ties are broken by row order. ``frame.attrs["candidates"]``
        says how many examples were computed again (0 without a second stage).

    Raises:
        ConfigError: k or candidates cannot work.
        RunFormatError: The index belongs to another model, loss, layers or number of examples; both are named.

    Cost: one pass over the training factors, or one over the index and the candidates' own gradients; memory Q·k.
    """
    features = attribution.query_features(queries)
    if candidates is not None and (index is None or candidates < k):
        raise ConfigError(f"candidates must be at least k ({k}) and need index=, got {candidates}.")
    if index is None:
        state = _search(attribution, features, attribution.examples, k, largest)
        found = frame_of(state, features, lambda rows: attribution.ids[rows], largest=largest)
        found.attrs["candidates"] = 0
        return found
    search = index.top if largest else index.bottom
    if candidates is None:
        found = search(features, k)
        found.attrs["candidates"] = 0
        return found
    return _ranked_again(attribution, features, search(features, candidates), k, largest)


def _search(
    attribution: InfluenceAttribution, features: QueryFeatures, examples: Examples, k: int, largest: bool
) -> TopK:
    """Search examples whose features are computed as they come."""
    stream = _packed(attribution, examples)
    first = next(stream)
    products = Products.of(features, first[1].layouts, attribution.task.gradient_dtype)

    def everything() -> Iterator[tuple[int, Block, np.ndarray | None]]:
        yield first
        yield from stream

    return best(everything(), products, k, largest=largest)


def _packed(
    attribution: InfluenceAttribution, examples: Examples
) -> Iterator[tuple[int, Block, np.ndarray | None]]:
    """Yield (first row, features, no mask) of examples in row order."""
    layouts = None
    for rows, gradients in feature_rows(attribution, examples, 0):
        block = pack(gradients, layouts)
        layouts = block.layouts
        yield rows.start, block, None


def _ranked_again(
    attribution: InfluenceAttribution, features: QueryFeatures, found: pd.DataFrame, k: int, largest: bool
) -> pd.DataFrame:
    """Rank the candidates of every query by scores from the model; those it does not know keep the index's."""
    examples, count = attribution.examples, len(attribution.examples)
    known = np.array([id_ in examples.positions for id_ in found["id"].tolist()], dtype=bool)
    query = np.repeat(np.arange(len(features)), len(found) // len(features))
    scores, row = found["score"].to_numpy(dtype=np.float64, copy=True), count + found["rank"].to_numpy()
    row[known] = examples.rows_of(found["id"].to_numpy()[known].tolist())
    wanted, place = np.unique(row[known], return_inverse=True)
    if len(wanted):
        inner = _products_of(attribution, features, examples.select(wanted))  # [candidates of all queries, Q]
        offsets = features.offsets.double().cpu().numpy()
        scores[known] = (inner[place, query[known]] + offsets[query[known]]) / count
    order = np.lexsort((row, -scores if largest else scores, query))
    ranked = found.iloc[order].assign(score=scores[order], rank=found["rank"].to_numpy())
    ranked = ranked[ranked["rank"] <= k].reset_index(drop=True)
    ranked.attrs["candidates"] = len(wanted)
    return ranked


def _products_of(attribution: InfluenceAttribution, features: QueryFeatures, examples: Examples) -> np.ndarray:
    """Return the products of examples' own features with the queries' [B, Q], computed from the model."""
    parts, products = [], None
    for _, block, _ in _packed(attribution, examples):
        if products is None:
            products = Products.of(features, block.layouts, attribution.task.dtype)
        parts.append(products.inner(block))
    values: np.ndarray = torch.cat(parts).double().numpy()
    return values
