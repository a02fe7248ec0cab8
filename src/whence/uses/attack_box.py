"""How far an attack may move a training example: a box or a ball around it, inside the range of valid inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whence.errors import ConfigError

__all__ = ["Box"]

_SLACK = 1e-3  # of a level: what rounding in float32 makes of exactly half a level


@dataclass(frozen=True, kw_only=True)
class Box:
    r"""All x + δ with ‖δ‖ ≤ radius · level and low ≤ x + δ ≤ high.

    Args:
        radius: In levels. The paper's ½ grey level cannot be seen, and cannot be stored in 8 bits either.
        norm: "linf": every entry of δ by itself; "l2": the Euclidean norm of the whole δ of an example.
        level: One level in units of the inputs: 1/255 for images as floats in [0, 1]; 1 for a table.
        low: Least valid input, None for none.
        high: Largest valid input, None for none.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> box = Box(radius=1.0, level=0.1)
        >>> box.clip(torch.tensor([[0.3, -0.3]]), torch.tensor([[0.95, 0.5]]))
        tensor([[ 0.0500, -0.1000]])
    """

    radius: float = 0.5
    norm: Literal["linf", "l2"] = "linf"
    level: float = 1 / 255
    low: float | None = 0.0
    high: float | None = 1.0

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ConfigError(f'norm must be "linf" or "l2", got {self.norm!r}.')
        for name, value in (("radius", self.radius), ("level", self.level)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be positive, got {value}.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(f"low must be below high, got {self.low} and {self.high}.")

    @property
    def size(self) -> float:
        """The radius in units of the inputs."""
        return self.radius * self.level

    def check(self, original: Tensor) -> None:
        """Raise unless inputs are finite and lie in the valid range."""
        least, largest = float(original.min()), float(original.max())
        if not (math.isfinite(least) and math.isfinite(largest)):
            raise ConfigError("inputs must be finite, got NaN or infinity. Fill or drop those rows.")
        if (self.low is not None and least < self.low) or (self.high is not None and largest > self.high):
            raise ConfigError(
                f"inputs must lie between {self.low} and {self.high}, got {least:.4g} to {largest:.4g}. "
                "Pass a Box(low=..., high=..., level=...) that fits them, or low=None, high=None."
            )

    def clip(self, delta: Tensor, original: Tensor) -> Tensor:
        """Return the δ nearest to these that are allowed [K, ...]; exact up to the last bit of x + δ."""
        if self.norm == "l2":
            delta = delta * (self.size / _lengths(delta)).clamp(max=1.0)
        else:
            delta = delta.clamp(-self.size, self.size)
        # towards the valid range a δ only gets shorter, because x itself is valid
        if self.low is not None:
            delta = torch.maximum(delta, self.low - original)
        return delta if self.high is None else torch.minimum(delta, self.high - original)

    def contains(self, delta: Tensor, original: Tensor) -> bool:
        """Whether every δ is allowed, up to rounding."""
        moved, slack = original + delta, 4 * torch.finfo(delta.dtype).eps * float(original.abs().max() + self.size)
        sizes = delta.flatten(1).norm(dim=1) if self.norm == "l2" else delta.abs()
        bounds = [float(sizes.max()) <= self.size * (1 + 1e-6)]
        bounds += [] if self.low is None else [float(moved.min()) >= self.low - slack]
        bounds += [] if self.high is None else [float(moved.max()) <= self.high + slack]
        return all(bounds)

    def ascend(self, delta: Tensor, maps: Tensor, step: float) -> Tensor:
        """Return δ after a step of that many levels along the map: its sign, or its direction under "l2"."""
        if self.norm == "linf":
            moved: Tensor = delta + step * self.level * maps.sign()
            return moved
        moved = delta + step * self.level * maps / _lengths(maps)
        return moved

    def random(self, original: Tensor, generator: torch.Generator) -> Tensor:
        """Return random signs at the edge of the box: as large as any δ."""
        signs = torch.randint(0, 2, original.shape, generator=generator).to(original.device) * 2.0 - 1.0
        signs = signs.to(original)
        scale = self.size if self.norm == "linf" else self.size / signs[0].numel() ** 0.5
        return self.clip(signs * scale, original)

    def rounded(self, delta: Tensor) -> Tensor:
        """Return δ after x + δ is stored in whole levels, x itself being whole: half a level vanishes."""
        levels = delta / self.level
        whole: Tensor = levels.sign() * (levels.abs() - 0.5 - _SLACK).ceil().clamp(min=0) * self.level
        return whole


def _lengths(values: Tensor) -> Tensor:
    """Return the Euclidean norm of every example [K, 1, ...], above zero."""
    tiny = torch.finfo(values.dtype).tiny
    found: Tensor = values.flatten(1).norm(dim=1).clamp(min=tiny)
    return found.reshape(-1, *[1] * (values.ndim - 1))
