"""Calling a user's model, loss and outputs: what they are given, and what is said where they fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Batch
from whence.errors import ConfigError, WhenceError

__all__ = ["check_call", "explained", "model_outputs"]

_TAUGHT = "Task(outputs=lambda model, batch: model(**batch.inputs).logits)"


def model_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return what calling the model on a batch gives: the result, its logits, or the first entry of a tuple."""
    result: Any = _call(model, batch.inputs)
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(result, (tuple, list)) and result and isinstance(result[0], Tensor):
        return result[0]
    got = f"a dict with {sorted(map(str, result))}" if isinstance(result, Mapping) else type(result).__name__
    raise ConfigError(
        f'model outputs must be a tensor, have .logits or ["logits"], or be a tuple that starts with a tensor, '
        f"got {got}. Pass Task(outputs=lambda model, batch: ...), where batch.inputs is what the model is called with."
    )


@contextmanager
def explained(role: str, batch: Batch) -> Iterator[None]:
    """Say what a user's callable was given where it fails in a block.

    Raises:
        ConfigError: It raised anything but an error of whence's own or a lack of memory.
    """
    try:
        yield
    except (WhenceError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        told = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {told[0][:300].rstrip('.') if told else 'no message'}"
        raise ConfigError(f"{role} must run on the batch it is given, got {reason}. {_given(batch)}") from error


def check_call(function: Callable[..., Any], arguments: tuple[Any, ...], wanted: str, remedy: str) -> None:
    """Raise unless a callable takes so many arguments: a measurement is of a query or of the model alone."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # built-ins do not tell
    try:
        signature.bind(*arguments)
    except TypeError as error:
        told = f"the loss or measurement must be a function that {wanted} here, but {error}. {remedy}"
        raise ConfigError(told) from None


def _given(batch: Batch) -> str:
    """Say what the batch holds, and how a model is called on it."""
    targets = "" if batch.targets is None else f", batch.targets {_shown(batch.targets)}"
    say = f"The batch has batch.inputs {_shown(batch.inputs)}{targets} and batch.ids."
    if isinstance(batch.inputs, Mapping):
        return f"{say} Rename or drop inputs that the model does not take, or call it yourself: {_TAUGHT}."
    return f"{say} Check shapes and types against the model, or call it yourself: {_TAUGHT.replace('**', '')}."


def _shown(tree: Any) -> str:
    """Return shapes and types of a tree of tensors."""
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shown(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, tuple):
        return "(" + ", ".join(map(_shown, tree)) + ")"
    return f"{list(tree.shape)} {str(tree.dtype).removeprefix('torch.')}" if isinstance(tree, Tensor) else repr(tree)


def _call(model: nn.Module, inputs: Any) -> Any:
    """Call the model on a tensor, a tuple of them or a dict of them."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)
