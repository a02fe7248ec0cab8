"""TRAK: projected gradients of the log-odds, decorrelated by their own second moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.curvature import Relative
from whence.curvature.base import Damping, absolute, validate_damping
from whence.data import Examples
from whence.errors import ConfigError, DataError, NumericalError
from whence.gradients import Coverage, GradientStream, check_capture, chunk_size, find_layers
from whence.methods.checkpoints import Checkpoints, model_at
from whence.methods.random_features import RandomFeatures
from whence.methods.ranking import FlatAttribution, loss_only
from whence.tasks import Task
from whence.tasks.losses import BinaryCrossEntropy, CrossEntropy

__all__ = ["TRAK", "log_odds"]

_NO_DAMPING = Relative(1e-3)


@dataclass(frozen=True, kw_only=True)
class TRAK:
    r"""TRAK: score(q, i) = [(1/M) Σ_m φ_qᵀ (ΦᵀΦ + damping·N I)⁻¹ φ_i] · [(1/M) Σ_m (1 − p_i)] over M models.

    φ = Pᵀ∇f is the projected gradient of the log-odds f = log(p_y / (1 − p_y)) of the example's own label, Φ those of
    all N training examples. It is one Newton step of a logistic regression on the φ; (ΦᵀΦ)⁻¹ carries the 1/N.
    Positive = helpful: without the example the query's log-odds fall, and its loss rises.

    Args:
        members: Models, state dicts, files or recorded checkpoints, as in `TracIn`; the paper trains them on random
            halves. None for the task's model alone.
        dimension: D, the number of features over all layers.
        damping: Added to (1/N) ΦᵀΦ; a number, or `Relative` to its mean eigenvalue. The paper's is 0.
        layers: None for all supported layers, "last", or regular expressions of module names.
        seed: Seed of the projection; every model gets its own.
        batch_size: Examples a chunk; it cannot change a score.

    Raises:
        ConfigError: A setting is out of range.

    Cost: M passes over the training gradients, M·N·D² operations and 2·M·N·D numbers; queries M passes over theirs.

    Reference: Park et al. (2023), eq. 15 to 17. Deviations: the projection is two-sided, layer by layer (LoGra's), not
        one Gaussian matrix over all parameters; a little damping by default; no soft threshold at the end. As there,
        the weight R = p (1 − p) of the Newton step is left out of the kernel.

    Example:
        >>> train = (torch.randn(40, 3), torch.randint(0, 2, (40,)))
        >>> fitted = TRAK(dimension=8).fit(Task(torch.nn.Linear(3, 2)), train)
        >>> fitted.scores(train).values.shape, bool((fitted.self_scores().values >= 0).all())
        (torch.Size([40, 40]), True)
    """

    members: Checkpoints | Sequence[Any] | None = None
    dimension: int = 2048
    damping: Damping = _NO_DAMPING
    layers: str | Sequence[str] | None = None
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        validate_damping(self.damping)
        if self.dimension < 1:
            raise ConfigError(f"dimension must be at least 1, got {self.dimension}.")
        if self.members is not None and not len(self.members):
            raise ConfigError("members must be at least one, got none. Use members=None for the task's own model.")

    def fit(self, task: Task, train: Any) -> FlatAttribution:
        """Compute the features of the training examples and decorrelate them.

        Args:
            task: A trained classifier with a cross-entropy of several classes, or of two with one logit.
            train: Training examples: anything that `as_examples` takes.

        Raises:
            ConfigError: The loss has no log-odds, the measurement is another one, or no layer can be attributed.
            NumericalError: ΦᵀΦ plus damping is singular.
        """
        if not isinstance(task.loss, (CrossEntropy, BinaryCrossEntropy)):
            raise ConfigError(f"loss must be a cross-entropy, whose log-odds TRAK explains, got {task.loss!r}.")
        loss_only(task, "TRAK")
        examples = task.examples(train)
        features: list[Tensor] = []
        own = torch.zeros(len(examples), dtype=torch.float64, device=task.device)
        doubt = torch.zeros_like(own)
        count = 0
        for model, seed in _models(self, task):
            phi, unsure = _features(self, model, examples, seed)
            solved = _decorrelated(phi, self.damping)
            features.append(solved.to(phi.dtype))
            own += (phi.double() * solved).sum(1)
            doubt += unsure
            count += 1
        weight = doubt / count
        scaled = torch.cat(features, 1) * (weight / count)[:, None].to(features[0])
        identity = {"method": "trak", "model": task.weights_fingerprint(), "data": examples.fingerprint}

        def ask(queries: Examples) -> Tensor:
            return torch.cat([_features(self, model, queries, seed)[0] for model, seed in _models(self, task)], 1)

        return FlatAttribution(
            name="TRAK", examples=examples, features=scaled, own=own / count * weight, ask=ask, identity=identity,
            prepare=task.examples,
        )  # fmt: skip


def log_odds(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return ∂f/∂outputs, shaped like them, and 1 − p of every example's label [B], for f = log(p / (1 − p)).

    Args:
        outputs: Logits of C classes [B, C], or of the second of two [B] or [B, 1].
        targets: Labels [B].

    Raises:
        ConfigError: They are shaped otherwise.
        DataError: A label is no class.
    """
    if outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1):
        sign = 2.0 * targets.reshape(-1).to(outputs) - 1.0
        return sign.reshape(outputs.shape), torch.sigmoid(-sign * outputs.reshape(-1)).double()
    if outputs.ndim != 2 or targets.ndim != 1:
        raise ConfigError(f"outputs must be class logits [B, C] for log-odds, got {tuple(outputs.shape)}.")
    wrong = (targets < 0) | (targets >= outputs.shape[1])
    if bool(wrong.any()):
        raise DataError(
            f"labels must be classes 0 … {outputs.shape[1] - 1} for log-odds, got {int(targets[wrong][0])}. "
            "Leave examples without a label out."
        )
    own = torch.zeros_like(outputs).scatter(1, targets.long()[:, None], 1.0)
    others = outputs.masked_fill(own.bool(), -torch.inf)
    given = outputs.gather(1, targets.long()[:, None])[:, 0]
    return own - others.softmax(1), torch.sigmoid(others.logsumexp(1) - given).double()


