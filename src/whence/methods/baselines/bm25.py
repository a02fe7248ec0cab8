"""BM25: which training texts share rare words with a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor

from whence.data import Examples, as_examples
from whence.errors import ConfigError, DataError
from whence.methods.baselines.base import BaselineAttribution, blocks, classes_of, same_class
from whence.methods.baselines.similarity import rival_margin

__all__ = ["BM25"]

_TOKENS = r"(?u)\b\w+\b"


@dataclass(frozen=True, kw_only=True)
class BM25:
    r"""Okapi BM25 of a query's words with a training text.

    b(q, i) = Σ_{w ∈ q} ln(1 + (N − n_w + ½)/(n_w + ½)) · f_{wi} (k₁ + 1) / (f_{wi} + k₁ (1 − b + b |i| / mean |·|)),
    words of the query with their multiplicity, n_w the training texts with word w, f_{wi} its count in text i.
    score(q, i) = ± b(q, i), + where q has the label of i (``signed``). The suspicion of an example is its highest b
    with an example of another label minus its highest with another example of its own.

    Args:
        texts: The text of every training example and query, by id.
        k1: How soon repeated words stop counting, ≥ 0.
        b: How much long texts are held back, in [0, 1].
        signed: Whether examples of another label count as harmful; False is plain BM25.

    Raises:
        ConfigError: k1 or b is out of range.

    Cost: one count of all words; a sparse product a query. Words are lower-cased runs of letters and digits.

    Reference: Robertson & Zaragoza (2009); the logarithm of 1 + … (as in Lucene) keeps common words from being
    negative.

    Example:
        >>> texts = {0: "a red apple", 1: "a green pear", 2: "red red wine"}
        >>> train = as_examples((torch.zeros(2, 1), torch.tensor([0, 1])))
        >>> query = as_examples((torch.zeros(1, 1), torch.tensor([0])), ids=[2])
        >>> [round(v, 3) for v in BM25(texts=texts).fit(None, train).scores(query).values[0].tolist()]
        [1.386, -0.0]
    """

    texts: Mapping[Any, str] = field(repr=False)
    k1: float = 1.5
    b: float = 0.75
    signed: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.k1 < float("inf"):
            raise ConfigError(f"k1 must be zero or positive, got {self.k1}.")
        if not 0 <= self.b <= 1:
            raise ConfigError(f"b must lie between 0 and 1, got {self.b}.")

    def fit(self, task: object, train: object) -> BaselineAttribution:
        """Count the words of the training texts; the task plays no part.

        Raises:
            DataError: An id has no text, or no training text holds a word.
        """
        examples = as_examples(train)
        words = CountVectorizer(token_pattern=_TOKENS)
        own = self._texts(examples)
        try:
            counts = words.fit_transform(own).astype(np.float64).tocsr()  # [N, V]
        except ValueError as error:
            raise DataError("training texts must hold at least one word, got none. Check the text column.") from error
        weighted = self._weighted(counts).T.tocsr()  # [V, N]

        def dense(asked: sp.csr_matrix) -> Tensor:
            return torch.from_numpy(np.asarray((asked @ weighted).todense()))

        def score(queries: Examples) -> Tensor:
            found = dense(words.transform(self._texts(queries)).astype(np.float64))
            return found * same_class(examples, queries) if self.signed else found

        def suspect() -> np.ndarray:
            labels = classes_of(examples, "training examples")
            parts = [rival_margin(dense(counts[part]), labels, part) for part in blocks(len(own))]
            return torch.cat(parts).numpy()

        return BaselineAttribution(name="BM25", examples=examples, score=score, suspect=suspect)

    def _texts(self, examples: Examples) -> Sequence[str]:
        """Return the texts of examples in their order."""
        missing = [id_ for id_ in examples.ids.tolist() if id_ not in self.texts]
        if missing:
            raise DataError(f"texts must hold one for every id, got none for {missing[0]!r}.")
        return [self.texts[id_] for id_ in examples.ids.tolist()]

    def _weighted(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Return what every word of every training text counts [N, V]."""
        rows = counts.shape[0]
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log1p((rows - frequency + 0.5) / (frequency + 0.5))
        lengths = np.asarray(counts.sum(1)).ravel()
        held_back = self.k1 * (1 - self.b + self.b * lengths / max(lengths.mean(), 1e-12))
        weighted = counts.copy()
        per_entry = np.repeat(held_back, np.diff(counts.indptr))
        weighted.data = idf[counts.indices] * counts.data * (self.k1 + 1) / (counts.data + per_entry)
        return weighted
