"""Attribution methods, one estimator a file: a config with ``fit(task, train)``."""

from whence.methods.baselines import (
    BM25,
    BaselineAttribution,
    LossBaseline,
    MarginBaseline,
    Neighbours,
    NeighbourShapley,
    RandomBaseline,
    Similarity,
)
from whence.methods.checkpoints import Checkpoints, record_checkpoints
from whence.methods.corrected import LeaveOneOut
from whence.methods.ensemble import Ensemble, EnsembleAttribution, load_ensemble
from whence.methods.gex import GEX, GEXAttribution
from whence.methods.gex_diagnosis import Diagnosis
from whence.methods.gradients import GradientCosine, GradientDot
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.laplace import Laplace
from whence.methods.perturbation import Perturbation
from whence.methods.plan import Plan, plan, plan_of
from whence.methods.ranking import FlatAttribution, RankingAttribution
from whence.methods.representer import Representer
from whence.methods.restored import load
from whence.methods.saved import save
from whence.methods.tracin import TracIn
from whence.methods.training_signals import OutOfFold, el2n, forgetting, out_of_fold
from whence.methods.trak import TRAK
from whence.methods.turnover import TurnOver, TurnOverAttribution

__all__ = [
    "BM25",
    "GEX",
    "TRAK",
    "BaselineAttribution",
    "Checkpoints",
    "Diagnosis",
    "Ensemble",
    "EnsembleAttribution",
    "FlatAttribution",
    "GEXAttribution",
    "GradientCosine",
    "GradientDot",
    "Influence",
    "InfluenceAttribution",
    "Laplace",
    "LeaveOneOut",
    "LossBaseline",
    "MarginBaseline",
    "NeighbourShapley",
    "Neighbours",
    "OutOfFold",
    "Perturbation",
    "Plan",
    "RandomBaseline",
    "RankingAttribution",
    "Representer",
    "Similarity",
    "TracIn",
    "TurnOver",
    "TurnOverAttribution",
    "el2n",
    "forgetting",
    "load",
    "load_ensemble",
    "out_of_fold",
    "plan",
    "plan_of",
    "record_checkpoints",
    "save",
]
