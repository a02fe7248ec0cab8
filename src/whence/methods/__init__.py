"""Attribution methods, one estimator a file: a config with ``fit(task, train)``."""

from whence.methods.corrected import LeaveOneOut
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.restored import load
from whence.methods.saved import save

__all__ = ["Influence", "InfluenceAttribution", "LeaveOneOut", "load", "save"]
