"""The multilayer perceptron with dropout that tables and texts share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn

from whence.errors import RunFormatError
from whence.tasks.recipe import Recipe

__all__ = ["perceptron", "perceptron_config", "perceptron_recipe"]

_FEWEST_STEPS = 600


def perceptron_config(
    *, inputs: int, classes: int, hidden: tuple[int, ...], input_dropout: float, dropout: float
) -> dict[str, Any]:
    """Return the network's settings as JSON-able values."""
    return {
        "inputs": inputs,
        "classes": classes,
        "hidden": list(hidden),
        "input_dropout": input_dropout,
        "dropout": dropout,
    }


def perceptron(config: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network: dropout, then linear, ReLU and dropout for every hidden layer, then linear.

    Raises:
        RunFormatError: A setting is missing.
    """
    try:
        widths = [int(config["inputs"]), *(int(width) for width in config["hidden"])]
        layers: list[nn.Module] = [nn.Dropout(float(config["input_dropout"]))]
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.ReLU(), nn.Dropout(float(config["dropout"]))]
        return nn.Sequential(*layers, nn.Linear(widths[-1], int(config["classes"])))
    except (KeyError, TypeError, ValueError) as error:
        raise RunFormatError(f"network settings must be complete, got {dict(config)}. Audit again.") from error


def perceptron_recipe(config: Mapping[str, Any], *, rows: int, epochs: int, decay: float, share: float = 1.0) -> Recipe:
    """Return how to train it: AdamW, one cycle, enough epochs for 600 steps on small data, or a share of them.

    Strong dropout and decay keep the network from memorising single labels, which is what makes its loss on a wrong
    label stay high.
    """
    least = -(-_FEWEST_STEPS * 128 // max(rows, 1))
    return Recipe(
        build=partial(perceptron, dict(config)),
        optimizer="adamw",
        learning_rate=3e-3,
        schedule="one_cycle",
        epochs=max(1, round(share * min(max(epochs, least), 100))),
        batch_size=128,
        weight_decay=decay,
    )
