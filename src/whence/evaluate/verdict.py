"""Plain words for what an evaluation found: is the attribution right, wrong in sign or scale, or unrelated?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from whence.errors import ConfigError
from whence.evaluate.agreement import Agreement
from whence.evaluate.curves import Curve, CurvePoint
from whence.evaluate.detection import Detection
from whence.evaluate.lds import LDS
from whence.evaluate.statistics import Interval
from whence.evaluate.treatments import ACCURACY

__all__ = ["Verdict", "verdict"]

Level = Literal["right", "scaled", "shifted", "partly", "unrelated", "reversed"]

Judged: TypeAlias = "tuple[Level, str]"

_STRONG = 0.9  # pooled correlation that a right attribution has at least
_STRONG_WITHIN = 0.5  # and the mean correlation within queries, which small noisy queries lower
_TOLERANCE = 0.2  # the whole interval of a right slope lies this close to 1
_OFFSET = 0.1  # largest intercept of a right attribution, in spreads of the actual changes
_SHARE = 0.8  # of the ceiling that a good linear datamodelling score reaches
_AUC = 0.9  # of a good detector
_CHECK = "Check the ids and the order of the examples."
_SIGN = "Check the sign: a positive score means that removal raises the measurement."


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judgement in words.

    Args:
        level: "right"; "scaled": in the right order, but too large or too small; "shifted": off by a constant;
            "partly": better than chance, not good; "unrelated": no better than chance; "reversed": of the wrong sign.
        sentence: The same for a reader, with the figures it rests on.
    """

    level: Level
    sentence: str

    @property
    def good(self) -> bool:
        """Whether the attribution may be believed as it is."""
        return self.level == "right"

    def __str__(self) -> str:
        """Return the sentence."""
        return self.sentence


def verdict(result: Agreement | LDS | Detection | Curve, *, of: str | None = None) -> Verdict:
    """Say in plain words what a comparison with ground truth means.

    The rules, tried in this order (r̄ is the mean correlation within queries, c what shuffled ids reach in 95 %):

    * `Agreement`: "reversed" where r̄ < −c and its interval lies below 0; "unrelated" where r̄ ≤ c or its interval holds
      0; "partly" where the pooled r < .9 or r̄ < .5; "shifted" where the intercept is above a tenth of the actual
      changes' root mean square and its interval excludes 0; "right" where the slope's interval lies in .8 … 1.2;
      "partly" where it holds 1; else "scaled".
    * `LDS`: "reversed" and "unrelated" likewise; "right" from .8 of its ceiling on (of 1 where the ceiling is not
      known); else "partly". It judges order only, so that a wrong scale cannot show.
    * `Detection`, of the signal with the largest average precision: "reversed" where the interval of the AUC lies below
      ½, "unrelated" where it holds ½, "right" from .9 on, else "partly".
    * `Curve`, of the accuracy (of the first measurement where there is none), at the point of one ranking that does the
      most good over random examples: "reversed" or "unrelated" where that advantage's interval lies on the wrong side
      of 0 or holds it, "scaled" where the prediction lies outside the interval of the change and more than a fifth off,
      "right" else; "partly" where a single training gives no interval.

    Args:
        result: What `agreement`, `lds`, `detection`, `removal_curve` or `correction_curve` returned.
        of: The signal or ranking to judge where there are several; the best by default.

    Raises:
        ConfigError: There is no signal or ranking of that name.

    Example:
        >>> import torch
        >>> from whence import Scores, agreement
        >>> values = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
        >>> ids = {"query_ids": np.arange(1), "ids": np.arange(40), "unit": "nats"}
        >>> verdict(agreement(Scores(values=10 * values, **ids), Scores(values=values, **ids))).sentence.split(":")[0]
        'The order is right, but predicted changes are 10 times too large'
    """
    if isinstance(result, Agreement):
        level, sentence = _of_agreement(result)
    elif isinstance(result, LDS):
        level, sentence = _of_lds(result)
    elif isinstance(result, Detection):
        level, sentence = _of_detection(result, of)
    else:
        level, sentence = _of_curve(result, of)
    return Verdict(level=level, sentence=sentence)


