"""Rows that occur more than once, exactly or nearly, and those whose copies carry another label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from whence.data.labelled import LabelledData
from whence.errors import ConfigError, DataError
from whence.uses.similar import Similar, SimilarTexts, SimilarVectors, image_vectors, leaders, normalised

__all__ = ["Duplicates", "find_duplicates"]

Array: TypeAlias = "np.ndarray[Any, Any]"

TEXT_SIMILARITY = 0.8
IMAGE_SIMILARITY = 0.998
FEATURE_SIMILARITY = 0.99
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Duplicates:
    """Which rows are copies of which.

    Args:
        ids: [N] text.
        content: [N] int64, position of the first row with the very same content (its own if it is the first).
        group: [N] int64, number of the group of copies (0, 1, … by first row), -1 for a row alone.
        kind: [N] object: "exact" if another row has the very same content, "near" if others are only
            similar, "" for a row alone.
        duplicate_of: [N] object: id of the first row with the same content, else of the first row of the
            group; None for the first row of a group and for rows alone.
        conflict: [N] bool: the rows of the group carry different labels.
        similarity: threshold that near copies were found with.
        notes: limits that were met, one sentence each.
    """

    ids: Array
    content: Array
    group: Array
    kind: Array
    duplicate_of: Array
    conflict: Array
    similarity: float
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows N."""
        return len(self.ids)

    @property
    def exact_rows(self) -> int:
        """Number of rows that repeat the content of an earlier row."""
        return int((self.content != np.arange(len(self))).sum())

    @property
    def near_rows(self) -> int:
        """Number of rows that are similar to an earlier row but equal to none."""
        return sum(target is not None for target in self.duplicate_of) - self.exact_rows

    @property
    def conflicting_rows(self) -> int:
        """Number of rows in groups that carry different labels."""
        return int(self.conflict.sum())

    def groups(self) -> Iterator[Array]:
        """Yield the row positions of each group, in the order of their first rows."""
        order = np.argsort(self.group, kind="stable")
        order = order[self.group[order] >= 0]
        yield from np.split(order, np.flatnonzero(np.diff(self.group[order])) + 1) if len(order) else ()

    def to_frame(self) -> pd.DataFrame:
        """Return id, group, kind, duplicate_of and conflict of every row, in row order."""
        return pd.DataFrame(
            {
                "id": pd.Series(self.ids.tolist(), dtype=object),
                "group": self.group,
                "kind": pd.Series(self.kind, dtype=object),
                "duplicate_of": pd.Series(self.duplicate_of, dtype=object),
                "conflict": self.conflict,
            }
        )


