"""Evaluating a run: do its scores predict what retraining by its own recipe really does?"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence.audit.again import bench_of, stored_attribution
from whence.audit.bench import Bring, Draw, Watch, draw, stack_of
from whence.audit.comparison import SEEDS_APART, data_card, leave_out_rows
from whence.audit.folder import Run
from whence.audit.job import train_rows_of
from whence.audit.sections import Fixed, Judged, LeftOut, RankedSubsets, Removed, Section, detected
from whence.data import LabelledData
from whence.errors import ConfigError
from whence.evaluate.cost import estimate
from whence.evaluate.curves import Sweep
from whence.evaluate.retraining import Retraining

__all__ = ["EvaluateSettings", "evaluate_run"]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What to check of a run.

    Args:
        loo: Rows to leave out one at a time, or None.
        lds: Random half-subsets to train on, or None.
        remove: Shares of the rows in (0, 1) to remove, empty for none.
        fix: Shares of the rows to give their suggested label, empty for none.
        queries: Held-out rows to measure, at most.
        seeds: Trainings of every set of rows.
        controls: Random removals beside every one.
        processes: As in `Retraining`.
        cache: Where results of retraining are kept, or None.
        seed: Seed of draws.

    Raises:
        ConfigError: A value is out of range.
    """

    loo: int | None = None
    lds: int | None = None
    remove: Sequence[float] = ()
    fix: Sequence[float] = ()
    queries: int = 200
    seeds: int = 3
    controls: int = 3
    processes: int = 1
    cache: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        limits = (("loo", self.loo, 4), ("lds", self.lds, 4), ("queries", self.queries, 1),
                  ("seeds", self.seeds, 1), ("processes", self.processes, 1))  # fmt: skip
        for name, value, least in limits:
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}.")
        for name, shares in (("remove", self.remove), ("fix", self.fix)):
            if not all(0 < share < 1 for share in shares):
                raise ConfigError(f"{name} must hold shares in (0, 1), got {list(shares)}.")

    @property
    def retrains(self) -> bool:
        """Whether models must be trained again."""
        return bool(self.loo or self.lds or self.remove or self.fix)


def evaluate_run(
    run: Run,
    data: LabelledData,
    settings: EvaluateSettings,
    *,
    errors: np.ndarray | None = None,
    bring: Bring | None = None,
    version: str = "",
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Check a run's scores and suspicions against retraining and against known errors.

    Queries are rows outside the train split, and the scores are the run's own. Without a split, rows are held out, and
    model and scores are made again without them, by the run's recipe and method.

    Args:
        run: An audit.
        data: The data that was audited.
        settings: What to check.
        errors: Whether the label of a row is known to be wrong [N]; None for no such knowledge.
        bring: Returns the user's model again, for a run that was made with one.
        version: Version to name in the result.
        watch: What is told of progress, and of what retraining will cost before it begins.

    Returns:
        A JSON-able dict of format 1, which `whence.report.render_evaluation` takes.

    Raises:
        ConfigError: Nothing is asked for, or the model cannot be trained again.

    Cost: the trainings that are asked for, less those in the cache; without a split one more, and a fit.
    """
    if not settings.retrains and errors is None:
        raise ConfigError("settings must ask for loo, lds, remove or fix where no errors are known, got none of them.")
    watch, started = watch or Watch(), time.perf_counter()
    sections: dict[str, Any] = {}
    if errors is not None:
        watch.say("ranking known errors")
        sections["detection"] = detected(run, data, errors, settings.seed)
    if settings.retrains:
        judged, said = _judged(run, data, settings, errors, bring, watch)
        asked = _sections(judged, settings)
        _announce(judged, [section for _, _, section in asked], watch)
        for name, stage, section in asked:
            made = section.make(judged.showing(watch.steps(stage, 0)))
            sections[name] = {**made, "seeds": settings.seeds, "said": list(said)}
    return {
        "format": 1,
        "whence": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": data_card(data),
        "model": run.summary["model"],
        "method": run.summary["method"],
        "seconds": time.perf_counter() - started,
        **sections,
    }


def _judged(
    run: Run, data: LabelledData, settings: EvaluateSettings, errors: np.ndarray | None, bring: Bring | None,
    watch: Watch,
) -> tuple[Judged, tuple[str, ...]]:  # fmt: skip
    """Return model, scores and recipe, with queries that were not trained on, and what was held out."""
    watch.say("restoring the run")
    train, queries, said = draw(data, Draw(rows=max(len(data), 8), queries=settings.queries, seed=settings.seed))
    if errors is not None and errors[queries].any():
        said = (*said, f"{int(errors[queries].sum())} of them have labels known to be wrong and were not asked about.")
        queries = queries[~errors[queries]]
    bench = bench_of(run, data, train, queries, bring)
    if bench.recipe is None:
        raise ConfigError(
            "a user's model must come with its recipe to be trained again, got none. Bring a UserModel with a recipe."
        )
    attribution = stored_attribution(run, data, bench)
    if train_rows_of(data) is None:
        said = (*said, "Model and scores were made again without held-out rows, by the run's own recipe and method.")
        callback = watch.stage("training without the queries", bench.recipe.epochs)
        model = bench.recipe.train(bench.train, seed=int(run.manifest["seed"]), on_epoch=callback)
        attribution = attribution.config.fit(bench.recipe.task(model), bench.train)
    retraining = Retraining(
        recipe=bench.recipe,
        seeds=tuple(settings.seed + SEEDS_APART + number for number in range(settings.seeds)),
        stack=stack_of(bench.recipe),
        processes=settings.processes,
        cache=settings.cache,
    )
    method = str(run.summary["method"]["name"])
    return Judged(
        bench=bench, attribution=attribution, scores=attribution.scores(bench.queries), retraining=retraining, run=run,
        method=method,
    ), said  # fmt: skip


def _sections(judged: Judged, settings: EvaluateSettings) -> list[tuple[str, str, Section]]:
    """Return what is asked for: name, stage, and the section."""
    seed, found = settings.seed, list[tuple[str, str, Section]]()
    if settings.loo:
        rows = leave_out_rows(judged.attribution.task, judged.bench, settings.loo, seed)
        found.append(("loo", "leaving rows out", LeftOut(rows=rows, seed=seed)))
    if settings.lds:
        found.append(("lds", "training on halves", RankedSubsets(count=settings.lds, seed=seed)))
    if settings.remove:
        sweep = Sweep(shares=tuple(settings.remove), controls=settings.controls, seed=seed)
        found.append(("removal", "removing rows", Removed(sweep=sweep)))
    if settings.fix:
        sweep = Sweep(shares=tuple(settings.fix), controls=settings.controls, seed=seed)
        found.append(("fix", "correcting labels", Fixed(sweep=sweep)))
    return found


def _announce(judged: Judged, sections: list[Section], watch: Watch) -> None:
    """Say what all retraining together will cost, less what the cache holds."""
    trainings = [section.trainings(judged) for section in sections]
    sets = sum(len(one.removed) for one in trainings)
    known = sum(len(one) - one.missing() for one in trainings)
    watch.estimate(estimate(judged.retraining, judged.bench.train, judged.bench.queries, sets, cached=known))
