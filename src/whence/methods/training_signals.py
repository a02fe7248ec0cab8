"""Signals of how training treats an example: early errors, forgetting, and the loss under models that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Examples, as_examples, uniform
from whence.errors import ConfigError
from whence.methods.baselines.base import class_positions, classes_of
from whence.methods.finite import finite
from whence.scores import Signal
from whence.tasks import Loss, Recipe, Task

__all__ = ["OutOfFold", "el2n", "forgetting", "out_of_fold"]

_CHUNK = 1024


def el2n(members: Recipe | Sequence[Task], train: Any, *, seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> Signal:
    r"""Return EL2N, the mean over members of ‖p(x_i) − e_{y_i}‖₂ [N]: large = hard or mislabelled.

    Args:
        members: A recipe that trains for a *few* epochs, one model a seed; or trained tasks. A model that fits all of
            its labels has EL2N near zero everywhere: stop early.
        train: Training examples: anything that `as_examples` takes.
        seeds: Seeds of a recipe's members; unused where tasks are given.

    Returns:
        A `Signal` with its standard error over members, where there are several.

    Raises:
        ConfigError: There is no member, or outputs are no class logits.

    Cost: a training a member and a forward pass.

    Reference: Paul, Ganguli & Dziugaite (2021), Deep learning on a data diet, eq. 4 (10 members, 10 to 20 epochs).

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> recipe = Recipe(build=lambda: nn.Linear(3, 2), epochs=1)
        >>> el2n(recipe, train, seeds=(0, 1)).values.shape
        (20,)
    """
    if isinstance(members, Recipe):
        recipe, examples = members, as_examples(train)
        tasks: Any = (recipe.task(recipe.train(examples, seed=seed)) for seed in seeds)
    else:
        tasks = tuple(members)
        examples = tasks[0].examples(train) if tasks else as_examples(train)
    found = []
    for task in tasks:
        p = _probabilities(task, examples)
        found.append((p - _one_hot(p, examples)).norm(dim=1))
    if not found:
        raise ConfigError("members must be at least one, got none. Pass a recipe with seeds, or trained tasks.")
    values = torch.stack(found)  # [M, N]
    error = (values.std(0) / len(values) ** 0.5).numpy() if len(values) > 1 else None
    return Signal(values=values.mean(0).numpy(), ids=examples.ids, name="EL2N", unit=None, standard_error=error)


def forgetting(recipe: Recipe, train: Any, *, seed: int = 0) -> Signal:
    """Return how often training forgets each example: right after one epoch and wrong after the next [N].

    An example that is never right counts as forgotten in every epoch, so that it comes first.

    Args:
        recipe: How to train, by gradient descent.
        train: Training examples: anything that `as_examples` takes.
        seed: As in `Recipe.train`.

    Raises:
        ConfigError: The recipe has a loop of its own or is "lbfgs", which have no epochs; or outputs are no classes.

    Cost: one training and a forward pass an epoch.

    Reference: Toneva et al. (2019). Deviation: predictions are taken after every epoch, not when a batch comes by, so
        that they are all of one model.

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> counts = forgetting(Recipe(build=lambda: nn.Linear(3, 2), epochs=3), train)
        >>> bool(counts.values.min() >= 0) and bool(counts.values.max() <= 3)
        True
    """
    if recipe.loop is not None or recipe.optimizer == "lbfgs":
        raise ConfigError("recipe must train by epochs for forgetting counts, got one without. Use gradient descent.")
    examples = as_examples(train)
    labels = classes_of(examples, "training examples")
    right: list[Tensor] = []

    def look(epoch: int, model: nn.Module, loss: float) -> None:
        p = _probabilities(recipe.task(model), examples)
        right.append(p.argmax(1) == labels.long())

    recipe.train(examples, seed=seed, on_epoch=look)
    history = torch.stack(right)  # [E, N]
    counts = (history[:-1] & ~history[1:]).sum(0)
    counts = torch.where(history.any(0), counts, torch.full_like(counts, len(history)))
    return Signal(values=counts.double().numpy(), ids=examples.ids, name="forgetting", unit=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """What models that were trained without an example say of it.

    Args:
        outputs: Logits of every example, each by the model of its fold [N, ...].
        loss: The losses; large = suspect.
    """

    outputs: Tensor
    loss: Signal


def out_of_fold(recipe: Recipe, train: Any, *, folds: int = 5, seed: int = 0) -> OutOfFold:
    """Train a model for every fold without it, and return its outputs and losses there.

    Folds are balanced by class and drawn by (seed, id), so the order of rows does not change them.

    Args:
        recipe: How to train.
        train: Training examples: anything that `as_examples` takes.
        folds: K.
        seed: Seed of the folds and of training.

    Returns:
        Outputs, and losses in the loss's unit.

    Raises:
        ConfigError: ``folds`` is below 2 or above the number of examples.

    Cost: K trainings on (K − 1)/K of the examples, and one forward pass.

    Reference: the out-of-sample predictions of confident learning, Northcutt, Jiang & Chuang (2021), without its
        thresholds.

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> held = out_of_fold(Recipe(build=lambda: nn.Linear(3, 2), epochs=1), train, folds=2)
        >>> held.outputs.shape, held.loss.unit
        (torch.Size([20, 2]), 'nats')
    """
    examples = as_examples(train)
    if not 2 <= folds <= len(examples):
        raise ConfigError(f"folds must lie in 2 … {len(examples)}, got {folds}.")
    member = _folds(examples, folds, seed)
    values = np.empty(len(examples))
    parts, places = [], []
    unit: str | None = None
    for fold in range(folds):
        held = np.flatnonzero(member == fold)
        task = recipe.task(recipe.train(examples.select(np.flatnonzero(member != fold)), seed=seed))
        values[held] = _each(task, examples.select(held), task.losses).numpy()
        parts.append(_each(task, examples.select(held), task.forward))
        places.append(held)
        unit = task.loss.unit if isinstance(task.loss, Loss) else None
    outputs = torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(places)))]
    return OutOfFold(
        outputs=outputs, loss=Signal(values=values, ids=examples.ids, name="out-of-fold loss", unit=unit)
    )


def _folds(examples: Examples, folds: int, seed: int) -> np.ndarray:
    """Return every example's fold [N]: in random order within classes, dealt out in turn."""
    targets = examples.targets
    discrete = targets is not None and targets.ndim == 1 and not targets.is_floating_point()
    classes = targets.cpu().numpy() if targets is not None and discrete else np.zeros(len(examples), dtype=np.int64)
    order = np.lexsort((examples.keys, uniform(examples.keys, seed), classes))
    member = np.empty(len(examples), dtype=np.int64)
    member[order] = np.arange(len(examples)) % folds
    return member


def _each(task: Task, examples: Examples, values: Callable[[Any], Tensor]) -> Tensor:
    """Return a function of placed batches over all examples, float64, finite."""
    with torch.no_grad(), task.evaluating():
        found = torch.cat([values(task.place(batch)).double().cpu() for batch in examples.batches(_CHUNK)])
    return finite(found, examples.ids, "losses and outputs")


def _probabilities(task: Task, examples: Examples) -> Tensor:
    """Return the probability of every class [N, C], of one logit those of both classes."""
    outputs = _each(task, examples, task.forward)
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs
    if outputs.ndim != 2:
        raise ConfigError(f"outputs must be class logits [N, C], got shape {tuple(outputs.shape)}.")
    if outputs.shape[1] == 1:
        outputs = torch.cat([torch.zeros_like(outputs), outputs], 1)
    return outputs.softmax(1)


def _one_hot(p: Tensor, examples: Examples) -> Tensor:
    """Return labels as probabilities [N, C]."""
    labels = class_positions(examples, "training examples", p.shape[1])
    return torch.zeros_like(p).scatter(1, labels[:, None], 1.0)
