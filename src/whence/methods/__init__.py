"""Attribution methods, one estimator a file: a config with ``fit(task, train)``."""

from whence.methods.corrected import LeaveOneOut
from whence.methods.influence import Influence, InfluenceAttribution

__all__ = ["Influence", "InfluenceAttribution", "LeaveOneOut"]
