"""What can be asked of word vectors: how near two words are, and why a word is in its cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from whence.errors import ConfigError
from whence.tasks.measurement import ModelMeasurement
from whence.tasks.words.skipgram import SkipGram

__all__ = ["ClusterMembership", "WordSimilarity"]


@dataclass(frozen=True)
class WordSimilarity(ModelMeasurement):
    r"""Why is this word near that one? cos(v_a, v_b), the cosine of two words' vectors.

    A positive score is of an example that keeps them apart: removing it brings them nearer.

    Args:
        word: A word a of the vocabulary.
        other: Another one b.

    Raises:
        ConfigError: Both are the same word. When it is measured: a word has no vector.

    Example:
        >>> WordSimilarity("king", "queen").name
        'similarity of king and queen'
    """

    word: str
    other: str
    name: str = field(init=False, repr=False)
    unit: str | None = field(default="cosine", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.word == self.other:
            raise ConfigError(f"other must be another word, got {self.word!r} twice: its cosine is always 1.")
        object.__setattr__(self, "name", f"similarity of {self.word} and {self.other}")

    def __call__(self, model: SkipGram) -> Tensor:
        """Return the cosine, a scalar."""
        rows = model.inputs.weight[model.vocabulary.rows([self.word, self.other])]
        return F.cosine_similarity(rows[0], rows[1], dim=0)


@dataclass(frozen=True)
class ClusterMembership(ModelMeasurement):
    r"""Why is this word in this cluster? mean_{m∈M} cos(v_w, v_m) − mean_{r∈R} cos(v_w, v_r).

    Clusters are given by words of theirs, which move with the training, not by a fixed centre: turning all vectors
    together changes nothing. A positive score is of an example that keeps the word out.

    Args:
        word: A word w of the vocabulary.
        members: Words of its cluster M.
        rivals: Words of the cluster that it might have been in R; none leaves the second mean out.

    Raises:
        ConfigError: There are no members, or the word is among them. When it is measured: a word has no vector.

    Example:
        >>> ClusterMembership("trumpet", ("violin", "flute"), ("rifle", "sword")).name
        'membership of trumpet with violin, flute'
    """

    word: str
    members: Sequence[str]
    rivals: Sequence[str] = ()
    name: str = field(init=False, repr=False)
    unit: str | None = field(default="cosine", init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.members, str) or not len(self.members) or self.word in {*self.members, *self.rivals}:
            raise ConfigError(f"members must be words other than {self.word!r}, at least one, got {self.members!r}.")
        object.__setattr__(self, "name", f"membership of {self.word} with {', '.join(self.members[:3])}")

    def __call__(self, model: SkipGram) -> Tensor:
        """Return the difference of mean cosines, a scalar."""
        own = self._mean(model, self.members)
        return own if not len(self.rivals) else own - self._mean(model, self.rivals)

    def _mean(self, model: SkipGram, others: Sequence[str]) -> Tensor:
        """Return the mean cosine of the word with others."""
        vectors = model.inputs.weight[model.vocabulary.rows([self.word, *others])]
        return F.cosine_similarity(vectors[:1], vectors[1:], dim=1).mean()
