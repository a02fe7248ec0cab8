"""Embedded defaults: what is trained on the spot where a user brings no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from whence.data import LabelledData
from whence.errors import RunFormatError
from whence.tasks.defaults.base import Default, Preparation
from whence.tasks.defaults.image import ImagePreparation, image_default
from whence.tasks.defaults.image_network import image_network
from whence.tasks.defaults.perceptron import perceptron
from whence.tasks.defaults.tabular import TabularPreparation, tabular_default
from whence.tasks.defaults.text import TextPreparation, text_default

__all__ = ["Default", "Preparation", "default_for", "restore"]


def default_for(data: LabelledData, *, seed: int = 0) -> Default:
    """Return the embedded default for the kind of data, its features fitted to the content.

    Raises:
        DataError: The content cannot be prepared.
    """
    makers = {"text": text_default, "tabular": tabular_default, "image": image_default}
    return makers[data.kind](data, seed)


def restore(
    name: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], network: Mapping[str, Any]
) -> tuple[Preparation, nn.Module]:
    """Return preparation and untrained network from what was stored of a default.

    Raises:
        RunFormatError: The name is unknown or something is missing.
    """
    if name == "text-mlp":
        return TextPreparation.from_state(settings, tensors), perceptron(network)
    if name == "tabular-mlp":
        return TabularPreparation.from_state(settings, tensors), perceptron(network)
    if name == "image-cnn":
        return ImagePreparation.from_state(settings, tensors), image_network(network)
    raise RunFormatError(f"default must be text-mlp, tabular-mlp or image-cnn, got {name!r}. Audit again.")
