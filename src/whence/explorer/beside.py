"""Two runs of the same rows side by side: which suspects they share, and where they differ most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from whence.audit import Run
from whence.explorer.opened import Opened, finite
from whence.explorer.queue import card_of
from whence.explorer.site import Site

__all__ = ["compare_page"]

_LISTED = 12
_LISTS = {"first": "this run alone", "second": "the other run alone", "both": "both runs"}


def compare_page(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """Return both runs' cards, their agreement, and the rows that one of them suspects; ``other`` None without one."""
    mine, other = site.opened, site.beside
    if site.against is None or other is None:
        return {"other": None, "name": str(mine.run.folder)}
    there = other["suspicion"].notna().to_numpy()
    first, second = mine.flagged, other["is_suspect"].fillna(False).to_numpy(dtype=bool)
    a, b = mine.column("suspicion"), other["suspicion"].to_numpy(dtype=np.float64)
    masks = {"first": first & ~second & there, "second": second & ~first, "both": first & second}
    return {
        "name": str(mine.run.folder),
        "other": str(site.against.folder),
        "runs": [_card(mine.run), _card(site.against)],
        "shared": int(there.sum()),
        "missing": int((~there).sum()),
        "agreement": _agreement(a[there], b[there]),
        "counts": {**{name: int(mask.sum()) for name, mask in masks.items()},
                   "neither": int((there & ~first & ~second).sum())},
        "labels_differ": int((there & (other["label"].astype(object).to_numpy() != _labels(mine))).sum()),
        "lists": {name: _listed(site, mask, a, b, name) for name, mask in masks.items()},
        "titles": _LISTS,
    }  # fmt: skip


def _labels(opened: Opened) -> np.ndarray:
    return np.array(opened.data.classes, dtype=object)[opened.given]


def _card(run: Run) -> dict[str, Any]:
    """Return what a run says of itself."""
    model, method = run.summary["model"], run.summary["method"]
    return {
        "folder": str(run.folder), "created": run.summary.get("created"), "model": model.get("name"),
        "held_out_accuracy": finite(model.get("held_out_accuracy")), "method": method.get("name"),
        "suspects": int(run.suspects["is_suspect"].sum()), "rows": len(run.suspects),
    }  # fmt: skip


def _agreement(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's rank correlation of two suspicions."""
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None
    ranks = [pd.Series(values).rank().to_numpy() for values in (a, b)]
    return finite(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _listed(site: Site, mask: np.ndarray, a: np.ndarray, b: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Return the rows that differ most, or that both suspect most."""
    rows = np.flatnonzero(mask)
    strength = np.minimum(a, b)[rows] if name == "both" else np.abs(a - b)[rows]
    chosen = rows[np.argsort(-strength, kind="stable")][:_LISTED]
    decided = site.decisions.all()
    return [
        {"row": card_of(site.opened, decided, int(row), characters=300, cells=8) | {"evidence": []},
         "first": finite(a[row]), "second": finite(b[row])}
        for row in chosen
    ]  # fmt: skip
