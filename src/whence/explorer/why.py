"""Asking the model about a new input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whence.explorer.incoming import LARGEST_IMAGE, LONGEST_TEXT, field_name, fields_of, row_of
from whence.explorer.problems import Problem
from whence.explorer.site import Site

__all__ = ["answer_page", "refused_page", "why_page"]


def why_page(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the form for a new input; ``like`` names a row of the data to begin with."""
    opened = site.opened
    position = opened.position(given["like"]) if given.get("like") else None
    content = opened.data.content
    shape = content.shape[1:3] if isinstance(content, np.ndarray) else (0, 0)
    text = content[position][:LONGEST_TEXT] if isinstance(content, list) and position is not None else ""
    return {
        "fields": fields_of(opened.data, position),
        "text": text,
        "label": "",
        "longest": LONGEST_TEXT,
        "megabytes": LARGEST_IMAGE // 2**20,
        "height": int(shape[0]),
        "width": int(shape[1]),
        "missing": site.oracle.missing,
        "refused": "",
        "explanation": None,
        "largest": 1.0,
    }


def answer_page(site: Site, sent: Mapping[str, Any], image: bytes | None) -> dict[str, Any]:
    """Return the form as it was sent, with what the model answers and why.

    Raises:
        Problem: The input is none, or there is no model to ask.
    """
    if site.oracle.missing:
        raise Problem(409, "no_model", site.oracle.missing)
    label = sent.get("label") or None
    if label is not None:
        site.opened.class_of(str(label))
    rows = row_of(site.opened.data, sent, image)
    explanation = site.oracle.explain_new(rows, labelled=False, measured=None if label is None else str(label))
    shown = [*explanation["helpful"], *explanation["harmful"]]
    return {
        **_typed(site, sent),
        "explanation": explanation,
        "largest": max((abs(one["score"]) for one in shown), default=0.0) or 1.0,
    }


def refused_page(site: Site, sent: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Return the form as it was sent, with why there is no answer."""
    return {**_typed(site, sent), "refused": reason}


def _typed(site: Site, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form with what was typed into it."""
    page = why_page(site, {})
    for place, field in enumerate(page["fields"]):
        field["value"] = str(sent.get(field_name(place), ""))[:LONGEST_TEXT]
    return {**page, "text": str(sent.get("text", ""))[:LONGEST_TEXT], "label": str(sent.get("label") or "")}
