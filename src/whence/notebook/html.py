"""Small pieces of HTML for a notebook's output cell; whatever comes from data is escaped where it enters.

Everything is put together by ``Markup.format``, which escapes each value that is not markup itself, so that nothing can
be forgotten. The style is scoped to our class and follows the notebook's own light or dark theme.
"""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

__all__ = ["bar", "card", "facts", "listing", "number", "picture", "readable"]

_WIDE, _LONG, _SHORT = 120, 1_000, 24
_SIDE = 64
_STYLE = Markup("""<style>
.whence{font:13px/1.45 system-ui,sans-serif;font-variant-numeric:tabular-nums;max-width:70rem;overflow-x:auto;
--good:#0a6858;--alarm:#b3351a;--line:#8885}
[data-jp-theme-light="false"] .whence,.vscode-dark .whence,.theme-dark .whence{--good:#67d0ba;--alarm:#ff8f70}
.whence p{margin:.2em 0;opacity:.8}.whence .title{font-weight:600;opacity:1}
.whence table{border-collapse:collapse;margin:.4em 0;display:inline-table;vertical-align:top}
.whence table+table{margin-left:2em}
.whence caption{text-align:left;font-weight:600;padding:.2em 0}
.whence th,.whence td{text-align:left;padding:.15em .7em .15em 0;border-bottom:1px solid var(--line);
vertical-align:top;overflow-wrap:anywhere;white-space:normal}
.whence .n{text-align:right}.whence th,.whence .n,.whence .s{white-space:nowrap}
.whence .good{color:var(--good)}.whence .alarm{color:var(--alarm)}
.whence i.bar{display:inline-block;height:.7em;background:currentColor;min-width:1px}
.whence .chosen{font-weight:600}
</style>""")


def readable(value: Any, width: int = _WIDE) -> str:
    """Return a value as one line of text without control, direction and surrogate characters, cut to a width."""
    line = " ".join(str(value)[: 4 * width].split())
    safe = "".join("␦" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in line)
    return safe if len(safe) <= width else safe[: width - 1] + "…"


def number(value: Any, *, signed: bool = False) -> str:
    """Return three significant digits, a dash for what is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if signed else ''}.3g}".replace("-", "−")


def card(title: str, parts: Iterable[Markup], notes: Iterable[str] = ()) -> str:
    """Return a whole output: style, title, parts, notes."""
    said = Markup("").join(Markup("<p>{}</p>").format(readable(note, _LONG)) for note in notes)
    head = Markup('<div class="whence"><p class="title">{}</p>').format(readable(title, _LONG))
    return str(_STYLE + head + Markup("").join(parts) + said + Markup("</div>"))


def facts(values: Mapping[str, Any]) -> Markup:
    """Return names and values as a table of two columns."""
    row = Markup('<tr><th scope="row">{}</th><td>{}</td></tr>')
    return Markup("<table><tbody>{}</tbody></table>").format(
        Markup("").join(row.format(name, _cell(value)) for name, value in values.items())
    )


def listing(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = "", chosen: Iterable[int] = ()
) -> Markup:
    """Return a table; numbers are aligned right, the rows at ``chosen`` places stand out."""
    held, outstanding = [list(row) for row in rows], frozenset(chosen)
    numeric = [all(isinstance(row[c], (int, float, np.number)) for row in held) for c in range(len(columns))]
    head = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format("n" if right else "", name)
        for name, right in zip(columns, numeric, strict=True)
    )
    body = Markup("").join(
        Markup('<tr class="{}">{}</tr>').format(
            "chosen" if place in outstanding else "",
            Markup("").join(_column(value, right) for value, right in zip(row, numeric, strict=True)),
        )
        for place, row in enumerate(held)
    )
    return Markup("<table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
        caption, head, body
    )


def bar(value: float, largest: float) -> Markup:
    """Return a bar as long as a value is beside the largest, coloured by its sign."""
    share = abs(value) / largest if largest > 0 and math.isfinite(value) else 0.0
    kind = "good" if value >= 0 else "alarm"
    return Markup('<span class="{}"><i class="bar" style="width:{:.2f}em"></i></span>').format(kind, 5 * share)


def picture(pixels: np.ndarray) -> Markup:
    """Return an image [H, W, C] of bytes, of at most 64 pixels a side."""
    squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels  # [H, W] or [H, W, 3]
    image = Image.fromarray(np.ascontiguousarray(squeezed, dtype=np.uint8))
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Markup('<img alt="image" src="data:image/png;base64,{}">').format(data)


def _column(value: Any, right: bool) -> Markup:
    """Return a cell: numbers to the right, short texts on one line."""
    shown = _cell(value)
    kind = "n" if right else "s" if len(shown) <= _SHORT and not isinstance(shown, Markup) else ""
    return Markup('<td class="{}">{}</td>').format(kind, shown)


def _cell(value: Any) -> Any:
    """Return a value as text, markup as it is."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, (float, np.floating)):
        return number(float(value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else readable(value)
