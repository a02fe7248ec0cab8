r"""Mixed second derivatives ∇_x ⟨s, ∇_θ ℓ(x, θ)⟩: how an example's gradient along s changes with the example itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.data import Batch
from whence.errors import ConfigError
from whence.gradients.capture import plainly
from whence.tasks import Task

__all__ = ["Place", "Seen", "find_place", "look", "mixed_derivatives"]

_STEP = 1e-5  # of a central difference, relative to the parameters: rounding and curvature both cost about 1e-10


@dataclass(frozen=True)
class Place:
    """Where examples are perturbed: a floating-point input, or the output of a module.

    Args:
        key: Position in a tuple of inputs or key in a dict of them; None for inputs that are one tensor.
        module: Name of a module whose output is perturbed instead.
    """

    key: int | str | None = None
    module: str | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """What stands at a place.

    Args:
        values: [B, ...].
        index: What a module was called with, if that is integers [B, ...] for each of which it gave a vector
            [B, ..., E]: tokens of an embedding. Else None, as for a bag of embeddings, which are one vector together.
    """

    values: Tensor
    index: Tensor | None


def find_place(task: Task, batch: Batch, at: str | int | None) -> Place:
    """Return where a user wants examples perturbed.

    Args:
        task: Model and loss.
        batch: Some examples.
        at: Key or position of an input, or name of a module; None for the only floating-point input, or without
            one for the output of the only embedding.

    Raises:
        ConfigError: There is no such place, or several that None could mean.
    """
    inputs = batch.inputs
    leaves: dict[Any, Any] = (
        dict(inputs) if isinstance(inputs, Mapping) else dict(enumerate(inputs)) if isinstance(inputs, tuple)
        else {None: inputs}
    )  # fmt: skip
    floating = [key for key, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    modules = dict(task.model.named_modules())
    tables = [name for name, module in modules.items() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    choices = [*(repr(key) for key in floating if key is not None), *(repr(name) for name in tables)]
    if at is None:
        if len(floating) == 1:
            return Place(key=floating[0])
        if not floating and len(tables) == 1:
            return Place(module=tables[0])
        raise ConfigError(
            f"at must name what is perturbed, one of {', '.join(choices) or 'the modules'}, got None: the inputs have "
            f"{len(floating)} floating-point tensors and the model {len(tables)} embeddings. Pass at=."
        )
    if at in floating:
        return Place(key=at)
    if at in leaves:
        raise ConfigError(
            f"at must be a floating-point input or a module, got input {at!r} of integers. "
            f"Name the module that embeds them: {', '.join(repr(name) for name in tables) or 'none found'}."
        )
    if isinstance(at, str) and at in modules:
        return Place(module=at)
    raise ConfigError(f"at must be an input or a module ({', '.join(choices) or 'none found'}), got {at!r}.")


def look(task: Task, batch: Batch, place: Place) -> Seen:
    """Return what stands at a place. Cost: a forward pass for a module, else none."""
    batch = task.place(batch)
    if place.module is None:
        found: Tensor = batch.inputs if place.key is None else batch.inputs[place.key]
        return Seen(found.detach(), None)
    with task.evaluating(), plainly(task.model), torch.no_grad(), _watching(task, place, len(batch)) as seen:
        task.losses(batch)
    (_, value, index), = _once(seen, place)  # fmt: skip
    return Seen(value, index if index is not None and value.shape[:-1] == index.shape else None)


def mixed_derivatives(
    task: Task, batch: Batch, place: Place, directions: Sequence[Mapping[str, Tensor]]
) -> Iterator[Tensor]:
    r"""Yield ∇_x ⟨s, ∇_θ ℓ_i(x_i, θ)⟩ of every example [B, ...], one tensor a direction s.

    Args:
        task: Model and training loss; the model comes back as it was.
        batch: The examples; they must not interact in the loss.
        place: Where x stands.
        directions: s by name of a parameter, shaped like it, the same names in all of them.

    Cost: one forward and backward pass, and a second backward pass through both a direction. Where an operation has
        no second derivative (``EmbeddingBag``) the central difference of ∂ℓ/∂x in float64: two forward and backward
        passes a direction.
    """
    try:
        yield from list(_reverse(task, task.place(batch), place, directions))
    except (RuntimeError, NotImplementedError) as error:
        if "is not implemented" not in str(error):
            raise
        for direction in directions:
            yield _differences(task, batch, place, direction).to(task.dtype)


class _Losses(nn.Module):
    """The training losses of a batch, with replaceable parameters."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, batch: Batch) -> Tensor:
        """Return the losses [B]."""
        return self.task.losses(batch)


