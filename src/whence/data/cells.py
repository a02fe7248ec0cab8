"""One cell as CSV and JSON hold it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from whence.data.values import is_number

__all__ = ["guarded_cell", "json_cell", "plain_cell", "runs_as_formula"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_cell(cell: Any) -> Any:
    """Return a cell as CSV holds it: missing is empty."""
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    return cell


def guarded_cell(cell: Any) -> Any:
    """Return a cell as CSV holds it, text that a spreadsheet would run as a formula made text."""
    return f"'{cell}" if isinstance(cell, str) and runs_as_formula(cell) else plain_cell(cell)


def runs_as_formula(cell: str) -> bool:
    """Whether a spreadsheet would run a cell's text as a formula, rather than show it or read it as a number."""
    return cell.startswith(_FORMULA) and not is_number(cell)


def json_cell(cell: Any) -> Any:
    """Return a cell as JSON holds it: missing is null, what JSON does not know is text."""
    if isinstance(cell, (str, bool, int, list, dict)) or cell is None:
        return cell
    if isinstance(cell, np.generic | np.ndarray):
        return json_cell(cell.tolist())
    if isinstance(cell, float):
        return cell if np.isfinite(cell) else None
    return None if pd.isna(cell) else str(cell)
