"""What a fitted method offers whose scores only rank: as closures, or as inner products of flat features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.index import Index, IndexWriter, QueryFeatures
from whence.notebook import fitted_html
from whence.scores import Scores, Signal
from whence.tasks import Task

__all__ = ["FlatAttribution", "RankingAttribution", "loss_only"]


class _Ranks:
    """What all methods that only rank offer, once they give values for queries and self-scores."""

    name: str
    examples: Examples
    prepare: Callable[[Any], Examples]
    alone: Callable[[], Tensor] | None

    def _repr_html_(self) -> str:
        """Return what was fitted for a notebook."""
        return fitted_html(repr(self), {"method": self.name, "examples": len(self.examples)}, "Its scores rank only.")

    @property
    def ids(self) -> np.ndarray:
        """Ids of the training examples [N]."""
        return self.examples.ids

    def scores(self, queries: Any = None) -> Scores:
        """Return scores [Q, N], positive = helpful; they rank only, so their unit is None.

        Args:
            queries: Anything that `as_examples` takes, with labels; None for a measurement of the model alone, where
                the method has measurements (`TracIn`, `GradientCosine`).

        Raises:
            ConfigError: There are no queries, and the method does not measure models.

        Cost: that of the method, and Q·N numbers.
        """
        if queries is None:
            return Scores(values=self._alone(), query_ids=np.array(["model"]), ids=self.ids, unit=None)
        asked = self.prepare(queries)
        return Scores(values=self._values(asked), query_ids=asked.ids, ids=self.ids, unit=None)

    def self_scores(self) -> Signal:
        """Return every training example's score for itself [N], no unit."""
        values = self._own().double().cpu().numpy()
        return Signal(values=values, ids=self.ids, name=f"{self.name} self-influence", unit=None)

    def _values(self, queries: Examples) -> Tensor:
        """Return values [Q, N]."""
        raise NotImplementedError

    def _own(self) -> Tensor:
        """Return self-scores [N]."""
        raise NotImplementedError

    def _alone(self) -> Tensor:
        """Return the values of a measurement of the model alone [1, N]."""
        if self.alone is None:
            raise ConfigError(f"{self.name} must be asked with queries, got none. Pass queries.")
        return self.alone()


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingAttribution(_Ranks):
    """A method that ranks, fitted: ask it for scores. Made by the ``fit`` of a method.

    Args:
        name: What the numbers are.
        examples: The training examples.
        score: Queries -> values [Q, N].
        own: () -> self-scores [N].
        prepare: Data as a user has it -> examples.
        alone: () -> values of a measurement of the model alone [1, N]; None where there is no such thing.
    """

    name: str
    examples: Examples
    score: Callable[[Examples], Tensor] = field(repr=False)
    own: Callable[[], Tensor] = field(repr=False)
    prepare: Callable[[Any], Examples] = field(default=as_examples, repr=False)
    alone: Callable[[], Tensor] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Return name and count."""
        return f"RankingAttribution({self.name}, {len(self.examples):,} examples)"

    def _values(self, queries: Examples) -> Tensor:
        return self.score(queries)

    def _own(self) -> Tensor:
        return self.own()


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatAttribution(_Ranks):
    """A method whose scores are inner products of flat features, fitted; its features go into an index.

    Args:
        name: What the numbers are.
        examples: The training examples.
        features: Of the training examples [N, D].
        own: Self-scores [N].
        ask: Queries -> features [Q, D].
        identity: What an index is checked by.
        prepare: Data as a user has it -> examples.
        alone: () -> values of a measurement of the model alone [1, N]; None where there is no such thing.
    """

    name: str
    examples: Examples
    features: Tensor = field(repr=False)
    own: Tensor = field(repr=False)
    ask: Callable[[Examples], Tensor] = field(repr=False)
    identity: Mapping[str, Any] = field(repr=False)
    prepare: Callable[[Any], Examples] = field(default=as_examples, repr=False)
    alone: Callable[[], Tensor] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Return name and counts."""
        return f"FlatAttribution({self.name}, {len(self.examples):,} examples, {self.features.shape[1]:,} features)"

    def query_features(self, queries: Any) -> QueryFeatures:
        """Return what an index of these features answers: inner products are scores."""
        asked = self.prepare(queries)
        return QueryFeatures.flat(self.ask(asked), asked.ids, unit=None)

    def build_index(self, folder: str | Path, *, dtype: str = "float32") -> Index:
        """Write features [N, D] and self-scores to an index on disk; ask it with `query_features`."""
        held = self.features.detach().cpu().contiguous()
        digest = hashlib.sha256(held.numpy().tobytes()).hexdigest()
        writer = IndexWriter(folder=folder, identity={**self.identity, "features": digest}, dtype=dtype)
        rows = slice(writer.start, None)
        writer.append(held[rows], self.ids[rows], self.own[rows].double().cpu().numpy())
        return writer.close()

    def _values(self, queries: Examples) -> Tensor:
        return self.ask(queries) @ self.features.T

    def _own(self) -> Tensor:
        return self.own


def loss_only(task: Task, method: str) -> None:
    """Raise where a task measures something else than its loss, which a method of its own measurement would ignore."""
    if task.measurement is not None and task.measurement != task.loss:
        raise ConfigError(
            f"measurement must be left out for {method}, which explains the model's own outputs, got "
            f"{task.measurement!r}. Use Influence, TracIn or GradientDot for another measurement."
        )
