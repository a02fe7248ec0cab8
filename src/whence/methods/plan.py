"""What attribution will cost, before it is paid: from the model's shapes and a measured run on a few chunks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from whence.curvature import Damping, Exact, Relative, with_rank_of
from whence.data import Examples
from whence.errors import NumericalError
from whence.gradients import Coverage, chunk_size, find_layers, parameter_gradients
from whence.index import Block
from whence.methods.packed import pack
from whence.methods.saved import SHARD_BYTES, feature_bytes, write_attribution
from whence.notebook import card, facts
from whence.tasks import Task

if TYPE_CHECKING:
    from whence.methods.influence import Influence, InfluenceAttribution

__all__ = ["Plan", "plan", "plan_of"]

_QUERIES = 100
_SHORT, _LONG = 1, 3
_LARGEST_SHORT, _LARGEST_LONG = 1024, 3072
_CHUNK_COPIES = 6
_DAMPINGS = (Relative(1.0), Relative(1e3), 1.0, 1e6)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of an attribution, predicted.

    Args:
        examples: N.
        queries: Q.
        attributed: Parameters that are attributed.
        trainable: All trainable parameters.
        missed: Modules that are not attributed, with their number of parameters.
        seconds: Predicted time of "fit" (absent for a fitted attribution), "self_scores", "scores" (of Q queries)
            and "index" (building it, self-scores included).
        passes: The same in plain forward and backward passes over the training data, weight gradients included.
        memory: Predicted peak in bytes beside the model and the data, by what takes it.
        disk: Bytes of the tensors of an index, by storage type.
        measured: Examples that the micro-run used.
    """

    examples: int
    queries: int
    attributed: int
    trainable: int
    missed: tuple[tuple[str, int], ...]
    seconds: dict[str, float]
    passes: dict[str, float]
    memory: dict[str, int]
    disk: dict[str, int]
    measured: int

    @property
    def share(self) -> float:
        """Share of the trainable parameters that are attributed."""
        return self.attributed / max(1, self.trainable)

    def describe(self) -> str:
        """Return one line: the share that is attributed, and what cannot be with its share."""
        return Coverage((), self.attributed, self.trainable, self.missed).describe()

    def _repr_html_(self) -> str:
        """Return what it will cost for a notebook."""
        values = {
            "examples": self.examples, "queries": self.queries, "attributed": self.describe(),
            **{f"{name.replace('_', ' ')}, seconds": value for name, value in self.seconds.items()},
            "peak memory, MiB": self.peak_bytes / 2**20,
            **{f"index on disk as {name}, MiB": size / 2**20 for name, size in self.disk.items()},
        }  # fmt: skip
        return card("Plan · predicted cost", [facts(values)], [f"Timed on {self.measured:,} examples."])

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of fit and scores, beside the model and the data."""
        return sum(size for name, size in self.memory.items() if name != "index")

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {**asdict(self), "share": self.share, "peak_bytes": self.peak_bytes}


def plan(config: Influence, task: Task, train: Any, queries: Any = None) -> Plan:
    """Predict what fitting a config, scoring and indexing will cost.

    Args:
        config: What would be fitted.
        task: The task; its weights need not be trained yet.
        train: The training examples.
        queries: The queries; None stands for 100.

    Returns:
        Shares, seconds, passes, memory and disk. Times come from fits to one and to three chunks (at most 3,072
        examples), taken as a constant and a part that grows with N; the rank of a Kronecker curvature, and with it
        the time of scores, is extrapolated from both; curvatures whose solves depend on the data may take more. Where
        the curvature of so few examples is singular or indefinite, it is timed with a larger damping.

    Raises:
        ConfigError, NumericalError: As `Influence.fit` would, but never for what only a part of the examples lacks.

    Cost: two fits to at most 3,072 examples, and their scores.

    Example:
        >>> import whence as wh
        >>> train = (torch.randn(50, 3), torch.randint(0, 2, (50,)))
        >>> planned = wh.plan(wh.Influence(), wh.Task(torch.nn.Linear(3, 2)), train)
        >>> planned.share, planned.disk["float32"]
        (1.0, 2200)
    """
    examples = task.examples(train)
    queries = None if queries is None else task.examples(queries)
    task = replace(task.settled(examples), estimator=None)  # which would ask for all of its rows
    given = replace(config, curvature=_altered(config.curvature, None))
    try:
        return _measured(given, task, examples, queries)
    except NumericalError as error:
        for damping in _DAMPINGS:
            damped = replace(config, curvature=_altered(config.curvature, damping))
            if damped != given:
                with suppress(NumericalError):
                    return _measured(damped, task, examples, queries)
        raise error


def _measured(config: Influence, task: Task, examples: Examples, queries: Any) -> Plan:
    """Return the plan by fits to a few examples."""
    chunk = _chunk(config, task, examples)
    short = min(len(examples), max(2, min(_SHORT * chunk, _LARGEST_SHORT)))
    long = min(len(examples), max(2, min(_LONG * chunk, _LARGEST_LONG)))
    sized = replace(config, batch_size=min(chunk, short))
    first, smaller = _timed(lambda: sized.fit(task, _some(examples, short)))
    last, fitted = _timed(lambda: sized.fit(task, _some(examples, long)))
    tolerance = getattr(config.curvature, "rank_tolerance", None)
    if tolerance is not None:
        few, more = (short, smaller.preconditioner), (long, fitted.preconditioner)
        reduced = with_rank_of(len(examples), few, more, decay=task.weight_decay, tolerance=tolerance)
        fitted = replace(fitted, preconditioner=reduced)
    kept, probe = _kept_bytes(fitted, examples, config.memory_budget)
    slope = max(0.0, last - first) / max(1, long - short)
    if long == len(examples):
        slope, first, short = 0.0, last, 0
    seconds = {"fit": max(last, first + slope * (len(examples) - short))}
    return _planned(fitted, examples, queries, seconds, kept, probe)


def _chunk(config: Influence, task: Task, examples: Examples) -> int:
    """Return the examples of a chunk that `Influence.fit` takes."""
    if config.batch_size is not None:
        return config.batch_size
    double = isinstance(config.curvature, Exact) or getattr(config.curvature, "hessian", False)
    dtype = torch.float64 if config.dtype is None and double else config.dtype
    task = task if dtype is None else task.in_dtype(dtype)
    return chunk_size(task, find_layers(task.model, config.layers).layers, examples)


def _altered(curvature: Any, damping: Damping | None) -> Any:
    """Return a curvature that raises at no solve that stops early, with another damping where one is given.

    A curvature of a few examples may be singular, or have negative eigenvalues, where that of all has not.
    """
    changes: dict[str, Any] = {}
    for one in fields(curvature) if is_dataclass(curvature) else ():
        value = getattr(curvature, one.name)
        if one.name == "require_convergence":
            changes[one.name] = False
        elif one.name == "damping" and damping is not None:
            changes[one.name] = damping
        elif is_dataclass(value) and hasattr(value, "damping"):
            changes[one.name] = _altered(value, damping)
    return replace(curvature, **changes) if changes else curvature


def plan_of(attribution: InfluenceAttribution, queries: Any = None) -> Plan:
    """Predict what scores, self-scores and an index of a fitted attribution will cost. See `plan`."""
    count = min(len(attribution.examples), max(2, min(_LONG * attribution.stream.chunk, _LARGEST_LONG)))
    small = replace(_part_of(attribution, count), stored=None)
    kept, probe = _kept_bytes(small, attribution.examples, attribution.stream.budget)
    return _planned(small, attribution.examples, queries, {}, kept, probe)


def _planned(
    small: InfluenceAttribution,
    examples: Examples,
    queries: Any,
    seconds: dict[str, float],
    kept: int,
    probe: Block,
) -> Plan:
    """Measure an attribution of a few examples and carry it over to all."""
    count, measured = len(examples), len(small.examples)
    asked = _some(examples, _QUERIES) if queries is None else small.task.examples(queries)
    number = _QUERIES if queries is None else len(asked)
    if kept == 0:  # what fits a few examples' budget does not fit all of them
        small = replace(small, stream=replace(small.stream, budget=0, _kept=[]))
    few = _some(asked, _QUERIES)
    fewer = _part_of(small, max(1, measured // _LONG))
    before, after = _micro_run(fewer, few), _micro_run(small, few)
    grown = {}
    for name, late in after.items():
        slope = max(0.0, late - before[name]) / max(1, measured - len(fewer.examples))
        grown[name] = late + slope * (count - measured)
    seconds = {**seconds, **grown, "scores": grown["scores"] * number / len(few)}
    one_pass = _pass_seconds(small) * count / measured
    _, tensors = small.preconditioner.state()
    numbers = sum(tensor.numel() for tensor in tensors.values())
    itemsize = torch.empty((), dtype=small.task.gradient_dtype).element_size()
    working = _CHUNK_COPIES * small.stream.chunk * sum(part.numbers // len(part) for part in probe.parts.values())
    return Plan(
        examples=count,
        queries=number,
        attributed=small.coverage.attributed,
        trainable=small.coverage.trainable,
        missed=small.coverage.missed,
        seconds=seconds,
        passes={name: value / one_pass for name, value in seconds.items()},
        memory={
            "kept factors": kept,
            "curvature": 3 * 8 * numbers,
            "chunks": working * itemsize,
            "index": 3 * SHARD_BYTES,
        },
        disk={name: disk_bytes(probe, examples.ids, name) for name in ("float32", "float16", "bfloat16")},
        measured=measured,
    )


def disk_bytes(block: Block, ids: np.ndarray, dtype: str) -> int:
    """Return the bytes of an index's tensors: features with norms and scales, ids, self-scores."""
    count = len(ids)
    names = 8 * count
    if not np.issubdtype(ids.dtype, np.integer):
        names += sum(len(str(id_).encode("utf-8", "surrogatepass")) for id_ in ids.tolist())
    return feature_bytes(block, dtype) * count + names + 8 * count


