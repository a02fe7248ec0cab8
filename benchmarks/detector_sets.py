"""Data and networks on which the detectors are compared: noisy training rows, clean held-out rows, a recipe."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import support
import whence as wh
from whence.data import LabelledData, ReadOptions, from_arrays, other_class_noise, read
from whence.tasks.defaults import default_for

_FILES = {
    "sms": ("sms_spam/sms_spam.csv.gz", ReadOptions(label="label")),
    "ag_news": ("ag_news/ag_news_test7600.csv.gz", ReadOptions(label="label")),
    "trec": ("trec/trec_questions.csv.gz", ReadOptions(label="coarse", drop=("split", "fine"))),
    "imdb": ("imdb/imdb.csv.gz", ReadOptions(label="label", drop=(
        "id", "split", "stars", "votes_given", "votes_other", "votes_neutral", "votes_offtopic"))),
}  # fmt: skip
_TINY = {"sms": ("sms_spam.csv.gz", ReadOptions(label="label"))}
_HELD = {"sms": 1000, "ag_news": 1500, "trec": 1000, "imdb": 1500}


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Prepared rows with their true labels, and labels by people where there are any.

    ``inputs`` [N, ...] are what a network takes, ``data`` what `whence audit` does; the first ``held`` rows are clean
    and never trained on.
    """

    inputs: Tensor
    data: LabelledData
    labels: np.ndarray
    given: np.ndarray | None
    held: int
    classes: int

    def noisy(self, rate: float, seed: int) -> Noisy:
        """Return training rows with wrong labels: those given by people, or ``rate`` of them moved to another class."""
        true = self.labels[self.held :]
        if self.given is None:
            noise = other_class_noise(true, rate, self.classes, seed)
            labels, wrong = noise.labels, noise.changed
        else:
            labels, wrong = self.given[self.held :], self.given[self.held :] != true
        clean = wh.as_examples((self.inputs[: self.held], torch.from_numpy(self.labels[: self.held])))
        train = wh.as_examples((self.inputs[self.held :], torch.from_numpy(labels)))
        data = self.data.rows(range(self.held, len(self.data))).with_labels(labels)
        return Noisy(
            train=train, labels=labels, true=true, wrong=wrong, clean=clean, classes=self.classes, data=data
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Noisy:
    """Training examples with wrong labels among them, and clean ones."""

    train: wh.Examples
    labels: np.ndarray
    true: np.ndarray
    wrong: np.ndarray
    clean: wh.Examples
    classes: int
    data: LabelledData

    def references(self, per_class: int, seed: int) -> wh.Examples:
        """Return a few clean examples of every class."""
        return wh.sample_references(self.clean, per_class=per_class, seed=seed)

    def test(self, seed: int, used: wh.Examples | None = None) -> tuple[Tensor, Tensor]:
        """Return clean inputs and labels that were not used as references."""
        rows = np.arange(len(self.clean))
        if used is not None:
            rows = rows[~np.isin(self.clean.ids, used.ids)]
        batch = self.clean.batch(rows)
        assert batch.targets is not None
        return batch.inputs, batch.targets


def load(name: str, rows: int, tiny: bool, seed: int = 0) -> Rows:
    """Read a set: "mnist", "fashion", "cifar10" (true labels), "cifar10n" (people's), or a set of texts.

    Args:
        name: Which.
        rows: Training rows.
        tiny: Bundled rows of the same kind of data.
        seed: Seed of the choice of rows and of the text features.
    """
    if name in _FILES:
        return _texts(name, rows, tiny, seed)
    x, y, given = _tiny_images() if tiny else _images(name)
    held = min(2_000, len(x) // 3)
    chosen = np.random.default_rng(seed).permutation(len(x))[: held + rows]
    pixels = torch.from_numpy(x[chosen].astype(np.float32) / 255)
    inputs = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    labels, classes = y[chosen].astype(np.int64), int(y.max()) + 1
    data = from_arrays(x[chosen], labels, classes=[str(c) for c in range(classes)], source=name)
    return Rows(
        inputs=inputs, data=data, labels=labels, given=None if given is None else given[chosen], held=held,
        classes=classes,
    )  # fmt: skip


def _tiny_images() -> tuple[np.ndarray, np.ndarray, None]:
    with np.load(support.ROOT / "examples" / "data" / "fashion_mnist_1000.npz") as file:
        return file["x"][:240].reshape(-1, 28, 28), file["y"][:240], None


def _images(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    folder = support.data_folder()
    if name in ("mnist", "fashion"):
        stem = {"mnist": "mnist", "fashion": "fashion_mnist"}[name]
        with np.load(support.need(folder / stem / f"{stem}_train.npz")) as file:
            return file["x"].reshape(-1, 28, 28), file["y"], None
    with lzma.open(support.need(folder / "cifar10n" / "cifar10_train_x.npy.xz")) as file:
        x = np.load(file, allow_pickle=False)[:20_000]
    with np.load(support.need(folder / "cifar10n" / "cifar10n_train_labels.npz")) as file:
        true, given = (file[f"{which}_label"][:20_000].astype(np.int64) for which in ("clean", "worse"))
    return x, true, given if name == "cifar10n" else None


def _texts(name: str, rows: int, tiny: bool, seed: int) -> Rows:
    if tiny:
        file, options = _TINY.get(name, _TINY["sms"])
        data = read(support.ROOT / "examples" / "data" / file, options).rows(range(240))
    else:
        file, options = _FILES[name]
        data = read(support.need(support.data_folder() / file), options)
    held = 80 if tiny else _HELD[name]
    chosen = np.random.default_rng(seed).permutation(len(data))[: held + rows]
    data = data.rows(chosen.tolist())
    default = default_for(data, seed=seed)
    inputs = default.preparation.transform(data) if default.inputs is None else default.inputs
    return Rows(
        inputs=inputs.float(), data=data, labels=data.labels, given=None, held=held, classes=len(data.classes)
    )


def vgg(shape: tuple[int, int, int], classes: int, width: int = 16) -> nn.Module:
    """A VGG-like network: two blocks of two 3×3 convolutions, then two linear layers."""
    channels, side, _ = shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * width * (side // 4) ** 2, 256), nn.ReLU(), nn.Linear(256, classes),
    )  # fmt: skip


def perceptron(features: int, classes: int, hidden: int = 128) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def recipe(rows: Rows, epochs: int, kind: str, rate: float = 0.05) -> wh.Recipe:
    """Return how a network of this kind is trained: plain SGD with momentum, a cosine schedule, no weight decay."""
    shape: Any = tuple(rows.inputs.shape[1:])
    build = partial(vgg, shape, rows.classes) if kind == "vgg" else partial(
        perceptron, int(np.prod(shape)), rows.classes)  # fmt: skip
    return wh.Recipe(
        build=build, optimizer="sgd", learning_rate=rate, momentum=0.9, schedule="cosine", epochs=epochs,
        batch_size=128,
    )  # fmt: skip
