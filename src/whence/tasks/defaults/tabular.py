"""The embedded default for tables: standardised numbers, one-hot categories, and a perceptron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whence.data import LabelledData
from whence.errors import DataError, RunFormatError
from whence.tasks.defaults.base import Default
from whence.tasks.defaults.perceptron import perceptron_config, perceptron_recipe

__all__ = ["TabularPreparation", "tabular_default"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_CATEGORIES = 100
_RARE = 2
_SKEWED = 1.0
_MANY_ZEROS = 0.1
_CLIP = 6.0
_EPOCHS = 30
_DECAY = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class TabularPreparation:
    """Rows as vectors.

    A number becomes (x − mean)/deviation, of log(1 + x) where it is never negative and skewed; with an indicator where
    at least a tenth of the column is zero, and another where values are missing (which take the median). A category
    becomes one of at most 100 indicators, for values that occur twice or more; all others share one.

    Args:
        numbers: For every numeric column: name, median, whether log, mean, deviation, whether zeros and missing have
            indicators.
        categories: For every other column: name and the values with an indicator.
    """

    numbers: tuple[Mapping[str, Any], ...]
    categories: tuple[Mapping[str, Any], ...]

    @classmethod
    def fit(cls, table: pd.DataFrame) -> TabularPreparation:
        """Measure the columns. Labels play no part. Cost: a few passes over the table."""
        numbers, categories = [], []
        for name in table.columns:
            column = table[name]
            if pd.api.types.is_numeric_dtype(column):
                numbers.append(_measure(str(name), column.to_numpy(np.float64)))
            else:
                counts = column.dropna().astype(str).value_counts()
                kept = counts[counts >= _RARE].index[:_CATEGORIES]
                categories.append({"name": str(name), "values": sorted(str(value) for value in kept)})
        return cls(numbers=tuple(numbers), categories=tuple(categories))

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TabularPreparation:
        """Return the preparation whose `state` this was."""
        try:
            return cls(numbers=tuple(settings["numbers"]), categories=tuple(settings["categories"]))
        except (KeyError, TypeError) as error:
            got = sorted(settings)
            raise RunFormatError(f"a table preparation must be complete, got {got}. Audit again.") from error

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON-able settings and tensors."""
        settings = {"numbers": [dict(n) for n in self.numbers], "categories": [dict(c) for c in self.categories]}
        return settings, {"columns": torch.tensor(len(self.numbers) + len(self.categories))}

    def transform(self, data: LabelledData) -> Tensor:
        """Return the vectors [N, D] in float32.

        Raises:
            DataError: The data holds no table, or a column is missing.
        """
        table = data.content
        if not isinstance(table, pd.DataFrame):
            raise DataError(f"the data must hold a table, got {data.kind} rows.")
        names = [column["name"] for column in (*self.numbers, *self.categories)]
        missing = [name for name in names if name not in table.columns]
        if missing:
            raise DataError(f"the table must have the columns it was trained on, got none named {missing[:5]}.")
        words = [c["name"] for c in self.numbers if not pd.api.types.is_numeric_dtype(table[c["name"]])]
        if words:
            raise DataError(f"columns {words[:5]} must hold numbers, as the table that was trained on, got text.")
        parts = [_number_columns(table[column["name"]].to_numpy(np.float64), column) for column in self.numbers]
        parts += [_category_columns(table[column["name"]], column["values"]) for column in self.categories]
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    def places(self) -> dict[str, list[int]]:
        """Return the entries of a vector that stand for each column."""
        widths = {c["name"]: 1 + sum(c[flag] is not None for flag in ("zeros", "missing")) for c in self.numbers}
        widths |= {c["name"]: len(c["values"]) + 2 for c in self.categories}
        ends = np.cumsum(list(widths.values())).tolist()
        return {name: list(range(end - width, end)) for (name, width), end in zip(widths.items(), ends, strict=True)}


def tabular_default(data: LabelledData, seed: int = 0) -> Default:
    """Return the embedded default for tables, fitted to their columns (not to their labels)."""
    if not isinstance(data.content, pd.DataFrame):
        raise DataError(f"the default for tables needs a table, got {data.kind} data. Use the default of that kind.")
    preparation = TabularPreparation.fit(data.content)
    inputs = preparation.transform(data.rows([0])).shape[1]
    network = perceptron_config(
        inputs=inputs, classes=len(data.classes), hidden=(128, 64), input_dropout=0.3, dropout=0.5
    )
    return Default(
        name="tabular-mlp",
        description=f"Standardised numbers and one-hot categories ({inputs} inputs), then a perceptron with hidden "
        "layers of 128 and 64.",
        preparation=preparation,
        network=network,
        recipe=perceptron_recipe(network, rows=len(data), epochs=_EPOCHS, decay=_DECAY),
        refit=perceptron_recipe(network, rows=len(data), epochs=_EPOCHS, decay=_DECAY, share=0.5),
        damping=100.0,
    )


def _measure(name: str, values: Array) -> dict[str, Any]:
    """Return how a numeric column is transformed."""
    present = values[np.isfinite(values)]
    median = float(np.median(present)) if len(present) else 0.0
    filled = np.where(np.isfinite(values), values, median)
    spread = filled.std()
    skewness = float(((filled - filled.mean()) ** 3).mean() / spread**3) if spread > 0 else 0.0
    logarithm = bool(filled.min() >= 0 and skewness > _SKEWED)
    scaled = np.log1p(filled) if logarithm else filled
    zeros = float((filled == 0).mean())
    return {
        "name": name,
        "median": median,
        "log": logarithm,
        "mean": float(scaled.mean()),
        "deviation": float(scaled.std()) or 1.0,
        "zeros": zeros if _MANY_ZEROS <= zeros <= 1 - 1e-9 and (filled != 0).any() else None,
        "missing": float((~np.isfinite(values)).mean()) or None,
    }


def _number_columns(values: Array, column: Mapping[str, Any]) -> Array:
    """Return the columns that stand for a number [N, 1–3]."""
    absent = ~np.isfinite(values)
    filled = np.where(absent, column["median"], values)
    scaled = np.log1p(np.maximum(filled, 0)) if column["log"] else filled
    parts = [np.clip((scaled - column["mean"]) / column["deviation"], -_CLIP, _CLIP)]
    for share, flags in ((column["zeros"], filled == 0), (column["missing"], absent)):
        if share is not None:
            parts.append((flags - share) / max((share * (1 - share)) ** 0.5, 1e-3))
    return np.stack(parts, axis=1)


def _category_columns(column: pd.Series[Any], values: list[str]) -> Array:
    """Return one indicator a kept category, one for all others and one for missing values."""
    missing = column.isna().to_numpy()
    texts = pd.Index(column.where(~missing, "").astype(str).to_numpy(dtype=object))
    codes = pd.Index(values, dtype=object).get_indexer(texts)
    codes = np.where(missing, len(values) + 1, np.where(codes < 0, len(values), codes))
    return np.asarray(np.eye(len(values) + 2)[codes])
