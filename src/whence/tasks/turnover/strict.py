"""Strict turn-over dropout: masks are added and parameters frozen until nothing of an example leaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Batch, Examples
from whence.tasks.losses import Loss
from whence.tasks.task import Task
from whence.tasks.turnover.leakage import leakage
from whence.tasks.turnover.masks import TurnOverDropout, masks
from whence.tasks.turnover.places import FixedStatistics, is_convolution, is_matrix, mask_input, mask_output

__all__ = ["close_leaks"]

Maker = Callable[[str], TurnOverDropout]


def close_leaks(
    model: nn.Module, rows: Any, *, loss: str | Loss | Callable[[nn.Module, Batch], Tensor],
    outputs: Callable[[nn.Module, Batch], Tensor] | None, make: Maker,
) -> nn.Module:  # fmt: skip
    """Return the model, changed in place until no example of ``rows`` leaks; see `turn_over`."""
    model = _fix_statistics(model)
    task = Task(model, loss, outputs=outputs)
    examples = task.examples(rows)
    for close in (_mask_embeddings, _mask_matrices, _mask_behind_data, _freeze):
        leaking = _leaking(task, examples)
        if not leaking:
            break
        close(task, _trace(task, examples), leaking, make)
    if _measure_statistics(task, examples) and (leaking := _leaking(task, examples)):
        _freeze(task, _trace(task, examples), leaking, make)
    return model


def _measure_statistics(task: Task, examples: Examples) -> bool:
    """Give batch normalisations that have seen no batch the statistics of one, under masks; return if there are any.

    Left at 0 and 1 they would not normalise, and deep networks not train.
    """
    fixed = [module for module in task.model.modules() if isinstance(module, FixedStatistics) and module.fresh]
    if not fixed:
        return False
    batch = task.place(examples.batch(np.arange(len(examples))))
    for module in fixed:
        module.measuring = True
    with torch.no_grad(), task.evaluating(), _masked(task.model, batch):
        task.forward(batch)
    for module in fixed:
        module.measuring = module.fresh = False
    return True


def _leaking(task: Task, examples: Examples) -> list[str]:
    """Return the parameters that leak; without any mask that is all of them."""
    if not any(isinstance(module, TurnOverDropout) for module in task.model.modules()):
        return [name for name, value in task.model.named_parameters() if value.requires_grad]
    return leakage(task, examples).leaks


@dataclass(frozen=True, eq=False)
class _Trace:
    """What a forward pass shows of the modules that it calls.

    Args:
        inputs: By module, its first argument; kept, so that the same tensor is known again.
        results: By module, what it returned.
        final: The model's outputs.
        owners: By name of a parameter, the called module nearest above it and its name.
    """

    inputs: dict[nn.Module, Any] = field(default_factory=dict)
    results: dict[nn.Module, Any] = field(default_factory=dict)
    final: list[Tensor] = field(default_factory=list)
    owners: dict[str, tuple[str, nn.Module]] = field(default_factory=dict)

    def sees_data(self, module: nn.Module) -> bool:
        """Whether nothing that is trained lies before a module."""
        given = self.inputs[module]
        return not (isinstance(given, Tensor) and given.requires_grad)

    def is_last(self, module: nn.Module) -> bool:
        """Whether the model's outputs are this module's."""
        made = self.results[module]
        return isinstance(made, Tensor) and made.data_ptr() == self.final[0].data_ptr()


def _trace(task: Task, examples: Examples) -> _Trace:
    """Call the model once under the examples' masks and note what its modules are given and return."""
    found = _Trace()

    def note(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        found.inputs[module] = args[0] if args else None
        found.results[module] = result

    modules = dict(task.model.named_modules())
    batch = task.place(examples.batch(np.arange(min(len(examples), 2))))
    with task.evaluating(), torch.enable_grad(), _noting(list(modules.values()), note), _masked(task.model, batch):
        found.final.append(task.forward(batch))
    for name, _ in task.model.named_parameters():
        path = name.rpartition(".")[0]
        while path and modules[path] not in found.inputs:
            path = path.rpartition(".")[0]
        found.owners[name] = path, modules[path]
    return found


@contextmanager
def _noting(modules: list[nn.Module], note: Callable[..., None]) -> Iterator[None]:
    """Call ``note`` after every call of the modules in a block."""
    handles = [module.register_forward_hook(note) for module in modules if not isinstance(module, TurnOverDropout)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _masked(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Put a model under the batch's masks, if it has any masked layer yet."""
    if any(isinstance(module, TurnOverDropout) for module in model.modules()):
        with masks(model, batch.keys):
            yield
    else:
        yield


def _owners(trace: _Trace, leaking: list[str], kind: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """Return the called modules of a kind whose weights leak, by name, in order; biases alone do not count."""
    weights = [name for name in leaking if not name.rpartition(".")[2].endswith("bias")]
    found = [trace.owners[name] for name in weights]
    return {name: module for name, module in found if kind(module)}


def _mask_embeddings(task: Task, trace: _Trace, leaking: list[str], make: Maker) -> None:
    """Mask what embeddings return: a row's columns then belong to some examples alone."""
    for name, module in _owners(trace, leaking, lambda m: isinstance(m, nn.Embedding)).items():
        batched = len(trace.results[module]) in (1, len(trace.final[0]))
        mask_output(module, make(f"{name}.output"), batched=batched)


def _mask_matrices(task: Task, trace: _Trace, leaking: list[str], make: Maker) -> None:
    """Mask what goes into matrices that leak, those of one tensor alike; not the data itself."""
    shared: dict[int, str] = {}
    for name, module in _owners(trace, leaking, _can_be_masked).items():
        if not trace.sees_data(module):
            key = shared.setdefault(id(trace.inputs[module]), f"{name}.input")
            mask_input(module, make(key))


def _mask_behind_data(task: Task, trace: _Trace, leaking: list[str], make: Maker) -> None:
    """Mask what matrices that still leak return: those that see the data, and attention; a model's head before it."""
    for name, module in _owners(trace, leaking, _can_be_masked).items():
        if not trace.is_last(module):
            mask_output(module, make(f"{name}.output"))
        elif _units(trace.inputs[module], module) > 1:
            mask_input(module, make(f"{name}.input"))


def _freeze(task: Task, trace: _Trace, leaking: list[str], make: Maker) -> None:
    """Freeze what still leaks."""
    for name in leaking:
        task.model.get_parameter(name).requires_grad_(False)


def _can_be_masked(module: nn.Module) -> bool:
    return is_matrix(module) or isinstance(module, nn.MultiheadAttention)


def _units(given: Any, module: nn.Module) -> int:
    """Return how many units a module is given."""
    return int(given.shape[1 if is_convolution(module) else -1]) if isinstance(given, Tensor) else 0


def _fix_statistics(model: nn.Module) -> nn.Module:
    """Put batch normalisations with fixed statistics in the place of those that follow the batch."""
    kinds = nn.modules.batchnorm._NormBase
    fixed: dict[nn.Module, FixedStatistics] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, kinds) and child.track_running_stats:
                setattr(parent, name, fixed.setdefault(child, FixedStatistics(child)))
    return model