def _models(config: TRAK, task: Task) -> Iterator[tuple[Task, int]]:
    """Yield the task at every member, with the seed of its projection."""
    if config.members is None:
        yield task, config.seed
        return
    weights = config.members.weights if isinstance(config.members, Checkpoints) else config.members
    for number, checkpoint in enumerate(weights):
        yield task.with_model(model_at(task.model, checkpoint)), config.seed + number


def _features(config: TRAK, task: Task, examples: Examples, seed: int) -> tuple[Tensor, Tensor]:
    """Return φ [B, D] and 1 − p [B] of examples."""
    coverage: Coverage = find_layers(task.model, config.layers)
    check_capture(task, coverage, examples)
    project = RandomFeatures.of(task, coverage.layers, config.dimension, seed)
    chunk = config.batch_size or chunk_size(task, coverage.layers, examples)
    made, unsure = [], []
    for part in GradientStream(task, coverage.layers, examples, chunk).chunks():
        assert part.outputs is not None and part.batch.targets is not None
        seeds, doubt = log_odds(part.outputs.detach(), part.batch.targets)
        made.append(project(part.seeded(seeds, keep=False)))
        unsure.append(doubt)
    return torch.cat(made), torch.cat(unsure)


def _decorrelated(phi: Tensor, damping: Damping) -> Tensor:
    """Return Φ (ΦᵀΦ + damping·N I)⁻¹ [N, D], float64.

    Raises:
        NumericalError: The matrix is singular.
    """
    gram = torch.zeros(phi.shape[1], phi.shape[1], dtype=torch.float64, device=phi.device)
    for part in phi.split(4096):
        gram += part.double().T @ part.double()
    gram.diagonal().add_(len(phi) * absolute(damping, float(gram.diagonal().mean()) / len(phi)))
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info) != 0 or float(factor.diagonal().min()) ** 2 <= 1e-14 * float(gram.diagonal().max()):
        raise NumericalError(
            "the second moments of TRAK's features plus damping must be positive definite, and are singular. Use "
            "damping=Relative(0.01) or a lower dimension."
        )
    solved: Tensor = torch.cholesky_solve(phi.double().T, factor).T
    return solved
