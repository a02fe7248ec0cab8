"""Telling two data sources apart by how examples influence some that are known to be of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from whence.errors import DataError
from whence.scores import Signal
from whence.uses.class_based import class_based

__all__ = ["SourceSeparation", "separate_sources"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceSeparation:
    """How near each training example is to one source.

    Args:
        signal: Mean score for the references of the source [N]: large = of the same source.
        auc: Chance that an example known to be of the source has a larger one than one that is not; None where
            nothing is known. ½ is chance.
    """

    signal: Signal
    auc: float | None


def separate_sources(source: Any, reference: Any = None, *, known: Any = None) -> SourceSeparation:
    r"""Return how much every training example influences references of one source, (1/|R|) Σ_{t ∈ R} s(t, i).

    Examples of the same source learn from one another; what influences none of them came from elsewhere.

    Args:
        source: `Scores` whose rows are the references; or an attribution or index: anything with ``.scores(queries)``.
        reference: Examples (or query features) of one source, where ``source`` is no `Scores`. Leave them out of
            what ``known`` marks if they are training examples.
        known: Which training examples are of that source: a mask of bools [N], for the AUC.

    Raises:
        ConfigError: ``source`` and ``reference`` do not go together.
        DataError: The mask is not one bool a training example, or marks none or all.

    Cost: the scores of the references, some at a time.

    Reference: Kim, Kim & Yang (2023), §5.4.

    Example:
        >>> import torch
        >>> values = torch.tensor([[0.9, 0.1, 0.8, -0.1]])
        >>> scores = Scores(values=values, query_ids=np.arange(1), ids=np.arange(4), unit=None)
        >>> separate_sources(scores, known=[True, False, True, False]).auc
        1.0
    """
    harm = class_based(source, reference, reduction="mean")
    signal = Signal(values=-harm.values, ids=harm.ids, name="mean score for the references", unit=harm.unit)
    if known is None:
        return SourceSeparation(signal=signal, auc=None)
    mask = np.asarray(known)
    if mask.dtype != np.bool_ or mask.shape != signal.values.shape or not 0 < mask.sum() < len(mask):
        raise DataError(f"known must be {len(signal)} bools, some and not all true, got {mask.dtype} {mask.shape}.")
    return SourceSeparation(signal=signal, auc=float(roc_auc_score(mask, signal.values)))
