"""Kernel machines as linear ones: coordinates in the span of given points, in which inner products are kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import ConfigError, DataError

__all__ = ["Kernel", "KernelSpan"]

_ROUNDING = 1e-10  # relative to the largest eigenvalue: directions below it are rounding


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel function with its settings, as scikit-learn names them.

    Args:
        name: "linear", "rbf", "poly" or "sigmoid".
        gamma: Scale of "rbf", "poly" and "sigmoid".
        degree: Of "poly".
        offset: Added to the scaled inner product of "poly" and "sigmoid" (scikit-learn's ``coef0``).

    Raises:
        ConfigError: The name is unknown.

    Example:
        >>> float(Kernel(name="rbf", gamma=0.5)(np.zeros((1, 2)), np.ones((1, 2)))[0, 0].round(4))  # exp(-0.5 · 2)
        0.3679
    """

    name: str
    gamma: float = 1.0
    degree: int = 3
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _KERNELS:
            raise ConfigError(f"kernel must be one of {sorted(_KERNELS)}, got {self.name!r}. Fit with one of them.")

    def __call__(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return the kernel of all pairs of rows [N, M]."""
        return _KERNELS[self.name](self, x, z)


def _rbf(kernel: Kernel, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return exp(−γ ‖x − z‖²)."""
    squares = (x**2).sum(1)[:, None] + (z**2).sum(1)[None] - 2 * (x @ z.T)
    values: np.ndarray = np.exp(-kernel.gamma * np.maximum(squares, 0.0))
    return values


_KERNELS: Mapping[str, Callable[[Kernel, np.ndarray, np.ndarray], np.ndarray]] = {
    "linear": lambda kernel, x, z: x @ z.T,
    "rbf": _rbf,
    "poly": lambda kernel, x, z: (kernel.gamma * (x @ z.T) + kernel.offset) ** kernel.degree,
    "sigmoid": lambda kernel, x, z: np.tanh(kernel.gamma * (x @ z.T) + kernel.offset),
}


class KernelSpan:
    r"""Coordinates φ(x) with φ(x)ᵀφ(z) = k(x, z) for z in the span of given points: φ(x) = Λ^{-1/2} Vᵀ k(S, x).

    k(S, S) = V Λ Vᵀ. For points outside the span it is the projection, which is all that a function
    f = Σ_s a_s k(s, ·) can see of them: f(x) = φ(x)ᵀ Λ^{1/2} Vᵀ a, and its norm in the kernel's space is ‖Λ^{1/2}Vᵀa‖.

    Args:
        points: S [M, D].
        kernel: k.

    Raises:
        ConfigError: The kernel is not positive on these points.

    Cost: M³ operations once; a row then takes M kernels and M² operations.
    Reference: Schölkopf & Smola (2002), §14.2 (kernel PCA map); with fewer points it is Nyström's approximation.

    Example:
        >>> span = KernelSpan(np.eye(3), Kernel(name="rbf", gamma=0.5))
        >>> np.allclose(span.transform(np.eye(3)) @ span.transform(np.eye(3)).T, span.kernel(np.eye(3), np.eye(3)))
        True
    """

    def __init__(self, points: np.ndarray, kernel: Kernel) -> None:
        self.points, self.kernel = np.asarray(points, dtype=np.float64), kernel
        values, vectors = np.linalg.eigh(kernel(self.points, self.points))
        if values[0] < -1e-6 * values[-1]:
            raise ConfigError(
                f"kernel must be positive on the support vectors, got an eigenvalue of {values[0]:.3g}. "
                "Use an rbf or linear kernel."
            )
        kept = values > _ROUNDING * values[-1]
        self._roots, self._vectors = np.sqrt(values[kept]), vectors[:, kept]

    def __repr__(self) -> str:
        """Return kernel and sizes."""
        return f"KernelSpan({self.kernel.name}, {len(self.points)} points, {len(self._roots)} coordinates)"

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self._roots)

    def transform(self, x: Any) -> np.ndarray:
        """Return the coordinates of rows [N, size].

        Raises:
            DataError: The rows have another width than the points.
        """
        rows = np.asarray(x.toarray() if hasattr(x, "toarray") else x, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.points.shape[1]:
            raise DataError(
                f"X must be [N, {self.points.shape[1]}] for this kernel, got shape {rows.shape}. "
                "Pass the columns of the fit."
            )
        values: np.ndarray = self.kernel(rows, self.points) @ (self._vectors / self._roots)
        return values

    def weights(self, coefficients: np.ndarray) -> np.ndarray:
        """Return w [..., size] with φ(x)ᵀw = Σ_s a_s k(s, x), for coefficients a [..., M]."""
        found: np.ndarray = coefficients @ self._vectors * self._roots
        return found
