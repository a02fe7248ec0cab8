"""A measurement of the model alone, with a name and a unit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["ModelMeasurement"]


class ModelMeasurement:
    """A differentiable number that depends on a model's parameters and on no query: what ``scores()`` is asked about.

    A plain callable ``(model) -> scalar`` does as well; this says what it is called and what it is measured in.

    Example:
        >>> import torch, whence as wh
        >>> class Size(ModelMeasurement):
        ...     name, unit = "size", "squared weight"
        ...     def __call__(self, model):
        ...         return model.weight.square().sum()
        >>> wh.Task(torch.nn.Linear(2, 2), measurement=Size()).unit
        'squared weight'
    """

    name: str
    unit: str | None = None

    def __call__(self, model: Any) -> Tensor:
        """Return the measurement, a scalar tied to the model's parameters."""
        raise NotImplementedError
