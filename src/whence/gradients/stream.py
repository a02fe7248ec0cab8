"""Streaming passes over per-example gradients, chunk by chunk, in row order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.data import Batch, Examples, uniform
from whence.errors import ConfigError, NumericalError
from whence.gradients.autograd import parameter_gradients
from whence.gradients.capture import Tape, plainly, record
from whence.gradients.factors import Gradients
from whence.gradients.layers import Coverage, Layer, fallback_gradients
from whence.gradients.probes import recorded_layers
from whence.tasks import Task

__all__ = [
    "Chunk",
    "Fisher",
    "GradientStream",
    "check_capture",
    "chunk_size",
    "decay_grids",
]

Fisher = Literal["auto", "sampled", "exact", "empirical"]
_LAYER_BYTES = 8 * 2**20  # of one layer's factors of a chunk
_CHUNK_BYTES = 48 * 2**20  # of all layers'
_LARGEST_CHUNK = 1024
_SIZED = 64  # examples whose sizes are looked at
_EXACT_CLASSES = 4
_PROBES = ((0, 30), (10, 20), (3, 25), (7, 15), (1, 29))  # pairs of rows that are checked, in thirtieths of the data


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some consecutive examples after one recorded forward pass."""

    rows: np.ndarray
    batch: Batch
    task: Task
    tape: Tape
    outputs: Tensor | None
    losses: Tensor

    @property
    def span(self) -> slice:
        """The row positions as a slice."""
        return slice(int(self.rows[0]), int(self.rows[-1]) + 1)

    def training(self, *, keep: bool = False) -> Gradients:
        """Return the gradients of the training loss."""
        return self._complete(self.tape.gradients(self.losses, keep=keep), None)

    def seeded(self, seeds: Tensor, *, keep: bool = True) -> Gradients:
        """Return the gradients of the outputs contracted with ``seeds`` [B, ...]."""
        assert self.outputs is not None
        return self._complete(self.tape.gradients(self.outputs, seeds, keep=keep), seeds)

    def _complete(self, hooked: Gradients, seeds: Tensor | None) -> Gradients:
        """Return the gradients of all layers in order, those without a factored form by another pass."""
        rest = [layer for layer in self.tape.layers if not layer.uses]
        if rest:
            with plainly(self.task.model):
                others = fallback_gradients(self.task, self.batch, rest, self.outputs, seeds)
            hooked = Gradients({layer.name: {**hooked.layers, **others}[layer.name] for layer in self.tape.layers})
        return hooked if self.task.dtype.itemsize >= 4 else hooked.to(self.task.gradient_dtype)


