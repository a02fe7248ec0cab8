"""WEAT: how much nearer one list of words lies to some attributes than another does, differentiable, with a p-value."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whence.errors import ConfigError, DataError, NumericalError
from whence.tasks.measurement import ModelMeasurement
from whence.tasks.words.vocabulary import Vocabulary

__all__ = ["WEAT", "WEATPValue"]

Pair: TypeAlias = tuple[Sequence[str], Sequence[str]]

_KEYS = ("targ1", "targ2", "attr1", "attr2")
_FEWEST = 2
_CHUNK = 16_384
_SHOWN = 12
_SAME = 1e-12  # relative: sums of the same numbers in another order


@dataclass(frozen=True, kw_only=True)
class WEAT(ModelMeasurement):
    r"""The word embedding association test of two lists of targets and two of attributes.

    s(w) = mean_{a∈A} cos(w, a) − mean_{b∈B} cos(w, b);
    effect = (mean_{x∈X} s(x) − mean_{y∈Y} s(y)) / std_{w∈X∪Y} s(w), with the sample standard deviation: between −2
    and 2 for lists of one length. Positive: X lies nearer to A than Y does. It is a measurement of the model alone:
    ``words.task(weat)`` asks which training examples cause it, and a positive score says that removing the example
    raises the effect.

    Args:
        targets: X and Y.
        attributes: A and B.
        name: What to call it.
        labels: What the four lists are called.

    Raises:
        ConfigError: A list is empty, or X and Y, or A and B, share a word.

    Reference: Caliskan, Bryson & Narayanan (2017), Science 356. Words are looked up as given, then in lower case;
        words that are not in the vocabulary are left out, as there, and `counts` says which.

    Example:
        >>> weat = WEAT(targets=(["he", "man"], ["she", "woman"]), attributes=(["office", "pay"], ["home", "child"]))
        >>> weat.labels
        ('X', 'Y', 'A', 'B')
    """

    targets: Pair
    attributes: Pair
    name: str = "WEAT"
    labels: tuple[str, str, str, str] = ("X", "Y", "A", "B")
    unit: str | None = field(default="standard deviations", init=False, repr=False)

    def __post_init__(self) -> None:
        for role, given in (("targets", self.targets), ("attributes", self.attributes)):
            if len(given) != 2 or any(isinstance(words, str) or not len(words) for words in given):
                raise ConfigError(f"{role} must be two lists of words, got {given!r}.")
            pair = tuple(tuple(dict.fromkeys(words)) for words in given)
            shared = sorted({word.lower() for word in pair[0]} & {word.lower() for word in pair[1]})
            if shared:
                raise ConfigError(f"{role} must not share words, got {shared[:_SHOWN]}. Take them out of one list.")
            object.__setattr__(self, role, pair)

    @classmethod
    def from_file(cls, path: str | Path, name: str) -> WEAT:
        """Read one test of a JSON file: name → ``targ1, targ2, attr1, attr2``, each with ``category`` and ``examples``.

        Raises:
            ConfigError: The file has no test of that name.
            DataError: The file cannot be read or is not of that form.
        """
        try:
            tests = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"word lists {str(path)!r} must be a JSON file, got: {error}.") from error
        if not isinstance(tests, dict) or name not in tests:
            known = sorted(tests) if isinstance(tests, dict) else []
            raise ConfigError(f"test must be one of {known[:30]}, got {name!r}.")
        try:
            lists = [tests[name][key] for key in _KEYS]
            words = [[str(word) for word in one["examples"]] for one in lists]
            labels = tuple(str(one.get("category", key)) for one, key in zip(lists, _KEYS, strict=True))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"test {name!r} must have {', '.join(_KEYS)}, each with a list of examples, got "
                f"{type(error).__name__}: {error}. See WEAT.from_file."
            ) from error
        first, second, third, fourth = labels
        return cls(
            targets=(words[0], words[1]), attributes=(words[2], words[3]), name=name,
            labels=(first, second, third, fourth),
        )  # fmt: skip

    @property
    def lists(self) -> tuple[Sequence[str], ...]:
        """X, Y, A and B."""
        return (*self.targets, *self.attributes)

    def counts(self, vocabulary: Vocabulary) -> pd.DataFrame:
        """Return how often each word occurs in the training text: look at this before trusting an effect.

        Args:
            vocabulary: Words and their counts.

        Returns:
            ``list, word, count, used``, one row a word in the order given; ``count`` is 0 for words that are not in the
            vocabulary (those below its least count are not) and missing for vectors that came without counts.
        """
        known = bool(vocabulary.counts.any())
        rows = []
        for label, words in zip(self.labels, self.lists, strict=True):
            for word in words:
                place = _place(vocabulary, word)
                count = None if not known else 0 if place is None else int(vocabulary.counts[place])
                rows.append((label, word, count, place is not None))
        return pd.DataFrame(rows, columns=["list", "word", "count", "used"]).astype({"count": "Int64"})

    def missing(self, vocabulary: Vocabulary) -> str:
        """Return a sentence that names the words left out, or an empty text."""
        parts = []
        for label, words in zip(self.labels, self.lists, strict=True):
            absent = [word for word in words if _place(vocabulary, word) is None]
            if absent:
                more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
                parts.append(f"{len(absent)} of {len(words)} in {label} ({', '.join(absent[:_SHOWN])}{more})")
        return f"Words not in the vocabulary were left out: {'; '.join(parts)}." if parts else ""

    def places(self, vocabulary: Vocabulary) -> tuple[list[int], ...]:
        """Return the rows of the words of X, Y, A and B that are there.

        Raises:
            DataError: A list has fewer than two words in the vocabulary.
        """
        found = []
        for label, words in zip(self.labels, self.lists, strict=True):
            rows = [place for word in words if (place := _place(vocabulary, word)) is not None]
            rows = list(dict.fromkeys(rows))
            if len(rows) < _FEWEST:
                absent = [word for word in words if _place(vocabulary, word) is None]
                raise DataError(
                    f"list {label!r} of {self.name} must have at least {_FEWEST} words in the vocabulary, got "
                    f"{len(rows)}; not there: {', '.join(absent[:_SHOWN])}. Bring more text, lower the least count, or "
                    "ask another test."
                )
            found.append(rows)
        return tuple(found)

    def __call__(self, words: Any) -> Tensor:
        """Return the effect size, a scalar that can be differentiated in the table of vectors.

        Args:
            words: An embedding, or its model.

        Raises:
            DataError: A list has fewer than two words in the vocabulary.
            NumericalError: All associations are equal.
        """
        first, second = self._associations(words)
        together = torch.cat([first, second])
        spread = together.std()  # sample standard deviation
        if not float(spread.detach()) > 0:
            told = float(together[0].detach())
            raise NumericalError(f"associations of {self.name} must differ between words, got {told} for all.")
        return (first.mean() - second.mean()) / spread

    def effect(self, words: Any) -> float:
        """Return the effect size as a number."""
        with torch.no_grad():
            return float(self(words))

    def p_value(
        self, words: Any, *, permutations: int = 100_000, seed: int = 0, two_sided: bool = False
    ) -> float:
        r"""Return the share of partitions of X ∪ Y into lists of these lengths with as large a difference of means.

        All partitions are counted where there are no more than ``permutations`` (eight and eight words: 12,870);
        otherwise so many are drawn at random, and the given one counts among them: (1 + larger) / (1 + drawn).

        Args:
            words: As in calling the test.
            permutations: Most partitions.
            seed: Of the draw.
            two_sided: Count differences of either sign. By default, as in the paper, only those in the direction of X
                being nearer to A, so that a test whose effect is negative has a p-value near 1.

        Raises:
            ConfigError: ``permutations`` is below 1.

        Reference: Caliskan, Bryson & Narayanan (2017). Ties count as larger, so that p is never 0.
        """
        if permutations < 1:
            raise ConfigError(f"permutations must be at least 1, got {permutations}.")
        with torch.no_grad():
            first, second = (part.double().cpu().numpy() for part in self._associations(words))
        values, size = np.concatenate([first, second]), len(first)
        values = values - values.mean()  # a difference of means then is a multiple of the sum over the first list
        total = math.comb(len(values), size)
        exact = total <= permutations
        sums = _all_sums(values, size) if exact else _drawn_sums(values, size, permutations, seed)
        observed, room = float(values[:size].sum()), _SAME * float(np.abs(values).sum())
        if two_sided:
            larger = sum(int(np.count_nonzero(np.abs(part) >= abs(observed) - room)) for part in sums)
        else:
            larger = sum(int(np.count_nonzero(part >= observed - room)) for part in sums)
        return larger / total if exact else (1 + larger) / (1 + permutations)

    def associations(self, words: Any) -> pd.DataFrame:
        """Return s(w) of every target that is in the vocabulary: ``list, word, association``, the largest first."""
        vocabulary = words.vocabulary
        with torch.no_grad():
            values = [part.double().tolist() for part in self._associations(words)]
        rows = [
            (label, vocabulary.words[place], value)
            for label, places, part in zip(self.labels, self.places(vocabulary)[:2], values, strict=False)
            for place, value in zip(places, part, strict=True)
        ]
        frame = pd.DataFrame(rows, columns=["list", "word", "association"])
        return frame.sort_values("association", ascending=False, kind="stable", ignore_index=True)

    def _associations(self, words: Any) -> tuple[Tensor, Tensor]:
        """Return s of the words of X and of Y."""
        places = self.places(words.vocabulary)
        table = getattr(words, "model", words).inputs.weight
        first, second, third, fourth = (torch.nn.functional.normalize(table[rows], dim=1) for rows in places)
        direction = third.mean(0) - fourth.mean(0)  # mean cosines are one product with a mean of unit vectors
        return first @ direction, second @ direction


def _place(vocabulary: Vocabulary, word: str) -> int | None:
    """Return the row of a word as given, or in lower case."""
    for form in (word, word.lower()):
        if form in vocabulary:
            return vocabulary.position(form)
    return None


def _all_sums(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield the sums over all choices of so many values, in blocks."""
    choices = itertools.combinations(range(len(values)), size)
    while block := list(itertools.islice(choices, _CHUNK)):
        yield values[np.array(block)].sum(1)


def _drawn_sums(values: np.ndarray, size: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the sums over randomly drawn choices of so many values, in blocks."""
    generator = np.random.default_rng(seed)
    for start in range(0, count, _CHUNK):
        order = generator.random((min(_CHUNK, count - start), len(values)))
        yield values[np.argpartition(order, size - 1, axis=1)[:, :size]].sum(1)


@dataclass(frozen=True)
class WEATPValue(ModelMeasurement):
    """The p-value of a test as a measurement of a model: for retraining; it has no gradient.

    Args:
        weat: The test.
        two_sided: As in `WEAT.p_value`.

    Example:
        >>> weat = WEAT(targets=(["he", "man"], ["she", "woman"]), attributes=(["office", "pay"], ["home", "child"]))
        >>> WEATPValue(weat).unit is None
        True
    """

    weat: WEAT
    two_sided: bool = False
    name: str = field(default="p-value", init=False, repr=False)

    def __call__(self, model: Any) -> Tensor:
        """Return the p-value, a scalar."""
        return torch.tensor(self.weat.p_value(model, two_sided=self.two_sided), dtype=torch.float64)
