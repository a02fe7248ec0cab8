"""Sequences token by token: every labelled position an example of its own, and the class-based reduction over tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples, as_examples
from whence.errors import ConfigError, DataError
from whence.scores import Signal
from whence.uses.class_based import class_based

__all__ = ["Tokens", "class_based_tokens", "tokens"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Labelled tokens of sequences.

    Args:
        examples: One a token [M], with ids "sequence:position": the whole sequence as input, and targets that are
            ignored everywhere else, so that its loss is that token's.
        tags: The token's target [M].
        sequences: Id of its sequence [M].
        positions: Where in the sequence it stands [M].
    """

    examples: Examples
    tags: np.ndarray
    sequences: np.ndarray
    positions: np.ndarray

    def __repr__(self) -> str:
        """Return the counts."""
        return f"Tokens({len(self.tags):,} of {len(np.unique(self.sequences)):,} sequences)"

    def __len__(self) -> int:
        """Return the number of tokens M."""
        return len(self.tags)


def tokens(data: Any, *, ignore_index: int = -100) -> Tokens:
    r"""Return every labelled token of sequences as an example of its own.

    The loss of a sequence is the sum over its tokens, ℓ_i = Σ_t ℓ_it, so gradients and scores of its tokens add up to
    its own (for methods that are linear in the gradient). Attribution fitted to tokens has J = the mean over tokens,
    as token classification and language models are trained, and a score predicts what leaving one token's label out
    does, the sequence still being read.

    Args:
        data: Sequences with targets [N, T]: anything that `as_examples` takes; inputs as the model reads them.
        ignore_index: Target of positions that do not count (padding, word pieces).

    Raises:
        ConfigError: Targets are not [N, T].
        DataError: No token is labelled.

    Cost: no copy of the inputs; a pass over M tokens reads M whole sequences.

    Example:
        >>> found = tokens((torch.zeros(2, 3), torch.tensor([[1, 0, -100], [2, -100, -100]])))
        >>> found.examples.ids.tolist(), found.tags.tolist()
        (['0:0', '0:1', '1:0'], [1, 0, 2])
    """
    examples = as_examples(data)
    targets = examples.targets
    if targets is None or targets.ndim != 2 or targets.is_floating_point():
        got = "none" if targets is None else f"{targets.dtype} {tuple(targets.shape)}"
        raise ConfigError(f"targets must be one integer a token [N, T], got {got}. Pass (inputs, labels [N, T]).")
    rows, positions = (place.numpy() for place in torch.nonzero(targets != ignore_index, as_tuple=True))
    if not len(rows):
        raise DataError(f"sequences must have labelled tokens, got none: every target is {ignore_index}.")
    sequences = examples.ids[rows]
    ids = np.array([f"{name}:{place}" for name, place in zip(sequences.tolist(), positions.tolist(), strict=True)])

    def fetch(wanted: np.ndarray) -> tuple[Any, Tensor]:
        inputs, whole = examples.fetch(rows[wanted])
        assert whole is not None
        alone = torch.full_like(whole, ignore_index)
        at = torch.arange(len(wanted)), torch.from_numpy(positions[wanted])
        alone[at] = whole[at]
        return inputs, alone

    return Tokens(
        examples=Examples(ids=ids, fetch=fetch, prepared=examples.prepared),
        tags=targets.numpy()[rows, positions], sequences=sequences, positions=positions,
    )  # fmt: skip


def class_based_tokens(
    source: Any, reference: Any, *, tags: Any = None, ignore_index: int = -100,
    reduction: Literal["class", "mean"] = "class",
) -> Signal:  # fmt: skip
    r"""Return how harmful training examples are to reference tokens, tag by tag [N]: larger = suspect.

    harm_i = −min_c (1/|Z'_c|) Σ_{(t, τ): tag c} s((t, τ), i), over the labelled tokens τ of reference sequences t. The
    training examples are what ``source`` was fitted to: sequences, or single tokens (`tokens`), which tells the
    mislabelled token of a sentence.

    Args:
        source: An attribution: anything with ``.scores(queries)`` and ``.ids``.
        reference: Sequences known to be right, with targets [Q, T]; or their `Tokens`.
        tags: Another class for every token [Q, T] or [M], such as parts of speech where targets are words; by default
            the targets.
        ignore_index: As in `tokens`.
        reduction: As in `class_based`.

    Returns:
        A `Signal` in the scores' unit.

    Raises:
        ConfigError: As `tokens`.
        DataError: There are not as many tags as tokens.

    Cost: as many queries as tokens, some at a time; C·N numbers are held.

    Reference: Nguyen-Duc et al. (2023), §4.4 (named entities); the released code's slice for it picks wrong rows.

    Example:
        >>> from whence.tasks import Task
        >>> from whence.methods import GradientDot
        >>> train = (torch.randn(6, 4, 3), torch.randint(0, 2, (6, 4)))
        >>> fitted = GradientDot().fit(Task(torch.nn.Linear(3, 2)), tokens(train).examples)
        >>> class_based_tokens(fitted, train).values.shape
        (24,)
    """
    found = reference if isinstance(reference, Tokens) else tokens(reference, ignore_index=ignore_index)
    labels = found.tags
    if tags is not None:
        labels = np.asarray(tags)
        if labels.ndim == 2 and not isinstance(reference, Tokens):
            rows = as_examples(reference).rows_of(found.sequences)
            fits = labels.shape[0] == len(as_examples(reference)) and labels.shape[1] > int(found.positions.max())
            labels = labels[rows, found.positions] if fits else labels
        if labels.shape != found.tags.shape:
            raise DataError(f"tags must be one a token ([Q, T] or {len(found)}), got shape {labels.shape}.")
    return class_based(source, found.examples, labels=labels, reduction=reduction)
