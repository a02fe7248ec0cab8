"""Ground truth: retraining without examples, proximal responses, and how well scores predict them."""

from whence.evaluate.agreement import Agreement, Line, agreement
from whence.evaluate.lds import LDS, gain, lds
from whence.evaluate.leave_out import leave_group_out, leave_one_out
from whence.evaluate.pbrf import pbrf
from whence.evaluate.retraining import Retraining
from whence.evaluate.statistics import Interval
from whence.evaluate.subsets import SubsetOutputs, Subsets, sample_subsets, train_subsets

__all__ = [
    "LDS",
    "Agreement",
    "Interval",
    "Line",
    "Retraining",
    "SubsetOutputs",
    "Subsets",
    "agreement",
    "gain",
    "lds",
    "leave_group_out",
    "leave_one_out",
    "pbrf",
    "sample_subsets",
    "train_subsets",
]
