"""Pruning a run's rows: how many can go before held-out accuracy does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from whence.audit.again import Again, AgainSettings, Opinion, again
from whence.audit.bench import Bring, Watch
from whence.audit.folder import Run
from whence.audit.treated import (
    RowsKept,
    Way,
    measure_ways,
    page_of,
    random_ids,
    signal_histogram,
    told_rows,
    verdict_on,
)
from whence.data import LabelledData
from whence.errors import ConfigError
from whence.scores import Signal
from whence.uses.prune import prune, prune_iteratively

__all__ = ["PruneSettings", "prune_run"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_STEPS = (0.25, 0.5, 1.0)  # of the share: how accuracy goes on the way there


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """Which rows go.

    Args:
        share: Share of the training rows to drop, in (0, 1).
        balanced: The same share of every class.
        rounds: Rounds, each after training and attributing again; 1 drops all at once.
        training: How to train again.

    Raises:
        ConfigError: A value is out of range.
    """

    share: float = 0.2
    balanced: bool = False
    rounds: int = 1
    training: AgainSettings = field(default_factory=AgainSettings)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"--share must lie between 0 and 1, got {self.share}. Try --share 0.2.")
        if self.rounds < 1:
            raise ConfigError(f"--rounds must be at least 1, got {self.rounds}.")


def prune_run(
    run: Run, data: LabelledData, settings: PruneSettings, *, bring: Bring | None = None,
    test: LabelledData | None = None, version: str = "", watch: Watch | None = None,
) -> RowsKept:  # fmt: skip
    """Drop the rows of lowest self-influence, and train again beside as many random rows dropped.

    Args:
        run: An audit.
        data: The audited data.
        settings: How many rows, and how to train again.
        bring: Returns the user's model again.
        test: Rows to measure instead of held-out ones.
        version: To name in the result.
        watch: Who is told of progress.

    Cost: 7 · seeds trainings (accuracy is measured at a quarter, half and all of the share, beside random rows), with
        rounds an influence fit and a training each; without a split and ``test`` an audit more.
    """
    watch = watch or Watch()
    prepared = again(run, data, settings.training, bring=bring, test=test, watch=watch)
    opinion = prepared.opinion
    dropped = _dropped(prepared, opinion, settings, watch)
    ways = []
    for step in _STEPS:
        own = _at(opinion, dropped, step * settings.share, settings)
        told = f"{100 * step * settings.share:.3g} %"
        ways.append(Way(name=f"{told} of lowest self-influence", removed=own))
        drawn = random_ids(opinion.examples, len(own), settings.training.seed + round(4 * step))
        ways.append(Way(name=f"{told} at random", removed=drawn, kind="control"))
    treated = measure_ways(prepared, ways, watch=watch)
    last, chance = treated.found[-2:]
    before = verdict_on(last.over(treated.before, treated.seed), subject=f"Pruning {100 * settings.share:.3g} %",
                        against="training on all rows")  # fmt: skip
    against = verdict_on(last.over(chance, treated.seed), subject="Choosing by self-influence",
                         against="dropping as many at random")  # fmt: skip
    whole = dropped if prepared.own is opinion else _dropped(prepared, prepared.own, settings, watch)
    signal = opinion.signal("self_influence")
    found = page_of(
        prepared, treated, "prune", version, verdict=before, against=against, share=settings.share,
        after=len(ways) - 1, balanced=settings.balanced, rounds=settings.rounds,
        points=[{"share": step * settings.share, "own": 1 + 2 * place, "random": 2 + 2 * place}
                for place, step in enumerate(_STEPS)],
        signal={"name": signal.name, "unit": signal.unit,
                "histogram": signal_histogram(signal.values, np.isin(signal.ids, dropped))},
        changed=len(whole), of=len(prepared.own.ids), classes=_classes(data, whole),
        listed=told_rows(data, whole, {}),
    )  # fmt: skip
    return RowsKept(found=found, kept=~np.isin(data.ids, whole))


def _dropped(prepared: Again, opinion: Opinion, settings: PruneSettings, watch: Watch) -> Array:
    """Return the ids to drop, in the order in which they go."""
    if settings.rounds == 1:
        return _at_once(opinion, settings.share, settings)

    def signal_of(left: Array) -> Signal:
        if len(left) == len(opinion.ids):
            return opinion.signal("self_influence")
        rows = opinion.examples.select(opinion.examples.rows_of(left))
        model = prepared.recipe.train(rows, seed=int(prepared.run.manifest["seed"]))
        return opinion.attribution.config.fit(prepared.recipe.task(model), rows).self_scores()

    watch.say(f"pruning in {settings.rounds} rounds")
    return prune_iteratively(
        signal_of, opinion.ids, settings.share, rounds=settings.rounds, balanced=settings.balanced,
        labels=opinion.labels,
    )  # fmt: skip


def _at_once(opinion: Opinion, share: float, settings: PruneSettings) -> Array:
    return prune(
        opinion.signal("self_influence"), share, balanced=settings.balanced, labels=opinion.labels
    )


def _at(opinion: Opinion, dropped: Array, share: float, settings: PruneSettings) -> Array:
    """Return what has gone at a smaller share: by the rule itself, or of several rounds the first that went."""
    if settings.rounds == 1:
        return _at_once(opinion, share, settings)
    return dropped[: round(share * len(opinion.ids))]


def _classes(data: LabelledData, dropped: Array) -> list[dict[str, Any]]:
    """Return rows and dropped rows of every class."""
    gone, counted = np.isin(data.ids, dropped), len(data.classes)
    rows, lost = np.bincount(data.labels, minlength=counted), np.bincount(data.labels[gone], minlength=counted)
    whole = zip(data.classes, rows.tolist(), lost.tolist(), strict=True)
    return [{"label": name, "rows": count, "dropped": less} for name, count, less in whole]