def _losses(task: Task, batch: Batch, place: Place, named: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the losses [B] as a function of replaced parameters, and the leaf at the place."""
    replaced = {f"model.{name}": tensor for name, tensor in named.items()}
    value = _Losses(task)
    if place.module is not None:
        with _watching(task, place, len(batch)) as seen:
            losses: Tensor = torch.func.functional_call(value, replaced, (batch,))
        return losses, _once(seen, place)[0][0]
    given = batch.inputs if place.key is None else batch.inputs[place.key]
    leaf = given.detach().clone().requires_grad_()
    used = leaf.clone()  # the model may change its inputs in place
    inputs: Any = used
    if isinstance(batch.inputs, Mapping):
        inputs = {**batch.inputs, place.key: used}
    elif isinstance(batch.inputs, tuple):
        inputs = tuple(used if i == place.key else tensor for i, tensor in enumerate(batch.inputs))
    losses = torch.func.functional_call(value, replaced, (replace(batch, inputs=inputs),))
    return losses, leaf


def _reverse(
    task: Task, batch: Batch, place: Place, directions: Sequence[Mapping[str, Tensor]]
) -> Iterator[Tensor]:
    """Differentiate the gradient along every direction by a second backward pass."""
    named = {name: p.detach().requires_grad_() for name, p in task.model.named_parameters() if name in directions[0]}
    with _plain(task):
        losses, leaf = _losses(task, batch, place, named)
        first = torch.autograd.grad(
            losses.sum(), list(named.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        for position, direction in enumerate(directions):
            terms = [(g * direction[name].to(g)).sum() for name, g in zip(named, first, strict=True)]
            yield _derivative(torch.stack(terms).sum(), leaf, keep=position + 1 < len(directions))


def _differences(task: Task, batch: Batch, place: Place, direction: Mapping[str, Tensor]) -> Tensor:
    """Return the central difference of ∂ℓ/∂x along one direction, in float64: relative error about 1e-10."""
    task = task.in_dtype(torch.float64)
    batch = task.place(batch)
    named = {name: p.detach() for name, p in task.model.named_parameters() if name in direction}
    moves = {name: direction[name].to(p) for name, p in named.items()}
    length = float(torch.stack([move.square().sum() for move in moves.values()]).sum().sqrt())
    if length == 0:
        return torch.zeros_like(look(task, batch, place).values)
    size = float(torch.stack([p.square().sum() for p in named.values()]).sum().sqrt())
    step = _STEP * max(size, 1.0) / length
    sides = []
    with _plain(task):
        for sign in (step, -step):
            losses, leaf = _losses(task, batch, place, {name: p + sign * moves[name] for name, p in named.items()})
            sides.append(_derivative(losses.sum(), leaf, keep=False))
    return (sides[0] - sides[1]) / (2 * step)


def _derivative(total: Tensor, leaf: Tensor, *, keep: bool) -> Tensor:
    """Return the derivative of a scalar in the leaf; zero where it does not depend on it."""
    if not total.requires_grad:
        return torch.zeros_like(leaf)
    found: Tensor = torch.autograd.grad(
        total, leaf, retain_graph=keep, allow_unused=True, materialize_grads=True
    )[0]  # fmt: skip
    return found.detach()


@contextmanager
def _plain(task: Task) -> Iterator[None]:
    """Use operations that can be differentiated twice, in evaluation mode."""
    with ExitStack() as stack:
        for context in (
            task.evaluating(), plainly(task.model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad(),
            torch.backends.cudnn.flags(enabled=False),
        ):  # fmt: skip
            stack.enter_context(context)
        yield


Watched = list[tuple[Tensor, Tensor, Tensor | None]]


@contextmanager
def _watching(task: Task, place: Place, count: int) -> Iterator[Watched]:
    """Add a leaf of zeros to a module's output in a block; yield (leaf, output, integer argument) of every call."""
    seen: Watched = []
    handle = task.model.get_submodule(str(place.module)).register_forward_hook(_adding(seen, place, count))
    try:
        yield seen
    finally:
        handle.remove()


def _adding(seen: Watched, place: Place, count: int) -> Callable[..., Any]:
    """Return the hook."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point() or len(output) != count:
            raise ConfigError(
                f"module {place.module!r} must give one tensor [B, ...] to be perturbed at, got "
                f"{tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}. Name another."
            )
        leaf = torch.zeros_like(output, requires_grad=True)
        index = args[0] if args and isinstance(args[0], Tensor) and not args[0].is_floating_point() else None
        seen.append((leaf, output.detach(), index))
        return output + leaf

    return hook


def _once(seen: Watched, place: Place) -> Watched:
    """Return what was seen, of a module that was called once."""
    if len(seen) != 1:
        raise ConfigError(
            f"module {place.module!r} must be called once by the loss to be perturbed at, got {len(seen)} calls. "
            "Name another module."
        )
    return seen
