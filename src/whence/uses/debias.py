"""Hard debiasing of word vectors: take a direction out of neutral words and make pairs differ in it alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from whence.errors import ConfigError, DataError
from whence.tasks.words.embedding import WordEmbedding
from whence.tasks.words.vocabulary import Vocabulary

__all__ = ["GENDER_PAIRS", "hard_debias"]

GENDER_PAIRS: tuple[tuple[str, str], ...] = (
    ("he", "she"), ("his", "her"), ("man", "woman"), ("male", "female"), ("father", "mother"), ("son", "daughter"),
    ("boy", "girl"), ("himself", "herself"), ("guy", "gal"), ("john", "mary"),
)  # fmt: skip
_SHOWN = 12


def hard_debias(
    words: WordEmbedding, pairs: Iterable[Sequence[str]], *, equalize: Iterable[Sequence[str]] | None = None,
    neutral: Iterable[str] | None = None, specific: Iterable[str] = (), components: int = 1,
) -> WordEmbedding:  # fmt: skip
    r"""Return an embedding without a direction of bias in its neutral words.

    The subspace B are the first principal directions of Σ_D Σ_{w∈D} (w − μ_D)(w − μ_D)ᵀ / |D| over the sets D of
    ``pairs``, vectors at length 1. Neutralise: w ← (w − w_B) / ‖w − w_B‖ for neutral words. Equalise: for each set E
    with mean μ and ν = μ − μ_B, w ← ν + √(1 − ‖ν‖²) (w_B − μ_B) / ‖w_B − μ_B‖, so that every neutral word is
    equally near to all words of E.

    Args:
        words: An embedding; it is not changed.
        pairs: Sets of words that differ in what is to be taken out: ("he", "she"), ("man", "woman"), … Those with a
            word that is not in the vocabulary are left out.
        equalize: Sets of words to make equally near to all neutral ones; by default ``pairs``.
        neutral: Words to neutralise; by default all but those of ``pairs``, ``equalize`` and ``specific``.
        specific: Words that keep the direction although they are in no pair, such as "grandfather".
        components: Dimensions of B.

    Returns:
        An embedding of vectors of length 1. Only the table of vectors is changed; the loss it was trained with has no
        part in it, so it is a baseline for removal and edits and says nothing of the training text.

    Raises:
        ConfigError: ``components`` is not between 1 and what the sets span.
        DataError: No set is in the vocabulary whole.

    Cost: one pass over the table.
    Reference: Bolukbasi, Chang, Zou, Saligrama & Kalai (2016), §6. As in their code, words other than those listed
        are neutral, and word by word vectors have length 1 before and after.

    Example:
        >>> import whence as wh
        >>> words = wh.train_words(wh.word_corpus(["he works and she works at home"] * 9, min_count=1), width=4)
        >>> fair = wh.hard_debias(words, [("he", "she")])
        >>> abs(float(fair.vector("works") @ (fair.vector("he") - fair.vector("she")))) < 1e-6
        True
    """
    vocabulary = words.vocabulary
    table = torch.nn.functional.normalize(words.vectors.detach().double(), dim=1)
    defining = _rows(vocabulary, pairs, "pairs")
    equal = defining if equalize is None else _rows(vocabulary, equalize, "equalize")
    basis = _subspace(table, defining, components)  # [K, d]
    kept = {row for group in (*defining, *equal) for row in group} | set(_places(vocabulary, specific))
    plain = [row for row in range(len(table)) if row not in kept] if neutral is None else _places(vocabulary, neutral)
    result = table.clone()
    result[plain] = torch.nn.functional.normalize(table[plain] - table[plain] @ basis.T @ basis, dim=1)
    for group in equal:
        result[group] = _equalized(table[group], basis)
    return _with_vectors(words, result)


def _subspace(table: Tensor, groups: list[list[int]], components: int) -> Tensor:
    """Return the first principal directions of the differences within groups [K, d]."""
    parts = [(table[group] - table[group].mean(0)) / len(group) ** 0.5 for group in groups]
    _, sizes, directions = torch.linalg.svd(torch.cat(parts), full_matrices=False)
    spanned = int((sizes > 1e-9 * sizes[0]).sum()) if float(sizes[0]) > 0 else 0
    if not 1 <= components <= spanned:
        raise ConfigError(f"components must be between 1 and {spanned}, which the pairs span, got {components}.")
    basis: Tensor = directions[:components]
    return basis


def _equalized(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return a set of words that share what lies outside the subspace and differ only within it."""
    mean = vectors.mean(0)
    inside = (vectors - mean) @ basis.T @ basis
    outside = mean - mean @ basis.T @ basis
    length = (1 - outside.square().sum()).clamp(min=0).sqrt()
    equal: Tensor = outside + length * torch.nn.functional.normalize(inside, dim=1)
    return equal


def _rows(vocabulary: Vocabulary, groups: Iterable[Sequence[str]], name: str) -> list[list[int]]:
    """Return the rows of the sets whose words are all there."""
    given = [list(group) for group in groups]
    if any(len(group) < 2 for group in given):
        raise ConfigError(f"{name} must be sets of at least two words, got {min(given, key=len)}.")
    whole = [group for group in given if all(word in vocabulary for word in group)]
    found = [[vocabulary.position(word) for word in group] for group in whole]
    if not found:
        told = [word for group in given for word in group if word not in vocabulary][:_SHOWN]
        raise DataError(f"{name} must hold a set whose words are all in the vocabulary, got none; not there: {told}.")
    return found


def _places(vocabulary: Vocabulary, words: Iterable[str]) -> list[int]:
    """Return the rows of those words that are there."""
    return [vocabulary.position(word) for word in dict.fromkeys(words) if word in vocabulary]


def _with_vectors(words: WordEmbedding, vectors: Tensor) -> WordEmbedding:
    """Return a copy of an embedding with another table."""
    model = copy.deepcopy(words.model)
    with torch.no_grad():
        model.inputs.weight.copy_(vectors)
    return replace(words, model=model)
