r"""What altering a training example does to a query: input-shaped maps, and finite replacements.

Replacing z = (x, y) by (x + δ, y) moves the parameters by −(1/N) H⁻¹ (g_{z_δ} − g_z) ≈ −(1/N) H⁻¹ [∇_x∇_θ ℓ_z] δ, so
that a query's measurement rises by −(1/N) ∇m_tᵀ H⁻¹ [∇_x∇_θ ℓ_z] δ. The weight decay that an example carries is the
same before and after and takes no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whence.data import Batch, Examples
from whence.errors import ConfigError
from whence.gradients import Gradients
from whence.gradients.mixed import find_place, look, mixed_derivatives
from whence.scores import Scores

if TYPE_CHECKING:
    from whence.methods.attribution import InfluenceAttribution

__all__ = ["Perturbation", "perturbation", "replacement_scores"]

_DIRECTIONS = 2**24  # numbers of H⁻¹∇m multiplied out at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Perturbation:
    r"""Maps I[t, k] = −(1/N) ∇m_tᵀ H⁻¹ ∇_x∇_θ ℓ_k, shaped like what is perturbed: I · δ is the predicted rise.

    Args:
        values: [Q, K, ...], in the measurement's unit per unit of the input.
        inputs: What the maps are derivatives in: the training inputs, or what a module gave for them [K, ...].
        query_ids: [Q]; "mean" for the mean over queries.
        ids: Training examples [K].
        unit: Of the measurement; None for a curvature that only ranks.
        tokens: Integers that the module embedded [K, T]: one map [E] a token; None for other places.
    """

    values: Tensor
    inputs: Tensor
    query_ids: np.ndarray
    ids: np.ndarray
    unit: str | None
    tokens: Tensor | None = None

    def __repr__(self) -> str:
        """Return the shape."""
        return f"Perturbation({' × '.join(map(str, self.values.shape))}, unit={self.unit!r})"

    def predict(self, delta: Any) -> Scores:
        r"""Return the predicted rise Σ I · δ of every measurement when each example alone is moved by its δ.

        Args:
            delta: [K, ...] as the inputs, or one [...] for all of them.

        Returns:
            Scores [Q, K]; positive = the measurement rises.
        """
        moved = torch.as_tensor(delta).to(self.values)
        if moved.shape not in (self.inputs.shape, self.inputs.shape[1:]):
            raise ConfigError(f"delta must have shape {tuple(self.inputs.shape)}, got {tuple(moved.shape)}.")
        values = (self.values * moved).flatten(2).sum(2) if self.values.ndim > 2 else self.values * moved
        return Scores(values=values, query_ids=self.query_ids, ids=self.ids, unit=self.unit)

    def reach(self, norm: Literal["linf", "l2"] = "linf") -> Scores:
        r"""Return how far an example can move each measurement per unit of a box: ‖I‖₁ for |δ| ≤ 1, ‖I‖₂ for ‖δ‖ ≤ 1.

        To rank training examples by; what an attack chooses (Koh & Liang, §5.2).
        """
        if norm not in ("linf", "l2"):
            raise ConfigError(f'norm must be "linf" or "l2", got {norm!r}.')
        order = 1 if norm == "linf" else 2
        values = self.values.flatten(2).norm(order, dim=2) if self.values.ndim > 2 else self.values.abs()
        return Scores(values=values, query_ids=self.query_ids, ids=self.ids, unit=self.unit)

    def features(
        self, top: int = 10, *, names: Sequence[str] | Mapping[int, str] | None = None, reference: Any = None
    ) -> pd.DataFrame:
        r"""Return which features of each training example matter for each query, strongest first.

        Args:
            top: Features a pair of query and example.
            names: Of the features in the order of the flattened input (columns of a table), or of tokens by number.
            reference: What a feature would be without information, such as the means of a table's columns, shaped
                like one input; of a task `from_sklearn`, after the steps of its pipeline. Then features rank by their
                effect, and without one by their derivative. For tokens it is 0, the embedding taken away.

        Returns:
            A frame ``query, id, rank, feature, value, derivative, effect``: ``effect`` is the predicted rise when
            the feature takes its reference's value and the model is trained again; missing without a reference.
            For tokens ``derivative`` is the map's norm, ``value`` the norm of the embedding.

        Raises:
            ConfigError: Fewer than one feature is asked for, or names or reference do not fit.
        """
        if top < 1:
            raise ConfigError(f"top must be at least 1, got {top}.")
        values = self.inputs.reshape(len(self.ids), -1)  # [K, D]
        maps = self.values.reshape(len(self.values), *values.shape)
        if self.tokens is not None:
            return self._ranked(*self._by_token(), top, self._token_names(names))
        effect = None
        if reference is not None:
            base = torch.as_tensor(reference).to(self.inputs)
            if base.shape != self.inputs.shape[1:]:
                raise ConfigError(
                    f"reference must have shape {tuple(self.inputs.shape[1:])}, got {tuple(base.shape)}."
                )
            effect = maps * (base.reshape(-1) - values)
        return self._ranked(maps, values, effect, top, self._names(names))

    def _by_token(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return norms of maps [Q, K, T] and embeddings [K, T], and the rise without the embedding [Q, K, T]."""
        vectors = self.inputs.reshape(len(self.ids), -1, self.inputs.shape[-1])  # [K, T, E]
        maps = self.values.reshape(len(self.values), *vectors.shape)
        return maps.norm(dim=-1), vectors.norm(dim=-1), -(maps * vectors).sum(-1)

    def _names(self, names: Sequence[str] | Mapping[int, str] | None) -> np.ndarray:
        """Return a name a feature [K, D]."""
        shape = tuple(self.inputs.shape[1:])
        if names is None:
            listed = [",".join(map(str, place)) for place in np.ndindex(*shape)]
        else:
            listed = [_named(names, i) for i in range(len(names))]
        if len(listed) != int(np.prod(shape)):
            raise ConfigError(f"names must have one entry a feature ({int(np.prod(shape))}), got {len(listed)}.")
        return np.broadcast_to(np.array(listed, dtype=object), (len(self.ids), len(listed)))

    def _token_names(self, names: Sequence[str] | Mapping[int, str] | None) -> np.ndarray:
        """Return "position: token" of every token [K, T]."""
        assert self.tokens is not None
        numbers = self.tokens.reshape(len(self.ids), -1).tolist()
        named = [[f"{i}: {n if names is None else _named(names, n)}" for i, n in enumerate(row)] for row in numbers]
        return np.array(named, dtype=object)

    def _ranked(
        self, derivative: Tensor, values: Tensor, effect: Tensor | None, top: int, names: np.ndarray
    ) -> pd.DataFrame:
        """Return the frame of the strongest features of every pair."""
        strength = (derivative if effect is None else effect).abs()
        kept = min(top, strength.shape[2])
        order = strength.argsort(dim=2, descending=True, stable=True)[:, :, :kept]  # [Q, K, top]
        queries, examples = len(self.query_ids), len(self.ids)
        rows = torch.arange(examples)[None, :, None].expand_as(order).cpu()
        places = order.cpu()
        missing = np.full(order.numel(), np.nan)
        return pd.DataFrame(
            {
                "query": np.repeat(self.query_ids, examples * kept),
                "id": np.tile(np.repeat(self.ids, kept), queries),
                "rank": np.tile(np.arange(1, kept + 1), queries * examples),
                "feature": names[rows.numpy(), places.numpy()].reshape(-1),
                "value": values.cpu()[rows, places].double().reshape(-1).numpy(),
                "derivative": derivative.gather(2, order).double().cpu().reshape(-1).numpy(),
                "effect": missing if effect is None else effect.gather(2, order).double().cpu().reshape(-1).numpy(),
            }
        )


