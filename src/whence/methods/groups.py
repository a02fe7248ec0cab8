r"""Groups of examples that go, come or weigh more: the parameters' change and what it does to the queries.

An edit puts weights ε_i on examples beside the objective, J_ε(θ) = J(θ) + Σ_i ε_i (ℓ_i(θ) + (λ/2)‖θ‖²). Removal is
ε = −1/N, an added (phantom) example ε = 1/N: that is the retrained objective times (N − k + m)/N.

Order 1 takes a step along the derivative, −H⁻¹ Σ ε_i g_i. Order 2 takes the Newton step of J_ε itself,

    −(H + Σ ε_i (J_iᵀ W_i J_i + λ))⁻¹ Σ ε_i g_i,

which knows how much curvature goes or comes; it is exact for quadratic losses of linear models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError, NumericalError
from whence.gradients import Fisher, Gradients, Matrix, decay_grids
from whence.gradients.roots import Roots
from whence.scores import Scores

if TYPE_CHECKING:
    from whence.methods.attribution import InfluenceAttribution

__all__ = ["group_scores", "parameter_change", "phantom_scores"]

_MAX_STEPS = 500
_Vectors = dict[str, Tensor]  # [1, O, I] by layer


@dataclass(frozen=True, eq=False)
class _Edit:
    """What is done to the training set.

    Args:
        rows: Training rows that are removed, or whose weight changes.
        phantoms: Examples that are added, or None.
        weight: ε of all of them; None for removal and addition.
    """

    rows: np.ndarray
    phantoms: Examples | None = None
    weight: float | None = None

    @staticmethod
    def of(
        attribution: InfluenceAttribution, ids: Sequence[Any] | np.ndarray, phantoms: Any, weight: float | None
    ) -> _Edit:
        """Check what a user asked for.

        Raises:
            ConfigError: Nothing is edited, nothing would be left, or the weight is not a number.
            DataError: An id is unknown.
        """
        added = None if phantoms is None else attribution.task.examples(phantoms)
        count = len(attribution.examples)
        if weight is not None and (not np.isfinite(weight) or (added is not None and len(ids))):
            raise ConfigError(
                f"weight must be a finite number for either ids or phantoms, got {weight}. Make one call for each."
            )
        rows = np.unique(attribution.examples.rows_of(ids))
        if added is None and (len(rows) == 0 or (weight is None and len(rows) == count)):
            raise ConfigError(f"ids must hold between 1 and {count - 1} examples, got {len(rows)}.")
        return _Edit(rows, added, weight)

    def weights(self, count: int, order: int) -> tuple[float, float]:
        """Return ε of the rows and of the phantoms; ``count`` is N.

        To first order the curvature that leaves is taken to be an average share of it: 1/(N − k + m) for 1/N.
        """
        if self.weight is not None:
            return self.weight, self.weight
        left = count if order == 2 else count - len(self.rows) + self.added
        return -1 / left, 1 / left

    @property
    def added(self) -> int:
        """Number of phantoms."""
        return 0 if self.phantoms is None else len(self.phantoms)


def parameter_change(
    attribution: InfluenceAttribution,
    ids: Sequence[Any] | np.ndarray = (),
    *,
    phantoms: Any = None,
    weight: float | None = None,
    order: Literal[1, 2] = 1,
) -> dict[str, Tensor]:
    r"""Return the predicted change of the parameters when examples are removed, added or weigh more, by name.

    Order 1: −H⁻¹ Σ ε_i g_i. Order 2: −(H + Σ ε_i (J_iᵀ W_i J_i + λ))⁻¹ Σ ε_i g_i. Removal: ε = −1/N.

    Args:
        attribution: A fitted attribution.
        ids: Training examples to remove.
        phantoms: Examples that are not in the training set, to be added; anything that `as_examples` takes. With
            ``ids`` too both happen at once: a corrected label is the old row out and the new one in.
        weight: ε of all of ``ids``, or of all phantoms, instead of removal and addition: J + ε Σ (ℓ_i + λ/2 ‖θ‖²) is
            minimised. −1/N is removal, 1/N counts an example twice.
        order: 1: first order in the edit, −Σ ε_i H⁻¹g_i, with 1/(N − k + m) for 1/N where no weight is given;
            2: the Newton step of the edited objective.

    Returns:
        Tensors shaped like the attributed parameters, added to which they are those after retraining.

    Raises:
        ConfigError: Nothing is edited or would be left, the order is unknown, or the curvature only ranks.
        NumericalError: Order 2 and what is left of the curvature is not positive definite: an approximate curvature
            need not contain that of the group.

    Cost: the gradients of the edited examples and a product with H⁻¹; order 2 a product with H⁻¹ and two with the
        group's factored curvature roots a step, tens of steps: conjugate gradients preconditioned with H⁻¹, which need
        no product with H and no matrix of the group's size.
    Reference: Koh & Liang (2017), §2; Koh et al. (2019) for groups; order 2: Basu, You & Feizi (2020), whose second
        order term is the first of the series that the Newton step sums.

    Example:
        >>> import whence as wh
        >>> train = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> task = wh.Task(torch.nn.Linear(3, 2), weight_decay=0.1)
        >>> attribution = wh.Influence(curvature=wh.Exact()).fit(task, train)
        >>> phantom = (torch.zeros(1, 3), torch.tensor([1]))
        >>> attribution.parameter_change([3, 5], phantoms=phantom, order=2)["weight"].shape
        torch.Size([2, 3])
    """
    return _change(attribution, _Edit.of(attribution, ids, phantoms, weight), order)


def _change(attribution: InfluenceAttribution, edit: _Edit, order: int) -> dict[str, Tensor]:
    """Return what `parameter_change` does, of an edit that has been checked."""
    attribution.check_unchanged()
    if order not in (1, 2):
        raise ConfigError(f"order must be 1 or 2, got {order!r}.")
    if order == 2 and attribution.ranks_only:
        raise ConfigError("order=2 must have a curvature, got Identity(), which only ranks. Use order=1.")
    right = _right(attribution, edit, order)
    moved = _Solve(attribution, edit).newton(right) if order == 2 else _precondition(attribution, right)
    named: dict[str, Tensor] = {}
    for layer in attribution.coverage.layers:
        named.update(layer.split(moved[layer.name][0]))
    return named


def group_scores(
    attribution: InfluenceAttribution,
    groups: Mapping[str, Iterable[Any]],
    queries: Any = None,
    *,
    order: Literal[1, 2] = 1,
) -> Scores:
    r"""Return the score of removing whole groups.

    Order 1: (1/(N−k)) ∇mᵀH⁻¹ Σ_{i∈group} g_i. Order 2: m(θ̂ + Δ) − m(θ̂), Δ the Newton step without the group.

    Args:
        attribution: A fitted attribution.
        groups: Name → ids of training examples.
        queries: As in `InfluenceAttribution.scores`.
        order: 1 is a sum of scores; 2 is closer to retraining where a group is more than a few examples.

    Returns:
        Scores [Q, number of groups], the names as ids.

    Raises:
        ConfigError: A group is empty or everything, or there is none.
        NumericalError: As in `parameter_change`.

    Cost: as `InfluenceAttribution.scores`; order 2 a Newton step and a forward pass over the queries a group.
    """
    if not isinstance(groups, Mapping):
        raise ConfigError(f"groups must map names to ids, got {type(groups).__name__}. Pass {{'name': ids}}.")
    edits = {name: _edit_of(attribution, name, list(ids)) for name, ids in groups.items()}
    if not edits:
        raise ConfigError("groups must name at least one group, got none.")
    names, count = np.array(list(edits), dtype=str), len(attribution.examples)
    if order == 1:
        single = attribution.scores(queries)
        columns = [
            single.values[:, torch.from_numpy(edit.rows)].sum(1) * count / (count - len(edit.rows))
            for edit in edits.values()
        ]
        return Scores(
            values=torch.stack(columns, 1), query_ids=single.query_ids, ids=names, unit=single.unit, doubt=single.doubt
        )  # fmt: skip
    examples = None if queries is None else attribution.task.examples(queries)
    before = _measured(attribution, examples, {})
    changes = (_change(attribution, edit, order) for edit in edits.values())
    columns = [_measured(attribution, examples, change) - before for change in changes]
    query_ids = np.array(["model"]) if examples is None else examples.ids
    return Scores(values=torch.stack(columns, 1), query_ids=query_ids, ids=names, unit=attribution.task.unit)


def phantom_scores(attribution: InfluenceAttribution, phantoms: Any, queries: Any = None) -> Scores:
    r"""Return the scores of examples that are not in the training set: (1/N) ∇m_tᵀ H⁻¹ (∇ℓ_z + λθ̂).

    Args:
        attribution: A fitted attribution.
        phantoms: Labelled examples, anything that `as_examples` takes.
        queries: As in `InfluenceAttribution.scores`.

    Returns:
        Scores [Q, number of phantoms] with the phantoms' ids: (measurement without it, as now) − (measurement with it
        added to the training set), so positive = adding it would help.

    Cost: as scores of that many training examples.
    """
    examples = None if queries is None else attribution.task.examples(queries)
    added, columns = attribution.task.examples(phantoms), []
    for gradients in _gradients(attribution, added):
        rows = [
            block.inner(gradients) if attribution.decayed_weights is None
            else block.inner(gradients) + block.inner(attribution.decayed_weights)
            for block in attribution.query_blocks(examples)
        ]  # fmt: skip
        columns.append(torch.cat(rows))
    query_ids = np.array(["model"]) if examples is None else examples.ids
    unit = None if attribution.ranks_only else attribution.task.unit
    values = torch.cat(columns, 1) / len(attribution.examples)
    return Scores(values=values, query_ids=query_ids, ids=added.ids, unit=unit)


def _edit_of(attribution: InfluenceAttribution, name: str, ids: Sequence[Any]) -> _Edit:
    """Return the removal of a group."""
    rows, count = np.unique(attribution.examples.rows_of(ids)), len(attribution.examples)
    if not 0 < len(rows) < count:
        raise ConfigError(f"group {name!r} must hold between 1 and {count - 1} examples, got {len(rows)}.")
    return _Edit(rows)


def _measured(attribution: InfluenceAttribution, queries: Examples | None, change: Mapping[str, Tensor]) -> Tensor:
    """Return the measurements [Q] after a change of the parameters."""
    model = copy.deepcopy(attribution.task.model)
    task = attribution.task.with_model(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad(), task.evaluating():
        for name, moved in change.items():
            parameters[name].add_(moved.to(parameters[name]))
        if queries is None:
            return task.measure_model().detach()
        batches = queries.batches(attribution.stream.chunk)
        return torch.cat([task.measurements(task.place(batch)) for batch in batches])


def _gradients(attribution: InfluenceAttribution, examples: Examples) -> Iterator[Gradients]:
    """Yield the training-loss gradients of any examples, a chunk at a time."""
    for start in range(0, len(examples), attribution.stream.chunk):
        rows = np.arange(start, min(start + attribution.stream.chunk, len(examples)))
        yield attribution.stream.run(examples.batch(rows), rows).training()


def _right(attribution: InfluenceAttribution, edit: _Edit, order: int) -> _Vectors:
    """Return −Σ ε_i (∇ℓ_i + λθ̂) by layer."""
    gone, come = edit.weights(len(attribution.examples), order)
    total: dict[str, Tensor] = {}
    sides: list[tuple[float, Iterator[Gradients]]] = []
    if len(edit.rows):
        sides.append((gone, attribution.gradients_of(edit.rows)))
    if edit.phantoms is not None:
        sides.append((come, _gradients(attribution, edit.phantoms)))
    for weight, chunks in sides:
        for gradients in chunks:
            for name, factor in gradients.layers.items():
                part = -weight * factor.summed()
                total[name] = total[name] + part if name in total else part
    decayed, share = attribution.decayed_weights, gone * len(edit.rows) + come * edit.added
    if decayed is not None:
        total = {name: matrix - share * decayed.layers[name].matrix()[0] for name, matrix in total.items()}
    return {name: matrix[None] for name, matrix in total.items()}


def _precondition(attribution: InfluenceAttribution, vectors: _Vectors) -> _Vectors:
    """Return H⁻¹ v."""
    found = attribution.preconditioner.precondition(Gradients({name: Matrix(m) for name, m in vectors.items()}))
    return {name: factor.matrix() for name, factor in found.layers.items()}


class _Solve:
    """Conjugate gradients on H + E, preconditioned with H⁻¹; H p is carried along, so that H itself is not needed."""

    def __init__(self, attribution: InfluenceAttribution, edit: _Edit) -> None:
        self._attribution = attribution
        gone, come = edit.weights(len(attribution.examples), 2)
        self._roots = [(gone, root) for root in self._roots_of(attribution.examples, edit.rows)]
        if edit.phantoms is not None:
            rows = np.arange(len(edit.phantoms))
            self._roots += [(come, root) for root in self._roots_of(edit.phantoms, rows)]
        self._decays: _Vectors = {}
        if attribution.task.removed_decay:
            share = gone * len(edit.rows) + come * edit.added
            grids = decay_grids(attribution.task, attribution.coverage.layers)
            self._decays = {name: share * grid for name, grid in grids.items()}

    def newton(self, right: _Vectors) -> _Vectors:
        """Return (H + E)⁻¹ right.

        Raises:
            NumericalError: H + E has a direction without positive curvature, or rounding keeps the error large.
        """
        dtype = next(iter(right.values())).dtype
        tolerance = 1e-11 if dtype == torch.float64 else 1e-5
        residual, found = right, {name: torch.zeros_like(m) for name, m in right.items()}
        step = _precondition(self._attribution, residual)
        image, energy = residual, _dot(residual, step)  # H step
        goal = tolerance**2 * energy
        for _ in range(_MAX_STEPS):
            if not energy > goal:
                return found
            moved = self._added_to(image, step)
            curvature = _dot(step, moved)
            if not curvature > 0:
                raise NumericalError(
                    f"curvature without the group must be positive definite, got {curvature:.3g} along a step. "
                    "Use order=1, Exact or CG, or more damping."
                )
            length = energy / curvature
            found = _sum(found, step, length)
            residual = _sum(residual, moved, -length)
            ahead = _precondition(self._attribution, residual)
            before, energy = energy, _dot(residual, ahead)
            step, image = _sum(ahead, step, energy / before), _sum(residual, image, energy / before)
        raise NumericalError(
            f"the Newton step must converge in {_MAX_STEPS} steps, got a relative error of "
            f"{(abs(energy) / goal) ** 0.5 * tolerance:.2g}. Use order=1, or more damping."
        )

    def _added_to(self, image: _Vectors, step: _Vectors) -> _Vectors:
        """Return H step + E step."""
        total: _Vectors = dict(image)
        for weight, roots in self._roots:
            total = _sum(total, roots.product(step), weight)
        if self._decays:
            total = _sum(total, {name: self._decays[name].to(m) * m for name, m in step.items()}, 1.0)
        return total

    def _roots_of(self, examples: Examples, rows: np.ndarray) -> Iterator[Roots]:
        """Yield the curvature roots of some examples, a chunk at a time."""
        stream = self._attribution.stream
        kind: Fisher = getattr(self._attribution.config.curvature, "fisher", "auto")
        for start in range(0, len(rows), stream.chunk):
            some = rows[start : start + stream.chunk]
            chunk = stream.run(examples.batch(some), some)
            flat = chunk.outputs is not None and chunk.outputs.ndim <= 2
            exact = kind == "auto" and flat
            yield Roots.of(stream.fisher(chunk, "exact" if exact else kind, self._attribution.config.seed))


def _dot(one: _Vectors, other: _Vectors) -> float:
    """Return the inner product of two vectors."""
    return float(torch.stack([(one[name] * other[name]).sum() for name in one]).sum())


def _sum(one: _Vectors, other: _Vectors, factor: float) -> _Vectors:
    """Return one + factor · other."""
    return {name: matrix + factor * other[name] for name, matrix in one.items()}
