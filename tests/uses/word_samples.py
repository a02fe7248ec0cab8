"""Word vectors without training, for tests of what needs vectors only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.tasks.words.skipgram import SkipGram
from whence.tasks.words.vocabulary import Vocabulary


@dataclass(frozen=True)
class Vectors:
    """An embedding that was never trained."""

    model: SkipGram

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.vocabulary

    @property
    def vectors(self) -> Tensor:
        return self.model.inputs.weight.detach()

    def vector(self, word: str) -> Tensor:
        return self.vectors[self.vocabulary.position(word)]


def random_vectors(words: list[str], width: int = 6, seed: int = 0) -> Vectors:
    """Return random vectors of some words, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = SkipGram(Vocabulary(words, np.zeros(len(words), dtype=np.int64)), width=width, window=1).double()
    with torch.no_grad():
        model.inputs.weight.copy_(torch.randn(len(words), width, generator=generator, dtype=torch.float64))
    return Vectors(model)
