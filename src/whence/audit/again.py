"""A run ready to be trained again: its rows, what is held out of everything, its recipe, its judgement of the rows."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from whence.audit.bench import Bench, Bring, Draw, Watch, draw, stack_of
from whence.audit.comparison import SEEDS_APART
from whence.audit.folder import Run, reload_task
from whence.audit.job import METHODS, UserModel, audit, train_rows_of
from whence.data import Examples, LabelledData, as_examples
from whence.errors import ConfigError, DataError, RunFormatError
from whence.evaluate.retraining import Retraining
from whence.features import read_tensors
from whence.methods import InfluenceAttribution, load
from whence.scores import Signal
from whence.tasks import Recipe, Task
from whence.tasks.defaults import Default, Preparation, default_for

__all__ = ["Again", "AgainSettings", "Opinion", "again", "bench_of", "own_opinion", "stored_attribution"]


@dataclass(frozen=True, kw_only=True)
class AgainSettings:
    """How a run is trained again.

    Args:
        seeds: Trainings of every set of rows.
        processes: As in `Retraining`.
        cache: Where results of retraining are kept, or None.
        seed: Seed of draws.

    Raises:
        ConfigError: A number is below 1.
    """

    seeds: int = 3
    processes: int = 1
    cache: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seeds", "processes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Opinion:
    """What an audit says of the rows that it was trained on.

    Args:
        ids: [N].
        labels: Class positions [N].
        examples: The rows as the model takes them.
        judged: Suspicion, suggested label and signals, by id, in the order of ``ids``.
        attribution: Influence of these rows.
    """

    ids: np.ndarray
    labels: np.ndarray
    examples: Examples
    judged: pd.DataFrame
    attribution: InfluenceAttribution

    @property
    def suspects(self) -> np.ndarray:
        """Which rows the audit calls suspects [N]."""
        return self.judged["is_suspect"].to_numpy(dtype=bool)

    def suggested(self, classes: tuple[str, ...]) -> np.ndarray:
        """Return the most probable other class of every row, as a position [N]."""
        place = {name: number for number, name in enumerate(classes)}
        return self.judged["suggested_label"].map(place).to_numpy(dtype=np.int64)

    def signal(self, name: str) -> Signal:
        """Return a signal of the rows by the name of its column; self-influence is the attribution's own.

        Raises:
            ConfigError: There is no such column.
        """
        if name == "self_influence":
            return self.attribution.self_scores()
        numbers = [str(c) for c in self.judged.columns if pd.api.types.is_float_dtype(self.judged[c])]
        if name not in numbers:
            known = ", ".join(dict.fromkeys(["self_influence", *numbers]))
            raise ConfigError(f"signal must be one of {known}, got {name!r}.")
        values = self.judged[name].to_numpy(dtype=np.float64)
        return Signal(values=values, ids=self.ids, name=name.replace("_", " "), unit=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Again:
    """A run that can be trained again and measured on rows that nothing was decided by.

    Args:
        run: The audit.
        data: The audited data.
        bench: Training rows, the held-out rows as queries, and the recipe.
        opinion: What an audit of the training rows alone says of them.
        own: What the run itself says of all rows that it was trained on; the same where it did not see the held-out.
        retraining: How to train again.
        said: What was held out, one sentence each.
    """

    run: Run
    data: LabelledData
    bench: Bench
    opinion: Opinion
    own: Opinion
    retraining: Retraining
    said: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """How the model is trained."""
        assert self.bench.recipe is not None
        return self.bench.recipe


def again(
    run: Run, data: LabelledData, settings: AgainSettings, *, bring: Bring | None = None,
    test: LabelledData | None = None, watch: Watch | None = None,
) -> Again:  # fmt: skip
    """Return a run with its recipe, and rows to measure on that took no part in what it says.

    The rows to measure are ``test``, else those outside the train split, else a fifth of the data that is held out:
    the audit is then made again without them.

    Args:
        run: An audit.
        data: The data that was audited.
        settings: How to train again.
        bring: Returns the user's model again, for a run that was made with one.
        test: Other labelled rows to measure, of the same kind and classes.
        watch: Who is told of progress.

    Raises:
        ConfigError: The model cannot be trained again.
        DataError: There are too few rows to hold any out.

    Cost: reading the run; without a split and ``test`` an audit of four fifths of the rows.
    """
    watch = watch or Watch()
    watch.say("restoring the run")
    allowed, every = train_rows_of(data), np.arange(len(data))
    everything = every if allowed is None else allowed
    if test is None:
        train, queries, said = draw(data, Draw(rows=max(len(data), 8), queries=len(data), seed=settings.seed))
    else:
        train, queries, said = everything, every[:0], (f"Measured on {len(test):,} rows of another file.",)
    full = bench_of(run, data, every, every[:0], bring)
    if full.recipe is None:
        raise ConfigError(
            "a user's model must come with its recipe to be trained again, got none. Bring a UserModel with a recipe."
        )
    asked = full.train.select(queries) if test is None else _asked(full.default, data, test, bring)
    bench = replace(full, train_rows=train, train=full.train.select(train), queries=asked)
    whole = replace(full, train_rows=everything, train=full.train.select(everything))
    own = _opinion(whole, stored_attribution(run, data, whole), run.suspects)
    opinion = own
    if len(train) < len(everything):
        said = (*said, "For what follows the audit was made again without them; the file was made by the same rule "
                "from all rows.")  # fmt: skip
        opinion = _opinion(bench, *_audited(run, bench, watch))
    seeds = tuple(settings.seed + SEEDS_APART + number for number in range(settings.seeds))
    retraining = Retraining(
        recipe=full.recipe, seeds=seeds, stack=stack_of(full.recipe), processes=settings.processes,
        cache=settings.cache,
    )  # fmt: skip
    return Again(run=run, data=data, bench=bench, opinion=opinion, own=own, retraining=retraining, said=said)


def own_opinion(run: Run, data: LabelledData, bring: Bring | None = None) -> Opinion:
    """Return what a run says of the rows that it was trained on; its model need not be trained again.

    Raises:
        ConfigError: The run was made with a user's model, which was not brought again.
    """
    every, allowed = np.arange(len(data)), train_rows_of(data)
    everything = every if allowed is None else allowed
    full = bench_of(run, data, every, every[:0], bring)
    whole = replace(full, train_rows=everything, train=full.train.select(everything))
    return _opinion(whole, stored_attribution(run, data, whole), run.suspects)


def _opinion(bench: Bench, attribution: InfluenceAttribution, suspects: pd.DataFrame) -> Opinion:
    """Return what an audit says of the training rows, in their order."""
    ids = bench.train.ids
    judged = suspects.set_index("id").loc[ids.tolist()]
    labels = np.asarray(bench.data.labels[bench.train_rows])
    return Opinion(ids=ids, labels=labels, examples=bench.train, judged=judged, attribution=attribution)


def bench_of(run: Run, data: LabelledData, train: np.ndarray, queries: np.ndarray, bring: Bring | None) -> Bench:
    """Return rows, queries and recipe of a run.

    Raises:
        ConfigError: The run was made with a user's model, which was not brought again.
    """
    if run.manifest["model"]["embedded"]:
        default = default_for(data, seed=int(run.manifest["seed"]))
        inputs: Any = default.preparation.transform(data) if default.inputs is None else default.inputs
        return _rows(data, (train, queries), inputs, recipe=default.recipe, default=default, name=default.name)
    if bring is None:
        raise ConfigError(
            "--model FILE.py:FUNC must be given again: the run used your own model, and a run never imports code."
        )
    own = bring(data)
    return _rows(data, (train, queries), own.inputs, recipe=own.recipe, model=own.model, name=own.name)


def stored_attribution(run: Run, data: LabelledData, bench: Bench) -> InfluenceAttribution:
    """Return the run's own attribution; a user's model gets the weights that lie in the run.

    Raises:
        RunFormatError: The weights do not fit the model.
    """
    if bench.model is None:
        return reload_task(run, data)[2]
    state = read_tensors(run.folder / "model.safetensors")
    kinds = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
    model = copy.deepcopy(bench.model).to(kinds[0] if kinds else None)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:200]
        raise RunFormatError(f"weights of run {str(run.folder)!r} must fit the model, got: {cause}.") from error
    assert bench.model is not None
    own = Task(model.eval(), "cross_entropy") if bench.recipe is None else bench.recipe.task(model.eval())
    examples = None if train_rows_of(data) is None else bench.train
    return load(run.folder / "attribution", own, examples)


def _rows(
    data: LabelledData, rows: tuple[np.ndarray, np.ndarray], inputs: Any, *, name: str,
    recipe: Recipe | None = None, model: nn.Module | None = None, default: Default | None = None,
) -> Bench:  # fmt: skip
    """Return rows with their inputs as training examples and queries."""
    train, queries = rows
    examples = as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids)
    return Bench(
        data=data, train_rows=train, train=examples.select(train),
        queries=examples.select(queries) if len(queries) else None, recipe=recipe, model=model, default=default,
        name=name, said=(),
    )  # fmt: skip


def _asked(default: Default | None, data: LabelledData, test: LabelledData, bring: Bring | None) -> Examples:
    """Return other rows as examples of the same network, their labels numbered as the data's classes are."""
    numbers = {name: number for number, name in enumerate(data.classes)}
    unknown = [test.classes[c] for c in np.unique(test.labels) if test.classes[c] not in numbers]
    if unknown or test.kind != data.kind:
        what = f"the label {unknown[0]!r}" if unknown else f"{test.kind} rows"
        raise DataError(f"rows to measure must have the kind and labels of the audited data, got {what}.")
    labels = np.array([numbers[test.classes[c]] for c in test.labels], dtype=np.int64)
    if default is not None:
        preparation: Preparation = default.preparation
        inputs: Any = preparation.transform(test)
    else:
        assert bring is not None
        inputs = bring(test).inputs
    return as_examples((inputs, torch.from_numpy(labels)), ids=test.ids)


def _audited(run: Run, bench: Bench, watch: Watch) -> tuple[InfluenceAttribution, pd.DataFrame]:
    """Audit the training rows alone, as the run did all rows."""
    seed, model = int(run.manifest["seed"]), None
    if bench.default is None:
        assert bench.recipe is not None
        callback = watch.stage("training without the held-out rows", bench.recipe.epochs)
        trained = bench.recipe.train(bench.train, seed=seed, on_epoch=None if bench.recipe.loop else callback)
        inputs = bench.train.batch(np.arange(len(bench.train))).inputs
        model = UserModel(model=trained, inputs=inputs, name=bench.name, recipe=bench.recipe)
    name = str(run.summary["method"]["name"]).rpartition(" ")[2]
    rows = bench.data.rows(bench.train_rows)
    found = audit(
        replace(rows, split=None), model=model, method=name if name in METHODS else "ekfac", seed=seed,
        on_stage=watch.stage,
    )  # fmt: skip
    return found.attribution, found.suspects
