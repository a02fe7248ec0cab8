"""The embedded default for images: pixels standardised per channel, and a small convolutional network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whence.data import LabelledData
from whence.errors import DataError, RunFormatError
from whence.tasks.defaults.base import Default
from whence.tasks.defaults.image_network import (
    ImageNetwork,
    ShiftAndFlip,
    image_network,
    network_config,
    whitening_filters,
)
from whence.tasks.recipe import Recipe

__all__ = ["ImagePreparation", "image_default"]

_LONGEST, _SHORTEST = 64, 8
_CHUNK = 2048
_SAMPLE = 10_000


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePreparation:
    r"""Pixels as a network takes them: one size, each channel with mean 0 and standard deviation 1.

    Images whose longer side exceeds 64 pixels are reduced to it, and no side is left below 8 pixels.

    Args:
        height: pixels.
        width: pixels.
        mean: mean of every channel over the rows it was fitted on [C], in levels 0 … 255.
        scale: their standard deviation [C] (1 for a constant channel).

    Example:
        >>> images = np.zeros((2, 100, 50, 3), np.uint8)
        >>> preparation = ImagePreparation.fit(images)
        >>> preparation.height, preparation.width
        (64, 32)
    """

    height: int
    width: int
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, images: np.ndarray[Any, Any]) -> ImagePreparation:
        """Choose the size and measure the channels.

        Args:
            images: uint8 [N, H, W, C]; at most 10,000 of them, evenly spaced, are measured.

        Raises:
            DataError: there are no images.
        """
        if images.ndim != 4 or 0 in images.shape:
            raise DataError(f"images must be [N, H, W, C] and not empty, got shape {images.shape}. Check the file.")
        height, width = _size(images.shape[1], images.shape[2])
        some = images[:: math.ceil(len(images) / _SAMPLE)]
        sums = torch.zeros(2, images.shape[3], dtype=torch.float64)
        for start in range(0, len(some), _CHUNK):
            pixels = _resized(some[start : start + _CHUNK], height, width).double()
            sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])  # [2, C]
        mean, square = sums / (len(some) * height * width)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        scale = torch.where(deviation > 1e-3, deviation, 1.0)
        return cls(height=height, width=width, mean=mean.float(), scale=scale.float())

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ImagePreparation:
        """Return the preparation whose `state` this was.

        Raises:
            RunFormatError: something is missing or has another shape.
        """
        sizes = [settings.get("height"), settings.get("width")]
        mean, scale = tensors.get("mean"), tensors.get("scale")
        if not all(type(size) is int and size > 0 for size in sizes) or mean is None or scale is None:
            raise RunFormatError(
                "an image preparation must have height, width, mean and scale, "
                f"got {sorted([*settings, *tensors])}. The run is damaged: audit again."
            )
        if mean.ndim != 1 or mean.shape != scale.shape or not bool((scale > 0).all()):
            raise RunFormatError(
                f"mean and scale must have one number a channel, scale positive, got shapes {tuple(mean.shape)} and "
                f"{tuple(scale.shape)}. The run is damaged: audit again."
            )
        return cls(height=settings["height"], width=settings["width"], mean=mean, scale=scale)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON-able settings and tensors."""
        return {"height": self.height, "width": self.width}, {"mean": self.mean, "scale": self.scale}

    def transform(self, data: LabelledData) -> Tensor:
        """Return the images as float32 [N, C, height, width].

        Raises:
            DataError: the data holds no images, or images of another number of channels.

        Cost: one pass; 4 · C · height · width bytes a row.
        """
        images = data.content
        channels = len(self.mean)
        if not isinstance(images, np.ndarray) or images.shape[3] != channels:
            got = f"{images.shape[3]} channels" if isinstance(images, np.ndarray) else f"{data.kind} data"
            raise DataError(f"the data must hold images of {channels} channels, got {got}. Convert the images.")
        out = torch.empty(len(images), channels, self.height, self.width)
        mean, scale = self.mean[:, None, None], self.scale[:, None, None]
        for start in range(0, len(images), _CHUNK):
            pixels = _resized(images[start : start + _CHUNK], self.height, self.width)
            out[start : start + _CHUNK] = (pixels - mean) / scale
        return out