def _of_agreement(found: Agreement) -> Judged:
    """Judge predicted changes against actual ones."""
    line, within = found.pooled, found.within
    inside = f"r within queries is {_shown(within)}"
    if within.value < -found.chance and within.high < 0:
        return "reversed", (
            f"The scores have the wrong sign: where they predict a rise, the measurement falls ({inside}). {_SIGN}"
        )
    if within.value <= found.chance or within.low <= 0:
        return "unrelated", (
            f"The scores are unrelated to what removal does: {inside}, and shuffled ids reach {_number(found.chance)}. "
            f"{_CHECK}"
        )
    figures = f"slope {_shown(line.slope)}, r {_number(line.pearson.value)}"
    if line.pearson.value < _STRONG or within.value < _STRONG_WITHIN:
        return "partly", f"The scores are right in part: {figures}; {inside}. They rank rather than measure changes."
    low, high = line.intercept.low, line.intercept.high
    if abs(line.intercept.value) > _OFFSET * found.spread and not low <= 0 <= high:
        constant = f"{_shown(line.intercept)} {found.unit or ''}".rstrip()
        return "shifted", (
            f"Predicted changes are off by a constant of {constant}, where actual ones are about "
            f"{_number(found.spread)}: {figures}."
        )
    off = max(abs(line.slope.low - 1), abs(line.slope.high - 1))
    if off <= _TOLERANCE:
        percent = max(1, np.ceil(100 * off - 1e-9))
        return "right", f"Predicted removals are right to within {percent:.0f} %: {figures}."
    if line.slope.low <= 1 <= line.slope.high:
        return "partly", f"The order is right, but the size is not known well: {figures}. Leave out more examples."
    return "scaled", f"The order is right, but predicted changes are {_times(line.slope.value)}: {figures}."


def _of_lds(found: LDS) -> Judged:
    """Judge a linear datamodelling score."""
    known = np.isfinite(found.ceiling) and found.ceiling > 0
    ceiling = found.ceiling if known else 1.0
    figures = f"LDS {_shown(found.interval)}" + (f" of at most {_number(ceiling)}" if known else "")
    if found.value < -found.chance and found.interval.high < 0:
        return "reversed", (
            f"The scores have the wrong sign: they rank retrained models upside down ({figures}). {_SIGN}"
        )
    if found.value <= found.chance or found.interval.low <= 0:
        return "unrelated", (
            f"The scores are unrelated to what retrained models do: {figures}, and shuffled ids reach "
            f"{_number(found.chance)}. {_CHECK}"
        )
    extent = "nearly as well as can be" if found.value >= _SHARE * ceiling else "in part"
    level: Level = "right" if found.value >= _SHARE * ceiling else "partly"
    return level, f"The scores rank retrained models {extent}: {figures}. This judges the order, not the scale."


def _of_detection(found: Detection, of: str | None) -> Judged:
    """Judge the best signal, or the one that is asked for."""
    best = max(found.detectors, key=lambda name: found.detectors[name].average_precision.value)
    name = _chosen(of, list(found.detectors), best)
    one = found.detectors[name]
    rate = found.errors / found.count
    share = min(found.shares, key=lambda share: abs(share - rate))
    figures = (
        f"AUC {_shown(one.auc)}; the first {_percent(share)} hold {_percent(one.found[share].value)} of the "
        f"{found.errors} known errors, where a random choice holds {_percent(share)}"
    )
    if one.auc.high < 0.5:
        return "reversed", f"{name!r} puts errors last: {figures}. Check the sign: larger must mean more suspect."
    if one.auc.low <= 0.5:
        return "unrelated", f"{name!r} finds errors no better than chance: {figures}. {_CHECK}"
    if one.auc.value >= _AUC:
        return "right", f"{name!r} finds the errors: {figures}."
    return "partly", f"{name!r} finds errors better than chance: {figures}."


