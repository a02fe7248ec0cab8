"""The page of ``whence attack``: altered training examples beside the originals, and what they did to predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from whence.data import LabelledData
from whence.report.content import Content, content_of
from whence.report.html import whole_page
from whence.report.plots import Plot, axis, curve
from whence.uses.attack import Attack

__all__ = ["attack_content", "render_attack"]

_LISTED = 12


def attack_content(found: Attack, classes: tuple[str, ...], names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what an attack did as JSON-able values, images included.

    Args:
        found: The attack.
        classes: Names of the classes by position.
        names: Names of the input's entries, for rows that are no images.

    Returns:
        A dict with ``summary``, ``targets``, ``altered`` (of each example ``id``, ``label``, ``largest`` in levels and
        either ``before``, ``after`` and ``difference`` as images or ``changes``), ``history`` and ``reach``.
    """
    box = found.settings.box
    altered = []
    for position, name in enumerate(found.ids.tolist()):
        original, delta = found.original[position], found.deltas[position]
        entry = {
            "id": str(name), "label": classes[int(found.labels[position])],
            "largest": float(delta.abs().max()) / box.level,
        }  # fmt: skip
        if _is_image(original):
            entry |= {
                "before": _picture(original), "after": _picture(original + delta),
                "difference": _picture(0.5 + 0.5 * delta / max(float(delta.abs().max()), 1e-30)),
            }  # fmt: skip
        else:
            entry["changes"] = _changes(original, delta, names)
        altered.append(entry)
    ahead = np.argsort(-found.reach.values, kind="stable")[:_LISTED]
    return {
        "summary": found.summary(),
        "targets": [_target(place, found, classes) for place in range(len(found.targets))],
        "altered": altered,
        "history": [{str(k): float(v) for k, v in row.items()} for row in found.history.to_dict("records")],
        "reach": [{"id": str(found.reach.ids[i]), "reach": float(found.reach.values[i])} for i in ahead],
        "unit": found.reach.unit,
    }


def render_attack(found: dict[str, Any]) -> str:
    """The page of an attack on one's own training set.

    Args:
        found: What `attack_content` returned, with ``format`` 1, ``data``, ``model`` (name), ``said`` (a list of
            sentences), ``whence`` and ``created``.

    Returns:
        A whole page, as self-contained as that of an audit.
    """
    steps = [row["step"] for row in found["history"]]
    margins = [row["margin"] for row in found["history"]]
    x, y = axis(steps or [0]), axis([*margins, 0.0])
    plot = Plot(x=x, y=y, lines=(curve(x, y, steps, margins, kind="second", name="mean margin of the targets"),))
    largest = max((row["reach"] for row in found["reach"]), default=0.0) or 1.0
    values = {"found": found, "plot": plot, "zero": y.place(0.0), "largest": largest}
    return whole_page("attack.html", "", values, plots=True)


def _target(place: int, found: Attack, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return one target with the margins that the controls left."""
    row = found.targets.iloc[place]
    return {
        "id": str(row["query"]), "label": classes[int(row["label"])],
        "before": classes[int(row["predicted_before"])], "after": classes[int(row["predicted_after"])],
        "margin_before": float(row["margin_before"]), "margin_after": float(row["margin_after"]),
        "flipped": bool(row["flipped"]),
        "controls": {one.name: float(one.margins[:, place].mean()) for one in found.controls},
    }  # fmt: skip


def _is_image(x: Tensor) -> bool:
    return x.ndim == 3 and x.shape[0] in (1, 3) and min(x.shape[1:]) >= 4


def _picture(x: Tensor) -> Content:
    """Return an image of floats in [0, 1] [C, H, W] as a PNG, in 8 bits."""
    pixels = (x.detach().cpu().clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)[None]
    data = LabelledData(ids=np.array(["image"]), kind="image", content=pixels, labels=np.array([0]), classes=("",))
    return content_of(data, 0)


def _changes(original: Tensor, delta: Tensor, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the entries that changed most."""
    flat, moved = original.reshape(-1), delta.reshape(-1)
    order = moved.abs().argsort(descending=True, stable=True)[:_LISTED].tolist()
    return [
        {
            "name": names[i] if len(names) == len(flat) else str(i), "before": float(flat[i]),
            "after": float(flat[i] + moved[i]),
        }
        for i in order
    ]  # fmt: skip
