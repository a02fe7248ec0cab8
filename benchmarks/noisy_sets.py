"""Labelled data whose wrong labels are known: flipped on purpose, or by human annotators."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import Any

import numpy as np

import support
from whence.data import LabelledData, ReadOptions, from_arrays, other_class_noise, read

NAMES = ("sms", "mnist", "spambase", "ag_news", "cifar10n_aggre", "cifar10n_worse")
TINY_NAMES = ("sms", "mnist", "spambase")
RATE = 0.1
ROWS = 10_000
_FILES = {
    "sms": ("sms_spam/sms_spam.csv.gz", ReadOptions(label="label")),
    "mnist": ("mnist/mnist_train.npz", ReadOptions()),
    "spambase": ("spambase/spambase.csv.gz", ReadOptions(label="result")),
    "ag_news": ("ag_news/ag_news_test7600.csv.gz", ReadOptions(label="label")),
}
_TINY = {
    "sms": ("sms_spam.csv.gz", ReadOptions(label="label"), 200),
    "mnist": ("fashion_mnist_1000.npz", ReadOptions(), 200),
    "spambase": ("adult_1000.csv.gz", ReadOptions(label="label", drop=("split",)), 300),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Noisy:
    """Labels with errors: the given ones, the true ones, and where they differ [N]."""

    labels: np.ndarray
    true: np.ndarray
    wrong: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisySet:
    """Data with its true labels, and the noisy labels of a seed.

    ``given`` holds human labels; where it is None, 10 % of the labels are flipped to another class by seed.
    """

    data: LabelledData
    test: LabelledData | None = None
    given: np.ndarray | None = None

    @property
    def injected(self) -> bool:
        """Whether the noise is injected, and so differs from seed to seed."""
        return self.given is None

    @property
    def description(self) -> str:
        """What the noise is."""
        if self.given is None:
            return f"{RATE:.0%} of the labels flipped to another class"
        return f"human labels, {(self.given != self.data.labels).mean():.1%} of them wrong"

    def noise(self, seed: int) -> Noisy:
        """Return the noisy labels of a seed."""
        true = self.data.labels
        if self.given is not None:
            return Noisy(labels=self.given, true=true, wrong=self.given != true)
        flipped = other_class_noise(true, RATE, len(self.data.classes), seed)
        return Noisy(labels=flipped.labels, true=true, wrong=flipped.changed)


def load(name: str, tiny: bool) -> NoisySet:
    """Read one of the sets; tiny: a few hundred bundled rows of the same kind of data."""
    if tiny:
        file, options, rows = _TINY[name]
        return NoisySet(data=read(support.ROOT / "examples" / "data" / file, options).rows(range(rows)))
    folder = support.data_folder()
    if name.startswith("cifar10n"):
        return _cifar(folder / "cifar10n", name.removeprefix("cifar10n_"))
    file, options = _FILES[name]
    data = read(support.need(folder / file), options)
    if name != "mnist":
        return NoisySet(data=data)
    test = read(support.need(folder / "mnist" / "mnist_test.npz"))
    return NoisySet(data=data.rows(range(ROWS)), test=test)


def _cifar(folder: Any, kind: str) -> NoisySet:
    """Read CIFAR-10N: CIFAR-10 images with the labels of human annotators."""
    classes = support.need(folder / "classes.txt").read_text("utf-8").split()
    images = {}
    for part in ("train", "test"):
        with lzma.open(support.need(folder / f"cifar10_{part}_x.npy.xz")) as file:
            images[part] = np.load(file, allow_pickle=False)
    with (
        np.load(support.need(folder / "cifar10n_train_labels.npz")) as train,
        np.load(support.need(folder / "cifar10_test_labels.npz")) as test,
    ):
        true, given = (train[f"{which}_label"][:ROWS].astype(np.int64) for which in ("clean", kind))
        test_labels = test["label"].astype(np.int64)
    return NoisySet(
        data=from_arrays(images["train"][:ROWS], true, classes=classes, source="CIFAR-10N"),
        test=from_arrays(images["test"], test_labels, classes=classes, source="CIFAR-10 test"),
        given=given,
    )
