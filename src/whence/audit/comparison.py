"""Comparing methods on a user's data: ground truth, contenders, and a summary that a page can show."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from whence.audit.bench import Bench, Bring, Draw, Watch, prepare, stack_of
from whence.audit.contenders import contenders
from whence.data import LabelledData, id_keys, other_class_noise, uniform
from whence.errors import ConfigError, DataError
from whence.evaluate.compare import Comparison, Entry, compare, pass_seconds
from whence.evaluate.cost import estimate
from whence.evaluate.retraining import Retraining
from whence.evaluate.statistics import Interval
from whence.evaluate.subsets import sample_subsets, train_subsets
from whence.evaluate.truths import ErrorTruth, LeaveOneOutTruth, SubsetTruth, Truth
from whence.methods import LossBaseline
from whence.scores import Scores
from whence.tasks import Task

__all__ = ["SEEDS_APART", "CompareSettings", "compare_data", "data_card", "leave_out_rows", "numbers"]

TruthName = Literal["lds", "loo", "known-errors"]

_FEW_SETS, _FEW_QUERIES = 12, 10
SEEDS_APART = 1000  # seeds of the ground truth are that far from the seed of the model that is explained


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """How methods are compared.

    Args:
        truth: "lds" (models on random halves of the training rows), "loo" (leave-one-out) or "known-errors".
        subsets: Half-subsets for "lds".
        loo: Training rows to leave out for "loo".
        noise: Share of labels to flip for "known-errors"; None to be told the errors.
        seeds: Trainings of every subset or removal; with two or more, the ceiling is known.
        drawn: How many rows and queries take part, and the seed of everything.
        processes: As in `Retraining`.
        cache: Where results of retraining are kept, or None.

    Raises:
        ConfigError: A value is out of range.
    """

    truth: TruthName = "lds"
    subsets: int = 32
    loo: int = 50
    noise: float | None = None
    seeds: int = 2
    drawn: Draw = field(default_factory=Draw)
    processes: int = 1
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.truth not in ("lds", "loo", "known-errors"):
            raise ConfigError(f"truth must be lds, loo or known-errors, got {self.truth!r}.")
        limits = (("subsets", self.subsets, 4), ("loo", self.loo, 4), ("seeds", self.seeds, 1),
                  ("processes", self.processes, 1))  # fmt: skip
        for name, value, least in limits:
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}.")
        if self.truth != "known-errors" and self.drawn.queries < 1:
            raise ConfigError(f"queries must be at least 1 for {self.truth}, got {self.drawn.queries}.")
        if self.noise is not None and not 0 < self.noise < 1:
            raise ConfigError(f"noise must be a share between 0 and 1, got {self.noise}. Try 0.1.")

    @property
    def seed(self) -> int:
        """Seed of everything."""
        return self.drawn.seed


def compare_data(
    data: LabelledData,
    settings: CompareSettings,
    *,
    errors: np.ndarray | None = None,
    bring: Bring | None = None,
    version: str = "",
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Run all methods that apply and all baselines, judge them by a ground truth, recommend one.

    Args:
        data: Labelled rows.
        settings: Ground truth and size.
        errors: Whether the label of a row is known to be wrong [N], for "known-errors" without noise.
        bring: Called with the rows that take part; returns a user's model. None for the embedded default.
        version: Version to name in the result.
        watch: What is told of progress, and of what retraining will cost before it begins.

    Returns:
        A JSON-able dict of format 1, which `whence.report.render_comparison` takes. All but seconds, passes, the
        estimate and the time of creation is the same for the same data, settings and machine.

    Raises:
        ConfigError: Errors are missing or not wanted, or the user's model has no recipe and must be trained again.
        DataError: Too few rows.

    Cost: one training, that of the ground truth, and that of the methods.
    """
    started = time.perf_counter()
    detect = settings.truth == "known-errors"
    if detect and (errors is None) == (settings.noise is None):
        raise ConfigError("known errors must be given as a column of the data or made by noise, and not both.")
    drawn = settings.drawn if not detect else Draw(rows=settings.drawn.rows, queries=0, seed=settings.seed)
    watch = watch or Watch()
    watch.stage("preparing rows", 0)
    bench = prepare(data, drawn, bring)
    if detect:
        bench, known, more = _with_errors(bench, settings, data, errors)
    task = _trained(bench, settings, watch)
    seconds = pass_seconds(task, bench.train)
    if detect:
        truth: Truth = ErrorTruth(known=known, seed=settings.seed)
    else:
        truth, more = _retrained(bench, task, settings, watch)
    entrants = contenders(bench, task, detect=detect, seed=settings.seed)
    found = compare(entrants, truth, seconds=seconds, progress=lambda name: watch.say(f"scoring by {name}"))
    card = {"kind": settings.truth, "seeds": settings.seeds, **more}
    return _summary(found, bench, task, card, {
        "whence": version, "data": data_card(data), "seed": settings.seed, "seconds": time.perf_counter() - started,
    })  # fmt: skip


