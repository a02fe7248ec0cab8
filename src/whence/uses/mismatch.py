"""Domain mismatch: why a subgroup is predicted wrongly, by the training rows responsible and then by their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
import torch

from whence.data import Examples
from whence.errors import ConfigError, DataError
from whence.tasks import Task

__all__ = ["DomainMismatch", "domain_mismatch"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_BLOCK = 256  # queries scored at a time
_TINY = 1e-300


class _Attribution(Protocol):
    """What is needed of an attribution: any method's that offers these."""

    @property
    def examples(self) -> Examples:
        """Training examples with ids."""

    @property
    def task(self) -> Task:
        """Model and loss."""

    def scores(self, queries: Any) -> Any:
        """Return scores [Q, N] with ids."""

    def perturbation(self, ids: Any, queries: Any, *, reduce: Any) -> Any:
        """Return maps shaped like the inputs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DomainMismatch:
    r"""Which training rows, and which of their features, are behind the wrong predictions of a subgroup.

    Args:
        wrong: Ids of the subgroup's queries that are predicted wrongly [W].
        asked: Queries in the subgroup.
        rows: Training rows, the strongest first: ``rank, id, target, score, in_subgroup, responsible, ratio``.
            ``score`` is the mean over the wrong queries: positive = removing the row would raise their mean loss,
            negative = it would lower it. ``ratio`` is |score| over that of the next other row: the strongest one that
            is not responsible. Whatever its sign, a row far above the next is one that decides alone, as rows do
            where the training data hardly know the subgroup.
        by_query: One row a wrong query: ``query, ratio_low, ratio_high``, the least and largest ratio of the
            responsible rows for that query alone.
        features: For every responsible row its features, those of largest effect first, or None where inputs are not
            numbers: ``id, rank, feature, value, derivative, effect, sensitivity``; see `domain_mismatch`.
        responsible: Ids of the responsible rows.
        ratio: The least ratio among them; near 1 nothing stands out, and no row is to blame.
        subgroup_rows: Training rows in the subgroup, or None if that was not said.
        subgroup_ratio: The least |score| among them over the largest one outside; above 1 they head the list.
        subgroup_share: Their share of Σ|score|.
        unit: Of scores and effects.
    """

    wrong: Array
    asked: int
    rows: pd.DataFrame
    by_query: pd.DataFrame
    features: pd.DataFrame | None
    responsible: Array
    ratio: float
    subgroup_rows: int | None
    subgroup_ratio: float | None
    subgroup_share: float | None
    unit: str | None

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"DomainMismatch({len(self.wrong)} of {self.asked} queries wrong, {len(self.responsible)} training rows "
            f"responsible, {self.ratio:.3g} times the next)"
        )

    @property
    def features_responsible(self) -> pd.DataFrame | None:
        """Features over all responsible rows, strongest first: ``feature, effect, sensitivity``, sums of sizes."""
        if self.features is None:
            return None
        sizes = self.features.assign(effect=self.features["effect"].abs())
        summed = sizes.groupby("feature", sort=False)[["effect", "sensitivity"]].sum()
        return summed.sort_values("effect", ascending=False, kind="stable").reset_index()


def domain_mismatch(
    attribution: _Attribution, queries: Any, *, subgroup: Any = None, training_subgroup: Any = None,
    features: Mapping[str, Sequence[int]] | Sequence[str] | None = None, shown: int = 20,
) -> DomainMismatch:  # fmt: skip
    r"""Find the training rows behind the wrong predictions of a subgroup, and the features behind those rows.

    A row's score is (1/W) Σ_t s(t, i) over the W wrong queries t. The responsible rows are those above the largest gap
    (ratio of successive sizes) among the first ``shown``.

    Args:
        attribution: A fitted attribution with `perturbation`, such as `Influence`.
        queries: Held-out labelled examples, as in ``attribution.scores``.
        subgroup: Which queries: a mask [Q], their ids, or None for all.
        training_subgroup: Which training rows belong to the same subgroup, likewise, to say whether the responsible
            rows do and what part of all influence is theirs; None: not known. It does not choose them.
        features: Groups of inputs by name ({"age": [5, 6, 7]}, the one-hot columns of a column), or one name an input;
            by default every input by its number.
        shown: Rows in the table.

    Returns:
        A `DomainMismatch`. Of its features, ``effect`` is the predicted rise of the mean measurement if the feature
        were, in that row, what it is in the average training row: negative = the feature does harm there.
        ``sensitivity`` is the norm of the derivative in that feature's inputs of the row, with 1/N (perturbation
        influence), ``derivative`` the largest of its entries and ``value`` the input there. Derivatives alone would
        head the list with values that no training row has, in which nothing resists.

    Raises:
        ConfigError: No query of the subgroup is wrong, a mask does not fit, or outputs are not those of a classifier.
        DataError: An id is unknown.

    Cost: scores of the wrong queries; two more backward passes over the responsible rows; a pass over the inputs.
    Reference: Koh & Liang (2017), §5.3. Deviation: the mean over all wrong queries stands beside single ones.

    Example:
        >>> import whence as wh
        >>> x, young = torch.randn(40, 3), torch.arange(40) % 10 == 0
        >>> x[:, 2], y = young.float(), (torch.randn(40) > 0).long()
        >>> recipe = wh.Recipe(build=lambda: torch.nn.Linear(3, 2), optimizer="lbfgs", weight_decay=0.01)
        >>> task = recipe.task(recipe.train(wh.as_examples((x, y))))
        >>> attribution = wh.Influence(curvature=wh.Exact()).fit(task, (x, y))
        >>> wh.domain_mismatch(attribution, (x, 1 - y), subgroup=young, training_subgroup=young).subgroup_rows
        4
    """
    if shown < 2:
        raise ConfigError(f"shown must be at least 2 rows, got {shown}.")
    asked, examples = attribution.task.examples(queries), attribution.examples
    inside = np.arange(len(asked)) if subgroup is None else _rows(asked, subgroup, "subgroup")
    own = None if training_subgroup is None else _rows(examples, training_subgroup, "training_subgroup")
    wrong = inside[_wrong(attribution.task, asked, inside)]
    if not len(wrong):
        raise ConfigError(f"subgroup must have wrong predictions, got none among {len(inside)} queries.")
    mistaken = asked.select(wrong)
    values, unit = _scores(attribution, mistaken)  # [W, N]
    mean = values.mean(0)
    order = np.argsort(-np.abs(mean), kind="stable")
    responsible = order[: _above_the_gap(np.abs(mean[order]), shown)]
    ratios = _ratios(values, responsible)
    table = _table(examples, mean, order[:shown], responsible, own)
    maps = _maps(attribution, responsible, mistaken, features)
    return DomainMismatch(
        wrong=asked.ids[wrong], asked=len(inside), rows=table, features=maps, unit=unit,
        by_query=pd.DataFrame(
            {"query": asked.ids[wrong], "ratio_low": ratios.min(1), "ratio_high": ratios.max(1)}
        ),
        responsible=examples.ids[responsible], ratio=float(_ratios(mean[None], responsible).min()),
        subgroup_rows=None if own is None else len(own),
        subgroup_ratio=None if own is None else float(_ratios(mean[None], own).min()),
        subgroup_share=None if own is None else float(np.abs(mean[own]).sum() / max(np.abs(mean).sum(), _TINY)),
    )  # fmt: skip


def _rows(examples: Examples, which: Any, name: str) -> Array:
    """Return the positions that a mask or ids name."""
    given = which.numpy() if isinstance(which, torch.Tensor) else np.asarray(which)
    if given.dtype == np.bool_:
        if given.shape != (len(examples),):
            raise ConfigError(f"{name} must be a mask of {len(examples)} rows, or ids, got shape {given.shape}.")
        rows = np.flatnonzero(given)
    else:
        rows = np.unique(examples.rows_of(given))
    if not len(rows) or (len(rows) == len(examples) and name == "training_subgroup"):
        raise ConfigError(f"{name} must hold some of the {len(examples)} rows, got {len(rows)}.")
    return rows


def _wrong(task: Task, examples: Examples, rows: Array) -> Array:
    """Return which of the rows the model predicts wrongly."""
    found = []
    with torch.no_grad(), task.evaluating():
        for start in range(0, len(rows), _BLOCK):
            batch = task.place(examples.batch(rows[start : start + _BLOCK]))
            if batch.targets is None or batch.targets.numel() != len(batch):
                raise ConfigError("queries must have one label each to be wrong about. Pass (inputs, labels).")
            outputs = task.forward(batch)
            flat = outputs.reshape(len(batch), -1)
            if outputs.ndim > 2:
                raise ConfigError(f"outputs must be one logit a class [B, C], got shape {tuple(outputs.shape)}.")
            targets = batch.targets.reshape(-1)
            predicted = flat.argmax(1) if flat.shape[1] > 1 else (flat[:, 0] > 0).long()
            right = targets.long() if flat.shape[1] > 1 else (targets > 0).long()
            found.append((predicted != right).cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def _scores(attribution: _Attribution, queries: Examples) -> tuple[Array, str | None]:
    """Return the queries' scores [W, N] and their unit."""
    blocks = [
        attribution.scores(queries.select(np.arange(start, min(start + _BLOCK, len(queries)))))
        for start in range(0, len(queries), _BLOCK)
    ]
    return np.concatenate([block.values.double().cpu().numpy() for block in blocks]), blocks[0].unit


