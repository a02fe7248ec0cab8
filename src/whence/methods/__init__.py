"""Attribution methods, one estimator a file: a config with ``fit(task, train)``."""

from whence.methods.baselines import (
    BM25,
    BaselineAttribution,
    LossBaseline,
    MarginBaseline,
    Neighbours,
    RandomBaseline,
    Similarity,
)
from whence.methods.corrected import LeaveOneOut
from whence.methods.ensemble import Ensemble, EnsembleAttribution, load_ensemble
from whence.methods.gex import GEX, GEXAttribution, Laplace
from whence.methods.gex_diagnosis import Diagnosis
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.perturbation import Perturbation
from whence.methods.plan import Plan, plan, plan_of
from whence.methods.restored import load
from whence.methods.saved import save

__all__ = [
    "BM25",
    "GEX",
    "BaselineAttribution",
    "Diagnosis",
    "Ensemble",
    "EnsembleAttribution",
    "GEXAttribution",
    "Influence",
    "InfluenceAttribution",
    "Laplace",
    "LeaveOneOut",
    "LossBaseline",
    "MarginBaseline",
    "Neighbours",
    "Perturbation",
    "Plan",
    "RandomBaseline",
    "Similarity",
    "load",
    "load_ensemble",
    "plan",
    "plan_of",
    "save",
]
