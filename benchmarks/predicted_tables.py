"""Table of the predicted and the measured change of accuracy after decisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pieces import machine, table


def predicted(results: dict[str, Any]) -> Iterable[str]:
    """One row a set and case."""
    if not (found := results.get("predicted_change")):
        return
    yield "## Decisions: what training again changes, and what was predicted\n"
    yield (
        "Bundled rows, 6 % of the labels flipped, embedded models. Change of held-out accuracy in points, "
        f"{found['settings']['seeds']} trainings with 95 % intervals, beside the response of the last layer of one "
        f"model (`wh.last_layer_response`) and the sum of first-order scores of all layers. {machine(found)}\n"
    )
    rows = [
        [name, case, str(one["rows"]), *_cells(one)]
        for name, cases in found["figures"].items() for case, one in cases.items()
    ]  # fmt: skip
    yield table(["", "decisions", "rows", "measured", "response", "first order"], rows) + "\n"


def _cells(one: dict[str, Any]) -> list[str]:
    value, low, high = (f"{100 * number:+.1f}" for number in one["change"])
    return [f"{value} [{low}, {high}]", f"{100 * one['response']:+.1f}", f"{100 * one['first order']:+.1f}"]