def _named(names: Sequence[str] | Mapping[int, str], number: int) -> str:
    """Return the name of a feature or token."""
    try:
        return str(names[number])
    except (KeyError, IndexError) as error:
        raise ConfigError(f"names must name number {number}, got {len(names)} others. Name every one.") from error


def perturbation(
    attribution: InfluenceAttribution,
    ids: Sequence[Any] | np.ndarray,
    queries: Any = None,
    *,
    at: str | int | None = None,
    reduce: Literal["mean"] | None = None,
) -> Perturbation:
    r"""Return how altering training inputs changes measurements: I = −(1/N) ∇m_tᵀ H⁻¹ ∇_x∇_θ ℓ_z, shaped like x.

    Multiply by δ and sum: the predicted rise of the measurement when x becomes x + δ under the same label and the
    model is trained again. 1/N is included. It is minus the derivative of the example's score in its input: what
    makes an example more helpful lowers the query's loss. The inputs of a task `from_sklearn` are those that its
    pipeline's last step is given (standardised, say; coordinates in the kernel's span for an SVC).

    Args:
        attribution: A fitted attribution, with its training examples.
        ids: Training examples.
        queries: As in `InfluenceAttribution.scores`; None for a measurement of the model alone.
        at: What is perturbed: key or position of a floating-point input, or name of a module, whose output is
            perturbed. By default the only floating-point input; for integers the output of the only embedding,
            which gives one map a token.
        reduce: "mean": maps for the mean of the measurements over the queries, at the cost of one.

    Returns:
        A `Perturbation` with values [Q, K, ...]; positive = raising that entry raises the measurement.

    Raises:
        ConfigError: What is perturbed is unclear or not a floating-point tensor, or ``reduce`` is unknown.

    Cost: H⁻¹∇m once a query; then for every chunk of examples a forward and a backward pass, and two more backward
        passes a query. Memory: the maps, Q·K inputs.
    Reference: Koh & Liang (2017), eq. 5, with 1/N; by double backward, so that no gradient of a single example is made.

    Example:
        >>> import whence as wh
        >>> train = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> attribution = wh.Influence().fit(wh.Task(torch.nn.Linear(3, 2)), train)
        >>> maps = attribution.perturbation([4, 7], (train[0][:5], train[1][:5]))
        >>> maps.values.shape, maps.predict(torch.full((3,), 0.1)).values.shape
        (torch.Size([5, 2, 3]), torch.Size([5, 2]))
    """
    if reduce not in (None, "mean"):
        raise ConfigError(f'reduce must be "mean" or None, got {reduce!r}.')
    attribution.check_unchanged()
    task, examples = attribution.task, attribution.examples
    rows = examples.rows_of(ids)
    if len(rows) == 0:
        raise ConfigError("ids must name at least one training example, got none.")
    asked = None if queries is None else task.examples(queries)
    place = find_place(task, examples.batch(rows[:1]), at)
    batches = [examples.batch(part) for part in np.array_split(rows, -(-len(rows) // attribution.stream.chunk))]
    seen = [look(task, batch, place) for batch in batches]
    found = []
    for directions in _directions(attribution, asked, reduce):
        parts = [torch.stack(list(mixed_derivatives(task, batch, place, directions))) for batch in batches]
        found.append(torch.cat(parts, 1))
    mean = asked is not None and reduce is not None
    indices = [one.index for one in seen if one.index is not None]
    return Perturbation(
        values=torch.cat(found) / -len(examples),
        inputs=torch.cat([one.values for one in seen]),
        query_ids=np.array(["mean" if mean else "model"]) if mean or asked is None else asked.ids,
        ids=examples.ids[rows],
        unit=None if attribution.ranks_only else task.unit,
        tokens=torch.cat(indices) if indices else None,
    )


def replacement_scores(
    attribution: InfluenceAttribution, ids: Sequence[Any] | np.ndarray, replacements: Any, queries: Any = None
) -> Scores:
    r"""Return what replacing training examples does: −(1/N) ∇m_tᵀ H⁻¹ (g_new − g_old), one example at a time.

    For finite changes of the input, of the label, or of both. For a small change of the input it tends to
    `perturbation`'s prediction; for a corrected label it is the predicted effect of the correction.

    Args:
        attribution: A fitted attribution, with its training examples.
        ids: Training examples to replace [K].
        replacements: What stands in for each of them, with labels: anything that `as_examples` takes, K rows in the
            order of ``ids``.
        queries: As in `InfluenceAttribution.scores`.

    Returns:
        Scores [Q, K]: (measurement after replacement and retraining) − (measurement now); positive = it rises.

    Raises:
        ConfigError: There are not as many replacements as ids.

    Cost: as `InfluenceAttribution.scores` of 2 K training examples.
    Reference: Koh & Liang (2017), §2.2.

    Example:
        >>> import whence as wh
        >>> x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> attribution = wh.Influence().fit(wh.Task(torch.nn.Linear(3, 2)), (x, y))
        >>> attribution.replacement_scores([4, 7], (x[[4, 7]], 1 - y[[4, 7]]), (x, y)).values.shape
        torch.Size([20, 2])
    """
    attribution.check_unchanged()
    task, examples = attribution.task, attribution.examples
    rows, new = examples.rows_of(ids), task.examples(replacements)
    if len(rows) != len(new) or len(rows) == 0:
        raise ConfigError(f"replacements must have one row an id ({len(rows)}, at least one), got {len(new)}.")
    asked = None if queries is None else task.examples(queries)
    chunk = attribution.stream.chunk
    parts = [np.arange(start, min(start + chunk, len(rows))) for start in range(0, len(rows), chunk)]
    sides = [
        (_gradients(attribution, new.batch(part)), _gradients(attribution, examples.batch(rows[part])))
        for part in parts
    ]
    values = [
        torch.cat([block.inner(old) - block.inner(after) for after, old in sides], 1)
        for block in attribution.query_blocks(asked)
    ]
    return Scores(
        values=torch.cat(values) / len(examples),
        query_ids=np.array(["model"]) if asked is None else asked.ids,
        ids=examples.ids[rows],
        unit=None if attribution.ranks_only else task.unit,
    )


def _gradients(attribution: InfluenceAttribution, batch: Batch) -> Gradients:
    """Return the training-loss gradients of a batch."""
    return attribution.stream.run(batch, np.arange(len(batch))).training().compact()


def _directions(
    attribution: InfluenceAttribution, queries: Examples | None, reduce: str | None
) -> Iterator[list[dict[str, Tensor]]]:
    """Yield H⁻¹∇m by name of a parameter, some queries at a time; only their mean with ``reduce``."""
    layers = attribution.coverage.layers
    total: dict[str, Tensor] = {}
    count = 0
    for block in attribution.query_blocks(queries):
        if reduce is not None:
            count += len(block)
            for name, factor in block.layers.items():
                total[name] = total[name] + factor.summed() if name in total else factor.summed()
            continue
        step = max(1, _DIRECTIONS // sum(layer.shape[0] * layer.shape[1] for layer in layers))
        for start in range(0, len(block), step):
            some = block.rows(slice(start, start + step))
            dense = {layer.name: some.layers[layer.name].matrix() for layer in layers}
            yield [
                {name: t for layer in layers for name, t in layer.split(dense[layer.name][i]).items()}
                for i in range(len(some))
            ]
    if reduce is not None:
        yield [{name: t for layer in layers for name, t in layer.split(total[layer.name] / count).items()}]
