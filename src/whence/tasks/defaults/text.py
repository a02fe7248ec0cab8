"""The embedded default for texts: hashed word and character n-grams, reduced and whitened, and a perceptron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor

from whence.data import LabelledData
from whence.errors import DataError, RunFormatError
from whence.tasks.defaults.base import Default
from whence.tasks.defaults.perceptron import perceptron_config, perceptron_recipe
from whence.tasks.defaults.reduction import leading_directions

__all__ = ["TextPreparation", "text_default"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_BUCKETS = 2**18
_KEPT = 2**15
_DIMENSIONS = 384
_CHUNK = 4096
_LONGEST = 20_000
_EPOCHS = 30
_DECAY = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class TextPreparation:
    r"""Texts as vectors: hashed tf-idf counts X of words, word pairs and 4-character pieces, reduced to X V S⁻¹ √N.

    Counts are taken as 1 + log(count), weighted by inverse document frequency, and each of the two kinds (words,
    characters) has length 1 in every text. V holds the leading right singular vectors; dividing by the singular values
    S gives every direction the same weight, so that rare topics are not drowned by frequent ones.

    Args:
        buckets: Hash buckets in use [K], sorted; those of characters come after those of words.
        idf: Inverse document frequency [K].
        directions: V S⁻¹ √N [K, D], stored in half precision.
    """

    buckets: Tensor
    idf: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int = 0) -> tuple[TextPreparation, sp.csr_matrix]:
        """Choose buckets and directions; return the weighted counts of the texts too. Labels play no part.

        Args:
            texts: The texts; the 2¹⁵ buckets that occur in most of them (at least 2) are kept.
            seed: Seed of the random start of the reduction.

        Raises:
            DataError: No word or piece occurs in two texts.

        Cost: hashing, and about four products with the sparse counts and their transpose for 256 directions.
        """
        counts = _counts(texts)
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        least = 2 if len(texts) > 2 else 1
        often = np.argsort(-frequency, kind="stable")[:_KEPT]
        buckets = np.sort(often[frequency[often] >= least])
        if len(buckets) == 0:
            raise DataError("texts must share at least one word, got none in two texts. Check the text column.")
        idf = np.log((1 + len(texts)) / (1 + frequency[buckets])) + 1
        weighted = _weighted(counts[:, buckets], idf, buckets)
        dimensions = max(1, min(_DIMENSIONS, len(texts) // 2, len(buckets) - 1))
        rows, values = leading_directions(weighted, dimensions, seed)
        directions = rows / values * np.sqrt(len(texts))
        preparation = cls(
            buckets=torch.from_numpy(buckets.astype(np.int64)),
            idf=torch.from_numpy(idf.astype(np.float32)),
            directions=torch.from_numpy(np.ascontiguousarray(directions)).half(),
        )
        return preparation, weighted

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TextPreparation:
        """Return the preparation whose `state` this was."""
        if settings.get("hashed") != _BUCKETS or not {"buckets", "idf", "directions"} <= set(tensors):
            raise RunFormatError(f"a text preparation must be complete, got {sorted(tensors)}. Audit again.")
        return cls(buckets=tensors["buckets"], idf=tensors["idf"], directions=tensors["directions"])

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON-able settings and tensors."""
        tensors = {"buckets": self.buckets, "idf": self.idf, "directions": self.directions}
        return {"hashed": _BUCKETS}, tensors

    def transform(self, data: LabelledData) -> Tensor:
        """Return the vectors [N, D] in float32; an empty text is the zero vector.

        Raises:
            DataError: The data holds no texts.
        """
        if not isinstance(data.content, list):
            raise DataError(f"the data must hold texts, got {data.kind} rows. Name the text column with --text.")
        buckets, idf = self.buckets.numpy(), self.idf.numpy()
        parts = []
        for start in range(0, len(data.content), _CHUNK):
            counts = _counts(data.content[start : start + _CHUNK])
            parts.append(self.project(_weighted(counts[:, buckets], idf, buckets)))
        return torch.cat(parts)

    def project(self, weighted: sp.csr_matrix) -> Tensor:
        """Return weighted counts [N, K] as vectors [N, D]."""
        return torch.from_numpy((weighted @ self.directions.float().numpy()).astype(np.float32))


def text_default(data: LabelledData, seed: int = 0) -> Default:
    """Return the embedded default for texts, fitted to their words (not to their labels)."""
    if not isinstance(data.content, list):
        raise DataError(f"the default for texts needs texts, got {data.kind} data. Use the default of that kind.")
    preparation, weighted = TextPreparation.fit(data.content, seed)
    dimensions = preparation.directions.shape[1]
    network = perceptron_config(
        inputs=dimensions, classes=len(data.classes), hidden=(128,), input_dropout=0.4, dropout=0.5
    )
    return Default(
        name="text-mlp",
        description=f"Hashed words, word pairs and character pieces reduced to {dimensions} numbers, then a "
        "perceptron with one hidden layer of 128.",
        preparation=preparation,
        network=network,
        recipe=perceptron_recipe(network, rows=len(data), epochs=_EPOCHS, decay=_DECAY),
        inputs=preparation.project(weighted),
        counts=weighted,
        damping=100.0,
    )


def _counts(texts: Sequence[str]) -> sp.csr_matrix:
    """Return hashed counts [N, 2·buckets]: words and word pairs, then 4-character pieces within words."""
    common = {"n_features": _BUCKETS, "alternate_sign": False, "norm": None, "dtype": np.float32}
    words = HashingVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]+", **common)
    pieces = HashingVectorizer(analyzer="char_wb", ngram_range=(4, 4), **common)
    cut = [text[:_LONGEST] for text in texts]
    return sp.hstack([words.transform(cut), pieces.transform(cut)], format="csr")


def _weighted(counts: sp.csr_matrix, idf: Array, buckets: Array) -> sp.csr_matrix:
    """Return sublinear tf-idf with words and characters each of length 1 in every text."""
    weighted = counts.astype(np.float32)
    weighted.data = 1 + np.log(weighted.data)
    weighted = weighted @ sp.diags_array(idf.astype(np.float32))
    split = int(np.searchsorted(buckets, _BUCKETS))
    blocks = [_unit(block) for block in (weighted[:, :split], weighted[:, split:]) if block.shape[1]]
    return sp.hstack(blocks, format="csr")


def _unit(block: sp.csr_matrix) -> sp.csr_matrix:
    """Return the rows with length 1; empty rows stay empty."""
    norms = np.sqrt(np.asarray(block.multiply(block).sum(axis=1)).ravel())
    return sp.diags_array((1 / np.maximum(norms, 1e-12)).astype(np.float32)) @ block
