"""How well signals find known errors: ranking metrics, check-and-fix curves, and paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from whence.errors import ConfigError
from whence.evaluate.ranked import Ranked
from whence.evaluate.rankings import positions
from whence.evaluate.statistics import Interval, percentiles
from whence.notebook import figures, frame_html
from whence.scores import Signal

__all__ = ["Detection", "Detector", "detection"]

_BLOCK = 2**21


@dataclass(frozen=True, kw_only=True, eq=False)
class Detector:
    """How well one signal finds the errors; ties count as if they stood in random order.

    Args:
        auc: Chance that a random error has a larger value than a random other example; ½ is chance.
        average_precision: Mean over errors of the share of errors among what is inspected up to them; chance is
            about the share of errors.
        precision: Share of errors among the first examples, by share inspected ("detection accuracy").
        found: Share of all errors that are among them.
        curve: Share of the errors found after inspecting 0 … N examples [N + 1].
        resampled: Bootstrap values of the first two by name, from the same resamples for every signal.
    """

    auc: Interval
    average_precision: Interval
    precision: dict[float, Interval]
    found: dict[float, Interval]
    curve: np.ndarray
    resampled: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """Detection of known errors by one or more signals.

    Args:
        detectors: By the signal's name.
        count: Examples N.
        errors: Known errors among them.
        shares: Shares inspected for ``precision`` and ``found``.
    """

    detectors: dict[str, Detector]
    count: int
    errors: int
    shares: tuple[float, ...]

    def gain(
        self, one: str, other: str, figure: Literal["auc", "average_precision"] = "average_precision"
    ) -> Interval:
        """Return how much higher the first signal's figure is, with a paired bootstrap interval over examples."""
        first, second = (self.detectors[name] for name in (one, other))
        value = getattr(first, figure).value - getattr(second, figure).value
        return percentiles(value, first.resampled[figure] - second.resampled[figure])

    def curve(self, name: str, points: int = 200) -> pd.DataFrame:
        """Return a check-and-fix curve as a frame: ``share`` inspected and ``found``, the share of errors in it."""
        rows = np.unique(np.linspace(0, self.count, min(points, self.count) + 1).round().astype(int))
        return pd.DataFrame({"share": rows / self.count, "found": self.detectors[name].curve[rows]})

    def _repr_html_(self) -> str:
        """Return every signal's figures for a notebook."""
        rows = self.to_frame().xs("value", axis=1, level=1)
        title = f"Detection of {self.errors:,} errors among {self.count:,} examples"
        notes = ["whence.verdict(detection) says it in words; .to_frame() has the intervals."]
        return frame_html(title, pd.DataFrame(rows), notes)

    def plot(self) -> Any:
        """Draw the share of errors found over the share of examples inspected, for every signal.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: plotly is not installed (extra ``notebook``).
        """
        curves = {name: self.curve(name) for name in self.detectors}
        drawn = {name: (frame["share"].to_numpy(), frame["found"].to_numpy()) for name, frame in curves.items()}
        drawn["at random"] = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
        axes = ("share of the examples inspected", "share of the errors found")
        return figures.lines(drawn, title=f"{self.errors:,} errors found", axes=axes, dashed=["at random"])

    def to_frame(self) -> pd.DataFrame:
        """Return a frame: one row a signal; value, low and high of every figure."""
        def parts(name: str, interval: Interval) -> dict[tuple[str, str], float]:
            return {(name, part): getattr(interval, part) for part in ("value", "low", "high")}

        rows = {}
        for name, found in self.detectors.items():
            rows[name] = {**parts("auc", found.auc), **parts("average_precision", found.average_precision)}
            for share in self.shares:
                rows[name] |= parts(f"precision@{share:g}", found.precision[share])
                rows[name] |= parts(f"found@{share:g}", found.found[share])
        return pd.DataFrame.from_dict(rows, orient="index")


