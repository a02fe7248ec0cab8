"""Influence, fitted: what can be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.curvature import DataInfPreconditioner, JointPreconditioner, Preconditioner
from whence.data import Examples
from whence.errors import ConfigError
from whence.gradients import (
    Collected,
    Coverage,
    Gradients,
    GradientStream,
    Layer,
    Matrix,
    concatenate,
    decay_grids,
    dense_query_gradients,
)
from whence.index import QueryFeatures
from whence.methods import groups, nearby, parts
from whence.methods import perturbation as perturbations
from whence.methods.corrected import Correction, LeaveOneOut, correct
from whence.methods.packed import query_parts
from whence.methods.plan import Plan, plan_of
from whence.methods.saved import decay_settings, loss_name, save
from whence.methods.trust import doubt_of, effective_parameters
from whence.notebook import attribution_html
from whence.scores import Scores, Signal
from whence.tasks import Loss, Task

if TYPE_CHECKING:
    from whence.methods.influence import Influence

__all__ = ["InfluenceAttribution"]

_QUERIES = 8  # queries preconditioned at a time
_QUERY_BYTES = 2**28  # of queries in memory, if the budget is smaller


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
    _versions: list[tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", self._tensor_versions())

    def __repr__(self) -> str:
        """Return curvature and counts."""
        curvature = type(self.config.curvature).__name__
        return f"InfluenceAttribution({curvature}, {len(self.examples):,} examples, {self.coverage.counted})"

    def _repr_html_(self) -> str:
        """Return what was fitted for a notebook."""
        return attribution_html(repr(self), self.summary())

    @property
    def ids(self) -> np.ndarray:
        """Ids of the training examples [N]."""
        return self.examples.ids

    @cached_property
    def doubt(self) -> str | None:
        """Why sizes of scores are not to be believed: more effective parameters tr G H⁻¹ than examples; else None."""
        return doubt_of(self.preconditioner.summary(), len(self.examples))

    def scores(
        self, queries: Any = None, *, leverage_corrected: bool = False,
        relative: Literal["parameters", "loss"] | None = None,
    ) -> Scores:  # fmt: skip
        r"""Return the score of every training example for every query.

        Args:
            queries: Anything that `as_examples` takes ((X, y) for a task `from_sklearn`); None for a measurement of
                the model alone.
            leverage_corrected: Use the second-order effect of removing an example on its own curvature, which
                plain influence leaves out; it matters for examples that fix much of their own prediction.
            relative: "parameters" divides every column by ‖H⁻¹g_i‖/N, the norm of the parameter change that removing
                the example makes; "loss" by the root of g_iᵀH⁻¹g_i/N, its self-influence. Outliers that move
                everything no longer head every list.

        Returns:
            Scores [Q, N], in the measurement's unit; positive = removing the example raises the measurement. Relative
            scores rank only (``unit=None``); an example that moves nothing has 0.

        Raises:
            ConfigError: A relative score is to be leverage-corrected, or has no curvature to be relative to.

        Cost: one pass over the training factors (from memory where they fit the budget); with the correction C
            backward passes over the training data. "parameters" solves for every training example: O·I an example.
        Reference: Koh & Liang (2017), eq. 2; relative: Barshan, Brunet & Dziugaite (2020), RelatIF, eq. 6 and 9.
        """
        examples = None if queries is None else self.task.examples(queries)
        if relative is not None:
            parts.check_relative(relative, leverage_corrected, self.ranks_only)
        training = self._corrected_gradients if leverage_corrected else self.training_gradients
        values, offsets = self.products(examples, training)
        values += offsets[:, None]
        if relative is not None:
            values *= parts.inverse_sizes(self, relative).to(values)
        query_ids = np.array(["model"]) if examples is None else examples.ids
        unit = None if self.ranks_only or relative is not None else self.task.unit
        doubt = self.doubt if unit else None
        return Scores(values=values / len(self.examples), query_ids=query_ids, ids=self.ids, unit=unit, doubt=doubt)

    def products(
        self, queries: Examples | None, training: Callable[[], Iterator[tuple[slice, Gradients]]], *,
        preconditioned: bool = True,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return ∇mᵀH⁻¹g of all queries and training gradients [Q, N], and ∇mᵀH⁻¹λθ̂ [Q].

        Args:
            queries: None for a measurement of the model alone.
            training: Called for every pass over (rows, gradients).
            preconditioned: False leaves H⁻¹ out.
        """
        count = 1 if queries is None else len(queries)
        values = torch.empty(count, len(self.examples), dtype=self.task.gradient_dtype, device=self.task.device)
        offsets = values.new_zeros(count)
        start = 0
        for block in self.query_blocks(queries, preconditioned=preconditioned):
            asked = slice(start, start + len(block))
            for rows, gradients in training():
                values[asked, rows] = block.inner(gradients.compact())
            if self.decayed_weights is not None:
                offsets[asked] = block.inner(self.decayed_weights)[:, 0]
            start = asked.stop
        return values, offsets

    def self_scores(self, *, leverage_corrected: bool = False) -> Signal:
        """Return every training example's score for its own training loss [N] (self-influence).

        Args:
            leverage_corrected: As in `scores`; the first-order change of the loss for the corrected parameters.

        Cost: one pass over the training factors; nothing of size O·I is made for examples without positions.
        """
        values = np.empty(len(self.examples))
        if leverage_corrected:
            for rows, correction, _ in self.corrections():
                values[rows] = (correction.gradient * correction.change).sum(1).cpu().numpy()
        else:
            for rows, gradients in self.training_gradients():
                values[rows] = self.self_scores_of(gradients)
        unit = None if self.ranks_only else _loss_unit(self.task)
        doubt = self.doubt if unit else None
        return Signal(values=values, ids=self.ids, name="self-influence", unit=unit, doubt=doubt)

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
        examples = None if queries is None else self.task.examples(queries)
        whole = concatenate(self._preconditioned_queries(examples))
        decay = self.decayed_weights
        offsets = torch.zeros(len(whole)) if decay is None else whole.inner(decay)[:, 0].cpu()
        return QueryFeatures(
            parts=query_parts(whole),
            ids=np.array(["model"]) if examples is None else examples.ids,
            offsets=offsets,
            count=len(self.examples),
            unit=None if self.ranks_only else self.task.unit,
            weights=self.task.weights_fingerprint(),
            loss=loss_name(self.task),
        )

    def leave_one_out(self) -> LeaveOneOut:
        """Return every training example's predicted leave-one-out outputs and loss.

        Cost: one forward pass and C backward passes without weight gradients.
        """
        loss = self.task.smooth_loss
        outputs, fitted, own, held, leverage = [], [], [], [], []
        for _, correction, chunk in self.corrections():
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

    # functions of an attribution, told in their own files
    at = nearby.at
    group_scores = groups.group_scores
    parameter_change = groups.parameter_change
    phantom_scores = groups.phantom_scores
    decomposition = parts.decomposition
    perturbation = perturbations.perturbation
    replacement_scores = perturbations.replacement_scores

    @cached_property
    def gradient_norm(self) -> float:
        """Relative norm of ∇J at the weights, ‖∇J‖ / mean ‖∇ℓ_i‖: 0 at a stationary point. One pass."""
        total = {layer.name: torch.zeros_like(self._weights(layer)) for layer in self.coverage.layers}
        norms = 0.0
        for _, gradients in self.training_gradients():
            for name, factor in gradients.layers.items():
                total[name] += factor.summed()
            norms += float(gradients.squared_norms().sqrt().sum())
        count, grids = len(self.examples), decay_grids(self.task, self.coverage.layers)
        for layer in self.coverage.layers:
            total[layer.name] = total[layer.name] / count + grids[layer.name] * self._weights(layer)
        norm: float = float(torch.stack([matrix.square().sum() for matrix in total.values()]).sum()) ** 0.5
        return norm / max(norms / count, 1e-300)

    def summary(self) -> dict[str, Any]:
        """Return what was fitted, JSON-able: curvature with damping and residuals, the attributed share.

        After loading rounded factors also their ``storage_error``; see `whence.Index.summary`.
        """
        curvature = self.preconditioner.summary()
        return {
            "method": "influence",
            "curvature": curvature,
            "examples": len(self.examples),
            "effective_parameters": effective_parameters(curvature),
            "attributed_parameters": self.coverage.attributed,
            "attributed_share": self.coverage.share,
            "missed": [list(entry) for entry in self.coverage.missed],
            "weight_decay": self.task.weight_decay,
            **decay_settings(self.task),
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
        self.check_unchanged()
        return iter(self.stored) if self.stored is not None else self.stream.training_gradients()

    def _weights(self, layer: Layer) -> Tensor:
        """Return a layer's parameters [O, I] in the type that gradients are kept in."""
        return layer.weights().to(self.task.gradient_dtype)

    @property
    def ranks_only(self) -> bool:
        """Whether the curvature is the identity, so that scores have no unit."""
        return self.preconditioner.summary().get("curvature") == "identity"

    @cached_property
    def decayed_weights(self) -> Gradients | None:
        """The decay that leaves with an example, λθ̂, as a gradient; None where there is none."""
        if self.task.removed_decay == 0:
            return None
        grids = decay_grids(self.task, self.coverage.layers)
        weights = {layer.name: self._weights(layer) for layer in self.coverage.layers}
        return Gradients({name: Matrix((grids[name].to(w) * w)[None]) for name, w in weights.items()})

    @cached_property
    def _preconditioned_decay(self) -> Gradients | None:
        """H⁻¹ λθ̂."""
        return None if self.decayed_weights is None else self.preconditioner.precondition(self.decayed_weights)

    def query_blocks(self, queries: Examples | None, *, preconditioned: bool = True) -> Iterator[Gradients]:
        """Yield H⁻¹∇m, or ∇m, of the queries in blocks that fit the budget: each takes a pass over training.

        A block is valid until the next.
        """
        limit = max(self.config.memory_budget, _QUERY_BYTES)
        count = 1 if queries is None else len(queries)
        held = Collected(0)
        gradients = self._preconditioned_queries(queries) if preconditioned else self._query_gradients(queries)
        for part in gradients:
            expanded = part.expanded()
            if not held.rows:
                fitting = max(1, limit // _bytes(expanded)) * len(part)
                passes = -(-count // fitting)
                held = Collected(-(-count // (passes * len(part))) * len(part))  # as many queries in every pass
            if held.count and held.count + len(part) > held.rows:
                yield held.joined()
            held.add(expanded)
        yield held.joined()

    def _preconditioned_queries(self, queries: Examples | None) -> Iterator[Gradients]:
        """Yield H⁻¹∇m of all queries (None: of the model alone), a chunk at a time."""
        self.check_unchanged()
        for gradients in self._query_gradients(queries):
            if isinstance(self.preconditioner, (DataInfPreconditioner, JointPreconditioner)):
                yield self.preconditioner.precondition(gradients)  # its products serve all of them at once
                continue
            for start in range(0, len(gradients), _QUERIES):
                yield self.preconditioner.precondition(gradients.rows(slice(start, start + _QUERIES)))

    def _query_gradients(self, queries: Examples | None) -> Iterator[Gradients]:
        """Yield ∇m of all queries (None: of the model alone), a chunk at a time."""
        task, layers, chunk = self.task, self.coverage.layers, self.stream.chunk
        if queries is None:
            yield dense_query_gradients(task, layers, None)
            return
        if task.measurement is None or isinstance(task.measurement, Loss):
            measured = task if task.measurement is None else Task(task.model, task.measurement, outputs=task.outputs)
            for one in GradientStream(measured, layers, queries, chunk, what="measurement").chunks():
                yield one.training()
            return
        for batch in queries.batches(min(chunk, _QUERIES)):
            yield dense_query_gradients(task, layers, task.place(batch))

    def corrections(self) -> Iterator[tuple[slice, Correction, Any]]:
        """Yield (rows, correction, chunk) in row order."""
        self.check_unchanged()
        decay = self._preconditioned_decay
        for chunk in self.stream.chunks():
            yield chunk.span, correct(chunk, self.preconditioner, decay, len(self.examples)), chunk

    def _corrected_gradients(self) -> Iterator[tuple[slice, Gradients]]:
        """Yield (rows, training gradients with the corrected residual) in row order."""
        for rows, correction, chunk in self.corrections():
            seeds = correction.residual.to(chunk.outputs.dtype).reshape(chunk.outputs.shape)
            yield rows, chunk.seeded(seeds, keep=False)

    def gradients_of(self, rows: np.ndarray) -> Iterator[Gradients]:
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

    def check_unchanged(self) -> None:
        """Raise if a weight or a running statistic is not the one that was fitted."""
        if self._tensor_versions() != self._versions:
            raise ConfigError("the model must be the one that was fitted, but its weights have changed. Fit again.")


def _bytes(gradients: Gradients) -> int:
    """Return the memory that gradients take."""
    tensors = (t for factor in gradients.layers.values() for t in factor.tensors().values())
    return sum(t.numel() * t.element_size() for t in tensors)


def _loss_unit(task: Task) -> str | None:
    return task.loss.unit if isinstance(task.loss, Loss) else None
