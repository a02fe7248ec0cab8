"""A recipe says how to train, so that a user's own training can be replayed without some examples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Batch, Examples, as_examples
from whence.errors import ConfigError, NumericalError
from whence.tasks.convex import minimise
from whence.tasks.losses import Loss
from whence.tasks.task import Task

__all__ = ["Recipe", "own_random_state"]

OptimizerName = Literal["adam", "adamw", "sgd", "lbfgs"]
Schedule = Literal["constant", "cosine", "one_cycle"]
OnEpoch = Callable[[int, nn.Module, float], None]
TrainFunction = Callable[..., nn.Module]


class Recipe:
    r"""How a model is trained: enough to train it again, with examples left out, relabelled or reweighted.

    The objective is J(θ) = Σ_i w_i ℓ_i(θ) / Σ_i w_i + (λ/2)‖θ‖². Leaving an example out is weight 0, so that
    the order of batches does not change.

    Args:
        build: Returns a new, untrained model. Called under the seed.
        loss: Training loss, as in `Task`.
        outputs: As in `Task`.
        optimizer: "adam" and "sgd" (weight decay is the λ of J), "adamw" (decoupled decay, not part of J),
            "lbfgs" (convex objectives: full-batch, float64, to ``gradient_norm``), or a callable
            ``(parameters) -> torch.optim.Optimizer``.
        learning_rate: Peak step size.
        momentum: Nesterov momentum of "sgd".
        schedule: "constant", "cosine" (to 0) or "one_cycle" (linear up over a quarter, linear down to 0).
        epochs: Passes over the data.
        steps: Steps of the optimiser instead of ``epochs``; the last pass may be cut short.
        batch_size: Examples a step; where a pass would leave one alone, it joins the step before in a model with batch
            normalisations, which cannot normalise one.
        clip: Largest Euclidean norm of a step's gradient over all parameters; a longer one is scaled down to it.
        weight_decay: λ.
        decay_factors: By name of a parameter, what λ is multiplied with, as in `Task`; not for a callable optimizer,
            which has decay of its own.
        augment: ``(inputs, generator) -> inputs``, applied to every training batch.
        gradient_norm: Where "lbfgs" stops. Below about 1e-9 the values of J no longer tell float64 numbers apart.
        train: A whole training loop of the user's:
            ``train(examples, weights=[N] tensor, seed=int, start=module or None) -> model``. Everything above
            but ``loss``, ``outputs``, ``weight_decay`` and ``decay_factors`` is then unused.

    Raises:
        ConfigError: A value is out of range, or neither ``build`` nor ``train`` is given.

    Example:
        >>> from whence.data import as_examples
        >>> recipe = Recipe(build=lambda: nn.Linear(2, 2), epochs=1)
        >>> data = as_examples((torch.randn(8, 2), torch.tensor([0, 1] * 4)))
        >>> recipe.train(data, exclude=[3], seed=1).training
        False
    """

    def __init__(  # noqa: PLR0913 - a recipe is its list of settings
        self,
        *,
        build: Callable[[], nn.Module] | None = None,
        loss: str | Loss | Callable[[nn.Module, Batch], Tensor] = "cross_entropy",
        outputs: Callable[[nn.Module, Batch], Tensor] | None = None,
        optimizer: OptimizerName | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = "adam",
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        schedule: Schedule = "constant",
        epochs: int = 10,
        steps: int | None = None,
        batch_size: int = 128,
        clip: float | None = None,
        weight_decay: float = 0.0,
        decay_factors: Mapping[str, float] | None = None,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        gradient_norm: float = 1e-6,
        train: TrainFunction | None = None,
    ) -> None:
        if (build is None) == (train is None):
            raise ConfigError("a recipe must have either build= (how to make a model) or train= (a whole loop).")
        if isinstance(optimizer, str) and optimizer not in ("adam", "adamw", "sgd", "lbfgs"):
            raise ConfigError(f"optimizer must be adam, adamw, sgd, lbfgs or a callable, got {optimizer!r}.")
        if schedule not in ("constant", "cosine", "one_cycle"):
            raise ConfigError(f"schedule must be constant, cosine or one_cycle, got {schedule!r}.")
        for name, value in (("epochs", epochs), ("batch_size", batch_size), ("steps", 1 if steps is None else steps)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        for name, size in (("learning_rate", learning_rate), ("gradient_norm", gradient_norm), ("clip", clip)):
            if size is not None and not size > 0:
                raise ConfigError(f"{name} must be positive, got {size}.")
        if not 0 <= weight_decay < float("inf"):
            raise ConfigError(f"weight_decay must be zero or positive, got {weight_decay}.")
        self.build = build
        self.loss = loss
        self.outputs = outputs
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.schedule = schedule
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.clip = clip
        self.weight_decay = weight_decay
        self.decay_factors: Mapping[str, float] = dict(decay_factors or {})
        self.augment = augment
        self.gradient_norm = gradient_norm
        self.loop = train

    def task(self, model: nn.Module, measurement: Any = None) -> Task:
        """Return the task of a model that this recipe trained (λ is 0 for "adamw": its decay is not in J)."""
        decay = 0.0 if self.optimizer == "adamw" else self.weight_decay
        return Task(
            model, self.loss, measurement=measurement, weight_decay=decay, outputs=self.outputs,
            decay_factors=self.decay_factors,
        )  # fmt: skip

    def train(
        self,
        examples: Any,
        *,
        exclude: Sequence[Any] | np.ndarray = (),
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        seed: int = 0,
        start: nn.Module | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> nn.Module:
        """Train a model.

        Args:
            examples: Training examples: anything that `as_examples` takes.
            exclude: Ids to leave out.
            labels: Other targets [N, ...] in row order.
            weights: Weights [N] in row order, 1 by default.
            seed: Seed of initialisation, order, dropout and augmentation. The global generators are left alone.
            start: A model to start from (not changed) instead of a new one.
            on_epoch: Called after every epoch with (epoch from 1, model, mean training loss). It may evaluate the
                model; that changes nothing. Only for gradient descent.

        Returns:
            The trained model, in evaluation mode; in float64 for "lbfgs".

        Raises:
            NumericalError: The loss becomes non-finite, or "lbfgs" does not reach its gradient norm.
        """
        examples = as_examples(examples)
        examples = examples if labels is None else examples.with_targets(labels)
        weights = torch.ones(len(examples)) if weights is None else weights.clone().float()
        if len(weights) != len(examples):
            raise ConfigError(f"weights must have one entry a row ({len(examples)}), got {len(weights)}.")
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ConfigError("weights must be finite and zero or positive. Use 0 to leave an example out.")
        if len(exclude):
            weights[torch.from_numpy(examples.rows_of(exclude))] = 0.0
        if weights.sum() <= 0:
            raise ConfigError("at least one example must have a positive weight. Exclude fewer examples.")
        with own_random_state(seed):
            if self.loop is not None:
                return self.loop(examples, weights=weights, seed=seed, start=start).eval()
            assert self.build is not None
            model = self.build() if start is None else copy.deepcopy(start)
            if self.optimizer == "lbfgs":
                return minimise(self.task(model), examples, weights, gradient_norm=self.gradient_norm)
            return self._descend(model, examples, weights, seed, on_epoch)

    def _descend(
        self, model: nn.Module, examples: Examples, weights: Tensor, seed: int, on_epoch: OnEpoch | None
    ) -> nn.Module:
        """Run the epochs of stochastic gradient descent."""
        task = self.task(model)
        optimizer = self.make_optimizer({name: p for name, p in model.named_parameters() if p.requires_grad})
        alone = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        sizes = _sizes(len(examples), self.batch_size, alone)
        steps = self.epochs * len(sizes) if self.steps is None else self.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate((step + 1) / (steps + 1)))
        generator = torch.Generator().manual_seed(seed)
        scale = weights / weights.mean()
        plain = bool((scale == 1).all())
        left = steps
        for epoch in range(1, -(-steps // len(sizes)) + 1):
            model.train()
            total, seen = 0.0, 0
            for rows in torch.randperm(len(examples), generator=generator).split(sizes)[:left]:
                batch = task.place(examples.batch(rows.numpy()))
                if self.augment is not None:
                    augmented = self.augment(batch.inputs, generator)
                    batch = Batch(inputs=augmented, targets=batch.targets, ids=batch.ids, keys=batch.keys)
                losses = task.losses(batch)
                loss = losses.mean() if plain else (losses * scale[rows].to(losses)).mean()
                optimizer.zero_grad()
                loss.backward()
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows)
                seen += len(rows)
                left -= 1
            if not np.isfinite(total):
                raise NumericalError(
                    f"training loss must stay finite, got {total / seen} in epoch {epoch}. "
                    "Lower the learning rate or standardise the inputs."
                )
            if on_epoch is not None:
                with own_random_state():
                    on_epoch(epoch, model, total / seen)
        optimizer.zero_grad(set_to_none=True)
        return model.eval()

    def make_optimizer(self, named: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return the optimiser over the trainable parameters, by name.

        Raises:
            ConfigError: There are none.
        """
        if not named:
            raise ConfigError("model must have parameters to train, got none with requires_grad. Unfreeze some.")
        if callable(self.optimizer):
            return self.optimizer(list(named.values()))
        groups: dict[float, list[Any]] = {}
        for name, parameter in named.items():
            groups.setdefault(self.weight_decay * self.decay_factors.get(name, 1.0), []).append(parameter)
        parameters = [{"params": own, "weight_decay": decay} for decay, own in groups.items()]
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.learning_rate, self.momentum, nesterov=self.momentum > 0)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, self.learning_rate)

    def rate(self, progress: float) -> float:
        """Return the step size, as a share of the peak, at ``progress`` in (0, 1): step / (number of steps + 1)."""
        if self.schedule == "cosine":
            return 0.5 * (1 + float(np.cos(np.pi * min(progress, 1.0))))
        if self.schedule == "one_cycle":
            return max(0.0, min(progress / 0.25, (1 - progress) / 0.75) if progress < 1 else 0.0)
        return 1.0


def _sizes(count: int, size: int, normalised: bool) -> list[int]:
    """Return the sizes of a pass's batches; of batch normalisations none is left alone."""
    whole, rest = divmod(count, size)
    if rest == 1 and whole and normalised:
        return [size] * (whole - 1) + [size + 1]
    return [size] * whole + [rest] * (rest > 0)


@contextmanager
def own_random_state(seed: int | None = None) -> Iterator[None]:
    """Leave the global generators as they were after a block, on GPUs in use too; seed them in it."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            torch.manual_seed(seed)
        yield
