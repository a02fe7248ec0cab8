"""Naive Bayes with its exact leave-one-out predictions, in closed form: a judge that never saw the row."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

__all__ = ["naive_bayes_leave_one_out"]

Array: TypeAlias = "np.ndarray[Any, Any]"


def naive_bayes_leave_one_out(
    counts: sp.csr_matrix, labels: Array, classes: int, train_rows: Array | None = None, smoothing: float = 0.1
) -> Array:
    r"""Return multinomial naive Bayes logits of every row, from all training rows but itself.

    f_c = log n_c + Σ_w x_w log((N_cw + α) / (N_c + αV)), with the row's own counts subtracted from its class; exact,
    because only the sums of its own class change.

    Args:
        counts: Weighted counts x ≥ 0 [N, V].
        labels: Class positions [N].
        classes: C.
        train_rows: Positions that count towards the sums; None for all.
        smoothing: α.

    Returns:
        [N, C]. Not calibrated: one factor on all logits is left to be fitted.

    Cost: C passes over the non-zero counts.
    """
    member = np.ones(len(labels), dtype=bool)
    if train_rows is not None:
        member[:] = False
        member[train_rows] = True
    indicator = sp.csr_matrix((member.astype(np.float64), (np.arange(len(labels)), labels)), (len(labels), classes))
    sums = np.asarray((indicator.T @ counts).todense())  # [C, V]
    totals = sums.sum(1)
    sizes = np.asarray(indicator.sum(0)).ravel()
    owner = np.repeat(np.arange(len(labels)), np.diff(counts.indptr))
    own_totals = np.asarray(counts.sum(1)).ravel()
    logits = np.empty((len(labels), classes))
    for c in range(classes):
        inside = member & (labels == c)
        numerator = sums[c][counts.indices] - np.where(inside[owner], counts.data, 0.0) + smoothing
        denominator = totals[c] - np.where(inside, own_totals, 0.0) + smoothing * counts.shape[1]
        terms = counts.data * (np.log(np.maximum(numerator, 1e-12)) - np.log(np.maximum(denominator, 1e-12))[owner])
        logits[:, c] = np.bincount(owner, weights=terms, minlength=len(labels))
        logits[:, c] += np.log(np.maximum(sizes[c] - inside, 0.5))
    return logits
