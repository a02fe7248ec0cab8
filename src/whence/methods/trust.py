"""Whether the sizes of scores can be believed, from what was fitted: effective parameters beside rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["doubt_of", "effective_parameters"]


def effective_parameters(curvature: Mapping[str, Any]) -> float | None:
    r"""Return γ = tr G H⁻¹ = Σ_j σ_j / (σ_j + damping + weight decay): how many directions the data determine.

    γ/N is the mean leverage under the fitted curvature: how much of its own prediction an example fixes. Removing an
    example is a small step only where that is small.

    Args:
        curvature: What a preconditioner's ``summary`` returned.

    Returns:
        None for a curvature that does not know its spectrum.
    """
    if "effective" in curvature:
        return float(curvature["effective"])
    parts = [layer.get("effective") for layer in curvature.get("layers", {}).values()]
    return None if not parts or None in parts else float(sum(parts))


def doubt_of(curvature: Mapping[str, Any], count: int) -> str | None:
    """Return why the sizes of scores of N examples are not to be believed; None where nothing speaks against them.

    With more effective parameters than examples, an example fixes more than one direction of its own prediction on
    average: removing it is no small step, and first order overshoots. Fewer of them do not prove that sizes are right.
    """
    effective = effective_parameters(curvature)
    if effective is None or effective <= count:
        return None
    return f"sizes doubtful: {effective / count:.1f} effective parameters an example"
