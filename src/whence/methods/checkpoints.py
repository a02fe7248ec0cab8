"""Checkpoints of a training run: recorded by a recipe, or the user's own, loaded one at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import as_examples
from whence.errors import ConfigError, RunFormatError
from whence.features import read_tensors
from whence.tasks import Recipe

__all__ = ["Checkpoints", "model_at", "record_checkpoints"]

Checkpoint = nn.Module | Mapping[str, Tensor] | str | Path


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoints:
    """Weights along one training run with the step sizes at which they were left.

    Args:
        weights: State dicts [S], in the order of training.
        learning_rates: Step size of each [S].
        epochs: After which epoch each was taken [S].
        model: The model at the end of training.
    """

    weights: tuple[Mapping[str, Tensor], ...]
    learning_rates: tuple[float, ...]
    epochs: tuple[int, ...]
    model: nn.Module

    def __len__(self) -> int:
        """Return the number of checkpoints S."""
        return len(self.weights)


def record_checkpoints(
    recipe: Recipe, train: Any, *, count: int | None = 5, epochs: Sequence[int] | None = None, seed: int = 0
) -> Checkpoints:
    """Train by a recipe and keep the weights of some epochs.

    Args:
        recipe: How to train, by gradient descent.
        train: Training examples: anything that `as_examples` takes.
        count: How many epochs, evenly spread, the last one included; None for all.
        epochs: Which epochs instead, from 1.
        seed: As in `Recipe.train`.

    Returns:
        The checkpoints; a learning rate is the recipe's peak times its schedule's share in the middle of the epochs
        since the checkpoint before.

    Raises:
        ConfigError: The recipe has a loop of its own or is "lbfgs", which have no epochs; or there is no such epoch.

    Cost: one training, and S copies of the weights.

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> run = record_checkpoints(Recipe(build=lambda: nn.Linear(3, 2), epochs=4), train, count=2)
        >>> run.epochs, len(run.learning_rates)
        ((2, 4), 2)
    """
    if recipe.loop is not None or recipe.optimizer == "lbfgs":
        raise ConfigError("recipe must train by epochs to leave checkpoints, got one without. Pass checkpoints=.")
    examples = as_examples(train)
    last = math.ceil(recipe.steps / math.ceil(len(examples) / recipe.batch_size)) if recipe.steps else recipe.epochs
    wanted = sorted(set(epochs)) if epochs is not None else _spread(last, count)
    if not wanted or wanted[0] < 1 or wanted[-1] > last:
        raise ConfigError(f"epochs must lie in 1 … {last}, at least one, got {list(wanted)}.")
    kept: dict[int, dict[str, Tensor]] = {}

    def keep(epoch: int, model: nn.Module, loss: float) -> None:
        if epoch in wanted:
            kept[epoch] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    model = recipe.train(examples, seed=seed, on_epoch=keep)
    starts = [0, *wanted[:-1]]
    middles = [(start + stop) / (2 * last) for start, stop in zip(starts, wanted, strict=True)]
    rates = tuple(_peak(recipe) * recipe.rate(middle) for middle in middles)
    return Checkpoints(
        weights=tuple(kept[epoch] for epoch in wanted), learning_rates=rates, epochs=tuple(wanted), model=model
    )


def _peak(recipe: Recipe) -> float:
    """Return the largest step size: the recipe's, or that of its own optimiser's first parameters."""
    return float(recipe.make_optimizer({"any": nn.Parameter(torch.zeros(1))}).param_groups[0]["lr"])


def model_at(model: nn.Module, checkpoint: Any) -> nn.Module:
    """Return a model at a checkpoint, in evaluation mode: a module, a state dict or a file that holds one.

    Raises:
        ConfigError: It is something else, or its weights are not this model's.
        RunFormatError: The file is missing or damaged.
    """
    if isinstance(checkpoint, nn.Module):
        return checkpoint
    state = _read(Path(checkpoint)) if isinstance(checkpoint, (str, Path)) else checkpoint
    if not isinstance(state, Mapping):
        raise ConfigError(f"a checkpoint must be a model, a state dict or a path, got {type(checkpoint).__name__}.")
    loaded = copy.deepcopy(model)
    try:
        loaded.load_state_dict(dict(state))
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"a checkpoint must hold the weights of the task's model, got: {str(error).splitlines()[-1].strip()}. "
            "Pass state dicts of the same class."
        ) from error
    return loaded.eval()


def _read(path: Path) -> Any:
    """Return what a file of weights holds; nothing is unpickled but tensors."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is no checkpoint torch raises errors of many kinds
        raise RunFormatError(f"{path} must be a file of weights, got: {str(error).splitlines()[0]}.") from error


def _spread(last: int, count: int | None) -> list[int]:
    """Return ``count`` epochs evenly spread up to the last one."""
    if count is not None and count < 1:
        raise ConfigError(f"count must be at least 1 or None, got {count}.")
    many = last if count is None else min(count, last)
    return sorted({round(last * (place + 1) / many) for place in range(many)})