def detection(
    known: Any, signals: Signal | Mapping[str, Signal], *, shares: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    resamples: int = 1000, seed: int = 0,
) -> Detection:  # fmt: skip
    r"""Measure how well signals rank known errors to the front.

    Tied values count as their average over random orders: the area under the ROC curve gives a tie ½; the average
    precision is its expectation (scikit-learn's takes a tied block at its end, which is lower); errors found among the
    first k are those of whole blocks and the share of the block that k cuts.

    Args:
        known: Which examples are errors: a mask [N] of bools in the order of the (first) signal, or their ids.
        signals: Suspicion by name, larger = more suspect; all of the same examples, matched by id.
        shares: Shares of the examples to inspect, in (0, 1].
        resamples: Bootstrap resamples of the examples, the same ones for all signals.
        seed: Seed of the bootstrap.

    Returns:
        Figures with 95 % bootstrap intervals over examples.

    Raises:
        ConfigError: Nothing or everything is an error, a signal is not finite, or signals hold other examples.

    Cost: a sort a signal, and resamples·N additions.
    Reference: McSherry & Najork (2008) for the average precision with ties.

    Example:
        >>> suspicion = Signal(values=np.array([0.9, 0.1, 0.4, 0.2]), ids=np.arange(4), name="suspicion", unit=None)
        >>> found = detection([0, 3], suspicion, shares=(0.5,)).detectors["suspicion"]
        >>> found.auc.value, round(found.average_precision.value, 3), found.precision[0.5].value
        (0.75, 0.833, 0.5)
    """
    named = dict(signals) if isinstance(signals, Mapping) else {signals.name: signals}
    if not named:
        raise ConfigError("signals must name at least one, got none.")
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"shares must lie in (0, 1], at least one, got {list(shares)}.")
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, got {resamples}.")
    ids = next(iter(named.values())).ids
    sought = _mask(known, ids)
    values = {name: _values(name, signal, ids) for name, signal in named.items()}
    counts = np.maximum(1, np.round(np.array(shares) * len(ids)).astype(int))
    drawn = _resampled(sought, values, counts, resamples, seed)
    detectors = {name: _detector(values[name], sought, tuple(shares), counts, drawn[name]) for name in named}
    return Detection(detectors=detectors, count=len(ids), errors=int(sought.sum()), shares=tuple(shares))


def _mask(known: Any, ids: np.ndarray) -> np.ndarray:
    """Return which examples are errors [N]."""
    given = np.asarray(known)
    if given.dtype == np.bool_:
        if given.shape != ids.shape:
            raise ConfigError(f"known must be a mask of {len(ids)} bools or ids, got shape {given.shape}.")
        mask = given
    else:
        mask = np.zeros(len(ids), dtype=bool)
        mask[positions(ids, given.reshape(-1), "known error")] = True
    if not 0 < mask.sum() < len(mask):
        raise ConfigError(f"known must mark some examples as errors and not all, got {mask.sum()} of {len(mask)}.")
    return mask


def _values(name: str, signal: Signal, ids: np.ndarray) -> np.ndarray:
    """Return a signal's values in the order of the ids."""
    values: np.ndarray = np.asarray(signal.values, dtype=np.float64)[positions(signal.ids, ids, "example")]
    if not np.isfinite(values).all():
        raise ConfigError(f"signal {name!r} must be finite, got NaN or infinity. Drop or fill those examples.")
    return values


def _resampled(
    sought: np.ndarray, values: dict[str, np.ndarray], counts: np.ndarray, resamples: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return figures of every signal over the same resamples; those of only errors or none are drawn again."""
    generator = np.random.default_rng(seed)
    size = len(sought)
    found: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in values}
    left = resamples
    while left:
        rows = min(left, max(1, _BLOCK // size))
        taken = generator.multinomial(size, np.full(size, 1 / size), rows)  # [R, N]
        errors = taken @ sought
        taken = taken[(errors > 0) & (errors < size)]
        left -= len(taken)
        if not len(taken):
            continue
        for name, value in values.items():
            ranked = Ranked.of(value, sought, taken)
            found[name].append(
                {"auc": ranked.auc(), "average_precision": ranked.average_precision(), "hits": ranked.found(counts),
                 "errors": ranked.hits.sum(-1)}
            )  # fmt: skip
    return {name: {key: np.concatenate([p[key] for p in parts]) for key in parts[0]} for name, parts in found.items()}


def _detector(
    values: np.ndarray, sought: np.ndarray, shares: tuple[float, ...], counts: np.ndarray, drawn: dict[str, np.ndarray]
) -> Detector:
    """Return one signal's figures."""
    ranked, errors = Ranked.of(values, sought), int(sought.sum())
    curve = ranked.found(np.arange(len(values) + 1))
    hits = curve[counts]
    at, found_at = list(zip(shares, hits.tolist(), strict=True)), (drawn["hits"] / drawn["errors"][:, None]).T
    precisions = zip(at, counts.tolist(), drawn["hits"].T, strict=True)
    return Detector(
        auc=percentiles(float(roc_auc_score(sought, values)), drawn["auc"]),
        average_precision=percentiles(float(ranked.average_precision()), drawn["average_precision"]),
        precision={share: percentiles(hit / count, many / count) for (share, hit), count, many in precisions},
        found={share: percentiles(hit / errors, many) for (share, hit), many in zip(at, found_at, strict=True)},
        curve=curve / errors,
        resampled={key: drawn[key] for key in ("auc", "average_precision")},
    )
