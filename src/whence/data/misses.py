"""What a name that leads nowhere was probably meant to be."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["check_the_path", "did_you_mean"]

_LOOKED_AT = 10_000  # names; comparing more takes longer than a person waits for an error
_NAMED = 3
_NEAR = 0.7  # of 1: share of characters in common


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest known names, or an empty text.

    Args:
        name: What was asked for.
        known: What there is; the first 10,000 are looked at.

    Example:
        >>> did_you_mean("sms.cvs", ["sms.csv", "adult.csv"])
        "Did you mean 'sms.csv'?"
    """
    names = list(dict.fromkeys(itertools.islice(known, _LOOKED_AT)))
    folded = {each.casefold(): each for each in reversed(names)}
    asked = name.casefold()
    near = [each for each in difflib.get_close_matches(asked, folded, n=_NAMED, cutoff=_NEAR) if _is_near(asked, each)]
    return f"Did you mean {' or '.join(repr(folded[each]) for each in near)}?" if near else ""


def _is_near(name: str, other: str) -> bool:
    """Whether two names are near without the ending that they share, which says nothing of what was meant."""
    stem, ending = os.path.splitext(name)
    if not ending or not other.endswith(ending):
        return True
    return difflib.SequenceMatcher(None, other.removesuffix(ending), stem).ratio() >= _NEAR


def check_the_path(path: Path) -> str:
    """Return what to do about a path that leads nowhere: what was probably meant, or where its way ends."""
    wanted, told = path.absolute(), ""
    missing = wanted
    with suppress(OSError):  # what cannot be looked into is not listed
        missing = next((part for part in (*reversed(wanted.parents), wanted) if not part.exists()), wanted)
        with os.scandir(missing.parent) as entries:
            told = did_you_mean(missing.name, (entry.name for entry in entries if not entry.name.startswith(".")))
    if told:
        return told
    return "Check the path." if missing == wanted else f"There is no folder {missing.name!r}. Check the path."
