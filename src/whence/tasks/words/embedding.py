"""Word vectors that were trained or read: what can be asked of them, and the task that explains them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError
from whence.tasks.recipe import Recipe
from whence.tasks.task import Task
from whence.tasks.words.corpus import WordCorpus
from whence.tasks.words.skipgram import NegativeSampling, SkipGram
from whence.tasks.words.text_format import read_vectors, write_vectors
from whence.tasks.words.training import WordTraining
from whence.tasks.words.vocabulary import Vocabulary

__all__ = ["WordEmbedding", "load_words", "train_words"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WordEmbedding:
    """Word vectors. Made by `train_words` or `load_words`.

    Args:
        model: Both tables of vectors.
        corpus: What they were trained on; None for vectors that were loaded.
        training: How; None for vectors that were loaded.
        seed: Of the training.
        trace: Mean training loss of every epoch, as each batch was met.
    """

    model: SkipGram
    corpus: WordCorpus | None = field(default=None)
    training: WordTraining | None = field(default=None)
    seed: int = 0
    trace: Sequence[float] = field(default=(), repr=False)

    def __repr__(self) -> str:
        """Return sizes and the last loss."""
        last = f", loss {self.trace[-1]:.4g} nats" if self.trace else ""
        return f"WordEmbedding({len(self.vocabulary):,} words, width {self.model.width}{last})"

    @property
    def vocabulary(self) -> Vocabulary:
        """The words."""
        return self.model.vocabulary

    @property
    def vectors(self) -> Tensor:
        """The vectors [V, d]: the table of inputs."""
        return self.model.inputs.weight.detach()

    def vector(self, word: str) -> Tensor:
        """Return the vector of a word [d].

        Raises:
            ConfigError: The word has none.
        """
        return self.vectors[self.vocabulary.position(word)]

    @cached_property
    def directions(self) -> Tensor:
        """The vectors at length 1 [V, d]; a vector of zeros stays."""
        return torch.nn.functional.normalize(self.vectors, dim=1)

    def nearest(self, word: str, k: int = 10) -> pd.DataFrame:
        """Return the words whose vectors point the same way.

        Args:
            word: A word of the vocabulary.
            k: How many.

        Returns:
            ``word`` and ``similarity``, the cosine in [−1, 1], most similar first; the word itself is left out.

        Raises:
            ConfigError: The word has no vector, or k is less than 1.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        row = self.vocabulary.position(word)
        cosines = self.directions @ self.directions[row]
        cosines[row] = -torch.inf
        found = cosines.topk(min(k, len(cosines) - 1))
        words = [self.vocabulary.words[i] for i in found.indices.tolist()]
        return pd.DataFrame({"word": words, "similarity": found.values.double().numpy()})

    def task(self, measurement: Any = None, *, total_decay: float | None = None) -> Task:
        r"""Return the task whose training loss is skip-gram's, to be fitted to ``corpus.examples``.

        Args:
            measurement: What is asked: `WordSimilarity`, or any callable ``(model) -> scalar``; then ``scores()`` takes
                no queries. None is the training loss of queries.
            total_decay: ρ of (ρ/2)‖θ‖² next to the summed loss; that of the training by default.

        Raises:
            ConfigError: The vectors were loaded without a corpus, and no decay is given.

        Cost: nothing. Fit it with `RowBlocks`, which retraining agrees with best and which takes one pass.

        Example:
            >>> import whence as wh
            >>> texts = ["the cat sat on the mat", "a dog lay by the door"]
            >>> corpus = wh.word_corpus(texts, min_count=1, subsample=None)
            >>> task = wh.train_words(corpus, width=8).task(wh.WordSimilarity("cat", "dog"))
            >>> scores = wh.Influence(curvature=wh.RowBlocks()).fit(task, corpus.examples).scores()
            >>> scores.ids.tolist()
            ['0:0', '1:0']
        """
        if total_decay is None:
            total_decay = self._trained()[1].total_decay
        return Task(self.model, NegativeSampling(), measurement=measurement, total_decay=total_decay)

    def recipe(self, **changes: Any) -> Recipe:
        """Return how these vectors were trained, to be replayed without some examples: `Retraining`, `leave_group_out`.

        Args:
            changes: Settings of `WordTraining` to change.

        Raises:
            ConfigError: The vectors were loaded, or a setting is unknown.
        """
        corpus, training = self._trained()
        return word_recipe(corpus, WordTraining(**{**vars(training), **changes}))

    def save(self, path: str | Path) -> None:
        """Write the vectors in word2vec's text format, compressed if the name ends in ``.gz``; see `load_words`."""
        write_vectors(path, self.vocabulary.words, self.vectors.double().numpy())

    def _trained(self) -> tuple[WordCorpus, WordTraining]:
        """Return corpus and training.

        Raises:
            ConfigError: There are none.
        """
        if self.corpus is None or self.training is None:
            raise ConfigError(
                "the vectors must have been trained here to be explained by their text, got vectors that were loaded. "
                "Train them with train_words(word_corpus(texts))."
            )
        return self.corpus, self.training