def find_duplicates(
    data: LabelledData | None = None,
    *,
    features: Any = None,
    labels: Any = None,
    ids: Any = None,
    similarity: float | None = None,
) -> Duplicates:
    r"""Group the rows that are copies of one another.

    *Exact* copies have the very same content (the label may differ). *Near* copies: texts that agree in
    letters and digits, or whose sets of 4-character pieces A, B have $|A \cap B| / |A \cup B| \ge$
    ``similarity`` (0.8); images whose 16 x 16 means correlate by at least 0.998; table rows that agree to
    four significant digits and up to case and white space; with ``features``, rows whose centred vectors
    have a cosine of at least 0.99. Near copies resemble the first row of their group directly, so that
    groups do not grow by chains. Blank texts are nobody's copies.

    Args:
        data: the rows; their content is compared unless ``features`` is given.
        features: [N, D] numbers to compare instead (embeddings), or with ``labels`` and ``ids`` alone.
        labels: [N] classes, to find conflicts, if there is no ``data``.
        ids: [N] ids, if there is no ``data``; row numbers by default.
        similarity: threshold of near copies in (0, 1]; 1.0 for exact copies only.

    Returns:
        Groups by row, with the first row of each and whether its labels conflict.

    Raises:
        ConfigError: neither data nor features, or a similarity outside (0, 1].
        DataError: features that are not [N, D] finite numbers.

    Cost: texts: linear in the characters plus the pairs that share rare pieces; images and features:
    a k-d tree of N points in 13 dimensions; tables: linear. Seconds for 60,000 rows.

    Example:
        >>> from whence.data import from_arrays
        >>> mails = from_arrays(["win a prize", "see you", "win a prize"], ["spam", "ham", "ham"])
        >>> found = find_duplicates(mails)
        >>> found.duplicate_of.tolist(), found.conflict.tolist()
        ([None, None, '0'], [True, False, True])
    """
    if similarity is not None and not 0.0 < similarity <= 1.0:
        raise ConfigError(f"similarity must lie in (0, 1], got {similarity}. Try 0.9.")
    if features is not None:
        vectors = _checked(features, data)
        threshold = FEATURE_SIMILARITY if similarity is None else similarity
        exact = _by_bytes(np.ascontiguousarray(vectors))
        centred = vectors - vectors.mean(axis=0, dtype=np.float64) if len(vectors) else vectors
        return _result(exact, _vector_leaders(centred, exact, threshold), data, labels, ids, threshold)
    if data is None:
        raise ConfigError("data or features must be given, got neither. Pass LabelledData, or features=[N, D].")
    exact, leader, threshold, notes = _by_content(data, similarity)
    return _result(exact, leader, data, None, None, threshold, notes)


def _by_content(data: LabelledData, similarity: float | None) -> tuple[Array, Array, float, tuple[str, ...]]:
    """First row of the same content, first row of the group, threshold and notes, by the kind of data."""
    if isinstance(data.content, list):
        threshold = TEXT_SIMILARITY if similarity is None else similarity
        exact = _first(data.content)
        leader, limited = _text_leaders(data.content, exact, threshold)
        notes = ("some near duplicates of very common texts may be missing",) if limited else ()
        return exact, leader, threshold, notes
    if isinstance(data.content, np.ndarray):
        threshold = IMAGE_SIMILARITY if similarity is None else similarity
        exact = _by_bytes(data.content)
        return exact, _vector_leaders(image_vectors(data.content), exact, threshold), threshold, ()
    exact = _first(_row_hashes(data.content, exact=True))
    threshold = 1.0 if similarity is None else similarity
    near = exact if threshold == 1.0 and similarity is not None else _first(_row_hashes(data.content, exact=False))
    return exact, near, threshold, ()


def _first(keys: Any) -> Array:
    """[N] position of the first row with the same key."""
    codes, _ = pd.factorize(np.asarray(keys, dtype=object) if isinstance(keys, list) else keys)
    _, first = np.unique(codes, return_index=True)
    return np.asarray(first[codes], dtype=np.int64)


def _by_bytes(values: Array) -> Array:
    """[N] position of the first row with the same bytes."""
    return _first([hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in values])


def _text_leaders(texts: list[str], exact: Array, similarity: float) -> tuple[Array, bool]:
    """[N] first row of each text's group, and whether some candidates were left out."""
    blank = np.array([not text.strip() for text in texts], dtype=bool)
    exact[blank] = np.flatnonzero(blank)  # blank texts are nobody's copies
    if similarity == 1.0:
        return exact, False
    first = _first([normalised(text) for text in texts])
    first[blank] = np.flatnonzero(blank)
    rows = np.flatnonzero((first == np.arange(len(texts))) & ~blank)
    similar = SimilarTexts([texts[row] for row in rows.tolist()], similarity)
    return _spread(first, rows, similar), similar.limited


def _vector_leaders(vectors: Array, exact: Array, similarity: float) -> Array:
    """[N] first row of each vector's group."""
    if similarity == 1.0:
        return exact
    rows = np.flatnonzero(exact == np.arange(len(exact)))
    return _spread(exact, rows, SimilarVectors(vectors[rows], similarity))


