"""No NaN passes silently: whose value is not finite is said where it is computed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from whence.errors import NumericalError

__all__ = ["finite"]


def finite(values: Tensor, ids: np.ndarray, what: str) -> Tensor:
    """Return values [N, ...] of examples; raise where one is NaN or infinite.

    Raises:
        NumericalError: The message names the first such example.
    """
    wrong = ~torch.isfinite(values).reshape(len(values), -1).all(1)
    if bool(wrong.any()):
        raise NumericalError(
            f"{what} must be finite, got NaN or infinity for example {ids.tolist()[int(wrong.nonzero()[0])]!r} "
            f"({int(wrong.sum())} of {len(ids)}). Look at its inputs, or leave it out."
        )
    return values
