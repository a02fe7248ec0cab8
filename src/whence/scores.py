"""What attribution returns: scores of training examples for queries, and signals of single examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from whence.errors import ConfigError
from whence.notebook import figures, scores_html, signal_html

__all__ = ["Scores", "Signal"]

_SHOWN_QUERIES, _SHOWN = 5, 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of N training examples for Q queries.

    ``values[q, i]`` predicts (measurement of query q without training example i) − (measurement with it),
    after retraining. With the default measurement, the query's loss, positive means that the example is
    helpful and negative that it is harmful.

    Args:
        values: [Q, N].
        query_ids: [Q], the rows.
        ids: [N], the columns.
        unit: Unit of the values ("nats" for a cross-entropy), or None for methods that can only rank.
        standard_error: Standard error of the values over members or seeds [Q, N], or None for a single one.
        doubt: Why their sizes are not to be believed, though their order may be; None where nothing speaks against it.
    """

    values: Tensor
    query_ids: np.ndarray
    ids: np.ndarray
    unit: str | None
    standard_error: Tensor | None = None
    doubt: str | None = None

    def __post_init__(self) -> None:
        shape = (len(self.query_ids), len(self.ids))
        for name, found in (("values", self.values), ("standard_error", self.standard_error)):
            if found is not None and tuple(found.shape) != shape:
                raise ConfigError(f"{name} must have shape {shape}, got {tuple(found.shape)}.")

    def __repr__(self) -> str:
        """Return counts, unit and range in one line."""
        counts = f"{len(self.query_ids):,} queries × {len(self.ids):,} examples"
        return f"Scores({counts}, {_told(_array(self.values), self)})"

    def _repr_html_(self) -> str:
        """Return the first queries' extremes for a notebook."""
        first = slice(0, _SHOWN_QUERIES)
        errors = None if self.standard_error is None else self.standard_error[first]
        shown = Scores(values=self.values[first], query_ids=self.query_ids[first], ids=self.ids, unit=self.unit,
                       standard_error=errors)  # fmt: skip
        counts = (len(self.query_ids), len(self.ids))
        return scores_html(shown.top(_SHOWN), shown.bottom(_SHOWN), counts=counts, unit=self.unit, doubt=self.doubt)

    def plot(self, query: Any = None, k: int = 10) -> Any:
        """Draw the k examples whose removal raises a query's measurement the most, and the k that lower it.

        Args:
            query: Id of a query; None for the first.
            k: Examples on each side.

        Returns:
            A plotly figure.

        Raises:
            ConfigError: There is no such query.
            MissingExtraError: plotly is not installed (extra ``notebook``).
        """
        found = np.flatnonzero(self.query_ids == query) if query is not None else np.arange(len(self.query_ids))[:1]
        if not len(found):
            known = ", ".join(map(repr, self.query_ids[:5].tolist()))
            raise ConfigError(f"query must be the id of a query, got {query!r}. Ids begin with {known}.")
        row = int(found[0])
        values = _array(self.values[row])
        order = np.argsort(-values, kind="stable")
        kept = order if len(order) <= 2 * k else np.concatenate([order[:k], order[-k:]])
        errors = None if self.standard_error is None else _array(self.standard_error[row])[kept]
        title = f"Scores for query {self.query_ids[row]}"
        axis = f"change of the measurement on removal, {self.unit}" if self.unit else "score (ranks only)"
        return figures.bars(self.ids[kept].tolist(), values[kept], errors, title=title, axis=axis)

    def top(self, k: int = 10) -> pd.DataFrame:
        """Return, for every query, the k examples whose removal raises the measurement the most.

        Returns:
            A frame with columns ``query, rank, id, score`` and, where there is one, ``standard_error``; Q·k rows.
            Ties are broken by column order.
        """
        return self._extreme(k, largest=True)

    def bottom(self, k: int = 10) -> pd.DataFrame:
        """Return, for every query, the k examples whose removal lowers the measurement the most.

        Returns:
            A frame with columns ``query, rank, id, score`` and, where there is one, ``standard_error``; Q·k rows.
            Ties are broken by column order.
        """
        return self._extreme(k, largest=False)

    def to_frame(self) -> pd.DataFrame:
        """Return the scores as a frame: one row a query, one column a training example.

        With a standard error there are two levels of columns: ``frame["score"]`` and ``frame["standard_error"]``.
        """
        frame = self._wide(self.values)
        if self.standard_error is None:
            return frame
        return pd.concat({"score": frame, "standard_error": self._wide(self.standard_error)}, axis=1)

    def _wide(self, values: Tensor) -> pd.DataFrame:
        index = pd.Index(self.query_ids, name="query")
        return pd.DataFrame(_array(values), index=index, columns=self.ids)

    def _extreme(self, k: int, *, largest: bool) -> pd.DataFrame:
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        kept = min(k, len(self.ids))
        values = _array(self.values)
        order = np.argsort(-values if largest else values, axis=1, kind="stable")[:, :kept]  # [Q, K]
        frame = pd.DataFrame(
            {
                "query": np.repeat(self.query_ids, kept),
                "rank": np.tile(np.arange(1, kept + 1), len(self.query_ids)),
                "id": self.ids[order].reshape(-1),
                "score": np.take_along_axis(values, order, axis=1).reshape(-1),
            }
        )
        if self.standard_error is not None:
            errors = _array(self.standard_error)
            frame["standard_error"] = np.take_along_axis(errors, order, axis=1).reshape(-1)
        return frame


