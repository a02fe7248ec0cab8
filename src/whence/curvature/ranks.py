"""The rank that a grid of more examples will have: fits to few examples need more terms, for their noise."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from whence.curvature.base import Preconditioner
from whence.curvature.blocks import BlockPreconditioner, EigenInverse
from whence.curvature.kronecker import energies, weigh

__all__ = ["with_rank_of"]

_FARTHEST = 4  # times the examples of the larger fit: beyond, what is left is no longer noise


def with_rank_of(
    count: int, few: tuple[int, Preconditioner], more: tuple[int, Preconditioner], *, decay: float, tolerance: float
) -> Preconditioner:
    """Return a Kronecker preconditioner with no more terms than one of ``count`` examples is expected to need.

    What r terms leave of a grid falls with the number of examples by a power law, for the part of it that is noise:
    two fits give the power, for every r. It is for timing; the terms that are left out are missing in the scores.

    Args:
        count: N.
        few: A number of examples and the preconditioner fitted to them.
        more: Likewise, of more examples; this one is returned, with fewer terms where fewer will do.
        decay: Weight decay, which the grids' shift contains.
        tolerance: The ``rank_tolerance`` of both fits.
    """
    (least, first), (most, last) = few, more
    if not (isinstance(first, BlockPreconditioner) and isinstance(last, BlockPreconditioner)) or least >= most:
        return last
    inverses = dict(last.inverses)
    for name, inverse in last.inverses.items():
        other = first.inverses[name]
        if not isinstance(inverse, EigenInverse) or not isinstance(other, EigenInverse) or count <= most:
            continue
        left = [
            _left(one, holder.details["layers"][name]["damping"] + decay)
            for one, holder in ((other, first), (inverse, last))
        ]
        power = (left[0].clamp(min=1e-300) / left[1].clamp(min=1e-300)).log() / math.log(most / least)
        expected = left[1] * max(most / count, 1 / _FARTHEST) ** power.clamp(min=0.0)
        rank = min(int((expected > tolerance**2).sum()) + 1, len(inverse.u))
        inverses[name] = replace(inverse, u=inverse.u[:rank], v=inverse.v[:rank])
    return BlockPreconditioner(inverses, last.details)


def _left(inverse: EigenInverse, shift: float) -> Tensor:
    """Return the share of the weighted grid's energy that 1, 2, … terms leave [min(O, I)]."""
    grid = inverse.grid.double()
    values = (1 / grid - shift).clamp(min=0.0)
    _, _, weighted = weigh(grid, values.sum(1), values.sum(0))
    found, _ = energies(weighted)
    left: Tensor = 1 - found.cumsum(0) / found.sum().clamp(min=1e-300)
    return left
