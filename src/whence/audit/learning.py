"""Learning curves of a run's model without a validation set: sub-networks that have and have not seen an example."""

from __future__ import annotations

import copy
import datetime
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from whence.audit.again import bench_of
from whence.audit.bench import Bring, Draw, Watch, draw
from whence.audit.comparison import data_card
from whence.audit.folder import Run
from whence.data import LabelledData
from whence.errors import ConfigError
from whence.tasks import Recipe, mask_layers, turn_over, turn_over_outputs
from whence.uses.learning_curves import SeenUnseen

__all__ = ["LearningSettings", "learn_run"]

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POINTS = 40
_NOISE = 0.02  # of the lowest loss: a rise above it counts as one


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """How the curves are drawn.

    Args:
        epochs: Epochs to train for; None for the recipe's.
        rows: At most so many training rows are measured.
        seed: Of masks, training and draws.

    Raises:
        ConfigError: A number is too small.
    """

    epochs: int | None = None
    rows: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 2:
            raise ConfigError(f"--epochs must be at least 2, got {self.epochs}.")
        if self.rows < 1:
            raise ConfigError(f"rows must be at least 1, got {self.rows}.")


def learn_run(
    run: Run, data: LabelledData, settings: LearningSettings, *, bring: Bring | None = None, version: str = "",
    watch: Watch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a run's recipe with turn-over dropout and record what has and has not been seen, epoch by epoch.

    Held-out rows (those outside the train split, else a fifth) are measured beside, to tell how well the unseen loss
    stands for theirs. A model without dropout gets masks before all its linear and convolution layers but the first.

    Args:
        run: An audit.
        data: The audited data.
        settings: How long, on how many rows.
        bring: Returns the user's model again.
        version: To name in the result.
        watch: Who is told of progress.

    Returns:
        A JSON-able dict of format 1, which `whence.report.render_learning` takes.

    Raises:
        ConfigError: The model cannot be trained again, or not by epochs, or has nothing to mask.

    Cost: one training, and up to 40 times two passes over the measured rows and as many of the held-out ones.
    """
    watch = watch or Watch()
    watch.say("restoring the run")
    train, queries, said = draw(data, Draw(rows=max(len(data), 8), queries=settings.rows, seed=settings.seed))
    bench = bench_of(run, data, train, queries, bring)
    if bench.recipe is None or bench.recipe.loop is not None or bench.recipe.optimizer == "lbfgs":
        raise ConfigError(
            "learning curves must be of a model trained by epochs: a recipe with build= and gradient descent, got "
            "none. Let FUNC return such a (Recipe, inputs)."
        )
    recipe, epochs = _masked(bench.recipe, settings)
    generator = np.random.default_rng(settings.seed)
    some = bench.train.select(np.sort(generator.permutation(len(train))[: settings.rows]))
    curves = SeenUnseen(recipe, some, bench.queries, every=-(-epochs // _POINTS))
    callback = watch.stage("training with turn-over dropout", epochs)

    def each(epoch: int, model: nn.Module, loss: float) -> None:
        curves(epoch, model, loss)
        if callback is not None:
            callback(epoch, model, loss)

    recipe.train(bench.train, seed=settings.seed, on_epoch=each)
    frame = curves.to_frame()
    return {
        "format": 1, "kind": "curves", "whence": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": data_card(data), "model": run.summary["model"], "rows": len(train), "measured": len(some),
        "held_out": 0 if bench.queries is None else len(bench.queries), "said": list(said), "epochs": epochs,
        "curves": {str(name): column.tolist() for name, column in frame.reset_index().items()}, **_read(frame, epochs),
    }  # fmt: skip


def _masked(recipe: Recipe, settings: LearningSettings) -> tuple[Recipe, int]:
    """Return the recipe with turn-over dropout, and its epochs."""
    own = copy.copy(recipe)
    assert own.build is not None
    own.build = functools.partial(_build, own.build, settings.seed)
    own.outputs = functools.partial(turn_over_outputs, outputs=recipe.outputs)
    if settings.epochs is not None:
        own.epochs, own.steps = settings.epochs, None
    if own.steps is not None:
        raise ConfigError("learning curves must be by epochs, got a recipe of so many steps. Name --epochs.")
    return own, own.epochs


def _build(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a new model with masks: for its dropout, else before all its matrices but the first."""
    model = build()
    if mask_layers(model):
        return model
    names = [name for name, module in model.named_modules() if isinstance(module, _MATRICES)]
    dropout = any(isinstance(module, _DROPOUTS) for module in model.modules())
    return turn_over(model, insert=() if dropout else names[1:], seed=seed)


def _read(frame: pd.DataFrame, last: int) -> dict[str, Any]:
    """Say what the curves say: where unseen loss is lowest, by how much it rises again, how it follows the test's."""
    epochs: list[int] = frame.index.tolist()
    lowest = epochs[int(frame["unseen"].to_numpy().argmin())]
    rise = float(frame["unseen"].iloc[-1] - frame["unseen"].min())
    gap = float(frame["unseen"].iloc[-1] - frame["seen"].iloc[-1])
    memorises = rise > _NOISE * abs(float(frame["unseen"].min()))
    if memorises:
        sentence = (f"What has not been seen is predicted best after epoch {lowest} of {last}; from there on the model "
                    f"memorises: its loss on unseen rows rises by {rise:.3g} nats.")  # fmt: skip
    else:
        sentence = (f"Loss on unseen rows does not rise again within {last} epochs; at the end it lies {gap:.3g} nats "
                    "above that on seen ones.")  # fmt: skip
    best = epochs[int(frame["test"].to_numpy().argmin())] if "test" in frame else None
    varied = "test_parts" in frame and len(frame) > 2 and frame["unseen"].std() > 0 and frame["test_parts"].std() > 0
    follows = float(np.corrcoef(frame["unseen"], frame["test_parts"])[0, 1]) if varied else None
    return {
        "verdict": {"sentence": sentence, "good": not memorises, "level": "unclear"}, "lowest": lowest,
        "test_lowest": best, "gap": gap, "follows": follows,
    }  # fmt: skip
