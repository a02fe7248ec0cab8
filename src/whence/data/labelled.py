"""The value every reader returns: a labelled data set as a person has it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from whence.errors import ConfigError, DataError

__all__ = ["Content", "Kind", "LabelledData"]

Kind: TypeAlias = Literal["tabular", "text", "image"]
Content: TypeAlias = "pd.DataFrame | list[str] | np.ndarray[Any, Any]"
Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledData:
    """Rows with ids, content and one class each; content is what a model sees and a report shows.

    Args:
        ids: [N] text, unique; an ``id`` column of the source or the row number.
        kind: "tabular", "text" or "image".
        content: tabular: DataFrame [N, F], numeric columns float64 (missing is NaN), the others
            ``object`` holding text or None. Text: a list of N strings. Image: uint8 [N, H, W, C], C = 1 or 3.
        labels: [N] int64, positions in ``classes``.
        classes: names of the classes, sorted (by value if all are numbers).
        split: [N] text, or None if the source has no split.
        reference: [N] bool, the rows that the user vouches for, or None.
        source: where the rows came from.
        label_name: name of the column or array that held the labels.
        notes: what the reader decided, one sentence each.
        encoding: of a text file, where the user named it.

    Raises:
        DataError: lengths, shapes or ids that contradict each other.

    Example:
        >>> import numpy as np
        >>> data = LabelledData(ids=np.array(["a", "b"]), kind="text", content=["hello", "win now"],
        ...                     labels=np.array([0, 1]), classes=("ham", "spam"))
        >>> len(data), data.rows([1]).content
        (2, ['win now'])
    """

    ids: Array
    kind: Kind
    content: Content
    labels: Array
    classes: tuple[str, ...]
    split: Array | None = None
    reference: Array | None = None
    source: str = ""
    label_name: str = "label"
    notes: tuple[str, ...] = ()
    encoding: str | None = None

    def __post_init__(self) -> None:
        rows = len(self.ids)
        object.__setattr__(self, "labels", _checked_labels(self.labels, len(self.classes)))
        for name, value in (("content", self.content), ("labels", self.labels), ("split", self.split),
                            ("reference", self.reference)):  # fmt: skip
            if value is not None and len(value) != rows:
                raise DataError(
                    f"{name} must have one entry per id ({rows}), got {len(value)}. Pass arrays of the same length."
                )
        object.__setattr__(self, "ids", _checked_ids(self.ids))
        _check_content(self.kind, self.content)

    def __len__(self) -> int:
        """Return the number of rows N."""
        return len(self.ids)

    def __repr__(self) -> str:
        """Return one line that fits a notebook."""
        return f"LabelledData({len(self)} rows, {self.kind}, {len(self.classes)} classes, source={self.source!r})"

    @cached_property
    def fingerprint(self) -> str:
        r"""SHA-256 over kind, ids, content, labels and classes, as 64 hexadecimal digits.

        Equal content gives an equal fingerprint whatever file format it came from; split, reference,
        notes and source do not enter. Cost: one pass over the content.
        """
        digest = hashlib.sha256(b"whence-data-1\0" + self.kind.encode() + b"\0")
        _add_texts(digest, self.ids.tolist())
        _add_texts(digest, self.classes)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        _add_content(digest, self.content)
        return digest.hexdigest()

    def rows(self, index: Iterable[int] | Array) -> LabelledData:
        """Return the rows at these positions, in this order.

        Args:
            index: positions (int), or a [N] bool mask; no position twice (ids stay unique).

        Returns:
            A LabelledData of the same classes and notes.

        Raises:
            ConfigError: a position outside 0 … N-1, or a mask of another length.

        Cost: one copy of the rows taken.
        """
        where = _positions(index, len(self))
        content: Content
        if isinstance(self.content, pd.DataFrame):
            content = self.content.iloc[where].reset_index(drop=True)
        elif isinstance(self.content, list):
            content = [self.content[position] for position in where.tolist()]
        else:
            content = self.content[where]
        return replace(
            self,
            ids=self.ids[where],
            content=content,
            labels=self.labels[where],
            split=None if self.split is None else self.split[where],
            reference=None if self.reference is None else self.reference[where],
        )

    def with_labels(self, labels: Array | Sequence[int]) -> LabelledData:
        """Return the same rows with other labels.

        Args:
            labels: [N] int, positions in ``classes``.

        Raises:
            DataError: another length, or a position outside ``classes``.
        """
        return replace(self, labels=np.asarray(labels))


def _checked_ids(ids: Array) -> Array:
    """Ids as a numpy text array; the error names the first id that occurs twice."""
    values = np.asarray(ids)
    if values.ndim != 1:
        raise DataError(f"ids must be one-dimensional, got shape {values.shape}. Pass one id per row.")
    texts = values.tolist() if values.dtype.kind == "U" else [str(value) for value in values.tolist()]
    longest = max(map(len, texts), default=0)
    if longest > 1024:
        raise DataError(
            f"ids must be at most 1024 characters long, got one of {longest}. "
            "Choose a shorter id column, or none to use row numbers."
        )
    array = np.array(texts, dtype=f"<U{max(longest, 1)}")
    if len(set(array.tolist())) != len(array):
        seen: set[str] = set()
        repeated = next(text for text in array.tolist() if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        count = texts.count(repeated)
        raise DataError(
            f"ids must be unique, got {repeated!r} {count} times. Choose another id column, or none to use row numbers."
        )
    return array


def _checked_labels(labels: Array, classes: int) -> Array:
    """Labels as [N] int64 positions of classes."""
    values = np.asarray(labels)
    if values.ndim != 1 or (values.dtype.kind not in "iu" and values.size):
        raise DataError(
            f"labels must be a one-dimensional array of class positions (integers), got {values.dtype} of "
            f"shape {values.shape}. Use read, from_frame or from_arrays to turn names into positions."
        )
    if values.size and (int(values.min()) < 0 or int(values.max()) >= classes):
        raise DataError(
            f"labels must lie in 0 … {classes - 1} (one class name each), got "
            f"{int(values.min())} … {int(values.max())}. Name every class."
        )
    return values.astype(np.int64)


def _check_content(kind: Kind, content: Content) -> None:
    """Content has the type that its kind promises."""
    if kind == "tabular":
        good = isinstance(content, pd.DataFrame)
    elif kind == "text":
        good = isinstance(content, list)
    else:
        good = (
            isinstance(content, np.ndarray)
            and content.dtype == np.uint8
            and content.ndim == 4
            and content.shape[3] in (1, 3)
        )
    if not good:
        expected = {
            "tabular": "a DataFrame",
            "text": "a list of strings",
            "image": "a uint8 array [N, H, W, 1 or 3]",
        }
        got = f"{content.dtype} {content.shape}" if isinstance(content, np.ndarray) else type(content).__name__
        raise DataError(f"content of kind {kind!r} must be {expected[kind]}, got {got}. Use from_frame or from_arrays.")


def _positions(index: Iterable[int] | Array, rows: int) -> Array:
    """Positions as int64; a bool mask becomes the positions where it holds."""
    where = np.asarray(index if isinstance(index, np.ndarray) else list(index))
    if where.dtype == np.bool_:
        if where.shape != (rows,):
            raise ConfigError(f"a mask must have shape ({rows},), got {where.shape}. Pass one bool per row.")
        return np.flatnonzero(where)
    if where.size == 0:
        return np.zeros(0, dtype=np.int64)
    if where.ndim != 1 or where.dtype.kind not in "iu" or where.min() < 0 or where.max() >= rows:
        raise ConfigError(
            f"index must hold row positions 0 … {rows - 1}, got {where.dtype} of shape {where.shape}. "
            "Pass integers or a bool mask."
        )
    return where.astype(np.int64)


def _add_texts(digest: hashlib._Hash, texts: Sequence[str | None]) -> None:
    """Hash a sequence of strings without ambiguity: lengths first (-1 for a missing one), then bytes."""
    encoded = [None if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([-1 if text is None else len(text) for text in encoded], dtype="<i8")
    digest.update(np.array([len(lengths)], dtype="<i8").tobytes() + lengths.tobytes())
    digest.update(b"".join(text for text in encoded if text is not None))


def _add_content(digest: hashlib._Hash, content: Content) -> None:
    """Hash what a model sees."""
    if isinstance(content, list):
        _add_texts(digest, content)
    elif isinstance(content, np.ndarray):
        digest.update(repr(content.shape).encode() + np.ascontiguousarray(content).tobytes())
    else:
        for position, name in enumerate(content.columns):
            column = content.iloc[:, position]
            _add_texts(digest, [str(name)])
            if column.dtype.kind == "f":
                values = column.to_numpy(dtype="<f8", copy=True)
                values[np.isnan(values)] = np.nan  # one bit pattern for every missing value
                digest.update(b"f" + (values + 0.0).tobytes())
            else:
                _add_texts(digest, [None if value is None else str(value) for value in column.tolist()])
