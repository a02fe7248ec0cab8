"""Training many models at once: the same network, seed and order of batches, other weights of the examples."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Batch, Examples
from whence.errors import ConfigError, NumericalError
from whence.tasks import Loss, Recipe, Task

__all__ = ["check_stackable", "train_stacked"]


def check_stackable(recipe: Recipe, model: nn.Module) -> None:
    """Raise unless training stacked copies of ``model`` follows ``recipe`` step for step.

    Raises:
        ConfigError: The recipe trains by a loop or optimiser of the user's, or the model has buffers that change.
    """
    reason = None
    if recipe.loop is not None:
        reason = "the recipe has its own training loop"
    elif recipe.optimizer not in ("adam", "adamw", "sgd"):
        reason = f"the optimiser is {recipe.optimizer!r}, not adam, adamw or sgd"
    elif recipe.steps is not None or recipe.clip is not None:
        reason = "the recipe counts steps or clips gradients"
    elif not isinstance(recipe.task(model).loss, Loss):
        reason = "the loss is a callable, not a named one"
    elif next(model.buffers(), None) is not None:
        reason = "the model has buffers, as batch normalisation does"
    if reason is not None:
        raise ConfigError(f"stack must be 1 where {reason}. Use stack=1, and processes= for speed.")


def train_stacked(
    recipe: Recipe, examples: Examples, weights: Tensor, *, seed: int, start: nn.Module | None = None,
    other: tuple[Tensor, Tensor] | None = None,
) -> list[nn.Module]:  # fmt: skip
    r"""Train S models that differ only in the weights of the examples, as `Recipe.train` does one at a time.

    Adam and SGD act entry by entry, so one optimiser over parameters [S, ...] takes the steps that S optimisers
    would take; the gradients come from one batched forward and backward pass.

    Args:
        recipe: How to train.
        examples: Training examples.
        weights: Weights [S, N] ≥ 0 in row order; 0 leaves an example out.
        seed: Seed of initialisation, order, dropout and augmentation, as in `Recipe.train`.
        start: A model to start from (not changed) instead of a new one.
        other: Other targets [N, ...], and which model takes them for which example [S, N]; None for the examples' own.

    Returns:
        S trained models in evaluation mode, equal to `Recipe.train`'s to rounding.

    Raises:
        ConfigError: See `check_stackable`.
        NumericalError: A loss becomes non-finite.

    Cost: S times the parameters, their gradients and the optimiser's state in memory.
    """
    scale = weights / weights.mean(1, keepdim=True)  # [S, N]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        if start is not None:
            model = copy.deepcopy(start)
        elif recipe.build is not None:
            model = recipe.build()
        else:
            raise ConfigError("stack must be 1 where the recipe has its own training loop. Use stack=1.")
        check_stackable(recipe, model)
        stack = _descend(recipe, recipe.task(model), examples, scale, (seed, other))
    return [_member(model, stack, index) for index in range(len(scale))]


Seeded = tuple[int, tuple[Tensor, Tensor] | None]


def _descend(recipe: Recipe, task: Task, examples: Examples, scale: Tensor, seeded: Seeded) -> dict[str, Tensor]:
    """Return the trained parameters [S, ...] by name."""
    seed, other = seeded
    task.model.train()
    losses = _Losses(task)
    frozen = {name: p.detach() for name, p in losses.named_parameters() if not p.requires_grad}
    stack = {
        name: p.detach().expand(len(scale), *p.shape).clone().requires_grad_()
        for name, p in losses.named_parameters() if p.requires_grad
    }  # fmt: skip
    scale = scale.to(task.device, task.dtype)
    optimizer = recipe.make_optimizer({name.removeprefix("model."): value for name, value in stack.items()})
    steps = recipe.epochs * -(-len(examples) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate((step + 1) / (steps + 1)))
    generator = torch.Generator().manual_seed(seed)

    def member(parameters: dict[str, Tensor], batches: list[Batch], weights: Tensor) -> Tensor:
        values: Tensor = torch.func.functional_call(losses, {**parameters, **frozen}, (batches,))
        return (values * weights).sum(0).mean()

    every = torch.func.vmap(member, in_dims=(0, None, 0), randomness="same")
    takes = torch.zeros_like(scale) if other is None else other[1].to(scale)  # [S, N], 1 for the other target
    shares = torch.stack([scale * (1 - takes), scale * takes], 1)[:, : 1 if other is None else 2]  # [S, 1 or 2, N]
    for epoch in range(1, recipe.epochs + 1):
        total = torch.zeros(len(scale), device=task.device)
        for rows in torch.randperm(len(examples), generator=generator).split(recipe.batch_size):
            batch = task.place(examples.batch(rows.numpy()))
            if recipe.augment is not None:
                augmented = recipe.augment(batch.inputs, generator)
                batch = Batch(inputs=augmented, targets=batch.targets, ids=batch.ids, keys=batch.keys)
            batches = [batch] if other is None else [batch, task.place(replace(batch, targets=other[0][rows]))]
            values = every(stack, batches, shares[:, :, rows.to(scale.device)])  # [S]
            optimizer.zero_grad()
            values.sum().backward()
            optimizer.step()
            schedule.step()
            total += values.detach() * len(rows)
        bad = (~torch.isfinite(total)).nonzero()
        if len(bad):
            raise NumericalError(
                f"training loss must stay finite, got {float(total[bad[0]])} in epoch {epoch} of stacked model "
                f"{int(bad[0])}. Lower the learning rate or standardise the inputs."
            )
    return {name.removeprefix("model."): p.detach() for name, p in stack.items()}


class _Losses(nn.Module):
    """The training losses of a batch with one or two sets of targets, with replaceable parameters."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, batches: list[Batch]) -> Tensor:
        """Return the losses [1 or 2, B]; batches differ in their targets alone."""
        outputs = self.task.forward(batches[0])
        return torch.stack([self.task.losses(batch, outputs) for batch in batches])


def _member(model: nn.Module, stack: dict[str, Tensor], index: int) -> nn.Module:
    """Return one of the stacked models."""
    member = copy.deepcopy(model)
    member.zero_grad(set_to_none=True)
    named: dict[str, Any] = dict(member.named_parameters())
    with torch.no_grad():
        for name, values in stack.items():
            named[name].copy_(values[index])
    return member.eval()


