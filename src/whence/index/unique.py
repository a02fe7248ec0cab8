"""Ids that must differ from all before, remembered in little memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from whence.errors import ConfigError, DataError

__all__ = ["SeenIds"]

_LONGEST_RUN = 2**20


class SeenIds:
    """The ids of an index so far; an id that repeats is refused when it comes.

    Integers lie in sorted arrays, of which short ones are merged: 8 bytes an id and one merge of at most 8 MiB at a
    time. Strings lie in a set.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []
        self._texts: set[Any] = set()

    def add(self, ids: np.ndarray) -> None:
        """Remember ids; none of them where one is refused.

        Raises:
            DataError: One repeats.
            ConfigError: Integers and strings are mixed.
        """
        integer = bool(np.issubdtype(ids.dtype, np.integer))
        if self._texts if integer else self._runs:
            raise ConfigError("ids must be all integers or all strings, got both.")
        if not len(ids):
            return
        if integer:
            self._add_integers(np.sort(ids.astype(np.int64)))
        else:
            self._add_texts(ids.tolist())

    def _add_texts(self, ids: list[Any]) -> None:
        """Remember strings."""
        fresh = set(ids)
        if len(fresh) < len(ids) or not fresh.isdisjoint(self._texts):
            counts = Counter(ids)
            raise _repeated(next(id_ for id_ in ids if id_ in self._texts or counts[id_] > 1))
        self._texts |= fresh

    def _add_integers(self, ids: np.ndarray) -> None:
        """Remember integers, ascending."""
        again = ids[1:][ids[1:] == ids[:-1]]
        for run in self._runs:
            if len(again):
                break
            if run[0] <= ids[-1] and ids[0] <= run[-1]:
                places = np.searchsorted(run, ids)
                again = ids[run[np.minimum(places, len(run) - 1)] == ids]
        if len(again):
            raise _repeated(int(again[0]))
        self._runs.append(ids)
        while len(self._runs) > 1 and _merge(len(self._runs[-2]), len(self._runs[-1])):
            last, other = self._runs.pop(), self._runs.pop()
            self._runs.append(np.sort(np.concatenate([other, last]), kind="stable"))  # linear where both are sorted


def _merge(older: int, newer: int) -> bool:
    """Whether two runs of these lengths become one: every id is then copied a few times only."""
    return older <= 2 * newer and older + newer <= _LONGEST_RUN


def _repeated(id_: Any) -> DataError:
    """Return the error for an id that was there before."""
    return DataError(f"ids must be unique, got {id_!r} twice. Choose other ids.")