@dataclass(frozen=True, eq=False)
class GradientStream:
    """Passes over the gradients of a task's training examples.

    Args:
        task: Model and loss; the model should be in evaluation mode (`Task.evaluating`).
        layers: Attributed layers.
        examples: The training examples.
        chunk: Examples a chunk.
        budget: Bytes of gradients that may be kept in memory between passes.
        what: What is differentiated, for messages.
    """

    task: Task
    layers: tuple[Layer, ...]
    examples: Examples
    chunk: int
    budget: int = 0
    what: str = "training loss"
    _kept: list[tuple[slice, Gradients]] = field(default_factory=list, repr=False)
    _recorded: dict[Any, tuple[Layer, ...]] = field(default_factory=dict, init=False, repr=False)

    def recorded(self, batch: Batch) -> tuple[Layer, ...]:
        """Return the layers as they are recorded; see `recorded_layers`. The first batch of its shape tells.

        The positions of a transformer are called once with as many rows as a batch is long.
        """
        key = (len(batch) > 1, batch.shapes)
        if key not in self._recorded:
            self._recorded[key] = recorded_layers(self.task, self.layers, batch)
        return self._recorded[key]

    def chunks(self) -> Iterator[Chunk]:
        """Yield every chunk with its forward pass recorded. Cost: one forward pass over the data."""
        for start in range(0, len(self.examples), self.chunk):
            rows = np.arange(start, min(start + self.chunk, len(self.examples)))
            yield self.run(self.examples.batch(rows), rows)

    def training_gradients(self) -> Iterator[tuple[slice, Gradients]]:
        """Yield (rows, gradients of the training loss) in row order; kept in memory if all fit the budget."""
        if self.holds_all:
            yield from self._kept
            return
        for chunk in self.chunks():
            gradients = chunk.training()
            self.remember(chunk, gradients)
            yield chunk.span, gradients

    @property
    def holds_all(self) -> bool:
        """Whether the gradients of all examples are in memory."""
        return bool(self._kept) and self._kept[-1][0].stop == len(self.examples)

    def remember(self, chunk: Chunk, gradients: Gradients) -> None:
        """Keep a chunk's training gradients for later passes, if those of all chunks fit the budget."""
        if chunk.span.start == 0:
            self._kept.clear()
        follows = self._kept[-1][0].stop if self._kept else 0
        if chunk.span.start == follows and self.fits(gradients):  # no gaps: chunks may differ in size
            self._kept.append((chunk.span, gradients.compact()))

    def fits(self, *gradients: Gradients) -> bool:
        """Whether such gradients of all examples fit the budget."""
        itemsize = torch.empty((), dtype=self.task.gradient_dtype).element_size()
        return sum(g.compact_numbers for g in gradients) * itemsize * len(self.examples) <= self.budget

    def run(self, batch: Batch, rows: np.ndarray) -> Chunk:
        """Return one batch with its forward pass recorded."""
        batch = self.task.place(batch)
        with self.task.evaluating(), record(self.task.model, self.recorded(batch), len(batch)) as tape:
            outputs = self.task.forward(batch) if self.task.smooth_loss is not None else None
            losses = self.task.losses(batch, outputs)
        _check_losses(losses, batch, self.what)
        return Chunk(rows=rows, batch=batch, task=self.task, tape=tape, outputs=outputs, losses=losses)

    def fisher(self, chunk: Chunk, kind: Fisher, seed: int, *, keep: bool = False) -> list[Gradients]:
        r"""Return gradients whose outer products sum to the chunk's part of the Fisher matrix.

        Args:
            chunk: One of `chunks`.
            kind: "sampled" (one label an example, drawn from the model, keyed by (seed, id)), "exact" (the
                expectation over classes, as many backward passes), "empirical" (the given labels), "auto":
                exact for at most 4 outputs, else sampled; empirical where the loss is a bare callable.
            seed: Seed of the labels.
            keep: Keep the graph.
        """
        kind = self.resolve(kind, chunk)
        if kind == "empirical":
            return [chunk.training(keep=keep)]
        loss, outputs, targets = self.task.smooth_loss, chunk.outputs, chunk.batch.targets
        assert loss is not None and outputs is not None and targets is not None
        detached = outputs.detach()
        if kind == "exact":
            roots = loss.roots(detached, targets)
            return [chunk.seeded(root, keep=keep or i + 1 < len(roots)) for i, root in enumerate(roots)]
        draws = [uniform(chunk.batch.keys, seed, stream) for stream in range(loss.draws(detached))]
        uniforms = torch.from_numpy(np.stack(draws, 1)).to(outputs.device)
        return [chunk.seeded(loss.sample(detached, targets, uniforms).to(outputs.dtype), keep=keep)]

    def resolve(self, kind: Fisher, chunk: Chunk) -> Fisher:
        """Return the kind of Fisher matrix that "auto" stands for here."""
        if kind == "empirical" or self.task.smooth_loss is None:
            if kind in ("sampled", "exact"):
                raise ConfigError(
                    f'fisher="{kind}" needs a loss with a likelihood, got {self.task.loss!r}. '
                    'Name the loss, or use fisher="empirical".'
                )
            return "empirical"
        if kind != "auto":
            return kind
        outputs = chunk.outputs
        assert outputs is not None
        return "exact" if outputs.ndim <= 2 and outputs[0].numel() <= _EXACT_CLASSES else "sampled"


