"""Curvature approximations, one a file: a frozen config is fitted and gives a preconditioner."""

from whence.curvature.base import Curvature, Damping, Preconditioner, Relative
from whence.curvature.blocks import BlockPreconditioner, DenseInverse, EigenInverse, block_from_state
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact, ExactPreconditioner, exact_from_state
from whence.curvature.identity import Identity
from whence.curvature.kfac import KFAC

__all__ = [
    "EKFAC",
    "KFAC",
    "BlockPreconditioner",
    "Curvature",
    "Damping",
    "DenseInverse",
    "EigenInverse",
    "Exact",
    "ExactPreconditioner",
    "Identity",
    "Preconditioner",
    "Relative",
    "block_from_state",
    "exact_from_state",
]
