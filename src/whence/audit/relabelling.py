"""Relabelling a run's rows by the selective rule, with what training again says of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from whence.audit.again import AgainSettings, Opinion, again
from whence.audit.bench import Bring, Watch
from whence.audit.folder import Run
from whence.audit.treated import Way, measure_ways, page_of, signal_histogram, told_rows, verdict_on
from whence.data import LabelledData
from whence.errors import ConfigError
from whence.uses.relabel import relabel

__all__ = ["RelabelSettings", "Relabelled", "relabel_run"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class RelabelSettings:
    """Which rows get another label.

    Args:
        by: Column that is thresholded, larger = more suspect: "self_influence", "suspicion", "loss", …
        scale: Where Otsu's threshold is taken: "linear" or "log".
        threshold: One of the user's own instead.
        training: How to train again.

    Raises:
        ConfigError: The scale is another one.
    """

    by: str = "self_influence"
    scale: Literal["linear", "log"] = "linear"
    threshold: float | None = None
    training: AgainSettings = field(default_factory=AgainSettings)

    def __post_init__(self) -> None:
        if self.scale not in ("linear", "log"):
            raise ConfigError(f"--scale must be linear or log, got {self.scale!r}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Relabelled:
    """What was found, and the labels to write.

    Args:
        found: For the page, JSON-able.
        labels: New class positions of all rows of the data [N].
    """

    found: dict[str, Any]
    labels: Array


def relabel_run(
    run: Run, data: LabelledData, settings: RelabelSettings, *, bring: Bring | None = None,
    test: LabelledData | None = None, version: str = "", watch: Watch | None = None,
) -> Relabelled:  # fmt: skip
    """Give rows above Otsu's threshold their most probable other label, and train again with and without.

    Only training rows are relabelled. The other label is the one that the audit suggests: the most probable under the
    models that judged the row. Beside it stand leaving the same rows out, and relabelling the audit's own suspects.

    Args:
        run: An audit.
        data: The audited data.
        settings: Which rows, and how to train again.
        bring: Returns the user's model again.
        test: Rows with right labels to measure, instead of held-out ones.
        version: To name in the result.
        watch: Who is told of progress.

    Raises:
        ConfigError: The column is not there.
        DataError: All values of it are equal.

    Cost: 4 · seeds trainings; without a split and ``test`` an audit more.
    """
    prepared = again(run, data, settings.training, bring=bring, test=test, watch=watch)
    opinion, own = prepared.opinion, prepared.own
    new = opinion.suggested(data.classes)
    above, limit = _above(opinion, new, settings)
    ids, suspects = opinion.ids, opinion.suspects
    ways = [
        Way(name="rows above the threshold relabelled", relabelled=ids[above]),
        Way(name="the same rows left out", removed=ids[above], kind="other"),
        Way(name="the audit's suspects relabelled", relabelled=ids[suspects], kind="other"),
    ]
    treated = measure_ways(prepared, ways, labels=new, watch=watch)
    gain = treated.of(ways[0].name).over(treated.before, treated.seed)
    signal = opinion.signal(settings.by)
    chosen, _ = (above, limit) if own is opinion else _above(own, own.suggested(data.classes), settings)
    changed, labels = own.ids[chosen], data.labels.copy()
    places = {id_: row for row, id_ in enumerate(data.ids.tolist())}
    rows = [places[id_] for id_ in changed.tolist()]
    labels[rows] = own.suggested(data.classes)[chosen]
    strength = own.signal(settings.by).values[chosen]
    order = np.argsort(-strength, kind="stable")
    found = page_of(
        prepared, treated, "relabel", version,
        verdict=verdict_on(gain, subject="Relabelling", against="training on the labels as they are"),
        signal={
            "name": signal.name, "unit": signal.unit, "threshold": limit, "otsu": settings.threshold is None,
            "histogram": signal_histogram(signal.values, above),
        },
        after=1, changed=len(changed), measured=int(above.sum()), of=len(own.ids), counts=_counts(data, labels),
        listed=told_rows(data, changed[order], {"new": [data.classes[labels[rows[i]]] for i in order.tolist()],
                                                "value": strength[order].tolist()}),
    )  # fmt: skip
    return Relabelled(found=found, labels=labels)


def _above(opinion: Opinion, new: Array, settings: RelabelSettings) -> tuple[Array, float]:
    """Return which rows change [N], and the threshold. Of the other classes the audit names the most probable one."""
    others = np.eye(max(int(new.max()), int(opinion.labels.max())) + 1)[new]
    changes = relabel(
        opinion.signal(settings.by), others, opinion.labels, scale=settings.scale, threshold=settings.threshold
    )
    return changes["above"].to_numpy(dtype=bool), float(changes.attrs["threshold"])


def _counts(data: LabelledData, labels: Array) -> list[dict[str, Any]]:
    """Return how many rows go from which class to which, most first."""
    pairs = [(int(old), int(new)) for old, new in zip(data.labels, labels, strict=True) if old != new]
    counted = Counter(pairs).most_common(_PAIRS)
    return [{"old": data.classes[old], "new": data.classes[new], "rows": count} for (old, new), count in counted]
