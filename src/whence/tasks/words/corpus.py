"""A text as training examples of skip-gram: sentences, windows or documents, each with noise words of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples, id_keys, uniform
from whence.errors import ConfigError, DataError
from whence.tasks.words.skipgram import BLOCK
from whence.tasks.words.vocabulary import Vocabulary, count_words, split_sentences, split_words

__all__ = ["Unit", "WordCorpus", "word_corpus"]

Unit = Literal["sentence", "window", "document"]
_POWER = 0.75
_SUBSAMPLE = 2**31  # stream of the draws that thin out frequent words; noise words take the ones from 0


@dataclass(frozen=True, kw_only=True, eq=False)
class WordCorpus:
    r"""A text as training examples. Made by `word_corpus`.

    The loss of an example is the sum over its pairs of a centre t and a context s within the window, in one sentence:
    ℓ = Σ_(t,s) −log σ(v_t·u_s) − (K/M) Σ_m log σ(−v_t·u_m), K noise words a pair, from a pool of M = 2·window·K that
    32 positions share. J is the mean over examples plus decay. The pools are fixed: a function of seed and id.

    Args:
        vocabulary: The words that have vectors.
        ids: Ids of the examples [N].
        documents: Id of the document that each lies in [N].
        unit: What an example is.
        window: Contexts on either side.
        negatives: K.
        seed: Of noise words and of the thinning of frequent words.
        words: All words that were kept, as rows of the vocabulary [tokens].
        sentences: The sentence that each lies in [tokens].
        spans: First word and the one after the last, of every example [N, 2].
        centres: The centre of every window as a place in ``words`` [N]; None where all words are centres.
        sentence_texts: Text of every sentence.
    """

    vocabulary: Vocabulary
    ids: np.ndarray
    documents: np.ndarray
    unit: Unit
    window: int
    negatives: int
    seed: int
    words: np.ndarray = field(repr=False)
    sentences: np.ndarray = field(repr=False)
    spans: np.ndarray = field(repr=False)
    centres: np.ndarray | None = field(repr=False)
    sentence_texts: Sequence[str] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of examples N."""
        return len(self.ids)

    def __repr__(self) -> str:
        """Return the counts."""
        kept = f"{len(self.vocabulary):,} words, {len(self.words):,} occurrences"
        return f"WordCorpus({len(self):,} {self.unit}s, {kept})"

    @property
    def pool(self) -> int:
        """Noise words in a pool M."""
        return 2 * self.window * self.negatives

    @cached_property
    def texts(self) -> list[str]:
        """Text of every training example [N]: its sentences; of a window the sentence that it lies in."""
        first, last = self.sentences[self.spans[:, 0]], self.sentences[self.spans[:, 1] - 1]
        return [" ".join(self.sentence_texts[a : b + 1]) for a, b in zip(first.tolist(), last.tolist(), strict=True)]

    @cached_property
    def examples(self) -> Examples:
        """The training examples: inputs (words [B, T], noise [B, blocks, M]), targets y [B, T, 2·window + M]."""
        return Examples(ids=self.ids, fetch=self._fetch)

    def text(self, id_: Any) -> str:
        """Return the text of one example."""
        return self.texts[int(self.examples.rows_of([id_])[0])]

    @cached_property
    def _steps(self) -> np.ndarray:
        """Cumulative chances of the noise words [V]: counts to the power 3/4."""
        chances = self.vocabulary.counts.astype(np.float64) ** _POWER
        steps: np.ndarray = np.cumsum(chances / chances.sum())
        return steps

    def noise(self, rows: np.ndarray, blocks: int) -> np.ndarray:
        """Return the noise words of examples [B, blocks, M], a function of seed and ids."""
        keys = self.examples.keys[rows]
        draws = np.stack([uniform(keys, self.seed, number) for number in range(blocks * self.pool)], 1)
        found = np.searchsorted(self._steps, draws, side="right").clip(max=len(self._steps) - 1)
        return found.reshape(len(rows), blocks, self.pool)

    def _fetch(self, rows: np.ndarray) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return inputs and targets of some examples; y is the weight of each logit, negative for noise."""
        starts, stops = self.spans[rows, 0], self.spans[rows, 1]
        longest = int((stops - starts).max())
        blocks = -(-longest // BLOCK)
        length = longest if blocks == 1 else blocks * BLOCK
        places = starts[:, None] + np.arange(length)  # [B, T]
        inside = places < stops[:, None]
        places = np.where(inside, places, 0)
        words = np.where(inside, self.words[places], 0)
        sentences = np.where(inside, self.sentences[places], -1)
        centre = inside if self.centres is None else places == self.centres[rows][:, None]
        padded = np.pad(sentences, ((0, 0), (self.window, self.window)), constant_values=-2)
        offsets = [place for place in range(2 * self.window + 1) if place != self.window]
        paired = np.stack([padded[:, place : place + length] == sentences for place in offsets], 2)
        y = np.empty((*words.shape, 2 * self.window + self.pool))  # [B, T, 2·window + M]
        y[:, :, : 2 * self.window] = paired & centre[:, :, None]
        share = self.negatives / self.pool
        y[:, :, 2 * self.window :] = -share * y[:, :, : 2 * self.window].sum(2, keepdims=True)
        inputs = torch.from_numpy(words.astype(np.int64)), torch.from_numpy(self.noise(rows, blocks))
        return inputs, torch.from_numpy(y)


def word_corpus(  # noqa: PLR0913 - a corpus is its list of settings
    texts: Iterable[str], *, unit: Unit = "sentence", ids: Any = None, window: int = 3, negatives: int = 5,
    min_count: int = 5, subsample: float | None = 1e-3, seed: int = 0,
) -> WordCorpus:  # fmt: skip
    r"""Return a text as training examples of skip-gram with negative sampling.

    Args:
        texts: Documents: a list, Series or any iterable of texts.
        unit: What one training example is, and so what is removed: a "sentence" (id "document:sentence"), a "window"
            of one centre with its contexts ("document:sentence:place"), or a whole "document" (the document's id).
        ids: Ids of the documents; numbers from 0 by default.
        window: Contexts on either side of a centre, within its sentence.
        negatives: Noise words a pair K.
        min_count: Words that occur less often have no vector and are skipped.
        subsample: Frequency f above which a word's occurrences are dropped at random, with chance
            1 − (√(s/f) + s/f); None keeps all.
        seed: Of noise words and dropped occurrences, together with each sentence's or example's id.

    Returns:
        The corpus. Examples without two neighbouring words have no pair and are left out.

    Raises:
        ConfigError: A setting is out of range.
        DataError: There is no text, an id repeats, or ``min_count`` leaves no words.

    Cost: one pass over the text; memory 8 bytes a word that is kept, beside the text.
    Reference: Mikolov et al. (2013), §2.2–2.3; the formula for dropping is that of the released word2vec.c. Noise words
        are shared by neighbouring centres as in Ji et al. (2016), fixed instead of drawn anew, and not skipped where
        one is the context itself.

    Example:
        >>> corpus = word_corpus(["The cat sat. The cat ran.", "A cat sat."], min_count=2, subsample=None)
        >>> corpus.ids.tolist(), corpus.vocabulary.words
        (['0:0', '0:1', '1:0'], ['cat', 'sat', 'the'])
    """
    _check_settings(unit, window, negatives, min_count, subsample)
    documents = _documents(texts)
    names = _names(ids, len(documents))
    sentences = [
        (doc, number, sentence)
        for doc, text in enumerate(documents)
        for number, sentence in enumerate(split_sentences(text))
    ]
    split = [split_words(sentence) for _, _, sentence in sentences]
    vocabulary = count_words(split, min_count)
    labels = [f"{names[doc]}:{number}" for doc, number, _ in sentences]
    words, owners = _encoded(split, vocabulary)
    kept = _thinned(words, owners, np.array(labels), vocabulary, subsample, seed)
    words, owners = words[kept], owners[kept]
    home = np.array([doc for doc, _, _ in sentences])
    spans, centres, places = _spans(owners, home, unit, window)
    if not len(spans):
        raise DataError(
            "the text must have at least one sentence with two words of the vocabulary, got none. Lower min_count, "
            "give more text, or keep all occurrences with subsample=None."
        )
    first = owners[spans[:, 0]]
    names_of = home[first]
    if unit == "document":
        found = names[names_of]
    else:
        found = np.array([labels[s] if p is None else f"{labels[s]}:{p}" for s, p in zip(first, places, strict=True)])
    return WordCorpus(
        vocabulary=vocabulary, ids=found, documents=names[names_of], unit=unit, window=window, negatives=negatives,
        seed=seed, words=words, sentences=owners, spans=spans, centres=centres,
        sentence_texts=[sentence for _, _, sentence in sentences],
    )  # fmt: skip


def _check_settings(unit: str, window: int, negatives: int, min_count: int, subsample: float | None) -> None:
    """Raise unless all settings are in range."""
    if unit not in ("sentence", "window", "document"):
        raise ConfigError(f'unit must be "sentence", "window" or "document", got {unit!r}.')
    for name, value in (("window", window), ("negatives", negatives), ("min_count", min_count)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}.")
    if subsample is not None and not 0 < subsample < float("inf"):
        raise ConfigError(f"subsample must be a positive frequency or None, got {subsample!r}. Usual is 1e-3.")


def _documents(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list."""
    if isinstance(texts, str):
        raise DataError("texts must be a list of documents, got one string. Put it into a list.")
    documents = list(texts)
    for number, text in enumerate(documents):
        if not isinstance(text, str):
            raise DataError(f"texts must be strings, got {type(text).__name__} at place {number}. Drop or fill it.")
    if not any(text.strip() for text in documents):
        raise DataError(f"texts must hold at least one word, got {len(documents)} empty documents. Give some text.")
    return documents


def _names(ids: Any, count: int) -> np.ndarray:
    """Return the documents' ids [count], integers or strings, all different."""
    names = np.arange(count) if ids is None else np.asarray(ids)
    if names.shape != (count,):
        raise DataError(f"ids must have one entry a document ({count}), got {len(names)}.")
    names = names if np.issubdtype(names.dtype, np.integer) else names.astype(str)
    found, counts = np.unique(names, return_counts=True)
    if len(found) != count:
        raise DataError(f"ids must be unique, got {found.tolist()[counts.argmax()]!r} {counts.max()} times.")
    return names


def _encoded(split: list[list[str]], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Return all words of the vocabulary as rows [tokens], and the sentence of each."""
    rows = vocabulary.positions
    words = [rows[word] for sentence in split for word in sentence if word in rows]
    owners = [number for number, sentence in enumerate(split) for word in sentence if word in rows]
    return np.array(words, dtype=np.int32), np.array(owners, dtype=np.int32)


def _thinned(
    words: np.ndarray, owners: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary, subsample: float | None,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """Return which words stay [tokens]: a function of seed, the sentence's id and the place in it."""
    if subsample is None:
        return np.ones(len(words), dtype=bool)
    ratio = subsample * vocabulary.counts.sum() / vocabulary.counts
    chance = np.sqrt(ratio) + ratio  # [V]
    place = _places(owners).astype(np.uint64)
    with np.errstate(over="ignore"):
        keys = id_keys(labels)[owners] + place * np.uint64(0xA0761D6478BD642F)
    kept: np.ndarray = uniform(keys, seed, _SUBSAMPLE) < chance[words]
    return kept


def _places(owners: np.ndarray) -> np.ndarray:
    """Return every word's place among those of its sentence [tokens]."""
    fresh = np.flatnonzero(np.diff(owners, prepend=-1))
    lengths = np.diff(fresh, append=len(owners))
    return np.arange(len(owners)) - np.repeat(fresh, lengths)


def _spans(
    owners: np.ndarray, home: np.ndarray, unit: Unit, window: int
) -> tuple[np.ndarray, np.ndarray | None, list[int | None]]:
    """Return the examples' spans [N, 2] in the kept words, the windows' centres, and their places in the sentence."""
    groups = home[owners] if unit == "document" else owners
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    stops = np.append(starts, len(groups))[1:]
    _, lengths = np.unique(owners, return_counts=True)
    paired = np.repeat(lengths >= 2, lengths)  # words that have a neighbour in their sentence
    if unit != "window":
        some = np.add.reduceat(paired, starts) > 0 if len(starts) else np.zeros(0, dtype=bool)
        spans = np.stack([starts, stops], 1)[some]
        return spans, None, [None] * len(spans)
    centres = np.flatnonzero(paired)
    lengths = stops - starts
    low, high = np.repeat(starts, lengths)[centres], np.repeat(stops, lengths)[centres]
    spans = np.stack([np.maximum(centres - window, low), np.minimum(centres + window + 1, high)], 1)
    return spans, centres, list(_places(owners)[centres].tolist())