def image_default(data: LabelledData, seed: int = 0) -> Default:
    r"""Return the embedded default for images, fitted to the pixels of the data (not to its labels).

    A network of three convolutions (`ImageNetwork`) whose first layer starts from whitening filters of the data's own
    patches; stochastic gradient descent with Nesterov momentum and a one-cycle schedule; every row is shifted a little
    in every epoch, colour images are also mirrored. Training is short on purpose: the network fits what many rows have
    in common before it memorises single labels, so the loss of a wrong label stays high. The refit starts from the
    first fit's weights and takes half as many epochs.

    Args:
        data: 2 to some 10⁵ images of at least two classes.
        seed: of the patches that the first filters are derived from.

    Returns:
        The default; its recipe trains networks built by `image_network`.

    Raises:
        DataError: the data holds no images.

    Cost: one fit of 10,000 rows is 8 passes: about 30 s of one core at 32 × 32 × 3, 12 s at 28 × 28 × 1.
    """
    if not isinstance(data.content, np.ndarray):
        raise DataError(f"the default for images needs images, got {data.kind} data. Use the default of that kind.")
    preparation = ImagePreparation.fit(data.content)
    channels, longer = data.content.shape[3], max(preparation.height, preparation.width)
    network = network_config(channels=channels, classes=len(data.classes), side=longer)
    some = preparation.transform(data.rows(range(0, len(data), math.ceil(len(data) / 2000))))
    filters = whitening_filters(some, network["kernel"], torch.Generator().manual_seed(seed))
    epochs, batch_size, learning_rate = _pace(len(data))
    settings: dict[str, Any] = {
        "build": partial(_started, network, filters),
        "optimizer": "sgd",
        "learning_rate": learning_rate,
        "schedule": "one_cycle",
        "batch_size": batch_size,
        "weight_decay": 5e-4,
        "augment": ShiftAndFlip(shift=max(1, round(longer / 16)), flip=channels > 1),
    }
    changes = "shifted and mirrored" if channels > 1 else "shifted"
    return Default(
        name="image-cnn",
        description=(
            f"A convolutional network of three layers on {preparation.width} × {preparation.height} pixels, "
            f"trained for {epochs} epochs on randomly {changes} copies."
        ),
        preparation=preparation,
        network=network,
        recipe=Recipe(**settings, epochs=epochs),
        refit=Recipe(**settings, epochs=max(1, epochs // 2)),
    )


def _pace(rows: int) -> tuple[int, int, float]:
    """Return epochs, batch size and learning rate for this many rows.

    Measured for the best ranking of wrong labels: 15 epochs in batches of 16 at 200 rows, 8 of 32 at 1,000, 8 of 128 at
    10,000, 4 of 128 at 60,000; more epochs raise accuracy a little and memorise wrong labels a lot.
    """
    share = 1000 / rows if rows < 1000 else min(1.0, 10_000 / rows)
    epochs = min(max(round(8 * share**0.4), 2), 20)
    about = 2 ** round(math.log2(1.2 * math.sqrt(rows))) if rows > 1 else 1
    largest = min(max(about, 16), 128)
    batch_size = math.ceil(rows / math.ceil(rows / largest))  # as even as can be
    return epochs, batch_size, 0.2 * math.sqrt(largest / 128)


def _started(config: Mapping[str, Any], filters: Tensor) -> ImageNetwork:
    """Return a network whose first layer starts from ± the strongest filters [F, C, k, k]."""
    network = image_network(config)
    count = min(len(filters), network.stem.out_channels // 2)
    with torch.no_grad():
        network.stem.weight[: 2 * count] = torch.cat([filters[:count], -filters[:count]])
    return network


def _size(height: int, width: int) -> tuple[int, int]:
    """Return the size that images are brought to."""
    factor = min(1.0, _LONGEST / max(height, width))
    return max(_SHORTEST, round(height * factor)), max(_SHORTEST, round(width * factor))


def _resized(images: np.ndarray[Any, Any], height: int, width: int) -> Tensor:
    """Return images [B, H, W, C] as float32 [B, C, height, width] in levels 0 … 255."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    if pixels.shape[2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
