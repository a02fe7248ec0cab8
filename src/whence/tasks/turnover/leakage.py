"""What a training example leaks into the sub-network that must not have seen it, measured by autograd."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from whence.data import Batch, Examples, uniform
from whence.tasks.task import Task
from whence.tasks.turnover.masks import TurnOverDropout, mask_layers, masks

__all__ = ["Leakage", "leakage"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Leakage:
    """What training on an example changes in its flipped sub-network.

    Args:
        table: One row a trainable parameter: its ``size``, how many of its entries the flipped sub-network uses and how
            many of those the example's own training moves (``used``, ``leaking``; means over the examples), their
            ``share``, and the ``gradient_share`` of the squared gradient that falls on them.
        statistics: Layers whose running statistics take in every example of a batch, whatever its mask.
        unreached: Masked layers that the forward pass does not call.
        random: Whether training draws more than the masks: dropout by a function, as inside attention, is left alone.
    """

    table: pd.DataFrame
    statistics: tuple[str, ...]
    unreached: tuple[str, ...]
    random: bool

    @property
    def leaks(self) -> list[str]:
        """Names of the parameters that leak."""
        names: list[str] = self.table.index[self.table["leaking"] > 0].tolist()
        return names

    @property
    def share(self) -> float:
        """Share of all entries that a flipped sub-network uses which the example's own training moves."""
        used = float(self.table["used"].sum())
        return float(self.table["leaking"].sum()) / used if used else 0.0

    def __str__(self) -> str:
        """Return the verdict and the parameters that leak, most first."""
        lines = [f"{self.share:.1%} of the entries that a flipped sub-network uses are trained by the example"]
        found = self.table[self.table["leaking"] > 0].sort_values("leaking", ascending=False)
        lines += [f"  {name}: {row.leaking:.0f} of {row.used:.0f}" for name, row in found.iterrows()]
        lines += [f"  {name}: running statistics" for name in self.statistics]
        lines += [f"  {name}: never called" for name in self.unreached]
        return "\n".join([*lines, *(["  dropout beside the masks stays random"] if self.random else [])])


def leakage(task: Task, examples: Any, *, probes: Any = None) -> Leakage:
    r"""Return which parameters leak: ∂ℓ_i/∂θ under m(i) is not 0 where the flipped sub-network's outputs depend on θ.

    Turn-over dropout's premise is that a flipped sub-network has never seen its example. That holds for a weight matrix
    that touches a masked layer, on either side; output biases, norms, embeddings and layers without a mask do not.

    This is the direct gradient, step by step. Over a training an example also acts through others: it moves its own
    units, and examples that share some of those and some of the flipped ones carry that on; clipping by the norm of
    the whole gradient does so at once. No mask can exclude that.

    Args:
        task: A model with masked layers and its loss.
        examples: Some training examples with targets, each measured by itself.
        probes: What the flipped sub-network is asked about, to see which entries it uses: by default the examples. More
            of them find entries whose unit is not active for the example itself.

    Returns:
        A `Leakage`. Parameters that are not trained (``requires_grad`` off) cannot leak and are not listed.

    Cost: two forward and backward passes an example, one of them over all probes; memory of three sets of gradients.

    Reference: derived; Kobayashi et al. (2020), §3.1 assume that the two sub-networks share no parameter.

    Example:
        >>> from whence.tasks import turn_over
        >>> model = turn_over(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)))
        >>> leakage(Task(model), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))).leaks
        ['3.bias']
    """
    own = task.examples(examples)
    asked = own if probes is None else task.examples(probes)
    rows = task.place(own.batch(np.arange(len(own))))
    asked_rows = task.place(asked.batch(np.arange(len(asked))))
    trained = {name: value for name, value in task.model.named_parameters() if value.requires_grad}
    counts = np.zeros((len(trained), 4))  # used, leaking, squared gradient there and everywhere
    with task.evaluating(), torch.enable_grad(), _Reached(task.model) as reached:
        for number in range(len(own)):
            seen = _gradients(task, list(trained.values()), rows.row(number), rows.keys[number : number + 1], False)
            keys = np.repeat(rows.keys[number : number + 1], len(asked))
            uses = _gradients(task, list(trained.values()), asked_rows, keys, True)
            counts += [_leak(gradient, use) for gradient, use in zip(seen, uses, strict=True)]
    counts[:, :2] /= len(own)
    table = pd.DataFrame(counts[:, :2], index=pd.Index(list(trained), name="parameter"), columns=["used", "leaking"])
    table.insert(0, "size", [value.numel() for value in trained.values()])
    table["share"] = counts[:, 1] / np.maximum(counts[:, 0], 1e-300)
    table["gradient_share"] = counts[:, 2] / np.maximum(counts[:, 3], 1e-300)
    return Leakage(
        table=table, statistics=_statistics(task.model), unreached=reached.missed, random=_is_random(task, own)
    )


def _gradients(
    task: Task, parameters: list[nn.Parameter], batch: Batch, keys: np.ndarray, flipped: bool
) -> list[Tensor]:
    """Return the gradients of the batch's losses, added with weights that keep two of them from cancelling."""
    with masks(task.model, keys, flipped=flipped):
        losses = task.losses(batch)
    weights = torch.from_numpy(1 + uniform(batch.keys, 1)).to(losses)
    found = torch.autograd.grad((losses * weights).sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def _leak(seen: Tensor, use: Tensor) -> list[float]:
    """Return entries used, those of them that are moved, and the squared gradient there and everywhere."""
    used = use != 0
    squares = seen.double().square()
    there = float(squares[used].sum())
    return [float(used.sum()), float((used & (seen != 0)).sum()), there, float(squares.sum())]


class _Reached:
    """Which masked layers a block calls."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules() if isinstance(module, TurnOverDropout)}
        self.called: set[nn.Module] = set()

    def __enter__(self) -> _Reached:
        self.handles = [layer.register_forward_pre_hook(lambda m, _: self.called.add(m)) for layer in self.names]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    @property
    def missed(self) -> tuple[str, ...]:
        """Names of those that were not called."""
        return tuple(name for module, name in self.names.items() if module not in self.called)


def _statistics(model: nn.Module) -> tuple[str, ...]:
    """Return the layers that keep running statistics of what they see."""
    kinds = nn.modules.batchnorm._NormBase
    return tuple(name for name, m in model.named_modules() if isinstance(m, kinds) and m.track_running_stats)


def _is_random(task: Task, examples: Examples) -> bool:
    """Whether two passes in training mode under the same masks differ, batch normalisations aside."""
    trial = task.with_model(copy.deepcopy(task.model))
    trial.model.train()
    for module in trial.model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    batch = trial.place(examples.batch(np.arange(min(len(examples), 8))))
    assert mask_layers(trial.model)
    with torch.no_grad(), torch.random.fork_rng(), masks(trial.model, batch.keys):
        first, second = trial.losses(batch), trial.losses(batch)
    return not torch.equal(first, second)
