"""What in a text makes words lie as they do: ask, remove and train again, edit, debias; a dict that a page shows."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from whence.audit.bench import Watch
from whence.curvature import RowBlocks
from whence.errors import ConfigError
from whence.evaluate import Retraining
from whence.evaluate.measurements import Several
from whence.evaluate.statistics import over_seeds
from whence.methods import Influence
from whence.scores import Scores
from whence.tasks.words import WordEmbedding, WordSimilarity
from whence.uses.debias import GENDER_PAIRS, hard_debias
from whence.uses.edit import edit
from whence.uses.weat import WEAT, WEATPValue

__all__ = ["WordsSettings", "count_lists", "words_data"]

_NEAREST = 10


@dataclass(frozen=True, kw_only=True)
class WordsSettings:
    """What is done beside asking.

    Args:
        k: Examples to remove, and to edit by, at either end.
        seeds: Trainings without each set, from seed 0; 0 trains nothing again.
        draws: Random sets of k examples, removed for comparison.
        shown: Examples to list at either end.
        pairs: Sets of words whose difference hard debiasing takes out; None: pairs of gender where the test has them.
        seed: Of random sets.

    Raises:
        ConfigError: A number is out of range.
    """

    k: int = 50
    seeds: int = 3
    draws: int = 2
    shown: int = 12
    pairs: tuple[tuple[str, ...], ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("seeds", 0), ("draws", 1), ("shown", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")


def words_data(
    words: WordEmbedding, measurement: WEAT | WordSimilarity, settings: WordsSettings, *, source: str = "",
    version: str = "", watch: Watch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Ask which sentences cause a measurement of word vectors, and check it by removal; edit and debias beside.

    Args:
        words: Vectors; those that were loaded are measured and debiased only.
        measurement: A test, or how near two words are.
        settings: What else is done.
        source: Where the text comes from.
        version: Version to name in the result.
        watch: Who is told of progress.

    Returns:
        A JSON-able dict of format 1, which `whence.report.render_words` takes.

    Raises:
        ConfigError: There are fewer than 2·k examples.
        DataError: A list of the test has fewer than two words with a vector.

    Cost: a pass for the scores, an edit, and (3 + draws)·seeds trainings.
    """
    started, watch = time.perf_counter(), watch or Watch()
    corpus = words.corpus
    found: dict[str, Any] = {
        "format": 1,
        "data": {
            "source": source, "unit": None if corpus is None else corpus.unit, "words": len(words.vocabulary),
            "documents": None if corpus is None else len(np.unique(corpus.documents)),
            "examples": None if corpus is None else len(corpus),
            "occurrences": None if corpus is None else len(corpus.words),
        },
        "measurement": _told(words, measurement), "sentences": None, "removal": None, "edit": None,
        "debias": _debiased(words, measurement, settings),
    }  # fmt: skip
    if corpus is not None:
        if not 2 * settings.k <= len(corpus):
            raise ConfigError(f"k must be at most half of the {len(corpus)} {corpus.unit}s, got {settings.k}.")
        watch.say(f"asking {len(corpus):,} {corpus.unit}s")
        task = words.task(measurement)
        scores = Influence(curvature=RowBlocks()).fit(task, corpus.examples).scores()
        found["sentences"] = _sentences(words, scores, settings.shown)
        watch.say("editing")
        found["edit"] = _edited(words, measurement, scores, settings.k)
        if settings.seeds:
            found["removal"] = _removed(words, measurement, scores, settings, watch)
    return found | {
        "seconds": time.perf_counter() - started, "whence": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def count_lists(weat: WEAT, words: Any) -> list[dict[str, Any]]:
    """Return the words of the test's lists with their counts: ``role, label, words``, the latter ``word, count, used``.

    Args:
        weat: A test.
        words: A vocabulary.
    """
    frame = weat.counts(words)
    frame = frame.assign(place=np.repeat(np.arange(4), [len(one) for one in weat.lists]))
    found = []
    for place, (role, label) in enumerate(zip("XYAB", weat.labels, strict=True)):
        rows = frame.loc[frame["place"] == place, ["word", "count", "used"]].to_dict("records")
        for row in rows:
            row["count"] = None if pd.isna(row["count"]) else int(row["count"])
        found.append({"role": role, "label": label, "words": rows})
    return found


def _told(words: WordEmbedding, measurement: WEAT | WordSimilarity) -> dict[str, Any]:
    """Return what is measured, and its value."""
    told: dict[str, Any] = {
        "name": measurement.name, "unit": measurement.unit, "value": _value(words, measurement), "p_value": None,
        "lists": None, "missing": "", "associations": None, "nearest": None,
    }  # fmt: skip
    if isinstance(measurement, WEAT):
        associations = measurement.associations(words).to_dict("records")
        return told | {
            "kind": "weat", "p_value": measurement.p_value(words), "lists": count_lists(measurement, words.vocabulary),
            "missing": measurement.missing(words.vocabulary), "associations": associations,
        }  # fmt: skip
    pair = (measurement.word, measurement.other)
    nearest = [{"word": word, "nearest": words.nearest(word, _NEAREST).to_dict("records")} for word in pair]
    return told | {"kind": "near", "nearest": nearest}


def _value(words: WordEmbedding, measurement: WEAT | WordSimilarity) -> float:
    """Return the measurement as a number."""
    return float(measurement(words.model).detach())


def _sentences(words: WordEmbedding, scores: Scores, shown: int) -> dict[str, Any]:
    """Return the examples whose removal lowers or raises the measurement the most."""
    corpus = words.corpus
    assert corpus is not None
    documents = dict(zip(corpus.ids.tolist(), corpus.documents.tolist(), strict=True))

    def told(frame: Any) -> list[dict[str, Any]]:
        return [
            {"id": str(row.id), "document": str(documents[row.id]), "text": corpus.text(row.id), "score": row.score}
            for row in frame.itertuples() if row.score != 0
        ]  # fmt: skip

    return {
        "scored": int((scores.values[0] != 0).sum()), "raise": told(scores.bottom(shown)),
        "lower": told(scores.top(shown)),
    }  # fmt: skip


def _edited(words: WordEmbedding, measurement: WEAT | WordSimilarity, scores: Scores, k: int) -> dict[str, Any]:
    """Undo the measurement by steps, and return how it went."""
    done = edit(words, measurement, scores, k=k)
    trace = done.trace.astype(object).where(done.trace.notna(), None)
    return {
        "k": k, "steps": len(trace) - 1, "stopped": done.stopped, "after": _value(done.words, measurement),
        "p_value": _p_value(done.words, measurement), "trace": trace.to_dict("records"),
    }  # fmt: skip


def _p_value(words: WordEmbedding, measurement: WEAT | WordSimilarity) -> float | None:
    """Return the p-value of a test."""
    return measurement.p_value(words) if isinstance(measurement, WEAT) else None


def _removed(
    words: WordEmbedding, measurement: WEAT | WordSimilarity, scores: Scores, settings: WordsSettings, watch: Watch
) -> dict[str, Any]:
    """Train again without the sentences that cause the measurement, those that work against it, and random ones."""
    corpus = words.corpus
    assert corpus is not None
    generator = np.random.default_rng(settings.seed)
    sets: dict[str, np.ndarray] = {
        "raise": scores.bottom(settings.k)["id"].to_numpy(), "lower": scores.top(settings.k)["id"].to_numpy(),
    }  # fmt: skip
    for draw in range(settings.draws):
        sets[f"random {draw}"] = generator.choice(corpus.ids, settings.k, replace=False)
    tested = isinstance(measurement, WEAT)
    parts = (measurement, WEATPValue(measurement)) if isinstance(measurement, WEAT) else (measurement,)
    total = (len(sets) + 1) * settings.seeds
    retraining = Retraining(
        recipe=words.recipe(), seeds=range(settings.seeds), measurement=Several(parts),
        progress=watch.steps(f"training again without {settings.k} {corpus.unit}s", total),
    )  # fmt: skip
    found = retraining.measure(corpus.examples, None, [[], *sets.values()]).numpy()  # [J, S, 1 or 2]
    by_id = dict(zip(scores.ids.tolist(), scores.values[0].double().tolist(), strict=True))
    before = found[0, :, 0]
    rows = []
    for name, places in (("raise", [1]), ("lower", [2]), ("random", list(range(3, 3 + settings.draws)))):
        predicted = [sum(by_id[id_] for id_ in list(sets.values())[place - 1].tolist()) for place in places]
        after = found[places, :, 0].mean(0)
        rows.append({
            "name": name, "predicted": float(np.mean(predicted)), "change": _interval(after - before),
            "after": _interval(after), "p_value": float(found[places, :, 1].mean()) if tested else None,
        })  # fmt: skip
    counts = {"k": settings.k, "seeds": settings.seeds, "draws": settings.draws}
    return {**counts, "before": _interval(before), "rows": rows}


def _interval(values: np.ndarray) -> list[float | None]:
    """Return the mean over seeds and its interval; None for ends that are not known."""
    found = over_seeds(values)
    return [value if np.isfinite(value) else None for value in (found.value, found.low, found.high)]


def _debiased(
    words: WordEmbedding, measurement: WEAT | WordSimilarity, settings: WordsSettings
) -> dict[str, Any] | None:
    """Return what hard debiasing does to a test, or None where there are no pairs for it."""
    if not isinstance(measurement, WEAT):
        return None
    pairs = _pairs(words, measurement, settings.pairs)
    if not pairs:
        return None
    held = {word for pair in pairs for word in pair}
    specific = [word for one in measurement.lists if held & {w.lower() for w in one} for word in one]
    fair = hard_debias(words, pairs, specific=[form for word in specific for form in (word, word.lower())])
    return {"pairs": [list(pair) for pair in pairs], "after": _value(fair, measurement),
            "p_value": _p_value(fair, measurement)}  # fmt: skip


def _pairs(
    words: WordEmbedding, weat: WEAT, given: tuple[tuple[str, ...], ...] | None
) -> Sequence[tuple[str, ...]]:
    """Return the pairs that were named, or those of gender if the test's lists hold some."""
    if given is not None:
        return given
    asked = {word.lower() for one in weat.lists for word in one}
    held = [pair for pair in GENDER_PAIRS if all(word in words.vocabulary for word in pair)]
    return held if any(asked & set(pair) for pair in held) else ()
