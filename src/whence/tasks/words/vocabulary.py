"""Words and their counts, and how a text is cut into sentences and words."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from whence.errors import ConfigError, DataError

__all__ = ["Vocabulary", "count_words", "split_sentences", "split_words"]

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MARKUP = re.compile(r"<[a-zA-Z/][^<>]{0,40}>")
_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])|\n\s*\n")
_NOT_ENDS = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|etc|No|Vol|e\.g|i\.e)|\b[A-Z])\.$")
_NEAR = 3
_LONGEST = 100  # words; a list or table without full stops would make every batch as long


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words that have a vector, most frequent first.

    Args:
        words: Different words [V].
        counts: How often each occurs in the text [V]; zeros where it is not known (vectors that were loaded).

    Raises:
        DataError: A word occurs twice, or lengths differ.

    Example:
        >>> words = Vocabulary(["king", "queen"], np.array([7, 3]))
        >>> "queen" in words, words.position("queen"), len(words)
        (True, 1, 2)
    """

    words: Sequence[str] = field(repr=False)
    counts: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.words) != len(self.counts):
            raise DataError(f"counts must have one entry a word ({len(self.words)}), got {len(self.counts)}.")
        if len(self.positions) != len(self.words):
            twice = Counter(self.words).most_common(1)[0][0]
            raise DataError(f"words must be different, got {twice!r} more than once. Drop all but one of its lines.")

    def __len__(self) -> int:
        """Return the number of words V."""
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether the word has a vector."""
        return word in self.positions

    @cached_property
    def positions(self) -> dict[str, int]:
        """Map from word to row."""
        return {word: row for row, word in enumerate(self.words)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over words and counts in order."""
        return hashlib.sha256(repr((list(self.words), self.counts.tolist())).encode()).hexdigest()

    def position(self, word: str) -> int:
        """Return the row of a word.

        Raises:
            ConfigError: It has no vector; the message names words that are spelt nearly so.
        """
        found = self.positions.get(word)
        if found is None:
            near = difflib.get_close_matches(str(word).lower(), self.words, n=_NEAR)
            told = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Choose another or lower min_count."
            raise ConfigError(f"word must be one of the {len(self)} in the vocabulary, got {word!r}. {told}")
        return found

    def rows(self, words: Iterable[str]) -> np.ndarray:
        """Return the rows of words [n]."""
        return np.array([self.position(word) for word in words], dtype=np.int64)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits, apostrophes inside kept.

    Example:
        >>> split_words("The Captain's 2nd log—begin.")
        ['the', "captain's", '2nd', 'log', 'begin']
    """
    return _WORD.findall(text.lower().replace("’", "'"))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text: cut after . ! ? before a capital or digit, and at blank lines; tags dropped.

    Usual abbreviations and initials do not end a sentence. What has no end for 100 words is cut there.

    Example:
        >>> split_sentences("Mr. Poe left. It rained!<br />Why?")
        ['Mr. Poe left.', 'It rained!', 'Why?']
    """
    text = _MARKUP.sub("\n\n", text)
    pieces, start = [], 0
    for end in _END.finditer(text):
        if _NOT_ENDS.search(text, start, end.start()) and "\n" not in end.group():
            continue
        pieces.append(text[start : end.end()])
        start = end.end()
    pieces.append(text[start:])
    runs = (piece.split() for piece in pieces)
    return [" ".join(run[i : i + _LONGEST]) for run in runs for i in range(0, len(run), _LONGEST)]


def count_words(sentences: Iterable[Sequence[str]], min_count: int) -> Vocabulary:
    """Return the words that occur at least ``min_count`` times, most frequent first, equals in alphabetical order.

    Raises:
        DataError: No two words do.
    """
    counts: Counter[str] = Counter()
    for words in sentences:
        counts.update(words)
    kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    if len(kept) < 2:
        most = max(counts.values(), default=0)
        raise DataError(
            f"min_count must leave at least two words, got {min_count} where the most frequent of {len(counts)} words "
            f"occurs {most} times. Lower min_count or give more text."
        )
    return Vocabulary(kept, np.array([counts[word] for word in kept], dtype=np.int64))
