r"""Damping chosen by a rule: the evidence of the Laplace approximation, layer by layer.

With eigenvalues σ_j of the mean loss's curvature, N examples and a Gaussian prior of precision N·s on a layer's P
weights θ̂, the Laplace approximation of the marginal likelihood is, as a function of the total shift s,

    log p(s) = −(N/2) s ‖θ̂‖² + (P/2) log s − ½ Σ_j log(σ_j + s) + constant.

Its stationary point is s = γ(s) / (N ‖θ̂‖²) with γ(s) = Σ_j σ_j / (σ_j + s), the number of directions that the data
determine (MacKay 1992). It is unique: γ(s)/s falls while ‖θ̂‖² stays. The damping is what s exceeds the weight decay
by, which is part of s already. No retraining, no held-out data, no further pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whence.curvature.base import Damping, absolute, validate_damping
from whence.errors import ConfigError, NumericalError
from whence.gradients import GradientStream

__all__ = ["AutoDamping", "DampingRule", "evidence_shift", "validate_choice"]

AutoDamping = Damping | Literal["auto"]
_HALVINGS = 60
_SPAN = 1e12


def validate_choice(damping: AutoDamping) -> None:
    """Raise unless the damping is "auto", a number ≥ 0 or `Relative`."""
    if isinstance(damping, str):
        if damping != "auto":
            raise ConfigError(f'damping must be a number >= 0, Relative(factor) or "auto", got {damping!r}.')
        return
    validate_damping(damping)


@dataclass(frozen=True, eq=False)
class DampingRule:
    """A damping with what "auto" needs to know: the weights, N and the weight decay.

    Args:
        damping: A number; `Relative` to the mean eigenvalue; or "auto".
        weights: Every layer's weights, any shape.
        count: N.
        decay: Weight decay λ.
    """

    damping: AutoDamping
    weights: Mapping[str, Tensor]
    count: int
    decay: float

    @classmethod
    def of(cls, damping: AutoDamping, stream: GradientStream) -> DampingRule:
        """Return the rule for a stream of training gradients."""
        weights = {layer.name: layer.weights() for layer in stream.layers} if damping == "auto" else {}
        return cls(damping, weights, len(stream.examples), stream.task.weight_decay)

    def choose(self, name: str, eigenvalues: Tensor, mean: float | None = None) -> float:
        """Return the number to add to one layer's eigenvalues, besides the weight decay.

        Args:
            name: The layer.
            eigenvalues: Of the mean loss's curvature in this layer, any shape.
            mean: Their mean, where it is known more directly.
        """
        if isinstance(self.damping, str):
            return max(0.0, evidence_shift(eigenvalues, self.weights[name], self.count) - self.decay)
        return absolute(self.damping, float(eigenvalues.mean()) if mean is None else mean)


def evidence_shift(eigenvalues: Tensor, weights: Tensor, count: int) -> float:
    r"""Return the shift s with s = γ(s) / (N ‖θ̂‖²), γ(s) = Σ_j σ_j / (σ_j + s): the evidence's maximum.

    Args:
        eigenvalues: σ ≥ 0 of the mean loss's curvature, any shape.
        weights: θ̂, any shape.
        count: N.

    Returns:
        s > 0. Where the layer has no curvature, 0: there is nothing to damp.

    Raises:
        NumericalError: An eigenvalue or weight is not finite, or all weights are zero while there is curvature.

    Cost: 60 evaluations of γ (bisection in log s).
    Reference: MacKay (1992), eq. 4.8, with s = α/(Nβ); Ritter et al. (2018) for Kronecker factors.

    Example:
        >>> s = evidence_shift(torch.tensor([1.0, 0.01]), torch.tensor([2.0, 0.0]), 100)
        >>> abs(s - (1 / (1 + s) + 0.01 / (0.01 + s)) / (100 * 4)) < 1e-9
        True
    """
    values = eigenvalues.detach().double().reshape(-1).clamp(min=0.0)
    norm = float(weights.detach().double().square().sum())
    if not bool(torch.isfinite(values).all()) or not norm < float("inf"):
        raise NumericalError('damping="auto" needs finite weights and curvature, got NaN or infinity. Check the loss.')
    largest = float(values.max())
    if largest == 0.0:
        return 0.0
    if norm == 0.0:
        raise NumericalError('damping="auto" needs weights other than zero, got a layer of zeros. Use Relative(0.1).')
    high = max(len(values) / (count * norm), largest / _SPAN)  # γ < P, so the solution lies below
    low = min(high, largest) / _SPAN
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _excess(values, middle, count * norm) > 0 else (low, middle)
    return math.sqrt(low * high)


def _excess(values: Tensor, shift: float, scale: float) -> float:
    """Return γ(s) − s N ‖θ̂‖², which falls as s grows."""
    return float((values / (values + shift)).sum()) - shift * scale
