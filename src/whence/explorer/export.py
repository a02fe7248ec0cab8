"""The audited data after the decisions, as a file to take away."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whence.audit import write_rows
from whence.audit.decisions import applied
from whence.data.rewrite import ENDINGS, check_ending
from whence.errors import ConfigError, DataError
from whence.explorer.problems import Problem
from whence.explorer.site import Site

__all__ = ["endings", "export_page", "exported"]


def endings(site: Site) -> list[str]:
    """Return the formats that the data can be written in."""
    found = []
    for ending in ENDINGS:
        try:
            check_ending(site.opened.data, Path(f"rows{ending}"))
        except ConfigError:
            continue
        found.append(ending)
    return found


def export_page(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """Return what an export would do, and the outcome of training again."""
    data = site.opened.data
    labels, kept = applied(data, site.decisions.all().values())
    return {
        "counts": site.decisions.counts(),
        "undecided": int(site.opened.flagged.sum()) - _decided_suspects(site),
        "written": int(kept.sum()),
        "dropped": int((~kept).sum()),
        "relabelled": int((labels != data.labels)[kept].sum()),
        "endings": endings(site),
        "retraining": site.retraining.told(),
    }


def _decided_suspects(site: Site) -> int:
    places = [site.opened.positions[name] for name in site.decisions.all() if name in site.opened.positions]
    return int(site.opened.flagged[np.array(places, dtype=np.int64)].sum())


def exported(site: Site, ending: str) -> bytes:
    """Return the data after the decisions as the bytes of a file; no text of a CSV becomes a formula.

    Raises:
        Problem: No such format, or nothing would be left.

    Cost: reads the source again; memory of the file.
    """
    if ending not in endings(site):
        known = ", ".join(endings(site))
        raise Problem(400, "bad_request", f"ending must be one of {known}, got {ending[:40]!r}.")
    labels, kept = applied(site.opened.data, site.decisions.all().values())
    if not kept.any():
        raise DataError("at least one row must be left, but every row was dropped. Undo a decision.")
    folder = Path(tempfile.mkdtemp(prefix="whence-export-"))
    try:
        target = folder / f"rows{ending}"
        write_rows(site.opened.data, target, labels=labels, kept=kept, guarded=True)
        return target.read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
