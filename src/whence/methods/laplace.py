"""Members drawn from a Laplace approximation around a trained model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from whence.curvature import Curvature
from whence.data import Examples
from whence.errors import ConfigError
from whence.gradients import Gradients, Matrix
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.members import Members

__all__ = ["Laplace", "draw"]


@dataclass(frozen=True, kw_only=True)
class Laplace:
    r"""Members drawn from a Laplace approximation, ψ ~ N(θ̂, H⁻¹/N), instead of being trained.

    Args:
        curvature: H: `Exact`, `BlockExact`, `KFAC`, `EKFAC` or `Diagonal`.
        layers: Which layers take part, as in `Influence`; "last" is the last-layer Laplace approximation.
    """

    curvature: Curvature
    layers: Any = None


def draw(posterior: Laplace, members: Members, examples: Examples, seed: int) -> None:
    """Write members θ̂ + R ε / √N with R Rᵀ = H⁻¹."""
    missing = [number for number in range(members.count) if not members.path(number).is_file()]
    if not missing:
        return
    fitted = Influence(curvature=posterior.curvature, layers=posterior.layers).fit(members.task, examples)
    root = getattr(fitted.preconditioner, "root", None)
    if root is None:
        raise ConfigError(
            f"posterior must have a curvature that can be drawn from, got {type(posterior.curvature).__name__}. "
            "Use Exact, BlockExact, KFAC, EKFAC or Diagonal."
        )
    for number in missing:
        members.keep(number, _moved(fitted, root, torch.Generator().manual_seed(seed + number)).state_dict())


def _moved(fitted: InfluenceAttribution, root: Callable[[Gradients], Gradients], generator: torch.Generator) -> Any:
    """Return a model drawn from the posterior."""
    task = fitted.task
    noise = {
        layer.name: Matrix(
            torch.randn(1, *layer.shape, generator=generator, dtype=torch.float64).to(task.device, task.gradient_dtype)
        )
        for layer in fitted.coverage.layers
    }
    drawn = root(Gradients(noise))
    model = copy.deepcopy(task.model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for layer in fitted.coverage.layers:
            change = drawn.layers[layer.name].matrix()[0] / len(fitted.examples) ** 0.5
            for name, moved in layer.split(change).items():
                parameters[name].add_(moved.to(parameters[name]))
    return model
