"""A network of one's own for ``whence compare``, ``evaluate`` and ``audit``: a recipe and its inputs.

whence compare mnist.npz --label y --model examples/mnist_mlp.py:mlp --out runs/mnist
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import whence as wh


def build(pixels: int, classes: int) -> nn.Module:
    """Return an untrained network."""
    return nn.Sequential(
        nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes)
    )  # fmt: skip


def mlp(data: wh.LabelledData) -> tuple[wh.Recipe, Tensor]:
    """Return how to train it, and the images as rows of numbers in [0, 1]."""
    inputs = torch.from_numpy(data.content).flatten(1).float() / 255  # [N, pixels]
    recipe = wh.Recipe(
        build=functools.partial(build, inputs.shape[1], len(data.classes)),
        optimizer="sgd",
        learning_rate=0.05,
        schedule="cosine",
        epochs=10,
        batch_size=128,
        weight_decay=5e-4,
    )
    return recipe, inputs
