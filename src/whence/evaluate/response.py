"""What a model would say after many rows were left out or relabelled: the last layer's proximal Bregman response."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Examples
from whence.errors import ConfigError, NumericalError
from whence.methods.dense import inverse_root
from whence.tasks import SmoothLoss, Task
from whence.tasks.convex import lbfgs

__all__ = ["last_layer_response"]

_BATCH, _BLOCK = 1024, 8192
_CLOSE = 1e-4
_STEPS = 2_000
_LARGEST_ROOT = 2_000


def last_layer_response(
    task: Task, train: Examples, *, removed: Sequence[Any] | np.ndarray = (),
    relabelled: Examples | None = None, proximity: float = 1.0, gradient_norm: float = 1e-6,
) -> Task | None:  # fmt: skip
    r"""Return the task with the last layer moved as leaving rows out and relabelling others asks for.

    W* = argmin_W (1/N) [Σ_i D(W x_i, Ŵ x_i) − Σ_{i removed} ℓ(W x_i, y_i) + Σ_{i relabelled} (ℓ(W x_i, y'_i) −
    ℓ(W x_i, y_i))] + (μ/2) ‖W − Ŵ‖², with x_i the inputs of the last layer, bias included, and D the Bregman divergence
    of the loss in the outputs. Influence with the Gauss–Newton matrix of the last layer and damping μ is its
    linearisation; unlike that, it is solved, so that many changes of rows that the model does not doubt do not add up
    without end.

    Args:
        task: A trained model that ends in a linear layer, with a smooth named loss of single outputs [B, C].
        train: The training examples.
        removed: Ids of those to leave out.
        relabelled: Some of them, by id, with new targets.
        proximity: μ in mean eigenvalues of the Gauss–Newton matrix of the last layer, > 0.
        gradient_norm: Euclidean norm of the objective's gradient, relative to that at Ŵ, at which it is solved.

    Returns:
        A task of a copy of the model; None where the loss is not smooth, the model does not end in a linear layer, or
        the norm is not reached.

    Raises:
        ConfigError: The proximity is not positive.

    Cost: a forward pass over the training examples, and tens to hundreds of products with their last inputs [N, I],
    which are held in memory; with up to 2,000 weights C · I their Hessian is factored once. Nothing below the last
    layer moves: what only the features could unlearn is not predicted.
    Reference: Bae et al. (2022), eq. 11, for sets and replacements, in the last layer.

    Example:
        >>> task = Task(nn.Linear(3, 2), "cross_entropy")
        >>> x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> last_layer_response(task, task.examples((x, y)), removed=[3, 7])
        Task(Linear, CrossEntropy(ignore_index=-100))
    """
    if not 0 < proximity < float("inf"):
        raise ConfigError(f"proximity must be positive, got {proximity}.")
    loss, name = task.smooth_loss, _last_linear(task, train)
    if loss is None or name is None:
        return None
    model = copy.deepcopy(task.model)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    rows = _rows(task, name, train)
    gone = np.zeros(len(train), dtype=bool)
    if len(removed):
        gone[train.rows_of(removed)] = True
    response = _Response(rows, loss, torch.from_numpy(gone), _changed(train, relabelled))
    start = _flat(layer)
    try:
        moved = response.solve(start, proximity, gradient_norm)
    except NumericalError:
        return None
    with torch.no_grad():
        layer.weight.copy_(moved[:, : layer.in_features])
        if layer.bias is not None:
            layer.bias.copy_(moved[:, -1])
    return task.with_model(model)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Inputs of the last layer [N, I] (a one appended for the bias), and targets [N, …]."""

    inputs: Tensor
    targets: Tensor


class _Response:
    """The objective, its rows in float64 a block at a time."""

    def __init__(self, rows: _Rows, loss: SmoothLoss, gone: Tensor, changed: tuple[Tensor, Tensor]) -> None:
        self.rows, self.loss = rows, loss
        self.places, self.new = changed
        self.kept = ~gone
        self.kept[self.places] = False

    def solve(self, start: Tensor, proximity: float, gradient_norm: float) -> Tensor:
        """Return W* [C, I]."""
        anchor, mean = self._anchor(start)
        decay = proximity * mean
        origin = start.reshape(-1).numpy()

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weight = torch.from_numpy(flat).reshape(start.shape)
            value, gradient = self._value(weight)
            step = weight - start
            value += -float((anchor * weight).sum()) + decay / 2 * float(step.square().sum())
            gradient += decay * step - anchor
            return value, gradient.reshape(-1).numpy()

        first = float(np.linalg.norm(objective(origin)[1]))
        found = origin
        if first:
            found = lbfgs(objective, origin, gradient_norm=gradient_norm * first, max_steps=_STEPS,
                          inverse_root=self._root(start, decay))  # fmt: skip
        return torch.from_numpy(found).reshape(start.shape)

    def _root(self, start: Tensor, decay: float) -> np.ndarray | None:
        """Return a root of the inverse Hessian at Ŵ: with it a change too small for differences of values is solved."""
        head = nn.Linear(start.shape[1], start.shape[0], bias=False, dtype=torch.float64)
        if start.numel() > _LARGEST_ROOT:
            return None
        with torch.no_grad():
            head.weight.copy_(start)
        root = inverse_root(Task(head, self.loss), (self.rows.inputs.double(), self.rows.targets), damping=decay)
        return None if root is None else root.cpu().numpy()

    def _anchor(self, start: Tensor) -> tuple[Tensor, float]:
        """Return Σ_i ∇ℓ(Ŵ x_i) x_iᵀ / N [C, I], which D takes off, and the mean Gauss–Newton eigenvalue."""
        total, trace = torch.zeros_like(start), 0.0
        for inputs, targets in self._blocks(torch.arange(len(self.kept)), self.rows.targets):
            outputs = (inputs @ start.T).requires_grad_()
            (slopes,) = torch.autograd.grad(self.loss(outputs, targets).sum(), outputs)
            total += slopes.T @ inputs
            roots = self.loss.roots(outputs.detach(), targets)  # [R, B, C]
            trace += float((roots.square().sum((0, 2)) * inputs.square().sum(1)).sum())
        count = len(self.kept)
        return total / count, trace / count / start.numel()

    def _value(self, weight: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss of kept rows and of relabelled ones, with its gradient [C, I]."""
        value, gradient = 0.0, torch.zeros_like(weight)
        kept = self.kept.nonzero()[:, 0]
        for rows, targets in ((kept, self.rows.targets[kept]), (self.places, self.new)):
            for inputs, aims in self._blocks(rows, targets):
                outputs = (inputs @ weight.T).requires_grad_()
                total = self.loss(outputs, aims).sum()
                (slopes,) = torch.autograd.grad(total, outputs)
                value += total.item()
                gradient += slopes.T @ inputs
        count = len(self.kept)
        return value / count, gradient / count

    def _blocks(self, rows: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs in float64 and targets, so many rows at a time that no copy of all is made."""
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            yield self.rows.inputs[rows[part]].double(), targets[part]


def _flat(layer: nn.Linear) -> Tensor:
    """Return the weight [C, I] in float64, with the bias as a last column where there is one."""
    columns = [layer.weight] if layer.bias is None else [layer.weight, layer.bias[:, None]]
    return torch.cat(columns, 1).detach().double().cpu()


def _last_linear(task: Task, train: Examples) -> str | None:
    """Return the name of the linear layer whose outputs [B, C] are those of the model, or None."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, given, outputs: seen.update({name: outputs})

    layers = {name: module for name, module in task.model.named_modules() if isinstance(module, nn.Linear)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with task.evaluating(), torch.no_grad():
            outputs = task.forward(task.place(train.batch(np.arange(min(len(train), 2)))))
    finally:
        for hook in hooks:
            hook.remove()
    for name, found in seen.items():
        if outputs.dim() == 2 and found.shape == outputs.shape and torch.allclose(found, outputs, atol=_CLOSE):
            return name
    return None


def _rows(task: Task, name: str, train: Examples) -> _Rows:
    """Return what goes into the last layer, and the targets."""
    layer = task.model.get_submodule(name)
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach().cpu()))
    targets = []
    try:
        with task.evaluating(), torch.no_grad():
            for batch in train.batches(_BATCH):
                task.forward(task.place(batch))
                assert batch.targets is not None
                targets.append(batch.targets.cpu())
    finally:
        hook.remove()
    found = torch.cat(inputs)
    bias = isinstance(layer, nn.Linear) and layer.bias is not None
    return _Rows(torch.cat([found, found.new_ones(len(found), 1)], 1) if bias else found, torch.cat(targets))


def _changed(train: Examples, relabelled: Examples | None) -> tuple[Tensor, Tensor]:
    """Return positions of relabelled rows, and their new targets."""
    if relabelled is None:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    assert relabelled.targets is not None
    return torch.as_tensor(train.rows_of(relabelled.ids)), relabelled.targets.cpu()