def _of_curve(found: Curve, of: str | None) -> Judged:
    """Judge the best ranking, or the one that is asked for, where it does the most good."""
    measurement = _worth_telling(found)
    good = 1 if measurement == ACCURACY else -1
    points = {name: max(found.of(name, measurement), key=lambda p: good * p.advantage.value) for name in found.rankings}
    best = max(points, key=lambda name: good * points[name].advantage.value)
    point = points[_chosen(of, found.rankings, best)]
    sentence = _told(found, point)
    low, high = sorted((good * point.advantage.low, good * point.advantage.high))
    if not np.isfinite(low):
        return "partly", f"{sentence} A single training gives no interval: use more seeds."
    if high < 0:
        if point.predicted is not None and good * point.predicted < 0:
            return "unrelated", f"{sentence} That is worse than random, as predicted: these examples help."
        return "reversed", f"{sentence} That is worse than random. {_SIGN}"
    if low <= 0:
        return "unrelated", f"{sentence} That is not shown to be better than random."
    predicted, change = point.predicted, point.change
    near = predicted is None or abs(predicted - change.value) <= _TOLERANCE * abs(change.value)
    if near or change.low <= (predicted or 0.0) <= change.high:
        return "right", f"{sentence} That is better than random."
    return "scaled", f"{sentence} That is better than random, but not what was predicted."


def _worth_telling(found: Curve) -> str:
    """Return the accuracy where it can still rise, else the first measurement."""
    before = found.before.get(ACCURACY)
    return ACCURACY if before is not None and before.value < 1 else found.measurements[0]


def _told(found: Curve, point: CurvePoint) -> str:
    """Return what happened at a point."""
    accuracy = point.measurement == ACCURACY
    factor, unit = (100.0, "points") if accuracy else (1.0, found.units[point.measurement] or "")
    change, control = (_plus_minus(interval, factor, unit) for interval in (point.change, point.control))
    done = {"removal": "Removing", "correction": "Checking and correcting"}[found.treatment]
    verb = "raises" if point.change.value > 0 else "lowers"
    change = f"{verb} {point.measurement} by {change.removeprefix('−')}"
    if point.change.value == 0:
        change = f"leaves {point.measurement} as it is"
    what = {"removal": "", "correction": f", of which {point.changed} got another label,"}[found.treatment]
    told = "" if point.predicted is None else f"; predicted {_number(factor * point.predicted)}"
    return (
        f"{done} the {point.count} examples ({_percent(point.share)}) that {point.ranking!r} puts first{what} {change}"
        f"{told}; {point.count} random ones change it by {control}."
    )


def _chosen(of: str | None, names: list[str], best: str) -> str:
    """Return the name to judge."""
    if of is not None and of not in names:
        raise ConfigError(f"of must be one of {names}, got {of!r}.")
    return best if of is None else of


def _times(slope: float) -> str:
    """Return how far off predictions are whose slope is not 1."""
    if slope <= 0:
        return "of no use as sizes"
    return f"{1 / slope:.3g} times too large" if slope < 1 else f"{slope:.3g} times too small"


def _shown(interval: Interval) -> str:
    """Return an interval."""
    return f"{_number(interval.value)} [{_number(interval.low)}, {_number(interval.high)}]"


def _plus_minus(interval: Interval, factor: float, unit: str) -> str:
    """Return an interval as a value and half its width."""
    half = factor * (interval.high - interval.low) / 2
    spread = f" ± {_number(half)}" if np.isfinite(half) else ""
    return f"{_number(factor * interval.value)}{spread} {unit}".rstrip()


def _percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.3g} %"


def _number(value: float) -> str:
    """Return a number with two decimals, or with three digits where it is small or large."""
    told = f"{abs(value):.2f}" if 0.1 <= abs(value) < 100 else f"{abs(value):.3g}"
    return f"−{told}" if value < 0 else told
