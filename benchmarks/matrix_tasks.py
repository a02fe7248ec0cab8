"""The tasks of the matrix: training rows with some labels flipped, clean queries, a recipe, and the ground truth."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import noisy_sets
import whence as wh
from whence.audit import Draw, UserModel
from whence.audit.bench import Bench, prepare, stack_of
from whence.data import LabelledData, other_class_noise
from whence.evaluate import (
    ErrorTruth,
    LeaveOneOutTruth,
    Retraining,
    SubsetTruth,
    Truth,
    sample_subsets,
    train_subsets,
)
from workloads import Workload, mlp

TASKS = {"mnist_mlp": "mnist", "sms_text": "sms", "spambase": "spambase"}
TITLES = {
    "mnist_mlp": "MLP 784-128-64-10 on MNIST",
    "sms_text": "The embedded default for texts on SMS spam",
    "spambase": "The embedded default for tables on Spambase",
}
TRUTHS = ("lds", "loo", "detection")
SEED = 0
FIRST_SEED = 100  # of the models that are trained again; the explained model has seed 0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a task is: training rows, queries, subsets and rows left out, each trained on with every seed."""

    rows: int = 2_000
    queries: int = 100
    subsets: int = 24
    loo: int = 20
    seeds: int = 2


TINY = Size(rows=60, queries=8, subsets=4, loo=4)


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixTask:
    """One task.

    Args:
        name: One of ``TASKS``.
        bench: Training rows with noisy labels, queries, recipe.
        wrong: Whether the label of a training row was flipped [N].
        model: Trained on the noisy rows.
        retraining: How to train again.
        size: Of the ground truth.
    """

    name: str
    bench: Bench
    wrong: np.ndarray
    model: nn.Module
    retraining: Retraining
    size: Size

    @property
    def workload(self) -> Workload:
        """What a contender is given: tensors, and the model."""
        pairs = [examples.batch(np.arange(len(examples))) for examples in (self.bench.train, self.queries)]
        train, queries = ((batch.inputs, batch.targets) for batch in pairs)
        batches = (64, 256, 1024, len(train[0]))
        return Workload(name="mlp", model=self.model, train=train, queries=queries, pass_batches=batches)

    @property
    def queries(self) -> wh.Examples:
        """The queries."""
        assert self.bench.queries is not None
        return self.bench.queries

    @property
    def fingerprint(self) -> str:
        """What scores depend on: weights, training rows, queries."""
        weights = b"".join(value.numpy().tobytes() for value in self.model.state_dict().values())
        known = f"{self.bench.train.fingerprint}/{self.queries.fingerprint}/".encode()
        return hashlib.sha256(known + weights).hexdigest()[:12]

    def truth(self, name: str) -> Truth:
        """Return a ground truth of ``TRUTHS``; trains again where results are not cached."""
        if name == "detection":
            return ErrorTruth(known=self.wrong)
        train, queries = self.bench.train, self.queries
        if name == "lds":
            subsets = sample_subsets(train, self.size.subsets)
            return SubsetTruth(subsets=subsets, outputs=train_subsets(self.retraining, train, queries, subsets))
        ids = train.ids[self._left_out()]
        measured = self.retraining.measure(train, queries, [[], *([id_] for id_ in ids.tolist())])  # [K+1, S, Q]
        changes = measured[1:] - measured[:1]
        actual = wh.Scores(values=changes.mean(1).T, query_ids=queries.ids, ids=ids, unit=self.retraining.unit)
        return LeaveOneOutTruth(actual=actual, by_seed=np.moveaxis(changes.numpy(), 0, -1))

    def _left_out(self) -> np.ndarray:
        """Return the rows to leave out: half of them with a flipped label, all drawn at random."""
        chance, half = np.random.default_rng(SEED).permutation(len(self.wrong)), self.size.loo // 2
        flipped, right = chance[self.wrong[chance]], chance[~self.wrong[chance]]
        return np.concatenate([flipped[:half], right[: self.size.loo - min(half, len(flipped))]])


def load(name: str, tiny: bool, cache: Path) -> MatrixTask:
    """Read a task's data, flip a tenth of the training labels, train the model."""
    size = TINY if tiny else Size()
    data = noisy_sets.load(TASKS[name], tiny).data
    drawn = Draw(rows=size.rows, queries=size.queries, seed=SEED)
    bench = prepare(data, drawn, _images if name == "mnist_mlp" else None)
    noise = other_class_noise(bench.data.labels[bench.train_rows], noisy_sets.RATE, len(data.classes), SEED)
    bench = bench.with_labels(noise.labels)
    recipe = _recipe(bench, tiny)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + size.seeds))
    return MatrixTask(
        name=name, bench=bench, wrong=noise.changed, model=recipe.train(bench.train, seed=SEED).eval(), size=size,
        retraining=Retraining(recipe=recipe, seeds=seeds, stack=stack_of(recipe), cache=cache),
    )  # fmt: skip


def _recipe(bench: Bench, tiny: bool) -> wh.Recipe:
    """Return how the model is trained; tiny: for two epochs."""
    assert bench.recipe is not None
    recipe = copy.copy(bench.recipe)
    recipe.epochs = 2 if tiny else recipe.epochs
    return recipe


def _images(data: LabelledData) -> UserModel:
    """Return the MLP's recipe and its inputs."""
    inputs = torch.from_numpy(data.content).flatten(1).float() / 255  # [N, pixels]
    widths = [inputs.shape[1], 128, 64, len(data.classes)]
    recipe = wh.Recipe(
        build=partial(mlp, widths), optimizer="sgd", learning_rate=0.05, schedule="cosine", epochs=15, batch_size=64,
        weight_decay=1e-3,
    )  # fmt: skip
    return UserModel(model=mlp(widths), inputs=inputs, name="mlp", recipe=recipe)