def _spread(first: Array, rows: Array, similar: Similar) -> Array:
    """From leaders among distinct rows to leaders of all rows."""
    leader = first.copy()
    leader[rows] = rows[leaders(similar)]
    return np.asarray(leader[first], dtype=np.int64)


def _row_hashes(table: pd.DataFrame, *, exact: bool) -> Array:
    """[N] uint64 over the cells of each row; not exact: four significant digits, folded text."""
    total: Array = np.zeros(len(table), dtype=np.uint64)
    for position in range(table.shape[1]):
        column = table.iloc[:, position]
        if column.dtype.kind == "f":
            values = column.to_numpy(dtype=np.float64) + 0.0
            column = pd.Series(values if exact else _rounded(values))
        elif not exact:
            column = column.map(lambda value: " ".join(value.casefold().split()) if isinstance(value, str) else value)
        hashed = np.asarray(pd.util.hash_pandas_object(column, index=False), dtype=np.uint64)
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashed
        total ^= total >> np.uint64(29)
    return total


def _rounded(values: Array) -> Array:
    """Values rounded to four significant digits."""
    size = np.abs(values)
    known = np.isfinite(size) & (size > 0)
    power = np.zeros(len(values))
    power[known] = SIGNIFICANT_DIGITS - 1 - np.floor(np.log10(size[known]))
    scale = 10.0 ** np.clip(power, -300, 300)
    return np.where(known, np.rint(values * scale) / scale, values) + 0.0


def _checked(features: Any, data: LabelledData | None) -> Array:
    """Features as a finite [N, D] array with one row per row of data."""
    vectors = np.asarray(features)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiub":
        raise DataError(
            f"features must be numbers of shape [N, D], got {vectors.dtype} of shape {vectors.shape}. Reshape them."
        )
    vectors = vectors.astype(np.float32 if vectors.dtype != np.float64 else np.float64)
    if not bool(np.isfinite(vectors).all()):
        raise DataError("features must be finite, got NaN or infinite values. Replace or remove them.")
    if data is not None and len(vectors) != len(data):
        raise DataError(
            f"features must have one row per row of data ({len(data)}), got {len(vectors)}. Pass the same rows."
        )
    return vectors + 0.0


def _result(
    exact: Array,
    leader: Array,
    data: LabelledData | None,
    labels: Any,
    ids: Any,
    similarity: float,
    notes: tuple[str, ...] = (),
) -> Duplicates:
    """The frozen value from the first row of the same content and the first row of the group."""
    rows = np.arange(len(leader))
    given = data.labels if data is not None else labels
    names = data.ids if data is not None else rows.astype(str) if ids is None else np.asarray(ids).astype(str)
    if len(names) != len(rows) or (given is not None and len(given) != len(rows)):
        raise DataError(f"ids and labels must have one entry per row ({len(rows)}). Pass arrays of that length.")
    sizes = np.bincount(leader, minlength=len(rows))
    grouped = sizes[leader] > 1
    firsts = np.flatnonzero(sizes > 1)
    group = np.where(grouped, np.searchsorted(firsts, leader), -1)
    copies = np.bincount(exact, minlength=len(rows))[exact] > 1
    kind = np.where(copies, "exact", np.where(grouped, "near", "")).astype(object)
    duplicate_of = np.full(len(rows), None, dtype=object)
    repeats, near = exact != rows, (exact == rows) & (leader != rows)
    duplicate_of[repeats] = names[exact[repeats]].tolist()
    duplicate_of[near] = names[leader[near]].tolist()
    conflict = np.zeros(len(rows), dtype=bool)
    if given is not None and len(rows):
        codes, _ = pd.factorize(np.asarray(given))
        differs = np.zeros(len(rows), dtype=bool)
        np.logical_or.at(differs, leader, codes != codes[leader])
        conflict = differs[leader]
    return Duplicates(
        ids=names, content=exact, group=group, kind=kind, duplicate_of=duplicate_of, conflict=conflict,
        similarity=similarity, notes=notes,
    )  # fmt: skip
