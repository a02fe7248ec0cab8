"""Edits of word vectors: steps down or up the training loss of those examples that move a measurement."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError, DataError, NumericalError
from whence.scores import Scores
from whence.tasks import Task
from whence.tasks.words.embedding import WordEmbedding

__all__ = ["Edit", "EditSettings", "edit"]

_BLOCK = 64  # examples whose gradients are taken together
_OTHERS = 500

Direction = Literal["undo", "raise"]
By = Literal["both", "ascent", "descent"]
Stopped = Literal["steps", "reached", "harm"]


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """How an edit moves.

    Args:
        by: "descent" and "ascent" alone leave the other kind of examples out.
        steps: Most steps.
        rate: Step size r, of the sum over examples.
        harm: Largest rise of the mean training loss of other examples, as a share of it before; a step that would
            take it further is not made, and ends the edit.
        seed: Of the examples drawn to see what else changes.

    Raises:
        ConfigError: A value is out of range.
    """

    by: By = "both"
    steps: int = 100
    rate: float = 0.001
    harm: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in ("both", "ascent", "descent"):
            raise ConfigError(f'by must be "both", "ascent" or "descent", got {self.by!r}.')
        if self.steps < 1 or not 0 < self.rate < float("inf"):
            raise ConfigError(f"steps must be at least 1 and rate positive, got {self.steps} and {self.rate}.")
        if not self.harm >= 0:
            raise ConfigError(f"harm must be zero or positive, got {self.harm}. Use inf for no limit.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """Word vectors after an edit, and how they came to be.

    Args:
        words: The embedding after the last step.
        trace: One row a step from 0 (before): ``step, measurement``, and the mean training loss, in nats, of the
            examples it went ``up``, those it went ``down``, and ``others``, drawn at random, which nobody meant.
        up: Ids of the examples whose loss was raised.
        down: Ids of the examples whose loss was lowered.
        direction: "undo" or "raise".
        stopped: Why it ended: "steps" were all made, zero was "reached", or the next step would do "harm" to others.
    """

    words: WordEmbedding
    trace: pd.DataFrame
    up: np.ndarray
    down: np.ndarray
    direction: Direction
    stopped: Stopped

    def __repr__(self) -> str:
        """Return one line."""
        values = self.trace["measurement"]
        return (
            f"Edit({self.direction}: {values.iloc[0]:+.3g} to {values.iloc[-1]:+.3g} in {len(values) - 1} steps, "
            f"{len(self.up)} examples up, {len(self.down)} down)"
        )


def edit(
    words: WordEmbedding, measurement: Callable[[Any], Tensor], scores: Scores, *, k: int = 50,
    direction: Direction = "undo", settings: EditSettings | None = None,
) -> Edit:  # fmt: skip
    r"""Move a measurement by unlearning the examples that cause it and learning those that work against it.

    θ ← θ − r (Σ_{i∈down} ∇ℓ_i − Σ_{i∈up} ∇ℓ_i). To "undo", the measurement has to come nearer to 0: up are the k
    examples whose removal moves it there the most, down the k whose removal moves it away; to "raise", the other
    way round.

    Args:
        words: A trained embedding with its corpus; it is not changed.
        measurement: A scalar of the model, such as `WEAT`.
        scores: Its scores of the training examples, for one query: positive = removal raises the measurement.
        k: Examples of each kind.
        direction: "undo" stops at the step that takes the measurement to 0 or past it; "raise" makes all steps.
        settings: How.

    Returns:
        An `Edit`. No other text holds the vectors back, and without ``settings.harm`` nothing would bound how far a
        loss can rise: look at ``trace["others"]``. Retraining without the examples says what they really did; this is
        the quick way.

    Raises:
        ConfigError: The direction is unknown, the scores are of several queries, or there are fewer than 2·k examples.
        DataError: The embedding came without its corpus, or scores are of other examples.
        NumericalError: The measurement becomes infinite or undefined.

    Cost: a gradient of 2·k examples a step.
    Reference: Silva, Chopra & Gombolay (2022), §5. Deviations: "both" is both kinds (in the released code it is
        ascent alone); the loss has its negative samples.

    Example:
        >>> import whence as wh
        >>> corpus = wh.word_corpus(["He works. She works. He is home."] * 9, min_count=1, subsample=None)
        >>> words = wh.train_words(corpus, width=4)
        >>> near = wh.WordSimilarity("he", "works")
        >>> scores = wh.Influence(curvature=wh.Identity()).fit(words.task(near), corpus.examples).scores()
        >>> wh.edit(words, near, scores, k=3, direction="raise").trace.columns.tolist()
        ['step', 'measurement', 'up', 'down', 'others']
    """
    examples = _examples(words, scores, k)
    settings = settings or EditSettings()
    if direction not in ("undo", "raise"):
        raise ConfigError(f'direction must be "undo" or "raise", got {direction!r}.')
    model = copy.deepcopy(words.model)
    task = words.task(measurement).with_model(model)
    start = _value(task)
    lower = (start > 0) == (direction == "undo")
    lowers, raises = scores.bottom(k)["id"].to_numpy(), scores.top(k)["id"].to_numpy()  # on removal
    up, down = (lowers, raises) if lower else (raises, lowers)
    nothing = up[:0]
    up, down = (nothing if settings.by == "descent" else up), (nothing if settings.by == "ascent" else down)
    rest = np.setdiff1d(np.arange(len(examples)), examples.rows_of(np.concatenate([lowers, raises])))
    generator = np.random.default_rng(settings.seed)
    drawn = generator.permutation(rest)[:_OTHERS]
    parts = {"up": examples.rows_of(up), "down": examples.rows_of(down), "others": np.sort(drawn)}
    trace, stopped = _descend(task, examples, parts, settings, direction)
    edited = replace(words, model=model)
    return Edit(words=edited, trace=pd.DataFrame(trace), up=up, down=down, direction=direction, stopped=stopped)


def _descend(
    task: Task, examples: Examples, parts: dict[str, np.ndarray], settings: EditSettings, direction: Direction
) -> tuple[list[dict[str, Any]], Stopped]:
    """Make the steps, in place; return the trace and why it ended."""
    start = _value(task)
    trace = [{"step": 0, "measurement": start, **_losses(task, examples, parts)}]
    bound = trace[0]["others"] * (1 + settings.harm) if trace[0]["others"] is not None else np.inf
    for step in range(1, settings.steps + 1):
        before = copy.deepcopy(task.model.state_dict())
        _step(task, examples, parts, settings.rate)
        line = {"step": step, "measurement": _value(task), **_losses(task, examples, parts)}
        if line["others"] is not None and not line["others"] <= bound:
            task.model.load_state_dict(before)
            return trace, "harm"
        if not np.isfinite(line["measurement"]):
            raise NumericalError(f"measurement must stay finite, got {line['measurement']}. Lower the rate.")
        trace.append(line)
        if direction == "undo" and line["measurement"] * start <= 0:
            return trace, "reached"
    return trace, "steps"


def _examples(words: WordEmbedding, scores: Scores, k: int) -> Examples:
    """Return the training examples that the scores are of."""
    if words.corpus is None:
        raise DataError("words must carry the corpus they were trained on, got vectors alone. Train them with whence.")
    examples = words.corpus.examples
    if len(scores.query_ids) != 1:
        raise ConfigError(f"scores must be of one measurement, got {len(scores.query_ids)} queries. Pick one.")
    if len(scores.ids) != len(examples) or not np.array_equal(np.sort(scores.ids), np.sort(examples.ids)):
        raise DataError(f"scores must be of the {len(examples)} training examples, got {len(scores.ids)} others.")
    if not 1 <= 2 * k <= len(examples):
        raise ConfigError(f"k must be between 1 and half of the {len(examples)} examples, got {k}.")
    return examples


def _value(task: Task) -> float:
    """Return the measurement."""
    with torch.no_grad():
        return float(task.measure_model())


def _losses(task: Task, examples: Examples, parts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the mean loss of each part, None for one without examples."""
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, rows in parts.items():
            blocks = [task.losses(task.place(examples.batch(some))) for some in _blocks(rows)]
            found[name] = float(torch.cat(blocks).mean()) if blocks else None
    return found


def _step(task: Task, examples: Examples, parts: dict[str, np.ndarray], rate: float) -> None:
    """Move the parameters once."""
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    for name, sign in (("up", 1.0), ("down", -1.0)):
        for rows in _blocks(parts[name]):
            loss = task.losses(task.place(examples.batch(rows))).sum()
            for total, part in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                total.add_(part, alpha=sign)
    with torch.no_grad():
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.add_(total, alpha=rate)


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    """Return rows in blocks."""
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
