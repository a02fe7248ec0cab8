"""A dense root of the inverse Gauss–Newton matrix, for solvers that precondition with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from whence.curvature import Exact
from whence.curvature.exact import ExactPreconditioner
from whence.errors import ConfigError, NumericalError
from whence.gradients import Coverage
from whence.methods.influence import Influence
from whence.tasks import Task

__all__ = ["inverse_root"]

_LARGEST = 4_000


def inverse_root(task: Task, train: Any, *, damping: float = 0.0) -> Tensor | None:
    r"""Return R with R Rᵀ = H⁻¹, H the Gauss–Newton matrix plus (damping + weight decay) I, at the model's weights.

    Args:
        task: A trained model with a smooth named loss.
        train: Training examples: anything that `as_examples` takes.
        damping: Added to the weight decay.

    Returns:
        R [P, P], lower triangular, float64, over the trainable parameters in the order of ``model.parameters()``; None
        where there are more than 4,000 parameters, the loss has no curvature in the outputs, a trainable parameter
        cannot be attributed, or H is not positive definite.

    Cost: as `Exact`; 8 P² bytes for the result.

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> root = inverse_root(Task(torch.nn.Linear(3, 2), weight_decay=0.1), train)
        >>> root.shape
        torch.Size([8, 8])
    """
    size = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    if task.smooth_loss is None or not 0 < size <= _LARGEST:
        return None
    try:
        fitted = Influence(curvature=Exact(damping=damping)).fit(task, train)
    except (ConfigError, NumericalError):
        return None  # what is refused as an attribution cannot help a solver either
    places = _places(fitted.coverage, task, size)
    if places is None:
        return None
    assert isinstance(fitted.preconditioner, ExactPreconditioner)
    root, info = torch.linalg.cholesky_ex(fitted.preconditioner.inverse[places][:, places])
    return root if int(info) == 0 else None


def _places(coverage: Coverage, task: Task, size: int) -> Tensor | None:
    """Return where in the layers' order each trainable parameter's entries lie [P]; None if not all do, once."""
    named: dict[str, Tensor] = {}
    start = 0
    for layer in coverage.layers:
        count = layer.shape[0] * layer.shape[1]
        named.update(layer.split(torch.arange(start, start + count, device=task.device).reshape(layer.shape)))
        start += count
    wanted = [name for name, p in task.model.named_parameters() if p.requires_grad]
    if start != size or set(named) != set(wanted):
        return None
    return torch.cat([named[name].reshape(-1) for name in wanted])