def chunk_size(task: Task, layers: tuple[Layer, ...], examples: Examples) -> int:
    """Return how many examples keep a chunk's factors of each layer near 8 MiB, so that buffers stay in cache.

    Counted as if all were as large as the largest of a few: texts differ in length, and batches are padded.
    """
    some = np.unique(np.linspace(0, len(examples) - 1, _SIZED).astype(np.int64))
    sizes = [examples.batch(row).numbers for row in some[:, None]]
    row = some[[int(np.argmax(sizes))]]
    gradients = GradientStream(task, layers, examples, 1).run(examples.batch(row), row).training()
    itemsize = torch.empty((), dtype=task.gradient_dtype).element_size()
    largest = max(factor.numbers for factor in gradients.layers.values())
    fitting = min(_LAYER_BYTES // (largest * itemsize), _CHUNK_BYTES // (gradients.numbers * itemsize))
    return int(np.clip(fitting, 1, _LARGEST_CHUNK))


def decay_grids(task: Task, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return the weight decay of every parameter, one matrix [O, I] in float64 a layer."""
    grids = {}
    for layer in layers:
        values = {piece.name: task.decay_of(piece.name) for piece in layer.slot.pieces}
        parameters = {piece.name: piece.parameter.detach() for piece in layer.slot.pieces}
        filled = {name: torch.full_like(p, values[name], dtype=torch.float64) for name, p in parameters.items()}
        grids[layer.name] = layer.join(filled)
    return grids


def check_capture(task: Task, coverage: Coverage, examples: Examples) -> None:
    """Compare two examples' captured gradients with plain autograd, and two others' where a layer's are zero.

    Compared are the gradients of the training loss and, because those of a model that fits its data may vanish, of the
    model's outputs contracted with random numbers.

    Raises:
        ConfigError: They differ; the message names the layers (a weight used outside its module, say).
    """
    last = len(examples) - 1
    unseen = {layer.name for layer in coverage.layers}
    for parts in _PROBES:
        rows = np.unique([last * part // 30 for part in parts])
        unseen -= _checked(task, coverage, examples, rows)
        if not unseen:
            return


def _checked(task: Task, coverage: Coverage, examples: Examples, rows: np.ndarray) -> set[str]:
    """Compare some rows' gradients; return the layers that had any."""
    stream = GradientStream(task, coverage.layers, examples, len(rows))
    chunk = stream.run(examples.batch(rows), rows)
    singles = [chunk.batch.row(position) for position in range(len(rows))]
    tolerance = _tolerance(chunk)
    truth = [parameter_gradients(task, "loss", one) for one in singles]
    alive = _compare(coverage, chunk.training(keep=True), truth, tolerance)
    probe = chunk if chunk.outputs is not None else _outputs_of_model(stream, chunk)
    if probe is None or probe.outputs is None:
        return alive
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randn(probe.outputs.shape, generator=generator, dtype=torch.float64).to(probe.outputs)
    truth = [parameter_gradients(task, "outputs", one, seeds[i : i + 1]) for i, one in enumerate(singles)]
    return alive | _compare(coverage, probe.seeded(seeds, keep=False), truth, tolerance)


def _outputs_of_model(stream: GradientStream, chunk: Chunk) -> Chunk | None:
    """Return a chunk with what the model gives for the inputs; None if that is nothing that all layers take part in.

    A loss that is a callable may call the model in a way of its own.
    """
    with stream.task.evaluating(), record(stream.task.model, stream.recorded(chunk.batch), len(chunk.batch)) as tape:
        try:
            outputs = stream.task.forward(chunk.batch)
            made = replace(chunk, tape=tape, outputs=outputs)
            made.seeded(torch.ones_like(outputs))
        except Exception:  # a user's model may raise anything when it is called in another way than the loss does
            return None
    return made if len(outputs) == len(chunk.batch) else None


def _tolerance(chunk: Chunk) -> float:
    """Return the relative error that rounding explains, by the coarsest type that was computed in."""
    types = (chunk.tape.coarsest, chunk.losses.dtype, chunk.task.dtype)
    return max({torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2}.get(dtype, 0.15) for dtype in types)


def _compare(
    coverage: Coverage, captured: Gradients, truth: Sequence[dict[str, Tensor]], tolerance: float
) -> set[str]:
    """Raise if captured gradients differ from the true ones by more than rounding; return the layers that have any."""
    wrong: dict[str, float] = {}
    alive: set[str] = set()
    largest = max(float(gradient.abs().max()) for one in truth for gradient in one.values() if gradient.numel())
    for layer in coverage.layers:
        for position, true in enumerate(truth):
            ours = captured.layers[layer.name].rows(slice(position, position + 1)).matrix()[0].double()
            theirs = layer.join(true).double()
            error, size = float((ours - theirs).norm()), float(theirs.norm())
            alive |= {layer.name} if size > 0 else set()
            if not error <= tolerance * size + tolerance * 1e-3 * largest * theirs.numel() ** 0.5:
                wrong[layer.name] = max(wrong.get(layer.name, 0.0), error / max(size, 1e-300))
    if wrong:
        name, error = next(iter(wrong.items()))
        others = f" (also of {list(wrong)[1:6]})" if len(wrong) > 1 else ""
        raise ConfigError(
            f"captured gradients of layer {name!r}{others} must equal autograd's, got a relative error of {error:.2g}. "
            "Its weight is used outside the module or examples of a batch interact; leave it out with layers=."
        )
    return alive


def _check_losses(losses: Tensor, batch: Batch, what: str) -> None:
    """Raise if a loss or measurement is not finite."""
    bad = (~torch.isfinite(losses)).nonzero().reshape(-1)
    if len(bad):
        first = int(bad[0])
        raise NumericalError(
            f"{what} must be finite, got {losses[first].item()} for example {batch.ids.tolist()[first]!r}. "
            "Check that example's inputs and target."
        )