@dataclass(frozen=True)
class _Replay:
    """The training loop that a recipe calls."""

    vocabulary: Vocabulary
    window: int
    training: WordTraining

    def __call__(
        self, examples: Examples, *, weights: Tensor, seed: int, start: SkipGram | None = None
    ) -> SkipGram:  # fmt: skip
        """Return a trained model."""
        return self.trained(examples, weights, seed, start)[0]

    def trained(
        self, examples: Examples, weights: Tensor, seed: int, start: SkipGram | None
    ) -> tuple[SkipGram, list[float]]:
        """Return a trained model and its trace."""
        if start is None:
            model = SkipGram(self.vocabulary, width=self.training.width, window=self.window)
            self.training.begin(model, seed)
        else:
            model = copy.deepcopy(start)
        return model, self.training.run(model, examples, weights, seed)


def word_recipe(corpus: WordCorpus, training: WordTraining) -> Recipe:
    """Return the recipe of a training on a corpus."""
    replay = _Replay(corpus.vocabulary, corpus.window, training)
    return Recipe(train=replay, loss=NegativeSampling(), weight_decay=training.total_decay / len(corpus))


def train_words(  # noqa: PLR0913 - training is its list of settings
    corpus: WordCorpus, *, width: int = 100, epochs: int = 15, rate: float = 0.1, total_decay: float = 1.0,
    batch_size: int = 256, seed: int = 0, exclude: Sequence[Any] | np.ndarray = (), weights: Tensor | None = None,
    start: SkipGram | None = None,
) -> WordEmbedding:  # fmt: skip
    r"""Return word vectors trained by skip-gram with negative sampling.

    J(θ) = (1/N) Σ_i ℓ_i(θ) + (ρ/2N) ‖θ‖², ℓ_i as in `WordCorpus`, by Adagrad; see `WordTraining`.

    Args:
        corpus: The text, from `word_corpus`.
        width: Numbers a vector.
        epochs: Passes over the examples.
        rate: Step size; falls linearly to a hundredth.
        total_decay: ρ, next to the summed loss. A word of few occurrences has short vectors.
        batch_size: Examples a step.
        seed: Of the first vectors and the order.
        exclude: Ids of examples to leave out.
        weights: Weights [N] in row order, 1 by default.
        start: A model to go on from (not changed) instead of new vectors.

    Returns:
        The vectors, with what they were trained on.

    Raises:
        ConfigError: A setting is out of range.
        DataError: An id is not among the examples.
        NumericalError: The loss becomes non-finite.

    Cost: ``epochs`` passes; a sentence of T words takes about 6·T·(T + M)·d multiplications, M = 2·window·K ≤ 30 by
        default. Memory: four tables [V, d].
    Reference: Mikolov et al. (2013); deviations in `word_corpus` and `WordTraining`.

    Example:
        >>> import whence as wh
        >>> corpus = wh.word_corpus(["the cat sat on the mat", "a dog lay by the door"], min_count=1, subsample=None)
        >>> words = train_words(corpus, width=8, epochs=2)
        >>> words.nearest("cat", 2).columns.tolist()
        ['word', 'similarity']
    """
    training = WordTraining(
        width=width, epochs=epochs, rate=rate, total_decay=total_decay, batch_size=batch_size
    )  # fmt: skip
    weights = torch.ones(len(corpus)) if weights is None else weights.clone().float()
    if weights.shape != (len(corpus),) or not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ConfigError(f"weights must be {len(corpus)} finite numbers of at least zero, got {tuple(weights.shape)}.")
    if len(exclude):
        weights[torch.from_numpy(corpus.examples.rows_of(exclude))] = 0.0
    if not float(weights.sum()) > 0:
        raise ConfigError("at least one example must have a positive weight. Exclude fewer examples.")
    if start is not None and (start.vocabulary is not corpus.vocabulary or start.window != corpus.window):
        raise ConfigError("start must be a model of the same corpus, got one of another vocabulary or window.")
    model, trace = _Replay(corpus.vocabulary, corpus.window, training).trained(corpus.examples, weights, seed, start)
    return WordEmbedding(model=model.eval(), corpus=corpus, training=training, seed=seed, trace=trace)


def load_words(path: str | Path) -> WordEmbedding:
    r"""Return vectors from a file in word2vec's text format.

    A line with the number of words and of columns, then one line a word: the word and its numbers, with spaces between.

    Args:
        path: The file; compressed if its name ends in ``.gz``.

    Raises:
        DataError: The file cannot be read, counts differ from the first line, a word occurs twice, or a value is no
            finite number; the message names the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "two.txt"
        >>> _ = path.write_text("2 3\ncat 1 0 0\ndog 1 1 0\n")
        >>> load_words(path).nearest("cat", 1).word.tolist()
        ['dog']
    """
    words, vectors = read_vectors(path)
    vocabulary = Vocabulary(words, np.zeros(len(words), dtype=np.int64))
    model = SkipGram(vocabulary, width=vectors.shape[1], window=1)
    with torch.no_grad():
        model.inputs.weight.copy_(torch.from_numpy(vectors))
    return WordEmbedding(model=model.eval())
