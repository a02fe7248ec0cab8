"""Relabelling: rows whose self-influence lies above Otsu's threshold get the most probable other label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from whence.errors import ConfigError, DataError
from whence.scores import Signal

__all__ = ["otsu_threshold", "relabel"]

Array: TypeAlias = "np.ndarray[Any, Any]"


def relabel(
    signal: Signal, probabilities: Any, labels: Any, *, classes: Sequence[Any] | None = None,
    scale: Literal["linear", "log"] = "linear", threshold: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    r"""Return new labels: of rows above the threshold argmax_{c ≠ y_i} p_i[c], of all others what they are.

    Args:
        signal: Self-influence or another suspicion, larger = more suspect [N]; GEX's has two modes.
        probabilities: Of the model that the signal is of, or of one that has not seen the rows (better where the model
            has memorised them) [N, C].
        labels: Given labels as positions 0 … C−1, in the signal's order [N].
        classes: Names of the classes, for the frame; None for positions.
        scale: Where Otsu's threshold is taken: on the signal itself, or on its logarithm (values that are not
            positive count as the smallest positive one).
        threshold: A threshold of one's own, in the signal's unit, instead of Otsu's.

    Returns:
        A frame in the signal's order: ``id``, ``old``, ``new``, ``above``; ``attrs["threshold"]`` is the threshold.

    Raises:
        DataError: The numbers of rows differ, labels are no positions in the classes, or a value is not finite.

    Cost: one sort.

    Reference: Kim, Kim & Yang (2023), §5.2; Otsu (1979). Deviation: the released code overwrites the labels of *all*
        rows with the model's probabilities.

    Example:
        >>> signal = Signal(values=np.array([0.1, 0.2, 9.0]), ids=np.arange(3), name="self-influence", unit=None)
        >>> relabel(signal, [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [0, 0, 0])["new"].tolist()
        [0, 0, 1]
    """
    values = np.asarray(signal.values, dtype=np.float64)
    p, given = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or p.shape[1] < 2 or len(p) != len(values) or given.shape != (len(values),):
        raise DataError(
            f"probabilities must be [N, C] and labels [N] of the signal's {len(values)} rows, got {p.shape} and "
            f"{given.shape}."
        )
    if given.dtype.kind not in "iu" or ((given < 0) | (given >= p.shape[1])).any() or not np.isfinite(p).all():
        raise DataError(f"labels must be positions 0 … {p.shape[1] - 1} and probabilities finite. Encode the labels.")
    if not np.isfinite(values).all():
        raise DataError("signal must be finite, got NaN or infinity. Drop or fill those examples.")
    if classes is not None and len(classes) != p.shape[1]:
        raise DataError(f"classes must be one a column of probabilities ({p.shape[1]}), got {len(classes)}.")
    limit = otsu_threshold(values, scale=scale) if threshold is None else float(threshold)
    above = values > limit
    others = p.copy()
    others[np.arange(len(p)), given] = -np.inf
    new = np.where(above, others.argmax(1), given)
    names = np.arange(p.shape[1]) if classes is None else np.asarray(classes)
    frame = pd.DataFrame({"id": signal.ids, "old": names[given], "new": names[new], "above": above})
    frame.attrs["threshold"] = limit
    return frame


def otsu_threshold(values: Any, *, scale: Literal["linear", "log"] = "linear") -> float:
    r"""Return the threshold that leaves the two sides' means farthest apart: max n₁ n₂ (μ₁ − μ₂)².

    Args:
        values: [N], finite, at least two different ones.
        scale: "linear", or "log" to choose on logarithms.

    Returns:
        The middle of the two values between which it lies (on the chosen scale), in the values' unit. Of several
        equally good ones, the lowest.

    Raises:
        ConfigError: The scale is another one.
        DataError: A value is not finite, all are equal, or none is positive on a log scale.

    Cost: one sort; exact over all N − 1 splits, without a histogram.

    Reference: Otsu (1979), A threshold selection method from grey-level histograms, eq. 18.

    Example:
        >>> otsu_threshold([0.0, 1.0, 9.0, 10.0])
        5.0
    """
    if scale not in ("linear", "log"):
        raise ConfigError(f'scale must be "linear" or "log", got {scale!r}.')
    given = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(given) or not np.isfinite(given).all():
        raise DataError("values must be finite, at least two different ones, got none, NaN or infinity.")
    if scale == "log":
        positive = given[given > 0]
        if not len(positive):
            raise DataError('values must have positive ones for a log scale, got none. Use scale="linear".')
        given = np.log(given.clip(min=positive.min()))
    ordered = np.sort(given)
    if ordered[0] == ordered[-1]:
        raise DataError(f"values must have at least two different ones to be divided, got only {ordered[0]:g}.")
    centred = ordered - ordered.mean()
    below = np.arange(1, len(ordered))
    sums = centred.cumsum()[:-1]
    between = np.where(ordered[1:] > ordered[:-1], sums**2 / (below * (len(ordered) - below)), -1.0)
    place = int(between.argmax())
    middle = float((ordered[place] + ordered[place + 1]) / 2)
    if not ordered[place] <= middle < ordered[place + 1]:
        middle = float(ordered[place])
    return float(np.exp(middle)) if scale == "log" else middle
