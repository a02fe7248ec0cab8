"""Ground truth: retraining without examples, proximal responses, and how well scores predict them."""

from whence.evaluate.agreement import Agreement, Line, agreement
from whence.evaluate.brittleness import Brittle, Brittleness, FlipSearch, Trial, brittleness
from whence.evaluate.compare import Comparison, Contender, Entry, compare, pass_seconds
from whence.evaluate.cost import RetrainingCost, estimate
from whence.evaluate.curves import Curve, CurvePoint, Sweep, correction_curve, removal_curve
from whence.evaluate.detection import Detection, Detector, detection
from whence.evaluate.lds import LDS, gain, lds
from whence.evaluate.leave_out import leave_group_out, leave_one_out
from whence.evaluate.measurements import Accuracy, Margin
from whence.evaluate.pbrf import pbrf
from whence.evaluate.response import last_layer_response
from whence.evaluate.retraining import Retraining
from whence.evaluate.stability import Pairs, Stability, stability
from whence.evaluate.statistics import Interval
from whence.evaluate.subsets import SubsetOutputs, Subsets, sample_subsets, train_subsets
from whence.evaluate.truths import ErrorTruth, Judgement, LeaveOneOutTruth, SubsetTruth, Truth
from whence.evaluate.unimodality import Unimodality, unimodality
from whence.evaluate.verdict import Verdict, verdict

__all__ = [
    "LDS",
    "Accuracy",
    "Agreement",
    "Brittle",
    "Brittleness",
    "Comparison",
    "Contender",
    "Curve",
    "CurvePoint",
    "Detection",
    "Detector",
    "Entry",
    "ErrorTruth",
    "FlipSearch",
    "Interval",
    "Judgement",
    "LeaveOneOutTruth",
    "Line",
    "Margin",
    "Pairs",
    "Retraining",
    "RetrainingCost",
    "Stability",
    "SubsetOutputs",
    "SubsetTruth",
    "Subsets",
    "Sweep",
    "Trial",
    "Truth",
    "Unimodality",
    "Verdict",
    "agreement",
    "brittleness",
    "compare",
    "correction_curve",
    "detection",
    "estimate",
    "gain",
    "last_layer_response",
    "lds",
    "leave_group_out",
    "leave_one_out",
    "pass_seconds",
    "pbrf",
    "removal_curve",
    "sample_subsets",
    "stability",
    "train_subsets",
    "unimodality",
    "verdict",
]
