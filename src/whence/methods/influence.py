"""Influence functions: the config, and what fitting it gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.curvature import (
    EKFAC,
    Curvature,
    DataInfPreconditioner,
    Exact,
    JointPreconditioner,
    Preconditioner,
)
from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.gradients import (
    Coverage,
    Gradients,
    GradientStream,
    Layer,
    Matrix,
    check_capture,
    chunk_size,
    concatenate,
    dense_query_gradients,
    find_layers,
)
from whence.index import QueryFeatures
from whence.methods.corrected import Correction, LeaveOneOut, correct
from whence.methods.packed import query_parts
from whence.methods.plan import Plan, plan_of
from whence.methods.saved import loss_name, save
from whence.scores import Scores, Signal
from whence.tasks import Loss, Task

__all__ = ["Influence", "InfluenceAttribution"]

_QUERIES = 32  # queries preconditioned at a time
_QUERY_BYTES = 2**28  # of queries in memory, if the budget is smaller


@dataclass(frozen=True, kw_only=True)
class Influence:
    r"""Influence functions with any curvature.

    s(t, i) = (1/N) ∇m_tᵀ H⁻¹ (∇ℓ_i + λθ̂): the predicted rise of query t's measurement when training example i is
    removed and the model trained again at the same λ on the mean loss.

    Args:
        curvature: What stands for H: `EKFAC` (default) or any other of `whence.curvature`.
        layers: None for all supported layers, "last", or regular expressions of module names.
        batch_size: Examples a chunk; None chooses one that keeps buffers small. It cannot change a score.
        seed: Seed of sampled labels, used together with each example's id.
        memory_budget: Bytes of training factors that may be kept in memory; beyond it they are recomputed. Queries are
            held in blocks of this size (of 256 MiB at least).
        dtype: Floating-point type to compute in: None is float64 for `Exact` and Hessians, else the model's own.

    Reference: Koh & Liang (2017), eq. 2 and 5; sign and unit as stated above.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> attribution = Influence(curvature=Exact()).fit(Task(model, weight_decay=0.1), train)
        >>> attribution.scores((train[0][:4], train[1][:4])).values.shape
        torch.Size([4, 20])
    """

    curvature: Curvature = field(default_factory=EKFAC)
    layers: str | Sequence[str] | None = None
    batch_size: int | None = None
    seed: int = 0
    memory_budget: int = 2**28
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.memory_budget < 0:
            raise ConfigError(f"memory_budget must be zero or positive bytes, got {self.memory_budget}.")

    def fit(self, task: Task, train: Any) -> InfluenceAttribution:
        """Fit the curvature to the training examples.

        Args:
            task: A trained model with its loss. The model comes back bit-identical.
            train: Training examples: anything that `as_examples` takes.

        Raises:
            ConfigError: No layer can be attributed, captured gradients differ from autograd's, or a setting does
                not fit the task.
            NumericalError: A loss, gradient or covariance is not finite, or the curvature is singular.

        Cost: see the curvature.
        """
        examples = as_examples(train)
        double = isinstance(self.curvature, Exact) or getattr(self.curvature, "hessian", False)
        dtype = self.dtype if self.dtype is not None else torch.float64 if double else None
        task = task if dtype is None else task.in_dtype(dtype)
        coverage = find_layers(task.model, self.layers)
        check_capture(task, coverage, examples)
        chunk = self.batch_size or chunk_size(task, coverage.layers, examples)
        stream = GradientStream(task, coverage.layers, examples, chunk, self.memory_budget)
        preconditioner = self.curvature.fit(stream, seed=self.seed)
        return InfluenceAttribution(
            config=self, task=task, coverage=coverage, preconditioner=preconditioner, examples=examples, stream=stream
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class InfluenceAttribution:
    """Influence, fitted: ask it for scores. Made by `Influence.fit` or `whence.load`.

    Args:
        config: The config it was made with.
        task: Model, loss and measurement.
        coverage: Which parameters are attributed.
        preconditioner: H⁻¹.
        examples: The training examples.
        stream: Passes over their gradients.
        stored: Factors read from a saved attribution, in row order.
        storage_error: What storing those factors changed, relative, by layer.
    """

    config: Influence
    task: Task
    coverage: Coverage
    preconditioner: Preconditioner
    examples: Examples
    stream: GradientStream
    stored: Sequence[tuple[slice, Gradients]] | None = None
    storage_error: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", self._tensor_versions())

    def __repr__(self) -> str:
        """Return curvature and counts."""
        curvature = type(self.config.curvature).__name__
        return f"InfluenceAttribution({curvature}, {len(self.examples):,} examples, {self.coverage.counted})"

    @property
    def ids(self) -> np.ndarray:
        """Ids of the training examples [N]."""
        return self.examples.ids

    def scores(self, queries: Any = None, *, leverage_corrected: bool = False) -> Scores:
        """Return the score of every training example for every query.

        Args:
            queries: Anything that `as_examples` takes; None for a measurement of the model alone.
            leverage_corrected: Use the second-order effect of removing an example on its own curvature, which
                plain influence leaves out; it matters for examples that fix much of their own prediction.

        Returns:
            Scores [Q, N], in the measurement's unit; positive = removing the example raises the measurement.

        Cost: one pass over the training factors (from memory where they fit the budget); with the correction C
        backward passes over the training data.
        """
        examples = None if queries is None else as_examples(queries)
        query_ids = np.array(["model"]) if examples is None else examples.ids
        shape = len(query_ids), len(self.examples)
        values = torch.empty(shape, dtype=self.task.gradient_dtype, device=self.task.device)
        start = 0
        for block in self._query_blocks(examples):
            asked = slice(start, start + len(block))
            training = self._corrected_gradients() if leverage_corrected else self.training_gradients()
            for rows, gradients in training:
                values[asked, rows] = block.inner(gradients.compact())
            if self._decayed_weights is not None:
                values[asked] += block.inner(self._decayed_weights)
            start = asked.stop
        unit = None if self._ranks_only else self.task.unit
        return Scores(values=values / len(self.examples), query_ids=query_ids, ids=self.ids, unit=unit)

    def self_scores(self, *, leverage_corrected: bool = False) -> Signal:
        """Return every training example's score for its own training loss [N] (self-influence).

        Args:
            leverage_corrected: As in `scores`; the first-order change of the loss for the corrected parameters.

        Cost: one pass over the training factors; nothing of size O·I is made for examples without positions.
        """
        values = np.empty(len(self.examples))
        if leverage_corrected:
            for rows, correction, _ in self._corrections():
                values[rows] = (correction.gradient * correction.change).sum(1).cpu().numpy()
        else:
            for rows, gradients in self.training_gradients():
                values[rows] = self.self_scores_of(gradients)
        unit = None if self._ranks_only else _loss_unit(self.task)
        return Signal(values=values, ids=self.ids, name="self-influence", unit=unit)

    def self_scores_of(self, gradients: Gradients) -> np.ndarray:
        """Return the self-scores of examples with these training gradients [B]."""
        own = self.preconditioner.quadratic(gradients)
        if self._preconditioned_decay is not None:
            own = own + self._preconditioned_decay.inner(gradients)[0]
        values: np.ndarray = (own / len(self.examples)).double().cpu().numpy()
        return values

    def query_features(self, queries: Any = None) -> QueryFeatures:
        """Return H⁻¹∇m of the queries, with which an index answers; see `whence.build_index`.

        Args:
            queries: As in `scores`.
        """
        examples = None if queries is None else as_examples(queries)
        whole = concatenate(self._preconditioned_queries(examples))
        decay = self._decayed_weights
        offsets = torch.zeros(len(whole)) if decay is None else whole.inner(decay)[:, 0].cpu()
        return QueryFeatures(
            parts=query_parts(whole),
            ids=np.array(["model"]) if examples is None else examples.ids,
            offsets=offsets,
            count=len(self.examples),
            unit=None if self._ranks_only else self.task.unit,
            weights=self.task.weights_fingerprint(),
            loss=loss_name(self.task),
        )

    def leave_one_out(self) -> LeaveOneOut:
        """Return every training example's predicted leave-one-out outputs and loss.

        Cost: one forward pass and C backward passes without weight gradients.
        """
        loss = self.task.smooth_loss
        outputs, fitted, own, held, leverage = [], [], [], [], []
        for _, correction, chunk in self._corrections():
            assert loss is not None and chunk.outputs is not None and chunk.batch.targets is not None
            f = chunk.outputs.detach().reshape(len(chunk.losses), -1).double()
            moved = f + correction.change
            outputs.append(moved)
            fitted.append(f)
            own.append(chunk.losses.detach())
            held.append(loss(moved.reshape(chunk.outputs.shape), chunk.batch.targets))
            leverage.append(correction.leverage)
        return LeaveOneOut(
            outputs=torch.cat(outputs).cpu(),
            losses=torch.cat(held).double().cpu().numpy(),
            fitted_outputs=torch.cat(fitted).cpu(),
            fitted_losses=torch.cat(own).double().cpu().numpy(),
            leverage=torch.cat(leverage).cpu().numpy(),
            ids=self.ids,
            unit=_loss_unit(self.task),
        )

    def group_scores(self, groups: Mapping[str, Iterable[Any]], queries: Any = None) -> Scores:
        """Return the score of removing whole groups, to first order: (1/(N−k)) ∇mᵀH⁻¹ Σ_{i∈group} g_i.

        Args:
            groups: Name → ids of training examples.
            queries: As in `scores`.

        Returns:
            Scores [Q, number of groups], the names as ids.
        """
        single = self.scores(queries)
        count = len(self.examples)
        columns = []
        for name, ids in groups.items():
            rows = self._removed(list(ids), f"group {name!r}")
            columns.append(single.values[:, torch.from_numpy(rows)].sum(1) * count / (count - len(rows)))
        if not columns:
            raise ConfigError("groups must name at least one group, got none.")
        names = np.array(list(groups), dtype=str)
        return Scores(values=torch.stack(columns, 1), query_ids=single.query_ids, ids=names, unit=single.unit)

    def parameter_change(self, ids: Sequence[Any]) -> dict[str, Tensor]:
        """Return the predicted change of the parameters if ``ids`` are removed: (1/(N−k)) H⁻¹ Σ g_i, by name."""
        self._check_unchanged()
        rows = self._removed(ids, "ids")
        decay = len(rows) * self.task.weight_decay
        total = {layer.name: decay * self._weights(layer) for layer in self.coverage.layers}
        for gradients in self._gradients_of(rows):
            for name, factor in gradients.layers.items():
                total[name] = total[name] + factor.summed()
        change = self.preconditioner.precondition(Gradients({name: Matrix(m[None]) for name, m in total.items()}))
        named: dict[str, Tensor] = {}
        for layer in self.coverage.layers:
            matrix = change.layers[layer.name].matrix()[0] / (len(self.examples) - len(rows))
            named.update(layer.split(matrix))
        return named

    @cached_property
    def gradient_norm(self) -> float:
        """Relative norm of ∇J at the weights, ‖∇J‖ / mean ‖∇ℓ_i‖: 0 at a stationary point. One pass."""
        total = {layer.name: torch.zeros_like(self._weights(layer)) for layer in self.coverage.layers}
        norms = 0.0
        for _, gradients in self.training_gradients():
            for name, factor in gradients.layers.items():
                total[name] += factor.summed()
            norms += float(gradients.squared_norms().sqrt().sum())
        count = len(self.examples)
        for layer in self.coverage.layers:
            total[layer.name] = total[layer.name] / count + self.task.weight_decay * self._weights(layer)
        norm: float = float(torch.stack([matrix.square().sum() for matrix in total.values()]).sum()) ** 0.5
        return norm / max(norms / count, 1e-300)

    def summary(self) -> dict[str, Any]:
        """Return what was fitted, JSON-able: curvature with damping and residuals, the attributed share.

        After loading rounded factors also their ``storage_error``; see `whence.Index.summary`.
        """
        return {
            "method": "influence",
            "curvature": self.preconditioner.summary(),
            "examples": len(self.examples),
            "attributed_parameters": self.coverage.attributed,
            "attributed_share": self.coverage.share,
            "missed": [list(entry) for entry in self.coverage.missed],
            "weight_decay": self.task.weight_decay,
            **({"storage_error": dict(self.storage_error)} if any(self.storage_error.values()) else {}),
        }

    def save(self, folder: str | Path) -> None:
        """Write the attribution to a folder; `whence.load` reads it. See `whence.methods.saved.save`."""
        save(self, folder)

    def plan(self, queries: Any = None) -> Plan:
        """Predict seconds, memory and disk of scores, self-scores and an index. See `whence.plan`."""
        return plan_of(self, queries)

    def training_gradients(self) -> Iterator[tuple[slice, Gradients]]:
        """Return an iterator over (rows, factored training gradients) in row order."""
        self._check_unchanged()
        return iter(self.stored) if self.stored is not None else self.stream.training_gradients()

    def _weights(self, layer: Layer) -> Tensor:
        """Return a layer's parameters [O, I] in the type that gradients are kept in."""
        return layer.weights().to(self.task.gradient_dtype)

    @property
    def _ranks_only(self) -> bool:
        return self.preconditioner.summary().get("curvature") == "identity"

    @cached_property
    def _decayed_weights(self) -> Gradients | None:
        """λθ̂ as the gradient of one example."""
        if self.task.weight_decay == 0:
            return None
        decay = self.task.weight_decay
        return Gradients({layer.name: Matrix(decay * self._weights(layer)[None]) for layer in self.coverage.layers})

    @cached_property
    def _preconditioned_decay(self) -> Gradients | None:
        """H⁻¹ λθ̂."""
        return None if self._decayed_weights is None else self.preconditioner.precondition(self._decayed_weights)

    def _query_blocks(self, queries: Examples | None) -> Iterator[Gradients]:
        """Yield H⁻¹∇m of the queries in blocks that fit the memory budget: each takes a pass over training."""
        limit = max(self.config.memory_budget, _QUERY_BYTES)
        held: list[Gradients] = []
        used = 0
        for part in self._preconditioned_queries(queries):
            expanded = part.expanded()
            size = sum(t.numel() * t.element_size() for f in expanded.layers.values() for t in f.tensors().values())
            if held and used + size > limit:
                yield _emptied(held)
                used = 0
            held.append(expanded)
            used += size
        yield _emptied(held)

    def _preconditioned_queries(self, queries: Examples | None) -> Iterator[Gradients]:
        """Yield H⁻¹∇m of all queries (None: of the model alone), a chunk at a time."""
        self._check_unchanged()
        if queries is None:
            yield self.preconditioner.precondition(dense_query_gradients(self.task, self.coverage.layers, None))
            return
        for gradients in self._query_gradients(queries):
            if isinstance(self.preconditioner, (DataInfPreconditioner, JointPreconditioner)):
                yield self.preconditioner.precondition(gradients)  # its products serve all of them at once
                continue
            for start in range(0, len(gradients), _QUERIES):
                yield self.preconditioner.precondition(gradients.rows(slice(start, start + _QUERIES)))

    def _query_gradients(self, queries: Examples) -> Iterator[Gradients]:
        """Yield ∇m of all queries, a chunk at a time."""
        task, layers, chunk = self.task, self.coverage.layers, self.stream.chunk
        if task.measurement is None or isinstance(task.measurement, Loss):
            measured = task if task.measurement is None else Task(task.model, task.measurement, outputs=task.outputs)
            for one in GradientStream(measured, layers, queries, chunk).chunks():
                yield one.training()
            return
        for batch in queries.batches(min(chunk, _QUERIES)):
            yield dense_query_gradients(task, layers, task.place(batch))

    def _corrections(self) -> Iterator[tuple[slice, Correction, Any]]:
        """Yield (rows, correction, chunk) in row order."""
        self._check_unchanged()
        decay = self._preconditioned_decay
        for chunk in self.stream.chunks():
            yield chunk.span, correct(chunk, self.preconditioner, decay, len(self.examples)), chunk

    def _corrected_gradients(self) -> Iterator[tuple[slice, Gradients]]:
        """Yield (rows, training gradients with the corrected residual) in row order."""
        for rows, correction, chunk in self._corrections():
            seeds = correction.residual.to(chunk.outputs.dtype).reshape(chunk.outputs.shape)
            yield rows, chunk.seeded(seeds, keep=False)

    def _removed(self, ids: Sequence[Any], what: str) -> np.ndarray:
        """Return the rows to remove, each once; some must be left."""
        rows, count = np.unique(self.examples.rows_of(ids)), len(self.examples)
        if not 0 < len(rows) < count:
            raise ConfigError(f"{what} must hold between 1 and {count - 1} examples, got {len(rows)}.")
        return rows

    def _gradients_of(self, rows: np.ndarray) -> Iterator[Gradients]:
        """Yield the training gradients of some rows, from what was stored where there is something."""
        if self.stored is None:
            for part in np.array_split(rows, -(-len(rows) // self.stream.chunk)):
                yield self.stream.run(self.examples.batch(part), part).training()
            return
        for span, gradients in self.stored:
            inside = rows[(rows >= span.start) & (rows < span.stop)] - span.start
            if len(inside):
                yield gradients.rows(torch.from_numpy(inside))

    def _tensor_versions(self) -> list[tuple[int, int]]:
        """Return what changes whenever a weight or a running statistic does."""
        model = self.task.model
        return [(tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers())]

    def _check_unchanged(self) -> None:
        if self._tensor_versions() != self._versions:  # type: ignore[attr-defined]
            raise ConfigError("the model must be the one that was fitted, but its weights have changed. Fit again.")


def _emptied(held: list[Gradients]) -> Gradients:
    """Return gradients as one and forget the parts."""
    parts = (held.pop(0) for _ in range(len(held)))
    return concatenate(parts)


def _loss_unit(task: Task) -> str | None:
    return task.loss.unit if isinstance(task.loss, Loss) else None
