"""The model under attack: how it is trained on altered examples, what it says of the targets, and their maps."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.tasks import Recipe, Task

__all__ = ["Held", "Method", "Victim", "altered", "margins"]

_CHUNK = 256
_ROUGH = 100.0  # times the gradient norm at which a step's training may stop,
_SHARE = 0.01  # or this share of the gradient that the altered rows make, whichever is less
_NEAR = 0.05  # relative change of the weights up to which a curvature is used again


class Method(Protocol):
    """What is needed of a method: `whence.Influence` offers it."""

    def fit(self, task: Task, train: Any) -> Any:
        """Return an attribution with ``perturbation(ids, queries, reduce=)`` and ``at(model, train)``."""


@dataclass
class Held:
    """The attribution of the latest fit, whose curvature serves all weights nearby.

    Args:
        method: What is fitted.
    """

    method: Method
    attribution: Any = None
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))

    def of(self, task: Task, train: Examples) -> Any:
        """Return an attribution of these weights: fitted anew where they are 5 % away from the latest fit's."""
        weights = nn.utils.parameters_to_vector(task.model.parameters()).detach().double()
        if self.attribution is not None and (weights - self.weights).norm() <= _NEAR * self.weights.norm():
            return self.attribution.at(task.model, train)
        self.attribution, self.weights = self.method.fit(task, train), weights
        return self.attribution


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A recipe with its data.

    Args:
        recipe: How the model is trained on what ``frozen`` gives.
        examples: Training examples whose inputs are one floating-point tensor.
        targets: Labelled examples whose measurements the attack raises.
        frozen: A module in front of the trained model that no training changes; None for none.
        seed: Of every training.
    """

    recipe: Recipe
    examples: Examples
    targets: Examples
    frozen: nn.Module | None = None
    seed: int = 0

    @cached_property
    def seen(self) -> Examples:
        """The training examples as the trained part sees them."""
        return through(self.frozen, self.examples)

    @cached_property
    def asked(self) -> Examples:
        """The targets as the trained part sees them."""
        return through(self.frozen, self.targets)

    def inputs(self, rows: np.ndarray) -> Tensor:
        """Return training inputs [K, ...]."""
        found = self.examples.batch(rows).inputs
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise ConfigError(
                "inputs of attacked examples must be one floating-point tensor, got "
                f"{found.dtype if isinstance(found, Tensor) else type(found).__name__}. "
                "Convert images to floats in [0, 1]."
            )
        return found

    def with_rows(self, rows: np.ndarray, values: Tensor) -> Examples:
        """Return the training examples as the trained part sees them, with other inputs at some rows."""
        return altered(self.seen, rows, _applied(self.frozen, values))

    def train(self, examples: Examples, warm: nn.Module | None = None, *, roughly: bool = False) -> nn.Module:
        """Return the model trained on examples; an exact recipe may start from a model nearby and stop early."""
        exact = self.recipe.optimizer == "lbfgs" and self.recipe.loop is None
        recipe = copy.copy(self.recipe)
        if exact and roughly and warm is not None:
            rest = _SHARE * _gradient_norm(self.recipe.task(warm), examples)
            recipe.gradient_norm = max(recipe.gradient_norm, min(_ROUGH * recipe.gradient_norm, rest))
        return recipe.train(examples, seed=self.seed, start=warm if exact else None)

    def maps(self, held: Held, model: nn.Module, examples: Examples, rows: np.ndarray, values: Tensor) -> Tensor:
        """Return ∂(predicted rise of the targets' mean measurement)/∂x of some rows with inputs ``values`` [K, ...]."""
        attribution = held.of(self.recipe.task(model), examples)
        found: Tensor = attribution.perturbation(examples.ids[rows], self.asked, reduce="mean").values[0]
        parts = [
            _pulled_back(self.frozen, part, maps)
            for part, maps in zip(values.split(_CHUNK), found.split(_CHUNK), strict=True)
        ]
        return torch.cat(parts).to(values)

    def judge(self, model: nn.Module) -> tuple[Tensor, Tensor, float]:
        """Return margins [Q], predicted classes [Q] and the mean measurement of the targets."""
        task = self.recipe.task(model)
        outputs, measured = [], []
        for batch in self.asked.batches(_CHUNK):
            placed = task.place(batch)
            with task.evaluating(), torch.no_grad():
                outputs.append(task.forward(placed))
                measured.append(task.measurements(placed, outputs[-1]))
        targets = self.targets.targets
        assert targets is not None
        gap, predicted = margins(torch.cat(outputs).cpu(), targets)
        return gap, predicted, float(torch.cat(measured).double().mean())


def _gradient_norm(task: Task, examples: Examples) -> float:
    """Return ‖∇J‖ of a model on examples."""
    named = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    total = [task.decay_of(name) * p.detach() for name, p in named.items()]
    with task.evaluating(), torch.enable_grad():
        for batch in examples.batches(_CHUNK):
            share = task.losses(task.place(batch)).sum() / len(examples)
            total = [t + g for t, g in zip(total, torch.autograd.grad(share, list(named.values())), strict=True)]
    return float(torch.cat([t.reshape(-1) for t in total]).norm())


def margins(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the output of the label is above the best other one [Q], and the predicted classes [Q].

    Raises:
        ConfigError: The outputs are not those of classes.
    """
    outputs = outputs.double()
    if outputs.numel() == len(outputs) and not (outputs.ndim == 2 and targets.ndim == 2 and targets.shape[1] > 1):
        logit, positive = outputs.reshape(-1), targets.reshape(-1) > 0
        return torch.where(positive, logit, -logit), (logit > 0).long()
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        raise ConfigError(
            f"targets of an attack must be classes with outputs [B, C], got outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)}."
        )
    own = outputs.gather(1, targets[:, None])[:, 0]
    others = outputs.scatter(1, targets[:, None], float("-inf")).amax(1)
    return own - others, outputs.argmax(1)


def altered(examples: Examples, rows: np.ndarray, values: Tensor) -> Examples:
    """Return the examples with other inputs [K, ...] at some rows."""
    places = {int(row): place for place, row in enumerate(rows)}

    def fetch(asked: np.ndarray) -> tuple[Any, Tensor | None]:
        inputs, targets = examples.fetch(asked)
        inputs = inputs.clone()
        for position, row in enumerate(asked.tolist()):
            if row in places:
                inputs[position] = values[places[row]].to(inputs)
        return inputs, targets

    return Examples(ids=examples.ids, fetch=fetch)


def through(frozen: nn.Module | None, examples: Examples) -> Examples:
    """Return the examples after a frozen module, in memory."""
    if frozen is None:
        return examples
    parts = [_applied(frozen, batch.inputs) for batch in examples.batches(_CHUNK)]
    return as_examples((torch.cat(parts), examples.targets), ids=examples.ids)


def _applied(frozen: nn.Module | None, inputs: Tensor) -> Tensor:
    """Return what a frozen module gives, or the inputs."""
    if frozen is None:
        return inputs
    with torch.no_grad():
        found: Tensor = frozen(inputs)
    return found


def _pulled_back(frozen: nn.Module | None, inputs: Tensor, maps: Tensor) -> Tensor:
    """Return maps at a frozen module's output as maps at its input."""
    if frozen is None:
        return maps
    leaf = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        outputs = frozen(leaf.clone())  # it may change its input in place
    return torch.autograd.grad(outputs, leaf, maps.to(outputs))[0]
