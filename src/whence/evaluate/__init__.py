"""Ground truth: retraining without examples, proximal responses, and how well scores predict them."""

from whence.evaluate.agreement import Agreement, Line, agreement
from whence.evaluate.compare import Comparison, Contender, Entry, compare, pass_seconds
from whence.evaluate.lds import LDS, gain, lds
from whence.evaluate.leave_out import leave_group_out, leave_one_out
from whence.evaluate.pbrf import pbrf
from whence.evaluate.retraining import Retraining
from whence.evaluate.statistics import Interval
from whence.evaluate.subsets import SubsetOutputs, Subsets, sample_subsets, train_subsets
from whence.evaluate.truths import ErrorTruth, Judgement, LeaveOneOutTruth, SubsetTruth, Truth

__all__ = [
    "LDS",
    "Agreement",
    "Comparison",
    "Contender",
    "Entry",
    "ErrorTruth",
    "Interval",
    "Judgement",
    "LeaveOneOutTruth",
    "Line",
    "Retraining",
    "SubsetOutputs",
    "SubsetTruth",
    "Subsets",
    "Truth",
    "agreement",
    "compare",
    "gain",
    "lds",
    "leave_group_out",
    "leave_one_out",
    "pass_seconds",
    "pbrf",
    "sample_subsets",
    "train_subsets",
]
