"""Which method to use: accuracy by a ground truth, cost, and the cheapest of those that nothing beats."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from whence.data import Examples
from whence.errors import ConfigError, WhenceError
from whence.evaluate.statistics import Interval
from whence.evaluate.truths import Judgement, Truth
from whence.notebook import card, figures, listing, number
from whence.scores import Scores, Signal
from whence.tasks import Task

__all__ = ["Comparison", "Contender", "Entry", "compare", "pass_seconds"]

_CLOSE = 2.0  # costs within this factor count as equal: seconds vary from run to run
_NEARLY, _MUCH = 0.9, 5.0  # a much cheaper method that is nearly as accurate is named too
_MORE = "Use more subsets, seeds, queries or errors before choosing one."
_CHUNK = 128
_LEAST_PASSES = 1e-3  # on a logarithmic axis
_TIMED = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """A method that takes part.

    Args:
        name: What to call it.
        run: () -> its scores (or, to find label errors, its suspicions as a `Signal`, larger = more suspect). What it
            does is its cost.
        baseline: Whether it is a humble baseline.
        floor: Whether it knows nothing: what is not better than it is not recommended.
    """

    name: str
    run: Callable[[], Scores | Signal] = field(repr=False)
    baseline: bool = False
    floor: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """How a contender did.

    Args:
        name: Its name.
        baseline: Whether it is a humble baseline.
        accuracy: By the ground truth, or None where it does not apply.
        seconds: Of its run.
        passes: The same in plain forward+backward passes over the training examples.
        behind: How much less accurate than the best it is, with a paired interval; None for the best itself.
        equal: Whether that interval holds zero, so that nothing is shown to be better.
        details: More figures by name.
        note: Why it does not apply, else empty.
    """

    name: str
    baseline: bool
    accuracy: Interval | None
    seconds: float
    passes: float
    behind: Interval | None = None
    equal: bool = False
    details: dict[str, Interval] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """All contenders, most accurate first, then those that do not apply.

    Args:
        figure: What accuracy is called.
        entries: One a contender.
        recommended: Name of the one to use, or None where none is better than chance.
        reason: Why, in a sentence.
        ceiling: What a method without any error would reach, where it is known.
        pass_seconds: Of one plain forward+backward pass.
    """

    figure: str
    entries: tuple[Entry, ...]
    recommended: str | None
    reason: str
    ceiling: float | None
    pass_seconds: float

    def __repr__(self) -> str:
        """Return the recommendation and counts in one line."""
        judged = f"{len(self.entries)} methods by {self.figure}"
        return f"Comparison({judged}, recommended: {self.recommended or 'none, for none beats chance'})"

    def _repr_html_(self) -> str:
        """Return the table and the recommendation for a notebook."""
        judged = [entry for entry in self.entries if entry.accuracy is not None]
        rows = [
            (entry.name + (" (baseline)" if entry.baseline else ""), number(entry.accuracy.value),
             f"{number(entry.accuracy.low)} to {number(entry.accuracy.high)}", number(entry.passes),
             number(entry.seconds))
            for entry in judged if entry.accuracy is not None
        ]  # fmt: skip
        chosen = [place for place, entry in enumerate(judged) if entry.name == self.recommended]
        table = listing(("method", self.figure, "95 % interval", "passes", "seconds"), rows, chosen=chosen)
        left = [f"{entry.name} does not apply: {entry.note}" for entry in self.entries if entry.accuracy is None]
        return card(f"Which method? · by {self.figure}", [table], [self.reason, *left])

    def plot(self) -> Any:
        """Draw accuracy, with intervals, over cost in plain passes; what is recommended is dark.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: plotly is not installed (extra ``notebook``).
        """
        judged = [entry for entry in self.entries if entry.accuracy is not None]
        held = [entry.accuracy for entry in judged if entry.accuracy is not None]
        value, low, high = (np.array([getattr(one, end) for one in held]) for end in ("value", "low", "high"))
        x = np.array([max(entry.passes, _LEAST_PASSES) for entry in judged])
        chosen = np.array([entry.name == self.recommended for entry in judged], dtype=bool)
        names = [entry.name for entry in judged]
        axes = ("cost, plain forward+backward passes", self.figure)
        return figures.intervals(names, x, (value, low, high), chosen, title=f"{self.figure} against cost", axes=axes)

    def to_frame(self) -> pd.DataFrame:
        """Return a frame: one row a method, in order; accuracy with its interval, cost, whether nothing beats it."""
        return pd.DataFrame([_row(entry) for entry in self.entries]).set_index("method")


def compare(
    contenders: Sequence[Contender],
    truth: Truth,
    *,
    seconds: float,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Run every contender once, judge all by one ground truth, and recommend one.

    Recommended is, among those that the most accurate one does not beat significantly (95 %, paired bootstrap), the
    one of least cost; of costs within a factor of two of the least, the most accurate.

    Args:
        contenders: Methods and baselines with different names.
        truth: What they are judged by.
        seconds: Of one plain forward+backward pass, see `whence.evaluate.pass_seconds`.
        progress: Called with the name of each before it runs.

    Returns:
        The comparison. A contender that raises a `WhenceError` does not apply, and its entry says why. All but
        seconds and passes is the same for the same contenders and truth.

    Raises:
        ConfigError: Names repeat, or none applies.

    Cost: that of the contenders.
    Reference: the paired bootstrap over queries or rows of Efron & Tibshirani (1993), §16.

    Example:
        >>> from whence.evaluate import ErrorTruth
        >>> known = np.arange(20) < 4
        >>> right = Signal(values=known + 0.0, ids=np.arange(20), name="right", unit=None)
        >>> chance = Signal(values=np.arange(20) % 3, ids=np.arange(20), name="chance", unit=None)
        >>> field = [Contender(name=s.name, run=lambda s=s: s, floor=s is chance) for s in (right, chance)]
        >>> compare(field, ErrorTruth(known=known), seconds=1.0).recommended
        'right'
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) != len(names):
        raise ConfigError(f"contenders must have different names, got {sorted(names)}.")
    found: dict[str, Scores | Signal] = {}
    spent: dict[str, float] = {}
    notes: dict[str, str] = {}
    for contender in contenders:
        if progress is not None:
            progress(contender.name)
        started = time.perf_counter()
        try:
            found[contender.name] = contender.run()
        except WhenceError as error:
            notes[contender.name] = str(error)
        spent[contender.name] = time.perf_counter() - started
    if not found:
        raise ConfigError(f"at least one contender must apply, got none: {next(iter(notes.values()), 'no contender')}")
    judged = truth.judge(found)
    entries = _entries(contenders, judged, spent, notes, seconds)
    recommended, reason = _recommend(entries, contenders, judged, truth.figure)
    return Comparison(
        figure=truth.figure,
        entries=entries,
        recommended=recommended,
        reason=reason,
        ceiling=judged.ceiling,
        pass_seconds=seconds,
    )


def pass_seconds(task: Task, examples: Examples) -> float:
    """Return the seconds of one plain forward+backward pass over the examples in batches of 128, the least of three.

    Parameters must be trainable. Gradients are thrown away; the model is left as it was.
    """
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    least = float("inf")
    with task.evaluating():
        for _ in range(_TIMED):
            started = time.perf_counter()
            for batch in examples.batches(_CHUNK):
                with torch.enable_grad():
                    torch.autograd.grad(task.losses(task.place(batch)).mean(), parameters, allow_unused=True)
            least = min(least, time.perf_counter() - started)
    return least


def _entries(
    contenders: Sequence[Contender], judged: Judgement, spent: dict[str, float], notes: dict[str, str], seconds: float
) -> tuple[Entry, ...]:
    """Return the entries, most accurate first; ties and those that do not apply in the order given."""
    best = max(judged.accuracy, key=lambda name: judged.accuracy[name].value)
    entries = []
    for contender in contenders:
        name = contender.name
        accuracy = judged.accuracy.get(name)
        behind = None if accuracy is None or name == best else judged.gain(best, name)
        entries.append(
            Entry(
                name=name,
                baseline=contender.baseline,
                accuracy=accuracy,
                seconds=spent[name],
                passes=spent[name] / seconds,
                behind=behind,
                equal=name == best or (behind is not None and behind.low <= 0),
                details=dict(judged.details.get(name, {})),
                note=notes.get(name, ""),
            )
        )
    return tuple(sorted(entries, key=_order))


def _order(entry: Entry) -> tuple[bool, float]:
    """Return what sorts entries: applicable ones first, by accuracy."""
    return entry.accuracy is None, 0.0 if entry.accuracy is None else -entry.accuracy.value


def _recommend(
    entries: Sequence[Entry], contenders: Sequence[Contender], judged: Judgement, figure: str
) -> tuple[str | None, str]:
    """Return the name of the method to use and a sentence that says why."""
    best = entries[0]
    assert best.accuracy is not None
    chance = judged.chance.get(best.name)
    if chance is not None and best.accuracy.value <= chance:
        return None, (
            f"No method is shown to be better than chance by this ground truth: shuffled ids reach a {figure} of "
            f"{chance:.3f}, and the best, {best.name}, has {_shown(best.accuracy)}. {_MORE}"
        )
    floors = [contender.name for contender in contenders if contender.floor and contender.name in judged.accuracy]
    if any(floor == best.name or judged.gain(best.name, floor).low <= 0 for floor in floors):
        return None, (
            f"No method is shown to be better than {floors[0]} by this ground truth ({figure} of the best, "
            f"{best.name}: {_shown(best.accuracy)}). {_MORE}"
        )
    equal = [entry for entry in entries if entry.equal and entry.name not in floors]
    least = min(entry.passes for entry in equal)
    chosen = next(entry for entry in equal if entry.passes <= _CLOSE * least)
    return chosen.name, " ".join([_why(chosen, best, len(equal), figure), _cheaper(chosen, best, entries)]).strip()


def _why(chosen: Entry, best: Entry, equal: int, figure: str) -> str:
    """Return why a method is recommended."""
    assert chosen.accuracy is not None and best.accuracy is not None
    cost = f"{_passes(chosen.passes)} plain passes"
    if chosen.behind is None:
        rest = ", and significantly more accurate than all others"
        if equal > 1:
            rest = f", and none of the {equal - 1} that it does not beat significantly costs less than half"
        return f"Use {chosen.name}: it is the most accurate ({figure} {_shown(chosen.accuracy)}) for {cost}{rest}."
    return (
        f"Use {chosen.name}: its {figure} of {_shown(chosen.accuracy)} is not significantly below that of the most "
        f"accurate, {best.name} ({best.accuracy.value:.3f}; difference {chosen.behind.value:.3f}, 95 % interval "
        f"{chosen.behind.low:.3f} to {chosen.behind.high:.3f}), and it costs {cost} instead of "
        f"{_passes(best.passes)}."
    )


def _cheaper(chosen: Entry, best: Entry, entries: Sequence[Entry]) -> str:
    """Return what to use where the recommended method is too dear and another one is nearly as good."""
    assert best.accuracy is not None
    least = _NEARLY * best.accuracy.value
    found = [e for e in entries if e.accuracy is not None and e.accuracy.value >= least > 0
             and _MUCH * e.passes <= chosen.passes]  # fmt: skip
    if not found or found[0].accuracy is None:
        return ""
    value, passes = found[0].accuracy.value, _passes(found[0].passes)
    return f"Where that is too dear: {found[0].name} has {value:.3f} for {passes} passes."


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _passes(passes: float) -> str:
    return f"{passes:.2g}" if passes < 10 else f"{passes:.0f}"


def _row(entry: Entry) -> dict[str, Any]:
    """Return an entry as a row of the table."""
    accuracy = entry.accuracy
    return {
        "method": entry.name,
        "accuracy": np.nan if accuracy is None else accuracy.value,
        "low": np.nan if accuracy is None else accuracy.low,
        "high": np.nan if accuracy is None else accuracy.high,
        "equal": entry.equal,
        "baseline": entry.baseline,
        "seconds": entry.seconds,
        "passes": entry.passes,
        **{name: interval.value for name, interval in entry.details.items()},
        "note": entry.note,
    }
