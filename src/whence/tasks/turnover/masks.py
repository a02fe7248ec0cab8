"""Turn-over dropout's masks: every example keeps its own half of a layer's units, drawn from its id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import id_keys, mix
from whence.errors import ConfigError

__all__ = ["TurnOverDropout", "example_masks", "mask_layers", "masks", "reseed"]

Branch = bool | Literal["both"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 2**16  # units at a time: in cache, and below what the allocator maps anew


def example_masks(keys: np.ndarray, width: int, *, p: float = 0.5, seed: int = 0, layer: str = "") -> np.ndarray:
    r"""Return which of a layer's units every example keeps, m(i) ∈ {0, 1}^d with exactly round(p·d) ones.

    A function of (seed, layer, key) alone: neither batch size, nor order, nor machine can change a mask. All subsets
    of that size are equally likely.

    Args:
        keys: One 64-bit key an example [B] (uint64), such as `Batch.keys`; all 64 bits count.
        width: Units d.
        p: Share of the units that an example keeps.
        seed: Mask seed.
        layer: The layer's name: layers of other names draw other masks.

    Returns:
        Masks [B, d], bool; the complement is what the flipped sub-network keeps.

    Raises:
        ConfigError: round(p·d) is 0 or d, so that one of the two sub-networks would have no unit.

    Cost: about ten integer operations and a partial sort a unit, a few nanoseconds.

    Reference: Kobayashi et al. (2020), §3.2. The released code hashes ids in float32, where those beyond 2²⁴ collide,
        and draws units independently, so that the two halves differ in size; here they do not.

    Example:
        >>> example_masks(np.arange(3, dtype=np.uint64), 10, p=0.3).sum(1)
        array([3, 3, 3])
    """
    kept = round(p * width)
    if not 0 < kept < width:
        raise ConfigError(
            f"masked layer {layer!r} must keep and drop at least one unit, got {kept} kept of {width} at p = {p}. "
            "Change p, or do not mask this layer."
        )
    with np.errstate(over="ignore"):
        state = mix(keys + _GOLDEN * np.uint64(seed % 2**32 + 1))
        state = mix(state + id_keys(np.array([layer])))  # [B]
    rows = max(1, _BLOCK // width)
    chosen = [_lowest(_draws(state[start : start + rows], width), kept) for start in range(0, len(keys), rows)]
    return np.concatenate(chosen) if chosen else np.zeros((0, width), dtype=bool)


def _draws(state: np.ndarray, width: int) -> np.ndarray:
    """Return one 32-bit number a unit [B, d], two from every 64-bit one: sorting those is many times faster."""
    pairs = np.arange(1, (width + 1) // 2 + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        drawn = mix(state[:, None] + _GOLDEN * pairs)
    return drawn.astype("<u8", copy=False).view("<u4")[:, :width]


def _lowest(drawn: np.ndarray, kept: int) -> np.ndarray:
    """Return where each row's ``kept`` smallest numbers stand [B, d]; among equal ones the first."""
    chosen = drawn <= np.partition(drawn, kept - 1, axis=1)[:, kept - 1 : kept]
    for row in np.flatnonzero(chosen.sum(1) != kept):
        chosen[row] = False
        chosen[row, np.argsort(drawn[row], kind="stable")[:kept]] = True
    return np.asarray(chosen)


@dataclass(frozen=True, eq=False)
class _Active:
    """Whose masks apply while a context is open, and those that were made so far."""

    keys: np.ndarray
    flipped: Branch
    factors: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of a masked batch."""
        return len(self.keys) * (2 if self.flipped == "both" else 1)

    def factor(self, layer: TurnOverDropout, width: int, like: Tensor) -> Tensor:
        """Return what a layer's units are multiplied with [rows, d]: m / p or (1 − m) / (1 − p), with the exact p."""
        seed = int(layer.seed)
        at = layer.key, seed, width, layer.keep, like.dtype, like.device
        if at not in self.factors:
            own = torch.from_numpy(example_masks(self.keys, width, p=layer.keep, seed=seed, layer=layer.key))
            own, kept = own.to(like.device), round(layer.keep * width)
            branches = [own.to(like.dtype) * (width / kept), (~own).to(like.dtype) * (width / (width - kept))]
            chosen = torch.cat(branches) if self.flipped == "both" else branches[bool(self.flipped)]
            self.factors[at] = chosen
        return self.factors[at]