def _summary(
    found: Comparison, bench: Bench, task: Task, truth: dict[str, Any], more: dict[str, Any]
) -> dict[str, Any]:
    """Return a comparison for JSON and for its page."""
    queries = 0 if bench.queries is None else len(bench.queries)
    return {
        "format": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": {"name": bench.name, "parameters": sum(p.numel() for p in task.model.parameters())},
        "truth": {
            **truth, "figure": found.figure, "ceiling": found.ceiling, "rows": len(bench.train), "queries": queries,
        },
        "said": [*bench.said, *_cautions(truth, queries)],
        "entries": [_entry(entry) for entry in found.entries],
        "recommended": found.recommended,
        "reason": found.reason,
        "pass_seconds": found.pass_seconds,
        **more,
    }  # fmt: skip


def leave_out_rows(task: Task, bench: Bench, count: int, seed: int) -> np.ndarray:
    """Return positions of training rows to leave out: half those of highest loss, the others drawn at random."""
    count = min(count, len(bench.train) - 1)
    loss = LossBaseline().fit(task, bench.train).suspicion().values
    hardest = np.argsort(-loss, kind="stable")[: count // 2]
    chance = uniform(id_keys(bench.train.ids), seed, 11)
    chance[hardest] = 2.0
    return np.sort(np.concatenate([hardest, np.argsort(chance, kind="stable")[: count - len(hardest)]]))


def _with_errors(
    bench: Bench, settings: CompareSettings, data: LabelledData, errors: np.ndarray | None
) -> tuple[Bench, np.ndarray, dict[str, Any]]:
    """Return the bench with flipped labels where noise is made, which rows are wrong, and what was done."""
    if settings.noise is not None:
        labels = bench.data.labels[bench.train_rows]
        noise = other_class_noise(labels, float(settings.noise), len(data.classes), settings.seed)
        known, bench = noise.changed, bench.with_labels(noise.labels)
        what = f"{int(known.sum()):,} labels, drawn at random, were moved to another class before training."
    else:
        assert errors is not None
        place = {id_: row for row, id_ in enumerate(data.ids.tolist())}
        known = np.asarray(errors, dtype=bool)[[place[id_] for id_ in bench.train.ids.tolist()]]
        what = f"{int(known.sum()):,} labels of the training rows are known to be wrong."
    if settings.noise is not None and not known.any():
        raise DataError(f"noise must flip some of the {len(known):,} labels, got {settings.noise}. Raise it.")
    if not known.any() or known.all():
        raise DataError(f"known errors must be some of the {len(known):,} training rows, got {int(known.sum()):,}.")
    return bench, known, {"count": int(known.sum()), "what": what}


def _trained(bench: Bench, settings: CompareSettings, watch: Watch) -> Task:
    """Return the model that is explained, trained on the training rows."""
    recipe = bench.recipe
    if recipe is not None:
        callback = watch.stage("training the model", recipe.epochs)
        return recipe.task(recipe.train(bench.train, seed=settings.seed, on_epoch=callback))
    if settings.truth != "known-errors" or settings.noise is not None:
        raise ConfigError(
            f"a user's model must come with its recipe to be trained again for {settings.truth}, got none. "
            "Bring a UserModel with a recipe, or judge by errors that are known."
        )
    assert bench.model is not None
    return Task(bench.model, "cross_entropy")


def _retrained(bench: Bench, task: Task, settings: CompareSettings, watch: Watch) -> tuple[Truth, dict[str, Any]]:
    """Return the ground truth of retraining, and what was done."""
    assert bench.recipe is not None
    retraining = Retraining(
        recipe=bench.recipe,
        seeds=tuple(settings.seed + SEEDS_APART + number for number in range(settings.seeds)),
        stack=stack_of(bench.recipe),
        processes=settings.processes,
        cache=settings.cache,
    )
    if settings.truth == "lds":
        subsets = sample_subsets(bench.train, settings.subsets, seed=settings.seed)
        retraining = _announced(retraining, bench, [subsets.ids[~kept] for kept in subsets.kept], watch)
        outputs = train_subsets(retraining, bench.train, bench.queries, subsets)
        what = f"Models trained on {settings.subsets} random halves of the training rows, {_seeds(settings)}."
        return SubsetTruth(subsets=subsets, outputs=outputs, seed=settings.seed), {"count": len(subsets), "what": what}
    rows = leave_out_rows(task, bench, settings.loo, settings.seed)
    ids = bench.train.ids[rows]
    sets: list[Any] = [[], *([id_] for id_ in ids.tolist())]
    retraining = _announced(retraining, bench, sets, watch)
    measured = retraining.measure(bench.train, bench.queries, sets)  # [K+1, S, Q]
    changes = measured[1:] - measured[:1]
    assert bench.queries is not None
    actual = Scores(values=changes.mean(1).T, query_ids=bench.queries.ids, ids=ids, unit=retraining.unit)
    what = (
        f"Models trained without one of {len(ids)} rows (half of them those of highest loss, the others drawn at "
        f"random), {_seeds(settings)}."
    )
    by_seed = np.moveaxis(changes.numpy(), 0, -1)  # [S, Q, K]
    return LeaveOneOutTruth(actual=actual, by_seed=by_seed, seed=settings.seed), {"count": len(ids), "what": what}


def _seeds(settings: CompareSettings) -> str:
    """Return how often every set was trained on."""
    return "one seed each" if settings.seeds == 1 else f"{settings.seeds} seeds each"


def _announced(retraining: Retraining, bench: Bench, sets: list[Any], watch: Watch) -> Retraining:
    """Say what training without each of these sets of ids will cost; return what will tell of its progress."""
    watch.estimate(estimate(retraining, bench.train, bench.queries, sets))
    return replace(retraining, progress=watch.steps("training again", len(sets) * len(retraining.seeds)))


def data_card(data: LabelledData) -> dict[str, Any]:
    """Return what a page says of the data."""
    return {"source": data.source, "kind": data.kind, "rows": len(data), "classes": len(data.classes),
            "label_name": data.label_name}  # fmt: skip


def numbers(interval: Interval | None) -> list[float | None] | None:
    """Return an interval as value, low, high for JSON; numbers that are not finite become None."""
    if interval is None:
        return None
    return [float(part) if np.isfinite(part) else None for part in (interval.value, interval.low, interval.high)]


def _cautions(truth: dict[str, Any], queries: int) -> list[str]:
    """Return what to bear in mind where the ground truth is small: intervals hold the draw of queries or rows alone."""
    few = []
    if truth["count"] < _FEW_SETS:
        what = {"lds": "halves", "loo": "rows left out", "known-errors": "wrong labels"}[truth["kind"]]
        few.append(f"{truth['count']} {what}")
    if truth["kind"] != "known-errors" and queries < _FEW_QUERIES:
        few.append(f"{queries} queries")
    return [f"With only {' and '.join(few)}, the order of the methods is largely chance."] if few else []


def _entry(entry: Entry) -> dict[str, Any]:
    """Return a contender's result for JSON."""
    return {
        "name": entry.name,
        "baseline": entry.baseline,
        "accuracy": numbers(entry.accuracy),
        "behind": numbers(entry.behind),
        "equal": entry.equal,
        "details": {name: numbers(interval) for name, interval in entry.details.items()},
        "seconds": entry.seconds,
        "passes": entry.passes,
        "note": entry.note,
    }
