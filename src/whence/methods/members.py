"""Training the members of an ensemble around a trained model, one file each, so that a killed run resumes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.methods.member_folder import MemberFolder
from whence.methods.workers import workers
from whence.tasks import Recipe, Task

__all__ = ["Members", "refresh_statistics"]

_CHUNK = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Members(MemberFolder):
    """M models near a trained one, on disk; one at a time in memory.

    Args:
        folder: As in `MemberFolder`.
        task: The trained model and its loss.
        count: M.
    """

    task: Task
    count: int

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield the members in evaluation mode."""
        for number in range(self.count):
            yield self.model(number)

    def model(self, number: int) -> nn.Module:
        """Return one member in evaluation mode."""
        return self.read(number, copy.deepcopy(self.task.model))

    def train(
        self, recipe: Recipe, examples: Examples, *, seed: int, chain: bool, processes: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        """Train the members that are not there yet, each from the trained model, or from the one before.

        Args:
            recipe: How; member m is trained with seed + m.
            examples: Training examples.
            seed: First seed.
            chain: Start each member from the one before, not from the trained model.
            processes: How many at a time; 1 for a chain.
            progress: Called with (done, M).

        Raises:
            ConfigError: A model is not like the task's; or for several processes, something cannot be sent to them, or
                one of them ended early.
        """
        missing = [number for number in range(self.count) if not self.path(number).is_file()]
        if processes == 1 or len(missing) < 2:
            for number in missing:
                start = self.model(number - 1) if chain and number else self.task.model
                self.keep(number, _trained(recipe, self.task, examples, start, seed + number))
                if progress is not None:
                    progress(number + 1, self.count)
            return
        rows = examples.batch(np.arange(len(examples)))
        packed = rows.inputs, rows.targets, examples.ids
        with workers(processes, "the model, loss and recipe") as pool:
            arguments = (recipe, self.task, packed)
            futures = {pool.submit(_in_process, *arguments, seed + number): number for number in missing}
            for done, future in enumerate(as_completed(futures), self.count - len(missing) + 1):
                self.keep(futures[future], future.result())
                if progress is not None:
                    progress(done, self.count)


def refresh_statistics(model: nn.Module, task: Task, examples: Examples) -> None:
    """Take a model's running statistics anew over the training examples: those of its batch normalisations.

    One example has no variance: then they stay as they are.

    Cost: a forward pass, if there are any.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms or len(examples) < 2:
        return
    fitted, momenta = task.with_model(model), [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    with torch.no_grad():
        # equal parts: a batch of one example would have no variance, and a short one too much weight
        for rows in np.array_split(np.arange(len(examples)), -(-len(examples) // _CHUNK)):
            fitted.forward(fitted.place(examples.batch(rows)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _trained(recipe: Recipe, task: Task, examples: Examples, start: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return one member's weights."""
    model = recipe.train(examples, seed=seed, start=start)
    expected, found = ({n: t.shape for n, t in m.state_dict().items()} for m in (task.model, model))
    if found != expected:
        different = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise ConfigError(
            f"recipe must train a model like the task's, got another {different!r}. Start from start=."
        )
    refresh_statistics(model, task, examples)
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _in_process(recipe: Recipe, task: Task, packed: tuple[Any, Tensor | None, np.ndarray], seed: int) -> Any:
    """Return the state of one member, trained in a process of its own on one thread."""
    torch.set_num_threads(1)
    inputs, targets, ids = packed
    examples = as_examples((inputs, targets), ids=ids)
    return _trained(recipe, task, examples, task.model, seed)
