"""What can be asked of word vectors: how near two words are, and why a word is in its cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from whence.tasks.measurement import ModelMeasurement
from whence.tasks.words.skipgram import SkipGram

__all__ = ["WordSimilarity"]


@dataclass(frozen=True)
class WordSimilarity(ModelMeasurement):
    r"""Why is this word near that one? cos(v_a, v_b), the cosine of two words' vectors.

    A positive score is of a sentence that keeps them apart: removing it brings them nearer.

    Args:
        word: A word a of the vocabulary.
        other: Another one b.

    Example:
        >>> WordSimilarity("king", "queen").name
        'similarity of king and queen'
    """

    word: str
    other: str
    name: str = field(init=False, repr=False)
    unit: str | None = field(default="cosine", init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"similarity of {self.word} and {self.other}")

    def __call__(self, model: SkipGram) -> Tensor:
        """Return the cosine, a scalar."""
        rows = model.inputs.weight[model.vocabulary.rows([self.word, self.other])]
        return F.cosine_similarity(rows[0], rows[1], dim=0)
