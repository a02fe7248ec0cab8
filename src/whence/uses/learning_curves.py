"""Learning curves of what has been seen and what has not: two sub-networks on the training examples themselves."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.tasks import Recipe, Task, branch_losses

__all__ = ["SeenUnseen"]

_CHUNK = 512


class SeenUnseen:
    r"""Records, epoch by epoch, the mean training loss of the sub-networks that have and have not seen an example.

    The gap between the two is what has been memorised, measured without a validation set: the loss under the flipped
    masks stands for that of such sub-networks on unseen data, until much has been memorised: then it lies above it (by
    a third after 40 epochs on 2,000 rows of MNIST), for what an example's own units have taken over the others need
    not learn. The average network does better than its parts and overfits later.

    Args:
        recipe: The recipe that trains; its model has masked layers and its outputs are `turn_over_outputs`.
        train: Training examples (or some of them, under their ids) to measure.
        test: Held-out examples, measured in the plain average network and in sub-networks (those of examples with
            their ids); None for none.
        every: Measure after every so many epochs.

    Raises:
        ConfigError: ``every`` is below 1.

    Cost: two forward passes over ``train`` and two over ``test`` an epoch.

    Reference: Kobayashi et al. (2020), learning curves of the two sub-networks.

    Example:
        >>> from whence.tasks import turn_over, turn_over_outputs
        >>> build = lambda: turn_over(nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2)))
        >>> train = as_examples((torch.randn(20, 3), torch.randint(0, 2, (20,))))
        >>> recipe = Recipe(build=build, outputs=turn_over_outputs, epochs=3)
        >>> curves = SeenUnseen(recipe, train, test=train)
        >>> model = recipe.train(train, on_epoch=curves)
        >>> curves.to_frame().columns.tolist()
        ['seen', 'unseen', 'test', 'test_parts']
    """

    def __init__(self, recipe: Recipe, train: Any, test: Any = None, *, every: int = 1) -> None:
        if every < 1:
            raise ConfigError(f"every must be at least 1, got {every}.")
        self.recipe = recipe
        self.train = as_examples(train)
        self.test = None if test is None else as_examples(test)
        self.every = every
        self.rows: list[dict[str, float]] = []

    def __call__(self, epoch: int, model: nn.Module, loss: float) -> None:
        """Measure a model after an epoch; for ``Recipe.train(on_epoch=...)``."""
        if epoch % self.every:
            return
        if self.rows and epoch <= self.rows[-1]["epoch"]:
            self.rows.clear()  # another training
        task = self.recipe.task(model)
        row = {"epoch": float(epoch)}
        for name, flipped in (("seen", False), ("unseen", True)):
            row[name] = float(branch_losses(task, self.train, flipped=flipped).mean())
        if self.test is not None:
            row["test"] = _mean_loss(task, self.test)
            row["test_parts"] = float(branch_losses(task, self.test, flipped=True).mean())
        self.rows.append(row)

    def to_frame(self) -> pd.DataFrame:
        """Return mean losses by epoch, in the loss's unit: ``seen``, ``unseen``, and with a test set ``test``.

        ``test`` is that of the average network, ``test_parts`` that of sub-networks.
        """
        frame = pd.DataFrame(self.rows)
        return frame.astype({"epoch": int}).set_index("epoch") if self.rows else frame

    def correlation(self, of: Literal["test", "test_parts"] = "test_parts") -> float:
        """Return Pearson's r of unseen loss and test loss over the epochs.

        Args:
            of: Test loss of sub-networks, which the unseen loss is an estimate of, or of the average network.

        Raises:
            ConfigError: There are no test examples, or fewer than three epochs.
        """
        if self.test is None or len(self.rows) < 3:
            raise ConfigError(
                f"r must be asked of at least 3 epochs with test examples, got {len(self.rows)}. Pass test=."
            )
        frame = self.to_frame()
        return float(np.corrcoef(frame["unseen"], frame[of])[0, 1])


def _mean_loss(task: Task, examples: Examples) -> float:
    """Return the mean loss of the plain average network."""
    with torch.no_grad(), task.evaluating():
        total = sum(float(task.losses(task.place(batch)).double().sum()) for batch in examples.batches(_CHUNK))
    return total / len(examples)