def _part_of(attribution: InfluenceAttribution, count: int) -> InfluenceAttribution:
    """Return the attribution with some of its examples."""
    examples = _some(attribution.examples, count)
    return replace(attribution, examples=examples, stream=replace(attribution.stream, examples=examples, _kept=[]))


def _micro_run(small: InfluenceAttribution, asked: Examples) -> dict[str, float]:
    """Time every step on a few examples, the better of two runs: the first may keep factors for the second."""

    def index() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_attribution(small, Path(folder) / "index", dtype="float32", self_scores=True, whole=True)

    steps: dict[str, Callable[[], Any]] = {
        "self_scores": small.self_scores, "scores": lambda: small.scores(asked), "index": index
    }  # fmt: skip
    return {name: min(_timed(step)[0] for _ in range(2)) for name, step in steps.items()}


def _pass_seconds(small: InfluenceAttribution) -> float:
    """Return the time of a forward and backward pass over a few examples."""
    batch = small.task.place(small.examples.batch(np.arange(len(small.examples))))
    return max(_timed(lambda: parameter_gradients(small.task, "loss", batch))[0], 1e-9)


def _kept_bytes(small: InfluenceAttribution, examples: Examples, budget: int) -> tuple[int, Block]:
    """Return the bytes of factors that stay in memory between passes, all or none, and one example's features."""
    gradients = small.stream.run(examples.batch(np.arange(1)), np.arange(1)).training()
    itemsize = torch.empty((), dtype=small.task.gradient_dtype).element_size()
    needed = gradients.compact_numbers * itemsize * len(examples)
    return (needed if needed <= budget else 0), pack(gradients)


def _some(examples: Examples, count: int) -> Examples:
    """Return examples evenly spaced over all."""
    return examples.select(np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(np.int64))


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and the result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result