@dataclass(frozen=True, kw_only=True, eq=False)
class Signal:
    """One number an example, in row order, with ids. Behaves like a one-dimensional array.

    Args:
        values: [N].
        ids: [N].
        name: What the numbers are, such as "self-influence".
        unit: Their unit, or None.
        standard_error: Standard error of the values over members or seeds [N], or None for a single one.
        doubt: As that of `Scores`.
    """

    values: np.ndarray
    ids: np.ndarray
    name: str
    unit: str | None
    standard_error: np.ndarray | None = None
    doubt: str | None = None

    def __repr__(self) -> str:
        """Return name, count, unit and range in one line."""
        return f"Signal({self.name!r}, {len(self.ids):,} examples, {_told(np.asarray(self.values), self)})"

    def _repr_html_(self) -> str:
        """Return spread and extremes for a notebook."""
        errors = None if self.standard_error is None else np.asarray(self.standard_error)
        values = np.asarray(self.values)
        return signal_html(values, self.ids, name=self.name, unit=self.unit, errors=errors, doubt=self.doubt)

    def plot(self, against: Signal | None = None) -> Any:
        """Draw how the values are spread, or each beside its example's value of another signal.

        Args:
            against: A signal of the same examples, in any order; it goes along the other axis.

        Returns:
            A plotly figure.

        Raises:
            ConfigError: The signals are of different examples.
            MissingExtraError: plotly is not installed (extra ``notebook``).
        """
        values = np.asarray(self.values, dtype=float)
        if against is None:
            return figures.histogram(values, title=self.name, axis=_axis(self))
        if len(against) != len(self) or set(against.ids.tolist()) != set(self.ids.tolist()):
            raise ConfigError(
                f"against must be a signal of the same examples, got {against!r}. Select the same ids of both first."
            )
        other = against.to_series().reindex(self.ids).to_numpy(float)
        title = f"{self.name} against {against.name}"
        return figures.cloud(other, values, self.ids.tolist(), title=title, axes=(_axis(against), _axis(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the values as an array, so that NumPy functions take a signal."""
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        """Return the number of examples N."""
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        """Return the values at row positions ``index``."""
        return self.values[index]

    def top(self, k: int = 10) -> pd.DataFrame:
        """Return the k examples of the largest values, with columns ``rank, id, value`` (and ``standard_error``).

        Ties are broken by row order; values that are no numbers come last.
        """
        return self._extreme(k, largest=True)

    def bottom(self, k: int = 10) -> pd.DataFrame:
        """Return the k examples of the smallest values, as `top` does."""
        return self._extreme(k, largest=False)

    def _extreme(self, k: int, *, largest: bool) -> pd.DataFrame:
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        values = np.asarray(self.values, dtype=float)
        order = np.argsort(-values if largest else values, kind="stable")[:k]
        columns = {"rank": np.arange(1, len(order) + 1), "id": self.ids[order], "value": values[order]}
        if self.standard_error is not None:
            columns["standard_error"] = np.asarray(self.standard_error)[order]
        return pd.DataFrame(columns)

    def to_series(self) -> pd.Series:
        """Return the values as a pandas series indexed by id."""
        return pd.Series(self.values, index=pd.Index(self.ids, name="id"), name=self.name)

    def to_frame(self) -> pd.DataFrame:
        """Return the values as a frame indexed by id, with a column ``standard_error`` where there is one."""
        frame = self.to_series().to_frame()
        if self.standard_error is not None:
            frame["standard_error"] = self.standard_error
        return frame


def _array(values: Tensor) -> np.ndarray:
    """Return values as an array; half precision as float32, for NumPy has no bfloat16."""
    found = values.detach().cpu()
    array: np.ndarray = (found.float() if found.element_size() == 2 else found).numpy()
    return array


def _axis(signal: Signal) -> str:
    """Return a signal's name with its unit."""
    return f"{signal.name}, {signal.unit}" if signal.unit else signal.name


def _told(values: np.ndarray, of: Scores | Signal) -> str:
    """Return the range of values in their unit, whether they have a standard error, and what speaks against them."""
    spread = f"{values.min():.3g} … {values.max():.3g}" if values.size else "none"
    unit = of.unit or "without a unit"
    errors, doubt = "" if of.standard_error is None else ", with standard errors", f"; {of.doubt}" if of.doubt else ""
    return f"{spread} {unit}{errors}{doubt}"
