"""Parameters without a factored form: per-example gradients by ``torch.func``, delivered as rows [B, 1, P]."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.data import Batch
from whence.errors import NumericalError
from whence.gradients.factors import Matrix
from whence.gradients.layers.shared import Layer
from whence.tasks import Loss, Task

__all__ = ["fallback_gradients"]

_TARGET_BYTES = 8 * 2**20
_REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class _Row:
    """One example inside ``vmap``: a batch without ids, which are not the same for all examples."""

    inputs: Any
    targets: Tensor | None

    def __len__(self) -> int:
        return 1


class _Value(nn.Module):
    """An example's loss, or its outputs contracted with a seed, with replaceable parameters."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, batch: Any, seed: Tensor | None) -> Tensor:
        """Return a scalar."""
        if seed is None:
            return self.task.losses(batch).sum()
        return (self.task.forward(batch) * seed).sum()


def fallback_gradients(
    task: Task, batch: Batch, layers: Sequence[Layer], outputs: Tensor | None, seeds: Tensor | None
) -> dict[str, Matrix]:
    """Return the gradients of every example in some parameters, by layer.

    Args:
        task: Model and loss; the model is put into evaluation mode for the call.
        batch: The examples, on the model's device.
        layers: Layers without uses.
        outputs: The model's outputs, if they are known.
        seeds: Gradient at the outputs [B, ...]; None for the gradient of the training loss.

    Cost: a forward and a backward pass, vectorised over examples where the model's operations allow it and one example
    at a time otherwise.
    """
    named = {piece.name: piece.parameter.detach() for layer in layers for piece in layer.slot.pieces}
    with task.evaluating(), torch.enable_grad():
        if seeds is None and isinstance(task.loss, Loss):
            seeds = _loss_seeds(task, batch, outputs)
        found = _vectorised(task, batch, named, seeds)
        if found is None:
            found = _one_by_one(task, batch, named, seeds)
    rows = {layer.name: Matrix(layer.slot.join(found)) for layer in layers}
    for name, factor in rows.items():
        if not torch.isfinite(factor.m).all():
            raise NumericalError(
                f"gradients of layer {name!r} must be finite, got NaN or infinity. "
                "Check the inputs for NaN and the loss for overflow."
            )
    return rows


def _loss_seeds(task: Task, batch: Batch, outputs: Tensor | None) -> Tensor:
    """Return the gradient of the training loss at the outputs, so that the loss itself need not be vectorised."""
    if outputs is None:
        with torch.no_grad():
            outputs = task.forward(batch)
    leaf = outputs.detach().requires_grad_()
    return torch.autograd.grad(task.losses(batch, leaf).sum(), leaf)[0]


def _function(task: Task) -> Callable[..., Tensor]:
    """Return a function of some parameters; all others are constants, so that no graph is kept for them."""
    value = _Value(task)
    constants = {f"model.{name}": p.detach() for name, p in task.model.named_parameters()}

    def evaluate(named: dict[str, Tensor], batch: Any, seed: Tensor | None) -> Tensor:
        replaced = constants | {f"model.{name}": tensor for name, tensor in named.items()}
        result: Tensor = torch.func.functional_call(value, replaced, (batch, seed))
        return result

    return evaluate


def _vectorised(task: Task, batch: Batch, named: dict[str, Tensor], seeds: Tensor | None) -> dict[str, Tensor] | None:
    """Return the gradients by ``vmap`` in micro-chunks, or None where an operation does not allow it."""
    evaluate = _function(task)

    def gradient(inputs: Any, targets: Tensor | None, seed: Tensor | None) -> dict[str, Tensor]:
        row = _Row(_map(lambda x: x[None], inputs), None if targets is None else targets[None])
        found: dict[str, Tensor] = torch.func.grad(evaluate)(named, row, None if seed is None else seed[None])
        return found

    per_example = sum(p.numel() * p.element_size() for p in named.values())
    micro = max(1, min(len(batch), _TARGET_BYTES // max(1, per_example)))
    present = (0, None if batch.targets is None else 0, None if seeds is None else 0)
    mapped = torch.func.vmap(gradient, in_dims=present, chunk_size=micro)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # fused attention has no rule for vmap
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
        try:
            found: dict[str, Tensor] = mapped(batch.inputs, batch.targets, seeds)
        except _REFUSALS:
            return None
    return found


def _one_by_one(task: Task, batch: Batch, named: dict[str, Tensor], seeds: Tensor | None) -> dict[str, Tensor]:
    """Return the gradients by one backward pass an example."""
    evaluate = _function(task)
    parts: dict[str, list[Tensor]] = {name: [] for name in named}
    for i in range(len(batch)):
        leaves = {name: p.clone().requires_grad_() for name, p in named.items()}
        value = evaluate(leaves, batch.row(i), None if seeds is None else seeds[i : i + 1])
        wanted = list(leaves.values())
        if value.requires_grad:
            found = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
        else:
            found = tuple(torch.zeros_like(leaf) for leaf in wanted)
        for name, gradient in zip(leaves, found, strict=True):
            parts[name].append(gradient.to_dense() if gradient.is_sparse else gradient)
    return {name: torch.stack(rows) for name, rows in parts.items()}


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to every tensor of a batch's inputs."""
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_map(function, value) for value in tree)
    return function(tree)
