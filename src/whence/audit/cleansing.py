"""Cleansing a run's rows for another place: which of them harm predictions there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from whence.audit.again import Again, AgainSettings, again
from whence.audit.bench import Bring, Watch
from whence.audit.folder import Run
from whence.audit.treated import (
    RowsKept,
    Treated,
    Way,
    measure_ways,
    page_of,
    random_ids,
    signal_histogram,
    told_rows,
    verdict_on,
)
from whence.data import Examples, LabelledData, uniform
from whence.errors import ConfigError, DataError
from whence.uses.cleanse import Cleansing, cleanse

__all__ = ["CleanseSettings", "cleanse_run"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
_FEWEST = 10  # rows a part of the target


@dataclass(frozen=True, kw_only=True)
class CleanseSettings:
    """How many rows go.

    Args:
        share: Share of the training rows to drop, in (0, 1); None to choose it on a part of the target rows.
        training: How to train again.

    Raises:
        ConfigError: The share is out of range.
    """

    share: float | None = None
    training: AgainSettings = field(default_factory=AgainSettings)

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"--share must lie between 0 and 1, got {self.share}. Leave it out to have it chosen.")


def cleanse_run(
    run: Run, data: LabelledData, target: LabelledData, settings: CleanseSettings, *, bring: Bring | None = None,
    version: str = "", watch: Watch | None = None,
) -> RowsKept:  # fmt: skip
    """Drop the training rows that harm predictions of target rows most, and measure others of them.

    One part of the target rows names the harmful training rows, one chooses how many go (unless that is given), one
    judges; which row plays which part is drawn at random, class by class.

    Args:
        run: An audit.
        data: The audited data.
        target: Labelled rows from where the model will be used.
        settings: How many rows, and how to train again.
        bring: Returns the user's model again.
        version: To name in the result.
        watch: Who is told of progress.

    Raises:
        DataError: Fewer than 10 target rows a part, or no training row does harm.

    Cost: scores of a part of the target, 7 · seeds trainings (3 · seeds for a given share).
    """
    prepared = again(run, data, settings.training, bring=bring, test=target, watch=watch)
    asked = prepared.bench.queries
    assert asked is not None
    names, chooses, judges = _parts(asked, given=settings.share is not None, seed=settings.training.seed)
    scores = prepared.opinion.attribution.scores(asked.select(names))
    shares = _SHARES if settings.share is None else (settings.share,)
    cleansings = [cleanse(scores, share=share) for share in shares]
    if not len(cleansings[0].dropped):
        raise DataError("at least one training row must harm the target rows, got none: there is nothing to cleanse.")
    ways = [
        Way(name=f"{100 * share:.3g} % most harmful left out", removed=one.dropped)
        for share, one in zip(shares, cleansings, strict=True)
    ]
    measured = measure_ways(prepared, ways, watch=watch)
    best = _best(measured.on(chooses)) if settings.share is None else 1
    dropped = cleansings[best - 1].dropped if best else cleansings[0].dropped[:0]
    treated, controls = measured.on(judges), None
    if best:
        drawn = random_ids(prepared.bench.train, len(dropped), settings.training.seed)
        chance = Way(name="as many at random left out", removed=drawn, kind="control")
        controls = measure_ways(prepared, [chance], watch=watch).on(judges)
    return RowsKept(
        found=_page(prepared, (treated, controls, best), cleansings[0], dropped, (names, chooses, judges), version),
        kept=~np.isin(data.ids, dropped),
    )  # fmt: skip


def _parts(asked: Examples, *, given: bool, seed: int) -> tuple[Array, Array, Array]:
    """Return rows that name, choose (none where the share is given) and judge, each with every class in proportion."""
    targets = asked.targets
    assert targets is not None
    count = 2 if given else 3
    order = np.lexsort((uniform(asked.keys, seed, 11), targets.numpy()))
    dealt = [np.sort(order[part::count]) for part in range(count)]
    if min(map(len, dealt)) < _FEWEST:
        raise DataError(
            f"target rows must be at least {count * _FEWEST}, got {len(asked)}: one part names the harmful rows, "
            f"{'' if given else 'one chooses how many go, '}one judges. Label more rows."
        )
    return (dealt[0], np.array([], dtype=np.int64), dealt[1]) if given else (dealt[0], dealt[1], dealt[2])


def _best(treated: Treated) -> int:
    """Return the way of lowest mean loss; 0 for the rows as they are."""
    return int(np.argmin([one.loss.mean() for one in treated.found]))


def _page(
    prepared: Again, ways: tuple[Treated, Treated | None, int], first: Cleansing, dropped: Array,
    parts: tuple[Array, Array, Array], version: str,
) -> dict[str, Any]:  # fmt: skip
    """Return what the page shows."""
    treated, controls, best = ways
    own = treated.found[best]
    every = Treated(found=[*treated.found, *([] if controls is None else controls.found[1:])], seed=treated.seed)
    if controls is None:
        verdict = {"sentence": "Leaving rows out raised the loss of the target rows that choose, however few: nothing "
                   "was left out.", "good": False, "level": "unclear"}  # fmt: skip
        against = None
    else:
        verdict = verdict_on(own.over(treated.before, treated.seed), subject="Cleansing",
                             against="training on all rows")  # fmt: skip
        against = verdict_on(own.over(every.found[-1], treated.seed), subject="Choosing by harm",
                             against="leaving as many out at random")  # fmt: skip
    page = page_of(
        prepared, every, "cleanse", version, verdict=verdict, against=against, after=best,
        parts={"name": len(parts[0]), "choose": len(parts[1]), "judge": len(parts[2])},
        signal={"name": "harm to the target rows", "unit": first.harm.unit,
                "histogram": signal_histogram(first.harm.values, np.isin(first.harm.ids, dropped))},
        changed=len(dropped), of=len(first.harm.ids),
        listed=told_rows(prepared.data, dropped, {"value": first.harm.to_series().loc[dropped.tolist()].tolist()}),
    )  # fmt: skip
    return {**page, "held_out": len(parts[2])}