class TurnOverDropout(nn.Module):
    r"""Dropout whose mask belongs to the example: h ⊙ m(i)/p, and h ⊙ (1 − m(i))/(1 − p) in the flipped sub-network.

    Keys reach it through `masks`; without them it is the identity in evaluation mode (the plain average network, as
    with dropout) and an error in training mode.

    Args:
        keep: p, the share of units that an example keeps. Both branches are divided by their exact shares, round(p·d)/d
            and the rest, so that each is unbiased over masks. (The released code divides both by 1 − p.)
        key: Name from which the masks are drawn; one a layer.
        seed: Mask seed; kept in the state dict, since a model is only right with the masks it was trained with.
        axis: Which dimension holds the units; None for 1 (channels, attention heads) in tensors of four or more
            dimensions and the last one otherwise. Units are masked alike at all positions.

    Raises:
        ConfigError: p is not between 0 and 1.

    Example:
        >>> layer = TurnOverDropout(key="hidden")
        >>> with masks(layer, np.array([7], dtype=np.uint64)):
        ...     own = layer(torch.ones(1, 4))
        >>> with masks(layer, np.array([7], dtype=np.uint64), flipped=True):
        ...     own + layer(torch.ones(1, 4))
        tensor([[2., 2., 2., 2.]])
    """

    p: float = 0.0  # Hugging Face's attention reads its dropout module's p to drop by a function, at random
    seed: Tensor

    def __init__(self, keep: float = 0.5, *, key: str = "", seed: int = 0, axis: int | None = None) -> None:
        super().__init__()
        if not 0 < keep < 1:
            raise ConfigError(f"p must lie between 0 and 1, got {keep}. One half trains both sub-networks alike.")
        self.keep = keep
        self.key = key
        self.axis = axis
        self.register_buffer("seed", torch.tensor(seed))
        self.active: _Active | None = None
        self.register_forward_pre_hook(_nothing)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs under the masks in force; a single row meets the masks of all of them."""
        active = self.active
        if active is None:
            if self.training:
                raise ConfigError(
                    f"masked layer {self.key!r} must know the examples' keys in training, got none. "
                    "Train with outputs=wh.turn_over_outputs, or inside `with wh.masks(model, batch.keys)`."
                )
            return inputs
        if inputs.ndim < 2 or inputs.shape[0] not in (1, active.rows):
            raise ConfigError(
                f"inputs of masked layer {self.key!r} must have examples as their first dimension ({active.rows}), got "
                f"shape {tuple(inputs.shape)}. Mask another layer."
            )
        axis = self.axis if self.axis is not None else 1 if inputs.ndim > 3 else -1
        width = inputs.shape[axis]
        shape = [active.rows] + [1] * (inputs.ndim - 1)
        shape[axis] = width
        return inputs * active.factor(self, width, inputs).view(shape)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"p={self.keep}, key={self.key!r}, seed={int(self.seed)}"


@contextmanager
def masks(model: nn.Module, keys: np.ndarray, *, flipped: Branch = False) -> Iterator[None]:
    """Put every masked layer of a model under the examples' masks for a block, row by row.

    Args:
        model: A model with `TurnOverDropout` layers.
        keys: `Batch.keys` [B] of the training examples whose masks apply. The batch that the model is called with
            has as many rows, or one: that one is then put through the sub-networks of all B, and what lies before the
            first masked layer is computed once.
        flipped: The complements, which those examples have never trained; "both": 2B rows, first the examples'
            own masks, then the flipped ones.

    Raises:
        ConfigError: The model has no masked layer.

    The masks are the layers' for the length of the block; nothing is global. Gradient checkpointing calls layers
    again outside of it and fails.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), TurnOverDropout(key="1"), nn.Linear(4, 2))
        >>> with masks(model, np.arange(5, dtype=np.uint64), flipped="both"):
        ...     model(torch.ones(1, 3)).shape
        torch.Size([10, 2])
    """
    layers = mask_layers(model)
    if not layers:
        raise ConfigError("model must have masked layers, got none. Convert it with wh.turn_over(model).")
    active = _Active(np.asarray(keys, dtype=np.uint64), flipped)
    before = [layer.active for layer in layers]
    for layer in layers:
        layer.active = active
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.active = was


def mask_layers(model: nn.Module) -> list[TurnOverDropout]:
    """Return a model's masked layers."""
    return [module for module in model.modules() if isinstance(module, TurnOverDropout)]


def reseed(model: nn.Module, seed: int) -> nn.Module:
    """Give all masked layers of a model another mask seed, in place; return the model."""
    for layer in mask_layers(model):
        layer.seed.fill_(seed)
    return model


def _nothing(module: nn.Module, args: tuple[object, ...]) -> None:
    """Keep PyTorch's fused encoder layers from passing a mask by: with a hook inside they call their modules."""
