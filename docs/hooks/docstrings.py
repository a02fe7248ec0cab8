"""Docstrings of the house style for griffe: ``Cost:`` and ``Reference:`` are paragraphs, ``Example:`` is a section."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Any

import griffe

PARAGRAPH = re.compile(r"^(Cost|Reference|References|Note|Deviations): (.+)((?:\n[ \t]+\S.*)*)", re.MULTILINE)


def _joined(match: re.Match[str]) -> str:
    return f"\n**{match[1]}.** {match[2]}" + re.sub(r"\n[ \t]+", "\n", match[3]) + "\n"


class HouseStyle(griffe.Extension):
    """Rewrite every docstring once, before it is parsed."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change one object's docstring."""
        if obj.docstring is not None:
            text = PARAGRAPH.sub(_joined, cleandoc(obj.docstring.value))
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
