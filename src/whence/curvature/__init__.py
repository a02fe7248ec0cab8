"""Curvature approximations, one a file: a frozen config is fitted and gives a preconditioner."""

from whence.curvature.base import Curvature, Damping, Preconditioner, Relative
from whence.curvature.blocks import BlockPreconditioner, DenseInverse, EigenInverse, block_from_state
from whence.curvature.blocks_exact import BlockExact
from whence.curvature.cg import CG
from whence.curvature.datainf import DataInf, DataInfPreconditioner
from whence.curvature.diagonal import Diagonal
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact, ExactPreconditioner, exact_from_state
from whence.curvature.identity import Identity
from whence.curvature.joint import JointPreconditioner
from whence.curvature.kfac import KFAC
from whence.curvature.lanczos import Lanczos
from whence.curvature.lissa import LiSSA
from whence.curvature.neumann import Neumann
from whence.curvature.nystrom import Nystrom
from whence.curvature.projected import Projected, ProjectedPreconditioner
from whence.curvature.ranks import with_rank_of
from whence.curvature.restore import preconditioner_from_state
from whence.curvature.rows import RowBlocks, RowPreconditioner, TwoTables

__all__ = [
    "CG",
    "EKFAC",
    "KFAC",
    "BlockExact",
    "BlockPreconditioner",
    "Curvature",
    "Damping",
    "DataInf",
    "DataInfPreconditioner",
    "DenseInverse",
    "Diagonal",
    "EigenInverse",
    "Exact",
    "ExactPreconditioner",
    "Identity",
    "JointPreconditioner",
    "Lanczos",
    "LiSSA",
    "Neumann",
    "Nystrom",
    "Preconditioner",
    "Projected",
    "ProjectedPreconditioner",
    "Relative",
    "RowBlocks",
    "RowPreconditioner",
    "TwoTables",
    "block_from_state",
    "exact_from_state",
    "preconditioner_from_state",
    "with_rank_of",
]
