"""The regimes of the table of detectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import whence as wh
from detector_methods import Subject
from detector_sets import load, recipe

NOISE = 0.1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A regime of the table: data, network, training, and how GEX's members leave the basin."""

    name: str
    data: str
    rows: int
    epochs: int
    kind: str
    memorised: bool
    rate: float | str = 0.4
    clip: float | None = 1.0
    steps: int = 160
    folds: int = 3


SETTINGS = {
    "mnist_memorised": Setting(
        name="MNIST, memorised", data="mnist", rows=10_000, epochs=40, kind="vgg", memorised=True, folds=2),
    "mnist_early": Setting(
        name="MNIST, stopped early", data="mnist", rows=10_000, epochs=4, kind="vgg", memorised=False),
    "cifar10n": Setting(
        name="CIFAR-10N (worse)", data="cifar10n", rows=5_000, epochs=40, kind="vgg", memorised=True, folds=2),
    "sms": Setting(name="SMS", data="sms", rows=4_500, epochs=20, kind="perceptron", memorised=True, rate="auto",
        clip=None),
    "ag_news": Setting(
        name="AG News", data="ag_news", rows=6_000, epochs=20, kind="perceptron", memorised=True, rate="auto",
        clip=None),
}  # fmt: skip


def subject_of(setting: Setting, cache: Path, tiny: bool) -> Subject:
    """Return the noisy rows of a setting and how its model is trained."""
    rows = load(setting.data, setting.rows, tiny)
    epochs, steps = (2, 4) if tiny else (setting.epochs, setting.steps)
    gex = wh.GEX(
        members=2 if tiny else 8, steps=steps, clip=setting.clip, learning_rate=0.2 if tiny else setting.rate,
        folder=cache / "members",
    )  # fmt: skip
    linear = ["10", "12"] if setting.kind == "vgg" else None
    masked = ("10", "12") if setting.kind == "vgg" else ("3",)
    return Subject(
        rows=rows.noisy(NOISE, seed=0), recipe=recipe(rows, epochs, setting.kind), gex=gex,
        arnoldi=linear, folds=2 if tiny else setting.folds, masked=masked, early=1 if tiny else 3, seed=0, folder=cache,
    )  # fmt: skip
