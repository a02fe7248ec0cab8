"""What a score is made of: how badly the examples are fitted, and how little resistance H puts up; relative scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError
from whence.gradients import Gradients
from whence.scores import Scores, Signal
from whence.tasks import Loss, Task

if TYPE_CHECKING:
    from whence.methods.attribution import InfluenceAttribution

__all__ = ["Decomposition", "check_relative", "decomposition", "inverse_sizes"]

_ROWS = 32  # training examples preconditioned at a time
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True, eq=False)
class Decomposition:
    r"""Scores as factors: full[t, i] = query_factor[t] · training_factor[i] · resistance[t, i] / N + offset[t].

    Args:
        full: The scores [Q, N], as `InfluenceAttribution.scores` returns them.
        training_factor: ‖∂ℓ_i/∂f‖ [N]: how badly the model fits the example. Outliers and wrong labels have large ones.
        query_factor: ‖∂m_t/∂f‖ [Q]; 1 for a measurement that is a callable.
        resistance: r̂_tᵀ J_t H⁻¹ J_iᵀ r̂_i [Q, N] with unit residuals r̂: for one output ± x_tᵀH⁻¹x_i. Large along
            directions in which the data vary little, positive if the example pulls the query the right way.
        without_training_factor: query_factor · resistance / N [Q, N]: the scores if every training example were fitted
            equally badly.
        without_curvature: ∇m_tᵀ∇ℓ_i / N [Q, N]: the scores with the identity for H.
        offset: ∇m_tᵀ H⁻¹ λθ̂ / N [Q]: the part of the weight decay that leaves with any example.
    """

    full: Scores
    training_factor: Signal
    query_factor: Signal
    resistance: Scores
    without_training_factor: Scores
    without_curvature: Scores
    offset: Signal


def decomposition(attribution: InfluenceAttribution, queries: Any) -> Decomposition:
    r"""Return why examples are influential: the training-loss factor, the resistance factor, and scores without them.

    For logistic regression with labels ±1 the factors are those of Koh & Liang: a score is
    −y_t y σ(−y_t θᵀx_t) · σ(−y θᵀx) · x_tᵀH⁻¹x up to sign and 1/N. Here the residuals r = ∂ℓ/∂f of the outputs take the
    place of the sigmoids, so that it holds for any model and loss with outputs: ∇ℓ_i = J_iᵀ r_i.

    Args:
        attribution: A fitted attribution whose task has a named smooth loss.
        queries: As in `InfluenceAttribution.scores`.

    Returns:
        A `Decomposition`; factors that vanish (an example beyond the hinge) have resistance 0.

    Raises:
        ConfigError: The training loss is a bare callable, without outputs to differentiate in.

    Cost: a forward pass over training data and queries, and two passes over the training factors a block of queries.
    Reference: Koh & Liang (2017), §3.1 and figure 1.

    Example:
        >>> import whence as wh
        >>> train = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> attribution = wh.Influence().fit(wh.Task(torch.nn.Linear(3, 2)), train)
        >>> parts = attribution.decomposition(train)
        >>> product = parts.resistance.values * torch.as_tensor(parts.training_factor.values)
        >>> torch.allclose(product[0] * parts.query_factor[0] / 20, parts.full.values[0].double(), atol=1e-5)
        True
    """
    task, count = attribution.task, len(attribution.examples)
    if task.smooth_loss is None:
        raise ConfigError(
            f"the training loss must be a named smooth one to be decomposed, got {task.loss!r}. Name the loss."
        )
    asked = task.examples(queries)
    values, offsets = attribution.products(asked, attribution.training_gradients)
    plain, _ = attribution.products(asked, attribution.training_gradients, preconditioned=False)
    measurement = task.loss if task.measurement is None else task.measurement
    size = attribution.stream.chunk
    own = _residual_norms(task, task.smooth_loss, attribution.examples, size)
    queried = _residual_norms(task, measurement, asked, size)
    resistance = values.double() * _inverse(own) * _inverse(queried)[:, None]
    unit = None if attribution.ranks_only else task.unit

    def scores(of: Tensor, unit: str | None) -> Scores:
        return Scores(values=of, query_ids=asked.ids, ids=attribution.ids, unit=unit)

    def signal(of: Tensor, ids: np.ndarray, name: str, unit: str | None) -> Signal:
        return Signal(values=of.double().cpu().numpy(), ids=ids, name=name, unit=unit)

    return Decomposition(
        full=scores((values + offsets[:, None]) / count, unit),
        training_factor=signal(own, attribution.ids, "training-loss factor", None),
        query_factor=signal(queried, asked.ids, "query factor", None),
        resistance=scores(resistance, None),
        without_training_factor=scores(resistance * queried[:, None] / count, None),
        without_curvature=scores(plain / count, None),
        offset=signal(offsets / count, asked.ids, "weight decay that leaves", unit),
    )


def check_relative(relative: str, leverage_corrected: bool, ranks_only: bool) -> None:
    """Raise unless scores can be made relative."""
    if relative not in ("parameters", "loss"):
        raise ConfigError(f'relative must be "parameters" or "loss", got {relative!r}.')
    if leverage_corrected:
        raise ConfigError(f"relative={relative!r} must go without the leverage correction, got both. Choose one.")
    if ranks_only and relative == "loss":
        raise ConfigError('relative="loss" must have a curvature, got Identity(). Use relative="parameters".')


def inverse_sizes(attribution: InfluenceAttribution, relative: str) -> Tensor:
    r"""Return what scores are multiplied with to be relative [N]: N/‖H⁻¹g_i‖ or √(N / g_iᵀH⁻¹g_i), g_i with its λθ̂."""
    squares, count = [], len(attribution.examples)
    decayed = attribution.decayed_weights
    solved = None if decayed is None else attribution.preconditioner.precondition(decayed)
    for gradients in _pieces(attribution, _ROWS if relative == "parameters" else None):
        if relative == "parameters":
            moved = attribution.preconditioner.precondition(gradients)
            square = moved.squared_norms()
            if solved is not None:
                square = square + 2 * solved.inner(moved)[0] + solved.squared_norms()
            square = square / count**2
        else:
            square = attribution.preconditioner.quadratic(gradients)
            if solved is not None and decayed is not None:
                square = square + 2 * solved.inner(gradients)[0] + solved.inner(decayed)[0]
            square = square / count
        squares.append(square.double())
    return _inverse(torch.cat(squares).clamp(min=0.0).sqrt())


def _pieces(attribution: InfluenceAttribution, size: int | None) -> Iterator[Gradients]:
    """Yield the training gradients in row order, at most ``size`` at a time."""
    for _, gradients in attribution.training_gradients():
        step = size or len(gradients)
        for start in range(0, len(gradients), step):
            yield gradients.rows(slice(start, start + step))


def _residual_norms(task: Task, what: Any, examples: Examples, size: int) -> Tensor:
    """Return ‖∂ℓ/∂f‖ of every example [B], in float64; 1 for a callable."""
    if not isinstance(what, Loss):
        return torch.ones(len(examples), dtype=torch.float64, device=task.device)
    norms = []
    for batch in examples.batches(size):
        placed = task.place(batch)
        if placed.targets is None:
            raise ConfigError("queries must have targets to be decomposed, got inputs alone. Pass (inputs, targets).")
        with task.evaluating(), torch.no_grad():
            outputs = task.forward(placed)
        outputs = outputs.detach().requires_grad_()
        with torch.enable_grad():
            total = what(outputs, placed.targets).sum()
        norms.append(torch.autograd.grad(total, outputs)[0].reshape(len(outputs), -1).double().norm(dim=1))
    return torch.cat(norms)


def _inverse(sizes: Tensor) -> Tensor:
    """Return 1/size, 0 where a size vanishes."""
    return torch.where(sizes > _TINY, 1 / sizes.clamp(min=_TINY), 0.0)
