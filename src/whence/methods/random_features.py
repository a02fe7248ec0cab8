"""Flat features of gradients: projected at random on both sides of every layer, before positions are summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.curvature.projected import Sides
from whence.errors import ConfigError
from whence.gradients import Gradients, Layer
from whence.gradients.projection import random_projection
from whence.tasks import Task

__all__ = ["RandomFeatures"]


@dataclass(frozen=True, eq=False)
class RandomFeatures:
    r"""g ↦ P_Oᵀ g P_I of every layer, flat and joined [D]: inner products are right in the mean over seeds.

    Args:
        sides: The projections of every layer, functions of its name and a seed alone.
    """

    sides: Mapping[str, Sides]

    @classmethod
    def of(cls, task: Task, layers: tuple[Layer, ...], dimension: int, seed: int) -> RandomFeatures:
        """Return projections with as many features as fit: the largest k with Σ min(k, O)·min(k, I) ≤ D.

        Args:
            task: For device and floating-point type.
            layers: Attributed layers.
            dimension: D, of all layers together.
            seed: Seed.

        Raises:
            ConfigError: There are more layers than features.
        """
        shapes = [layer.shape for layer in layers]
        rank = _rank(shapes, dimension)
        sides = {}
        for layer in layers:
            made = [
                random_projection(width, min(width, rank), name=f"{layer.name}/{side}", seed=seed)
                for width, side in zip(layer.shape, ("outputs", "inputs"), strict=True)
            ]
            sides[layer.name] = Sides(*(p.to(task.device, task.gradient_dtype) for p in made))
        return cls(sides)

    def __call__(self, gradients: Gradients) -> Tensor:
        """Return the features [B, D]. Cost: k·(O + I) operations a position and layer, and k² more."""
        return torch.cat([side.project(gradients.layers[name]).flatten(1) for name, side in self.sides.items()], 1)


def _rank(shapes: list[tuple[int, int]], dimension: int) -> int:
    """Return the largest k whose features fit."""
    rank, widest = 0, max(max(shape) for shape in shapes)
    while rank < widest and sum(min(rank + 1, out) * min(rank + 1, inp) for out, inp in shapes) <= dimension:
        rank += 1
    if rank == 0:
        raise ConfigError(
            f"dimension must be at least the number of layers ({len(shapes)}), got {dimension}. Raise it, or use "
            "fewer layers with layers=."
        )
    return rank
