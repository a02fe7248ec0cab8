"""A task: a trained model, the loss it was trained with, and the measurement that is asked about."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Batch
from whence.errors import ConfigError
from whence.tasks.losses import Loss, SmoothLoss, loss_by_name

__all__ = ["Task"]

PerExample = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    r"""A trained model and the objective it minimises, J(θ) = (1/N) Σ_i ℓ_i(θ) + (λ/2)‖θ‖².

    Args:
        model: A PyTorch module. It is used in evaluation mode and comes back as it was: no changed flags,
            no ``.grad``, no replaced modules.
        loss: The training loss ℓ: a name ("cross_entropy", "binary_cross_entropy", "mse", "hinge",
            "smooth_hinge"), a `Loss`, or any callable ``(model, batch) -> [B]``. A named loss fixes the
            likelihood, which Gauss–Newton and Fisher need; a callable gets the empirical Fisher.
        measurement: What is asked about a query: default the training loss; otherwise a loss name, a
            `Loss`, or a callable ``(model, batch) -> [B]``. For `scores()` without queries a callable
            ``(model) -> scalar``. It is cross-loss influence when it differs from the loss.
        weight_decay: λ, the coefficient of (λ/2)‖θ‖² next to the *mean* loss.
        outputs: ``(model, batch) -> logits`` where calling the model on the inputs does not give them. By
            default the model's result, its ``.logits``, or the first entry of a tuple.

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

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise ConfigError(
                f"model must be a torch.nn.Module, got {type(self.model).__name__}. Wrap the function in a module."
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"weight_decay must be zero or positive, got {self.weight_decay}.")
        object.__setattr__(self, "loss", _resolve(self.loss, "loss"))
        if self.measurement is not None:
            object.__setattr__(self, "measurement", _resolve(self.measurement, "measurement"))

    def __repr__(self) -> str:
        """Return the model's class and the settings that are not the defaults."""
        more = {"measurement": self.measurement, "weight_decay": self.weight_decay, "outputs": self.outputs}
        told = "".join(f", {name}={value!r}" for name, value in more.items() if value)
        return f"Task({type(self.model).__name__}, {self.loss!r}{told})"

    @property
    def unit(self) -> str | None:
        """Unit of the measurement, where it is known."""
        measurement = self.loss if self.measurement is None else self.measurement
        return measurement.unit if isinstance(measurement, Loss) else None

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
        if self.outputs is not None:
            return self.outputs(self.model, batch)
        result: Any = _call(self.model, batch.inputs)
        if isinstance(result, Tensor):
            return result
        if hasattr(result, "logits"):
            logits: Tensor = result.logits
            return logits
        if isinstance(result, (tuple, list)) and result and isinstance(result[0], Tensor):
            return result[0]
        raise ConfigError(
            f"model outputs must be a tensor, have .logits, or be a tuple that starts with a tensor, "
            f"got {type(result).__name__}. Pass Task(outputs=lambda model, batch: ...)."
        )

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
            ConfigError: The measurement needs queries.
        """
        if self.measurement is None or isinstance(self.measurement, (str, Loss)):
            raise ConfigError(
                "scores() without queries needs Task(measurement=callable(model) -> scalar). Pass queries."
            )
        value = self.measurement(self.model)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ConfigError("measurement of the model must be a scalar tensor that depends on its parameters.")
        return value.reshape(1)

    def _evaluate(self, what: Any, role: str, batch: Batch, outputs: Tensor | None) -> Tensor:
        if isinstance(what, Loss):
            if batch.targets is None:
                raise ConfigError(f"the {role} needs targets, but the examples have none. Pass (inputs, targets).")
            return what(self.forward(batch) if outputs is None else outputs, batch.targets)
        values = what(self.model, batch)
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


def _resolve(value: Any, role: str) -> Any:
    """Return the loss of a name, or the value if it can be called."""
    if isinstance(value, str):
        return loss_by_name(value)
    if not callable(value):
        raise ConfigError(f"{role} must be a name or a callable, got {type(value).__name__}.")
    return value


def _call(model: nn.Module, inputs: Any) -> Any:
    """Call the model on a tensor, a tuple of them or a dict of them."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)
