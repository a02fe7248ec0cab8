"""What every embedded default offers: prepared features, a network, and how to train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from whence.data import LabelledData
from whence.tasks.recipe import Recipe

__all__ = ["Default", "Preparation"]


class Preparation(Protocol):
    """Fitted, frozen features: content of rows to the tensor that a network takes."""

    def transform(self, data: LabelledData) -> Tensor:
        """Return the network's inputs [N, ...], a function of content and state alone."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON-able settings and tensors from which the preparation can be restored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Default:
    """An embedded default: features, network and recipe for one kind of data.

    Args:
        name: "text-mlp", "tabular-mlp" or "image-cnn".
        description: One sentence for the report.
        preparation: Fitted features.
        network: JSON-able settings from which the untrained network is built.
        recipe: How to train on all rows.
        refit: How to train the second time, on trusted rows, starting from the first model; None where the naive Bayes
            judge of ``counts`` takes its place.
        inputs: Network inputs of the rows that the features were fitted to, where they fell out of the fit.
        counts: Weighted counts of those rows (scipy CSR [N, V]) for a naive Bayes judge, where there are any.
        damping: Damping of the curvature, relative to its mean eigenvalue, at which predicted leave-one-out losses of
            this recipe agree with out-of-sample ones.
    """

    name: str
    description: str
    preparation: Preparation
    network: Mapping[str, Any]
    recipe: Recipe
    refit: Recipe | None = None
    inputs: Tensor | None = None
    counts: Any = None
    damping: float = 0.1
