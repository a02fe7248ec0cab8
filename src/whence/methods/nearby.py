"""The curvature of one model for another nearby: for many small changes, of which none is worth a new fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from whence.errors import ConfigError
from whence.gradients import find_layers

if TYPE_CHECKING:
    from whence.methods.attribution import InfluenceAttribution

__all__ = ["at"]


def at(attribution: InfluenceAttribution, model: nn.Module, train: Any) -> InfluenceAttribution:
    """Return the attribution with the same H⁻¹ but the gradients of other weights and other training examples.

    For steps that each change little, such as those of an attack: H changes less than the gradients do.

    Args:
        attribution: A fitted attribution.
        model: The same architecture with weights nearby.
        train: As many training examples or nearly so; they take the place of those that were fitted.

    Raises:
        ConfigError: The attributed layers differ in name or shape.

    Cost: none; a solver such as `CG` goes on multiplying with the curvature of the weights that were fitted.

    Example:
        >>> import copy, torch, whence as wh
        >>> x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> attribution = wh.Influence().fit(wh.Task(torch.nn.Linear(3, 2)), (x, y))
        >>> attribution.at(copy.deepcopy(attribution.task.model), (x + 0.01, y)).scores((x, y)).values.shape
        torch.Size([20, 20])
    """
    task = attribution.task.with_model(model).in_dtype(attribution.task.dtype)
    examples = task.examples(train)
    coverage = find_layers(task.model, attribution.config.layers)
    found, fitted = ([(layer.name, layer.shape) for layer in c.layers] for c in (coverage, attribution.coverage))
    if found != fitted:
        raise ConfigError(f"model must have the layers that were fitted, {fitted}, got {found}. Fit it by itself.")
    stream = replace(attribution.stream, task=task, layers=coverage.layers, examples=examples, _kept=[])
    return replace(attribution, task=task, coverage=coverage, examples=examples, stream=stream, stored=None)