def _above_the_gap(sizes: Array, shown: int) -> int:
    """Return how many of the sizes, in falling order, lie above the largest ratio of successive ones."""
    first = np.maximum(sizes[: shown + 1], _TINY)
    return int(np.argmax(first[:-1] / first[1:])) + 1


def _ratios(values: Array, rows: Array) -> Array:
    """Return how far rows stand above the strongest other row [W, rows]."""
    sizes = np.abs(values)
    ratios: Array = sizes[:, rows] / np.maximum(np.delete(sizes, rows, 1).max(1, keepdims=True), _TINY)
    return ratios


def _table(examples: Examples, mean: Array, order: Array, responsible: Array, own: Array | None) -> pd.DataFrame:
    """Return the strongest rows."""
    given = examples.targets
    targets = None if given is None else given[torch.from_numpy(order)].reshape(len(order), -1)[:, 0].numpy()
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(order) + 1),
            "id": examples.ids[order],
            "target": targets,
            "score": mean[order],
            "in_subgroup": None if own is None else np.isin(order, own),
            "responsible": np.isin(order, responsible),
            "ratio": np.abs(mean[order]) / max(np.abs(np.delete(mean, responsible)).max(), _TINY),
        }
    )


def _maps(
    attribution: _Attribution, rows: Array, queries: Examples,
    features: Mapping[str, Sequence[int]] | Sequence[str] | None,
) -> pd.DataFrame | None:  # fmt: skip
    """Return the features of the rows, strongest first; None for inputs that are not one tensor of numbers."""
    examples = attribution.examples
    inputs = examples.batch(rows[:1]).inputs
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        if features is not None:
            raise DataError("features must go with inputs that are one tensor of numbers. Leave them out.")
        return None
    found = attribution.perturbation(examples.ids[rows], queries, reduce="mean")
    maps, values = found.values[0].double().flatten(1).cpu(), found.inputs.double().flatten(1).cpu()  # [K, D]
    effects = maps * (_average(examples) - values)
    groups = _groups(features, maps.shape[1])
    parts = []
    for position, row in enumerate(rows):
        listed = []
        for name, places in groups.items():
            own = maps[position, places]
            at = places[int(own.abs().argmax())]
            listed.append((name, float(values[position, at]), float(maps[position, at]),
                           float(effects[position, places].sum()), float(own.norm())))  # fmt: skip
        frame = pd.DataFrame(listed, columns=["feature", "value", "derivative", "effect", "sensitivity"])
        frame = frame.sort_values("effect", key=abs, ascending=False, kind="stable", ignore_index=True)
        frame.insert(0, "rank", np.arange(1, len(frame) + 1))
        frame.insert(0, "id", examples.ids[row])
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _average(examples: Examples) -> torch.Tensor:
    """Return the average training input [D]."""
    total: Any = sum(batch.inputs.double().flatten(1).sum(0).cpu() for batch in examples.batches(4096))
    return torch.as_tensor(total / len(examples))


def _groups(features: Mapping[str, Sequence[int]] | Sequence[str] | None, width: int) -> dict[str, list[int]]:
    """Return the inputs of every feature."""
    if features is None:
        return {str(place): [place] for place in range(width)}
    if isinstance(features, Mapping):
        groups = {str(name): [int(place) for place in places] for name, places in features.items()}
        every = [place for places in groups.values() for place in places]
        if not all(groups.values()) or any(not 0 <= place < width for place in every):
            raise ConfigError(f"features must name inputs 0 … {width - 1}, at least one each, got {groups}.")
        return groups
    if len(features) != width:
        raise ConfigError(f"features must have one name an input ({width}), got {len(features)}.")
    return {str(name): [place] for place, name in enumerate(features)}
