"""What all layers share: parameters as one matrix, hooked modules, and the calls that hooks see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.errors import ConfigError
from whence.gradients.factors import Factor

__all__ = ["Call", "Make", "Piece", "Site", "Slot", "Source", "Tap", "affine", "positions"]

Form = Literal["rows", "swapped", "column", "row"]
Make = Callable[[Tensor], Factor]


@dataclass(frozen=True, eq=False)
class Piece:
    """One parameter as some columns of a layer's matrix.

    Args:
        name: Full name of the parameter, as ``model.named_parameters()`` gives it.
        owner: A module that holds it.
        key: Its name there.
        form: "rows": [O, ...] flattened after the first dimension; "swapped": [I, O, ...] with the first two
            dimensions exchanged; "column": a bias [O]; "row": everything in one row.
    """

    name: str
    owner: nn.Module
    key: str
    form: Form

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now."""
        found = self.owner._parameters[self.key]
        assert found is not None
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """Return (O, number of columns)."""
        sizes = self.parameter.shape
        out = {"row": 1, "swapped": sizes[1] if len(sizes) > 1 else 1}.get(self.form, sizes[0] if len(sizes) else 1)
        return out, self.parameter.numel() // max(1, out)

    def columns(self, tensor: Tensor) -> Tensor:
        """Return tensors shaped like the parameter, behind any leading dimensions, as columns [..., O, w]."""
        count = self.parameter.ndim
        lead = tensor.shape[: tensor.ndim - count]
        if self.form == "swapped":
            tensor = tensor.transpose(-count, 1 - count)
        return tensor.reshape(*lead, *self.shape)

    def restore(self, columns: Tensor) -> Tensor:
        """Return columns [..., O, w] as tensors shaped like the parameter."""
        sizes, lead = list(self.parameter.shape), columns.shape[:-2]
        if self.form != "swapped":
            return columns.reshape(*lead, *sizes)
        swapped = columns.reshape(*lead, sizes[1], sizes[0], *sizes[2:])
        return swapped.transpose(-len(sizes), 1 - len(sizes))

    def in_form(self, form: Form) -> Piece:
        """Return the same parameter in another form."""
        return replace(self, form=form)


@dataclass(frozen=True, eq=False)
class Slot:
    """One matrix of a module's parameters: the columns of its pieces side by side.

    Args:
        name: Name of the layer it becomes.
        pieces: At least one parameter.
    """

    name: str
    pieces: tuple[Piece, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters, and so of the gradients."""
        return self.pieces[0].parameter.dtype

    @property
    def keys(self) -> list[str]:
        """The parameters' names in their module."""
        return [piece.key for piece in self.pieces]

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return matrices [..., O, I] as tensors shaped like the parameters, by full name."""
        widths = [piece.shape[1] for piece in self.pieces]
        parts = matrix.split(widths, -1)
        return {piece.name: piece.restore(part) for piece, part in zip(self.pieces, parts, strict=True)}

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return tensors shaped like the parameters as matrices [..., O, I]; what is missing counts zero."""
        shaped = next(iter(named[p.name] for p in self.pieces if p.name in named))
        first = next(p for p in self.pieces if p.name in named)
        lead = shaped.shape[: shaped.ndim - first.parameter.ndim]
        parts = [
            piece.columns(named[piece.name]) if piece.name in named else shaped.new_zeros(*lead, *piece.shape)
            for piece in self.pieces
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class Tap(Protocol):
    """Marks a tensor whose gradient is wanted."""

    def __call__(self, slot: Slot, output: Tensor, make: Make) -> Tensor:
        """Return ``output`` tied to the tape; ``make`` turns the gradient there into the slot's factor."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a hooked module, with ``rows`` examples in the batch."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    rows: int

    def tensor(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the one tensor that the module was called with, detached, in ``dtype`` if it is given.

        Raises:
            ConfigError: It was called with something else.
        """
        given = [*self.args, *self.kwargs.values()]
        if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(self.output, Tensor):
            raise ConfigError(
                f"layer {self.name!r} must be called with one tensor, got "
                f"{[type(x).__name__ for x in given]}. Leave it out with layers=."
            )
        found: Tensor = given[0].detach()
        return found if dtype is None else found.to(dtype)


@dataclass(frozen=True, eq=False)
class Source:
    """A module whose calls are recorded by a forward hook.

    Args:
        name: Name of the module.
        module: The module.
        slots: What its parameters are laid out as.
    """

    name: str
    module: nn.Module
    slots: tuple[Slot, ...]

    def before(self) -> None:
        """Refuse a call that would change the module or mix examples."""

    def call(self, call: Call, tap: Tap) -> Any:
        """Return the module's output with every place marked where a slot's gradient can be read."""
        raise NotImplementedError

    @property
    def slot(self) -> Slot:
        """The slot of a module that has only one."""
        return self.slots[0]


@dataclass(frozen=True, eq=False)
class Site:
    """A module with trainable parameters, before anything is known about its kind.

    Args:
        name: Name of the module.
        module: The module.
        names: Full names of its own trainable parameters, by their names in the module.
    """

    name: str
    module: nn.Module
    names: Mapping[str, str]

    def below(self, suffix: str) -> str:
        """Return the name of something inside; the root module has none of its own."""
        return f"{self.name}.{suffix}" if self.name else suffix

    def pieces(self, forms: Mapping[str, Form]) -> tuple[Piece, ...]:
        """Return the trainable ones among some parameters, in the given forms."""
        return tuple(
            Piece(self.names[key], self.module, key, form) for key, form in forms.items() if key in self.names
        )

    def slots(self, forms: Mapping[str, Form]) -> tuple[Slot, ...]:
        """Return one slot of some parameters, or none if they are all frozen."""
        pieces = self.pieces(forms)
        return (Slot(self.name, pieces),) if pieces else ()


def affine(a: Tensor, slot: Slot) -> Tensor:
    """Return inputs [B, T, I] with a 1 appended for a trainable bias and without a frozen weight."""
    biased = slot.pieces[-1].form == "column"
    if not biased:
        return a
    if len(slot.pieces) == 1:
        return torch.ones_like(a[..., :1])
    if a.ndim == 3 and a.transpose(1, 2).is_contiguous():  # patches: appended to as they lie, without a strided copy
        patches = a.transpose(1, 2)
        return torch.cat([patches, patches.new_ones(len(a), 1, a.shape[1])], 1).transpose(1, 2)
    return F.pad(a, (0, 1), value=1.0)


def positions(x: Tensor) -> Tensor:
    """Return [B, ..., C] as [B, T, C]."""
    return x if x.ndim == 3 else x.reshape(len(x), -1, x.shape[-1])
