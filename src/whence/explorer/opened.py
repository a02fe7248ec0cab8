"""A run in memory: what the audit said of every row as columns, and the rows themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from whence.audit import Run
from whence.data import LabelledData
from whence.errors import RunFormatError
from whence.explorer.problems import Problem
from whence.report import Content, content_of

__all__ = ["Opened", "finite"]

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A run with its data; positions are those of the data [N].

    Args:
        run: The audit.
        data: The audited data.
        frame: What the audit said, in the order of the data.
    """

    run: Run
    data: LabelledData
    frame: pd.DataFrame

    @classmethod
    def of(cls, run: Run, data: LabelledData) -> Opened:
        """Put a run's list into the order of its data.

        Raises:
            RunFormatError: The list is of other rows.
        """
        ids = [str(name) for name in data.ids.tolist()]
        listed = run.suspects.assign(id=run.suspects["id"].astype(str)).set_index("id")
        if len(listed) != len(ids) or not listed.index.is_unique or set(listed.index) != set(ids):
            raise RunFormatError(
                f"suspects of run {str(run.folder)!r} must be the {len(ids)} rows of the data, got others. "
                "Run the audit again."
            )
        return cls(run=run, data=data, frame=listed.loc[ids].reset_index())

    def __len__(self) -> int:
        """Return the number of rows N."""
        return len(self.data)

    @cached_property
    def ids(self) -> list[str]:
        """Ids as text [N]."""
        return self.frame["id"].tolist()

    @cached_property
    def positions(self) -> dict[str, int]:
        """Where each id is."""
        return {name: place for place, name in enumerate(self.ids)}

    @cached_property
    def given(self) -> Array:
        """Given classes [N]."""
        return self.data.labels

    @cached_property
    def suggested(self) -> Array:
        """Suggested classes [N], −1 where there is none."""
        names = {name: place for place, name in enumerate(self.data.classes)}
        return self.frame["suggested_label"].map(names).fillna(-1).to_numpy(dtype=np.int64)

    @cached_property
    def flagged(self) -> Array:
        """Which rows the audit calls suspects [N]."""
        return self.frame["is_suspect"].to_numpy(dtype=bool)

    @cached_property
    def rank(self) -> Array:
        """Rank of each row, 1 = most suspect [N]."""
        if "rank" in self.frame:
            return self.frame["rank"].to_numpy(dtype=np.int64)
        order = np.argsort(-self.column("suspicion"), kind="stable")
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(1, len(order) + 1)
        return ranks

    @cached_property
    def signals(self) -> tuple[str, ...]:
        """Names of the numeric columns, suspicion first."""
        numeric = [str(name) for name in self.frame if pd.api.types.is_float_dtype(self.frame[name])]
        return ("suspicion", *(name for name in numeric if name != "suspicion"))

    def column(self, name: str) -> Array:
        """Return a numeric column [N]."""
        return self.frame[name].to_numpy(dtype=np.float64)

    def position(self, id_: str) -> int:
        """Return where an id is.

        Raises:
            Problem: There is no such row.
        """
        if id_ not in self.positions:
            raise Problem(404, "not_found", f"id must be one of the {len(self):,} rows of the data, got {id_[:80]!r}.")
        return self.positions[id_]

    def class_of(self, name: str) -> int:
        """Return the position of a class.

        Raises:
            Problem: There is no such class.
        """
        if name not in self.data.classes:
            known = ", ".join(self.data.classes[:20])
            raise Problem(400, "unknown_label", f"label must be one of {known}, got {name[:80]!r}.")
        return self.data.classes.index(name)

    def content(self, position: int, characters: int = 600, cells: int = 64) -> Content:
        """Return what a reader sees of a row."""
        return content_of(self.data, position, characters=characters, cells=cells)

    def label(self, position: int) -> str:
        """Return the given label of a row."""
        return self.data.classes[int(self.data.labels[position])]

    def suggestion(self, position: int) -> str | None:
        """Return the suggested label of a row."""
        place = int(self.suggested[position])
        return None if place < 0 else self.data.classes[place]


def finite(value: Any) -> float | None:
    """Return a number for JSON: None where it is missing or not finite."""
    return None if value is None or not np.isfinite(value) else float(f"{float(value):.6g}")
