"""Whether a model that sees few wrong labels has learned them, as another model tells."""

from __future__ import annotations

import numpy as np

from whence.uses.label_errors import Members, find_label_errors

__all__ = ["blinded", "sees_some"]

_SEES_NONE = 0.005  # estimated share of wrong labels below which a model sees none
_SEES_FEW = 0.03  # below which it may have learned some of them: another model is asked
_BLIND = 2.0  # times as many must the other one see, to judge with it


def sees_some(rate: float) -> bool:
    """Return whether a model sees so many wrong labels that it is believed without another."""
    return rate >= _SEES_FEW


def blinded(rate: float, other: Members, labels: np.ndarray) -> bool:
    """Return whether a model that sees this share of wrong labels has learned the others, as another model tells.

    It has where it sees none, and where it sees few and the other one sees twice as many.

    Args:
        rate: What `estimate_noise` says of the model's own outputs.
        other: Outputs of the embedded default, which does not learn wrong labels.
        labels: Class positions [N].
    """
    if rate < _SEES_NONE or sees_some(rate):
        return rate < _SEES_NONE
    seen = find_label_errors(other, labels=labels, evidence=0).attrs["diagnosis"]["noise_rate"]
    return bool(seen > _BLIND * rate)
