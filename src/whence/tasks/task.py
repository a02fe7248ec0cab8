"""A task: a trained model, the loss it was trained with, and the measurement that is asked about."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Batch, Examples, as_examples
from whence.errors import ConfigError
from whence.tasks.calling import check_call, explained, model_outputs
from whence.tasks.estimators import FittedEstimator, fitted_estimator
from whence.tasks.losses import Loss, SmoothLoss, loss_by_name
from whence.tasks.measurement import ModelMeasurement
from whence.tasks.padding import check_padding
from whence.tasks.torch_losses import torch_loss

__all__ = ["Task"]

PerExample = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    r"""A trained model and the objective it minimises, J(θ) = (1/N) Σ_i ℓ_i(θ) + (λ/2)‖θ‖².

    Args:
        model: A PyTorch module. It is used in evaluation mode and comes back as it was: no changed flags,
            no ``.grad``, no replaced modules. Everything runs where its parameters are: ``model.to("cuda")`` moves the
            work there, there is no ``device=``.
        loss: The training loss ℓ: a name ("cross_entropy", "binary_cross_entropy", "mse", "hinge",
            "smooth_hinge"), torch's ``F.cross_entropy`` or ``F.mse_loss``, a `Loss`, or any callable
            ``(model, batch) -> [B]``. A named loss fixes the likelihood, which Gauss–Newton and Fisher need; a
            callable gets the empirical Fisher.
        measurement: What is asked about a query: default the training loss; otherwise a loss name, a
            `Loss`, or a callable ``(model, batch) -> [B]``. For `scores()` without queries a callable
            ``(model) -> scalar``, best a `ModelMeasurement`, which has a unit. It is cross-loss influence when it
            differs from the loss.
        weight_decay: λ, the coefficient of (λ/2)‖θ‖² next to the *mean* loss.
        outputs: ``(model, batch) -> logits`` where calling the model on the inputs does not give them. By
            default the model's result, its ``.logits`` or ``["logits"]``, or the first entry of a tuple. ``batch`` is
            a `whence.data.Batch`, no mapping: ``batch.inputs`` is what the model is called with (a tensor, a tuple of
            them, or a dict of them where rows have names), ``batch.targets`` the labels, ``batch.ids`` the ids. For
            dict inputs: ``outputs=lambda model, batch: model(batch.inputs["input_ids"]).scores``.
        total_decay: The coefficient ρ of (ρ/2)‖θ‖² next to the *summed* loss, instead of λ: then λ = ρ/N, N the
            number of training examples at the fit, and retraining without an example keeps ρ, so that no part of the
            decay leaves with it (scikit-learn's C and alpha).
        decay_factors: By name of a parameter, what its weight decay is multiplied with; 0 leaves it out, as a bias
            often is. `Exact`, `BlockExact`, `Diagonal` and `CG` use it exactly, the other curvatures take the full
            decay for every parameter, which damps those left out a little more.
        estimator: What `from_sklearn` read; it makes examples of raw rows.

    Raises:
        ConfigError: The loss is unknown or a value is out of range.

    Example:
        >>> task = Task(nn.Linear(4, 3), loss="cross_entropy", weight_decay=0.01)
        >>> task.unit
        'nats'
    """

    model: nn.Module
    loss: str | Loss | PerExample = "cross_entropy"
    measurement: str | Loss | Callable[..., Tensor] | None = field(default=None, kw_only=True)
    weight_decay: float = field(default=0.0, kw_only=True)
    outputs: Callable[[nn.Module, Batch], Tensor] | None = field(default=None, kw_only=True)
    total_decay: float | None = field(default=None, kw_only=True)
    decay_factors: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    estimator: FittedEstimator | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise ConfigError(
                f"model must be a torch.nn.Module, got {type(self.model).__name__}. Wrap the function in a module."
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"weight_decay must be zero or positive, got {self.weight_decay}.")
        if self.total_decay is not None and not 0 <= self.total_decay < float("inf"):
            raise ConfigError(f"total_decay must be zero or positive, got {self.total_decay}.")
        _check_factors(self.decay_factors, self.model)
        object.__setattr__(self, "loss", _resolve(self.loss, "loss"))
        if self.measurement is not None:
            object.__setattr__(self, "measurement", _resolve(self.measurement, "measurement"))

    def __repr__(self) -> str:
        """Return the model's class and the settings that are not the defaults."""
        more = {
            "measurement": self.measurement, "weight_decay": self.weight_decay, "outputs": self.outputs,
            "total_decay": self.total_decay, "decay_factors": self.decay_factors,
        }  # fmt: skip
        told = "".join(f", {name}={value!r}" for name, value in more.items() if value)
        return f"Task({type(self.model).__name__}, {self.loss!r}{told})"

    @classmethod
    def from_sklearn(
        cls, estimator: Any, *, measurement: str | Loss | Callable[..., Tensor] | None = None,
        temperature: float = 0.001,
    ) -> Task:  # fmt: skip
        r"""Return the task of a fitted scikit-learn estimator; then fit and ask with (X, y) as scikit-learn takes them.

        Σ_i ℓ_i(θ) + (ρ/2) ‖w‖², as the estimator minimises it: ρ = 1/C (LogisticRegression, LinearSVC, SVC), alpha
        (Ridge, MLPClassifier), on the weights; an intercept takes part only where scikit-learn says so (liblinear).
        Scores are then the change on refitting without an example at the same C or alpha; a class weight stays as it
        was.

        Args:
            estimator: A fitted LogisticRegression, LinearSVC, SVC of two classes (w lies in the span of its support
                vectors), Ridge or MLPClassifier, or a Pipeline that ends in one.
                The steps before it are applied to X and held fixed. It must have been fitted without
                ``sample_weight``, to a small ``tol``: influence is a statement about the minimum.
            measurement: As in `Task`, of the estimator's decision values and class positions.
            temperature: Of the `SmoothHinge` that stands for the hinge of ``LinearSVC(loss="hinge")`` and ``SVC``:
                weights and refitting are those of the true hinge. Rows on the margin change the set of support vectors
                as they leave: a large C has many, and scores are then rough (RBF, MNIST 1 against 7: r = .99 with
                refitting at C = .1, .78 at C = 1).

        Returns:
            A task in float64. ``task.examples((X, y), ids=...)`` makes examples with ids of one's own; labels are
            those of the data, of any type. `Exact` is right for the linear ones, its damping 0. The multinomial
            intercepts' common shift, which no loss can see, stays put.

        Raises:
            ConfigError: The estimator is not fitted, of another kind, or has a penalty or setting without a smooth
                objective; the message names it.

        Cost: a copy of the coefficients.
        Reference: scikit-learn's user guide, "Linear models" and "Neural network models"; Koh & Liang (2017), §4.2
            for the hinge.

        Example:
            >>> import numpy as np, whence as wh
            >>> from sklearn.linear_model import LogisticRegression
            >>> X, y = np.random.default_rng(0).normal(size=(30, 3)), np.array(["ham", "spam"] * 15)
            >>> task = Task.from_sklearn(LogisticRegression(C=0.5).fit(X, y))
            >>> attribution = wh.Influence(curvature=wh.Exact()).fit(task, (X, y))
            >>> attribution.scores((X[:4], y[:4])).values.shape
            torch.Size([4, 30])
        """
        fitted = fitted_estimator(estimator, temperature)
        return cls(
            fitted.model, fitted.loss, measurement=measurement, decay_factors=fitted.decay_factors, estimator=fitted
        )

    @property
    def unit(self) -> str | None:
        """Unit of the measurement, where it is known."""
        measurement = self.loss if self.measurement is None else self.measurement
        return measurement.unit if isinstance(measurement, (Loss, ModelMeasurement)) else None

    @property
    def smooth_loss(self) -> SmoothLoss | None:
        """The loss with its curvature in the outputs, or None for callables and for the hinge."""
        return self.loss if isinstance(self.loss, SmoothLoss) else None

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the model's parameters."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def gradient_dtype(self) -> torch.dtype:
        """What gradients and scores are kept in: the model's type, but float32 for a model in half precision.

        Squares of half-precision gradients underflow, and inverse eigenvalues overflow.
        """
        return torch.float32 if self.dtype.itemsize < torch.float32.itemsize else self.dtype

    def examples(self, data: Any, *, ids: Any = None) -> Examples:
        """Return `as_examples` of the data; for an estimator, of its raw rows: (X, y), or X alone.

        Raises:
            DataError: The rows do not fit the estimator, or are `Examples` that its steps have not seen; a
                ``collate_fn`` pads, and an example's loss depends on by how much.
        """
        examples = as_examples(data, ids=ids) if self.estimator is None else self.estimator.examples(data, ids)
        if examples.collated:
            check_padding(self, examples)
        return examples

    def settled(self, examples: Examples) -> Task:
        """Return the task with what follows from the training examples: λ = ρ/N, and balanced class weights."""
        task = self if self.estimator is None else replace(self, **self.estimator.objective(examples))
        return task if task.total_decay is None else replace(task, weight_decay=task.total_decay / len(examples))

    def decay_of(self, name: str) -> float:
        """Return the weight decay of one parameter."""
        return self.weight_decay * self.decay_factors.get(name, 1.0)

    @property
    def removed_decay(self) -> float:
        """The part of λ that leaves with an example: all of it, or none with ``total_decay``."""
        return self.weight_decay if self.total_decay is None else 0.0

    def with_model(self, model: nn.Module) -> Task:
        """Return the same task for another model."""
        return replace(self, model=model)

    def in_dtype(self, dtype: torch.dtype) -> Task:
        """Return the task in another floating-point type; the model is copied if it has to change."""
        return self if dtype == self.dtype else self.with_model(copy.deepcopy(self.model).to(dtype))

    def weights_fingerprint(self) -> str:
        """Return SHA-256 over the model's parameters and buffers by name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name}{values.dtype}{tuple(values.shape)}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def place(self, batch: Batch) -> Batch:
        """Return the batch on the model's device and in its floating-point type."""
        return batch.to(self.device, self.dtype)

    def forward(self, batch: Batch) -> Tensor:
        """Return the model's outputs (logits) for a batch [B, ...]."""
        with explained("the model" if self.outputs is None else "Task(outputs=...)", batch):
            outputs = (model_outputs if self.outputs is None else self.outputs)(self.model, batch)
        if not isinstance(outputs, Tensor):
            raise ConfigError(
                f"Task(outputs=...) must return a tensor of logits [B, ...], got {type(outputs).__name__}. "
                "Return the result's .logits."
            )
        return outputs

    def losses(self, batch: Batch, outputs: Tensor | None = None) -> Tensor:
        """Return the training loss of every example [B]; ``outputs`` saves a forward pass."""
        return self._evaluate(self.loss, "loss", batch, outputs)

    def measurements(self, batch: Batch, outputs: Tensor | None = None) -> Tensor:
        """Return the measurement of every query [B]; ``outputs`` saves a forward pass."""
        measurement = self.loss if self.measurement is None else self.measurement
        return self._evaluate(measurement, "measurement", batch, outputs)

    def measure_model(self) -> Tensor:
        """Return the measurement of the model alone, a scalar.

        Raises:
            ConfigError: The measurement needs queries, or is no scalar.
        """
        measurement: Any = self.measurement
        alone = isinstance(measurement, ModelMeasurement)  # it has a unit, as a loss has
        if measurement is None or isinstance(measurement, str) or (isinstance(measurement, Loss) and not alone):
            raise ConfigError(
                "scores() without queries needs Task(measurement=callable(model) -> scalar). Pass queries."
            )
        check_call(measurement, (self.model,), "takes the model alone", "Pass queries to scores().")
        value = measurement(self.model)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"measurement of the model must be a scalar tensor that depends on its parameters, got {shape}. "
                "Do not call .item(); measure one number at a time."
            )
        return value.reshape(1)

    def _evaluate(self, what: Any, role: str, batch: Batch, outputs: Tensor | None) -> Tensor:
        call: Callable[..., Any] = what
        if not isinstance(what, ModelMeasurement) and isinstance(what, Loss):
            if batch.targets is None:
                raise ConfigError(f"the {role} needs targets, but the examples have none. Pass (inputs, targets).")
            return what(self.forward(batch) if outputs is None else outputs, batch.targets)
        check_call(call, (self.model, batch), "takes (model, batch)", "Call scores() without queries.")
        with explained(f"the {role}", batch):
            values = call(self.model, batch)
        if not isinstance(values, Tensor) or values.shape != (len(batch),):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(
                f"{role} must return one value an example, shape ({len(batch)},), got {shape}. "
                'Do not average over the batch; use reduction="none".'
            )
        return values

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode for a block and restore every module's flag afterwards."""
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


def _check_factors(factors: Mapping[str, float], model: nn.Module) -> None:
    """Raise unless the factors are of parameters, zero or positive."""
    names = {name for name, _ in model.named_parameters()} if factors else set()
    for name, factor in factors.items():
        if name not in names or not 0 <= factor < float("inf"):
            raise ConfigError(
                f"decay_factors must be zero or positive, of parameters of the model ({sorted(names)[:6]}), got "
                f"{name!r}: {factor}. Use the names of model.named_parameters()."
            )


def _resolve(value: Any, role: str) -> Any:
    """Return the loss of a name, or the value if it can be called."""
    if isinstance(value, str):
        return loss_by_name(value)
    found = torch_loss(value, role)
    if found is not None:
        return found
    if not callable(value):
        raise ConfigError(f"{role} must be a name or a callable, got {type(value).__name__}.")
    return value
