"""Reading any fitted curvature back from its settings and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from whence.curvature.base import Preconditioner
from whence.curvature.blocks import block_from_state
from whence.curvature.cg import cg_from_state
from whence.curvature.datainf import datainf_from_state
from whence.curvature.diagonal import diagonal_from_state
from whence.curvature.exact import exact_from_state
from whence.curvature.lowrank import low_rank_from_state
from whence.curvature.projected import projected_from_state
from whence.curvature.rows import rows_from_state
from whence.curvature.stationary import stationary_from_state
from whence.gradients import GradientStream

__all__ = ["preconditioner_from_state"]


def preconditioner_from_state(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], stream: GradientStream
) -> Preconditioner:
    """Restore what a preconditioner's ``state`` returned.

    Args:
        settings: Its settings.
        tensors: Its tensors, on the device to use.
        stream: The training examples, which iterative solvers go over again when they are applied.

    Raises:
        KeyError: The settings are of no kind that is known, or something is missing.
    """
    alone: dict[str, Callable[[Any, Any], Preconditioner]] = {
        "blocks": block_from_state,
        "diagonal": diagonal_from_state,
        "exact": exact_from_state,
        "low rank": low_rank_from_state,
        "projected": projected_from_state,
    }
    solvers: dict[str, Callable[..., Preconditioner]] = {"cg": cg_from_state, "stationary": stationary_from_state}
    kind = settings["kind"]
    if kind == "datainf":
        return datainf_from_state(settings, stream)
    if kind == "rows":
        return rows_from_state(settings, stream)
    if kind not in solvers:
        return alone[kind](settings, tensors)
    inner = None
    if settings["inner"] is not None:
        own = {name.removeprefix("inner/"): t for name, t in tensors.items() if name.startswith("inner/")}
        inner = preconditioner_from_state(settings["inner"], own, stream)
    return solvers[kind](settings, inner, stream)
