"""A few real sentences, and what skip-gram's loss is, written pair by pair without the library."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import whence as wh

SMS = Path(__file__).parents[2] / "examples" / "data" / "sms_spam.csv.gz"


def messages(count: int) -> list[str]:
    """Return real texts that are part of the repository."""
    with gzip.open(SMS, "rt", encoding="utf-8", newline="") as file:
        return [row["text"] for row, _ in zip(csv.DictReader(file), range(count), strict=False)]


def small_corpus(unit: str = "sentence", count: int = 60, **settings: object) -> wh.WordCorpus:
    """Return a corpus of a few dozen words."""
    chosen = {"min_count": 4, "window": 2, "negatives": 2, "subsample": None, **settings}
    return wh.word_corpus(messages(count), unit=unit, **chosen)  # type: ignore[arg-type]


def double(words: wh.WordEmbedding) -> wh.WordEmbedding:
    """Return the same vectors in float64."""
    return wh.WordEmbedding(model=words.model.double(), corpus=words.corpus, training=words.training)


def pair_loss(corpus: wh.WordCorpus, row: int, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return one example's loss: Σ over pairs of −log σ(v·u) − (K/M) Σ_m log σ(−v·u_m), a pool every 32 places."""
    start, stop = corpus.spans[row].tolist()
    blocks = -(-(stop - start) // 32)
    noise = corpus.noise(np.array([row]), blocks)[0]
    total = inputs.sum() * 0
    for place in range(start, stop):
        if corpus.centres is not None and place != corpus.centres[row]:
            continue
        for other in range(start, stop):
            near = 0 < abs(place - other) <= corpus.window
            if not near or corpus.sentences[place] != corpus.sentences[other]:
                continue
            v, u = inputs[int(corpus.words[place])], outputs[int(corpus.words[other])]
            pool = outputs[torch.from_numpy(noise[(place - start) // 32])]
            total = total - F.logsigmoid(v @ u) - corpus.negatives * F.logsigmoid(-(pool @ v)).mean()
    return total


def mean_loss(corpus: wh.WordCorpus, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return the mean loss of all examples."""
    return torch.stack([pair_loss(corpus, row, inputs, outputs) for row in range(len(corpus))]).mean()
