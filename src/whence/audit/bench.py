"""The rows, the recipe and the model that methods are judged on: drawn from a user's data, the rest held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from whence.audit.job import UserModel, train_rows_of
from whence.audit.members import OnStage
from whence.data import Examples, LabelledData, as_examples, id_keys, uniform
from whence.errors import ConfigError, DataError
from whence.evaluate.cost import RetrainingCost
from whence.evaluate.stacked import check_stackable
from whence.tasks import Recipe
from whence.tasks.defaults import Default, default_for

__all__ = ["Bench", "Bring", "Draw", "Watch", "draw", "prepare", "stack_of"]

Bring = Callable[[LabelledData], UserModel]

_STACK = 16
_STACKED_PARAMETERS = 50_000_000
_FEWEST = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Watch:
    """Who is told how a long job goes; by default nobody.

    Args:
        stage: Called with (stage, epochs); may return a callback for epochs.
        steps: Called with (stage, total); may return a callback for (done, total).
        estimate: Called with what retraining will cost, before it begins.
    """

    stage: OnStage = lambda name, epochs: None
    steps: Callable[[str, int], Callable[[int, int], None] | None] = lambda name, total: None
    estimate: Callable[[RetrainingCost], None] = lambda cost: None

    def say(self, what: str) -> None:
        """Begin a stage without steps."""
        self.stage(what, 0)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How many rows take part.

    Args:
        rows: At most so many training rows.
        queries: At most so many held-out rows are asked about; 0 holds none out.
        seed: Seed of the draw.

    Raises:
        ConfigError: A number is too small.
    """

    rows: int = 10_000
    queries: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < _FEWEST:
            raise ConfigError(f"rows must be at least {_FEWEST}, got {self.rows}.")
        if self.queries < 0:
            raise ConfigError(f"queries must be zero or positive, got {self.queries}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What methods are judged on.

    Args:
        data: The rows that take part, training rows and queries.
        train_rows: Positions of the training rows.
        train: Training examples.
        queries: Held-out examples, or None.
        recipe: How the model is trained, or None for a user's model without one.
        model: The user's own trained model where there is no recipe.
        default: The embedded default, or None for a user's model.
        name: Of the model.
        said: What was drawn or held out, one sentence each.
    """

    data: LabelledData
    train_rows: np.ndarray
    train: Examples
    queries: Examples | None
    recipe: Recipe | None
    model: nn.Module | None
    default: Default | None
    name: str
    said: tuple[str, ...]

    @property
    def train_data(self) -> LabelledData:
        """The training rows as a person has them, with the labels that are trained on."""
        assert self.train.targets is not None
        return self.data.rows(self.train_rows).with_labels(self.train.targets.numpy())

    @property
    def texts(self) -> Mapping[str, str] | None:
        """The text of every row by id, or None for data without texts."""
        if not isinstance(self.data.content, list):
            return None
        return dict(zip(self.data.ids.tolist(), self.data.content, strict=True))

    def with_labels(self, labels: np.ndarray) -> Bench:
        """Return the same with other labels of the training rows [N]."""
        return replace(self, train=self.train.with_targets(torch.from_numpy(labels)))


def draw(data: LabelledData, wanted: Draw) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return positions of training rows and of queries, both in row order, and what was drawn in words.

    Queries come from the rows outside the train split, or are held out where there is none: then at most a fifth of
    the rows. Which rows are drawn is a function of their ids and the seed.

    Raises:
        DataError: Too few rows, or fewer than two classes among them.
    """
    chance = uniform(id_keys(data.ids), wanted.seed, 7)
    allowed = train_rows_of(data)
    said = []
    if allowed is None:
        asked = min(wanted.queries, len(data) // 5)
        order = np.argsort(chance, kind="stable")
        queries, allowed = np.sort(order[:asked]), np.sort(order[asked:])
        if asked:
            said.append(f"{asked:,} of {len(data):,} rows, drawn at random, were held out as queries: nothing "
                        "was trained on them.")  # fmt: skip
    else:
        outside = np.setdiff1d(np.arange(len(data)), allowed)
        queries = np.sort(outside[np.argsort(chance[outside], kind="stable")[: wanted.queries]])
        if len(queries) and len(queries) < len(outside):
            said.append(f"{len(queries):,} of {len(outside):,} rows outside the train split, drawn at random, were "
                        "asked about.")  # fmt: skip
    train = allowed
    if len(allowed) > wanted.rows:
        train = np.sort(allowed[np.argsort(chance[allowed], kind="stable")[: wanted.rows]])
        said.append(f"{len(train):,} of {len(allowed):,} training rows, drawn at random, took part.")
    if len(train) < _FEWEST or (wanted.queries and not len(queries)):
        raise DataError(
            f"data must have at least {_FEWEST} training rows and some to ask about, got {len(train)} and "
            f"{len(queries)}. Bring more rows."
        )
    if len(np.unique(data.labels[train])) < 2:
        raise DataError("training rows must cover at least two classes, got one. Let more rows take part.")
    return train, queries, tuple(said)


def prepare(data: LabelledData, wanted: Draw, bring: Bring | None = None) -> Bench:
    """Return training rows, queries and recipe: of the embedded default, or of the user's model.

    Args:
        data: Labelled rows.
        wanted: How many take part.
        bring: Called with the rows that take part; returns the user's model.

    Raises:
        DataError: See `draw`.
    """
    train, queries, said = draw(data, wanted)
    kept = np.sort(np.concatenate([train, queries]))
    used = data if len(kept) == len(data) else data.rows(kept)
    train_rows, query_rows = np.searchsorted(kept, train), np.searchsorted(kept, queries)
    if bring is not None:
        own = bring(used)
        inputs, recipe, model, default, name = own.inputs, own.recipe, own.model, None, own.name
    else:
        default = default_for(used, seed=wanted.seed)
        inputs = default.preparation.transform(used) if default.inputs is None else default.inputs
        recipe, model, name = default.recipe, None, default.name
    examples = as_examples((inputs, torch.from_numpy(used.labels)), ids=used.ids)
    return Bench(
        data=used,
        train_rows=train_rows,
        train=examples.select(train_rows),
        queries=examples.select(query_rows) if len(query_rows) else None,
        recipe=recipe,
        model=model,
        default=default,
        name=name,
        said=said,
    )


def stack_of(recipe: Recipe, limit: int = _STACK) -> int:
    """Return how many models of a recipe to train at once: 1 where they cannot be stacked or are large."""
    if recipe.build is None:
        return 1
    with torch.random.fork_rng(devices=[]):
        model = recipe.build()
    try:
        check_stackable(recipe, model)
    except ConfigError:
        return 1
    parameters = sum(p.numel() for p in model.parameters())
    return max(1, min(limit, _STACKED_PARAMETERS // max(parameters, 1)))
