"""Training of skip-gram: sparse steps that a seed fixes, so that leaving examples out can be replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Examples
from whence.errors import ConfigError, NumericalError
from whence.tasks.words.skipgram import NegativeSampling, SkipGram, logits_of

__all__ = ["WordTraining"]

_POOL = 32  # batches among which examples are sorted by length
_FLOOR = 1e-8


@dataclass(frozen=True, kw_only=True)
class WordTraining:
    r"""How vectors are trained: Adagrad on J(θ) = Σ_i w_i ℓ_i(θ) / Σ_i w_i + (λ/2)‖θ‖², λ = ``total_decay`` / Σ_i w_i.

    A step moves only the rows that its examples hold. The decay of a row is dealt out over its occurrences, so that an
    epoch gives each row its whole decay. Leaving an example out is weight 0: batches, noise words, the first vectors
    and the decay stay as they were, and the same call gives the same bytes.

    Args:
        width: Numbers a vector.
        epochs: Passes over the examples.
        rate: Step size of Adagrad; it falls linearly to a hundredth of it at the end.
        total_decay: ρ of (ρ/2)‖θ‖² next to the *summed* loss; see `Task`.
        batch_size: Examples a step.

    Reference: Duchi, Hazan & Singer (2011) for Adagrad; word2vec.c takes plain steps instead and has no decay.
    """

    width: int = 100
    epochs: int = 15
    rate: float = 0.1
    total_decay: float = 1.0
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("epochs", self.epochs), ("batch_size", self.batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}.")
        if not 0 < self.rate < float("inf"):
            raise ConfigError(f"rate must be positive, got {self.rate}.")
        if not 0 <= self.total_decay < float("inf"):
            raise ConfigError(f"total_decay must be zero or positive, got {self.total_decay}.")

    def begin(self, model: SkipGram, seed: int) -> None:
        """Give a model its first vectors: inputs uniform in ±1/(2d), outputs zero, as word2vec does."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            model.inputs.weight.uniform_(-0.5 / self.width, 0.5 / self.width, generator=generator)
            model.outputs.weight.zero_()

    def run(self, model: SkipGram, examples: Examples, weights: Tensor, seed: int) -> list[float]:
        """Train a model in place; return the mean loss of every epoch, as it was when each batch was met.

        Raises:
            NumericalError: The loss becomes non-finite.
        """
        tables = [_Table(model.inputs, self), _Table(model.outputs, self)]
        lengths = _lengths(examples, tables, self.batch_size)
        steps, done, trace = self.epochs * -(-len(examples) // self.batch_size), 0, []
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(1, self.epochs + 1):
            total = 0.0
            for rows in _batches(lengths, self.batch_size, generator):
                rate = self.rate * (1 - 0.99 * done / steps)
                total += self._step(model, tables, examples, rows, weights, rate)
                done += 1
            if not np.isfinite(total):
                raise NumericalError(f"training loss must stay finite, got {total} in epoch {epoch}. Lower the rate.")
            trace.append(total / float(weights.sum()))
        return trace

    def _step(
        self, model: SkipGram, tables: list[_Table], examples: Examples, rows: np.ndarray, weights: Tensor, rate: float
    ) -> float:
        """Move the rows that some examples hold; return their summed loss."""
        (words, noise), y = examples.fetch(rows)
        assert y is not None
        dtype = model.inputs.weight.dtype
        y = y.to(dtype)
        inside = (y != 0).any(2)  # [B, T]
        others = torch.cat([words, noise.flatten(1)], 1)
        counted = torch.cat([inside, inside.any(1, keepdim=True).expand(-1, noise.shape[1] * noise.shape[2])], 1)
        gathered = [tables[0].gather(words), tables[1].gather(others)]
        logits = logits_of(gathered[0], gathered[1], model.window, noise.shape[1])
        losses = NegativeSampling()(logits, y) * weights[torch.from_numpy(rows)].to(dtype)
        total = losses.sum()
        gradients = torch.autograd.grad(total, gathered)
        for table, index, held, gradient in zip(tables, (words, others), (inside, counted), gradients, strict=True):
            table.step(index, held, gradient, rate)
        return float(total.detach())


class _Table:
    """One table with Adagrad's sums of squares, and how often each row is met in an epoch."""

    def __init__(self, module: nn.Embedding, training: WordTraining) -> None:
        self.weight = module.weight.detach()
        self.decay = training.total_decay
        self.squares = torch.zeros_like(self.weight)
        self.met = torch.zeros(len(self.weight), dtype=torch.float64)

    def gather(self, index: Tensor) -> Tensor:
        """Return the rows at an index [B, T] as a leaf of a graph."""
        return self.weight[index].requires_grad_()

    def step(self, index: Tensor, held: Tensor, gradient: Tensor, rate: float) -> None:
        """Move the rows at an index [B, T] along gradients [B, T, d]; ``held`` are places that are no padding."""
        used, place = torch.unique(index, return_inverse=True)
        place = place.reshape(-1)
        sums = torch.zeros(len(used), gradient.shape[2], dtype=gradient.dtype)
        sums.index_add_(0, place, gradient.flatten(0, 1))
        times = torch.bincount(place, weights=held.reshape(-1).double(), minlength=len(used))
        share = (self.decay * times / self.met[used].clamp(min=1)).to(sums)
        rows, squares = self.weight[used], self.squares[used]
        sums.addcmul_(rows, share[:, None])
        squares.addcmul_(sums, sums)
        self.squares[used] = squares
        self.weight[used] = rows.addcdiv_(sums, squares.add_(_FLOOR).sqrt_(), value=-rate)


def _lengths(examples: Examples, tables: list[_Table], size: int) -> np.ndarray:
    """Return the words of every example [N], and count how often the tables' rows are met in an epoch."""
    found = []
    for start in range(0, len(examples), size):
        (words, noise), y = examples.fetch(np.arange(start, min(start + size, len(examples))))
        assert y is not None
        inside = (y != 0).any(2)
        count = len(tables[0].met)
        own = torch.bincount(words[inside], minlength=count)
        tables[0].met += own
        tables[1].met += own + torch.bincount(noise.reshape(-1), minlength=count)
        found.append(inside.sum(1).numpy())
    return np.concatenate(found)


def _batches(lengths: np.ndarray, size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Yield all rows once in random order, in batches of examples of about the same length."""
    order = torch.randperm(len(lengths), generator=generator).numpy()
    batches = []
    for start in range(0, len(order), size * _POOL):
        some = order[start : start + size * _POOL]
        some = some[np.argsort(lengths[some], kind="stable")]
        batches += [some[i : i + size] for i in range(0, len(some), size)]
    for number in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[number]
