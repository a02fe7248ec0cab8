"""Suspects as a notebook shows them: a styled table beside the data, and their signals against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from whence.data import LabelledData
from whence.errors import ConfigError, DataError
from whence.notebook import card, figures, listing, number, picture, readable

__all__ = ["ShownSuspects", "show"]

_NEEDED = ("id", "label", "suggested_label", "suspicion", "rank", "is_suspect")
_EVIDENCE = 3
_CELLS = 8
_WIDE = 160


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownSuspects:
    """Suspects to look at: a notebook shows a table, ``plot`` draws two signals. Made by `show`.

    Args:
        frame: What `find_label_errors` returned, unchanged.
        data: The data set, for the rows' content, or None.
        rows: How many of the first rows are shown.
    """

    frame: pd.DataFrame
    data: LabelledData | None
    rows: int

    def __repr__(self) -> str:
        """Return the counts."""
        suspects = int(self.frame["is_suspect"].sum())
        return f"ShownSuspects({suspects:,} of {len(self.frame):,} rows, the first {self.rows:,} shown)"

    def _repr_html_(self) -> str:
        """Return the first rows for a notebook."""
        first = self.frame.nsmallest(self.rows, "rank")
        there = {} if self.data is None else {str(id_): row for row, id_ in enumerate(self.data.ids.tolist())}
        columns = ["rank", "id", "given", "suggested", "suspicion", *(["content"] if there else []), "evidence"]
        rows = []
        for row in first.to_dict("records"):
            content = [self._content(there.get(str(row["id"])))] if there else []
            rows.append([
                int(row["rank"]), readable(row["id"], 40), readable(row["label"], 40),
                readable(row["suggested_label"], 40), number(row["suspicion"]), *content,
                ", ".join(readable(id_, 20) for id_ in list(row.get("evidence") or ())[:_EVIDENCE]),
            ])  # fmt: skip
        suspects = int(self.frame["is_suspect"].sum())
        title = f"{suspects:,} of {len(self.frame):,} rows are probably mislabelled"
        chosen = np.flatnonzero(first["is_suspect"].to_numpy(bool)).tolist()
        notes = ["Bold: above the estimated number of wrong labels. Evidence: rows that the label argues with."]
        return card(title, [listing(columns, rows, chosen=chosen)], notes)

    def plot(self, x: str = "self_influence", y: str = "loss") -> Any:
        """Draw two columns of the frame against each other; suspects stand out.

        Args:
            x: A column of numbers; see `whence.uses.label_errors.SIGNALS`.
            y: Another.

        Returns:
            A plotly figure.

        Raises:
            ConfigError: There is no such column.
            MissingExtraError: plotly is not installed (extra ``notebook``).
        """
        known = self.frame.select_dtypes("number").columns.tolist()
        for name in (x, y):
            if name not in known:
                raise ConfigError(f"column must be one of {', '.join(map(str, known))}, got {name!r}.")
        values = [self.frame[name].to_numpy(float) for name in (x, y)]
        return figures.cloud(
            values[0], values[1], self.frame["id"].tolist(), self.frame["is_suspect"].to_numpy(bool),
            title=f"{y} against {x}", axes=(x, y), names=("others", "suspects"),
        )  # fmt: skip

    def _content(self, row: int | None) -> str | Markup:
        """Return a row of the data in short."""
        if row is None or self.data is None:
            return ""
        content = self.data.content
        if isinstance(content, np.ndarray):
            return picture(content[row])
        if isinstance(content, pd.DataFrame):
            cells = zip(content.columns[:_CELLS], content.iloc[row, :_CELLS].tolist(), strict=True)
            return readable(", ".join(f"{readable(name, 30)}={readable(value, 30)}" for name, value in cells), _WIDE)
        return readable(content[row], _WIDE)


def show(frame: pd.DataFrame, *, data: LabelledData | None = None, rows: int = 20) -> ShownSuspects:
    """Return suspects as a notebook shows them, with their content; the frame itself stays a DataFrame.

    Args:
        frame: What `find_label_errors` returned.
        data: The data set, for the rows' text, image or cells, by id.
        rows: How many rows to show, most suspect first.

    Returns:
        An object that a notebook shows as a table, with a method ``plot``.

    Raises:
        ConfigError: ``rows`` is below 1, or the frame is another.
        DataError: The data holds none of the frame's ids.

    Cost: the shown rows.

    Example:
        >>> import numpy as np, whence as wh
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.95, 0.05]])
        >>> show(wh.find_label_errors(p, labels=[0, 0, 1, 1]), rows=2)
        ShownSuspects(1 of 4 rows, the first 2 shown)
    """
    missing = [name for name in _NEEDED if name not in frame]
    if missing:
        raise ConfigError(f"frame must be what find_label_errors returned, got none of {', '.join(missing)}.")
    if rows < 1:
        raise ConfigError(f"rows must be at least 1, got {rows}.")
    if data is not None and not set(map(str, data.ids.tolist())) & set(map(str, frame["id"].tolist())):
        raise DataError("data must hold the frame's rows, got other ids. Pass the data that was audited.")
    return ShownSuspects(frame=frame, data=data, rows=min(rows, len(frame)))
