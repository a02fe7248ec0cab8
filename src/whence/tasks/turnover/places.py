"""Where masks can be put: before and behind a module, without changing names or calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from whence.tasks.turnover.masks import TurnOverDropout

__all__ = ["FixedStatistics", "is_convolution", "is_matrix", "mask_input", "mask_output"]

_INPUT, _OUTPUT = "turn_over_input", "turn_over_output"


def is_convolution(module: nn.Module) -> bool:
    """Whether units are channels, in dimension 1."""
    return isinstance(module, nn.modules.conv._ConvNd)


def is_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies its first argument with a weight."""
    transposed = type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # Hugging Face's linear layer
    return isinstance(module, nn.Linear) or is_convolution(module) or transposed


def mask_input(module: nn.Module, layer: TurnOverDropout) -> None:
    """Mask what goes into a module: its first argument, or query, key and value of attention."""
    if _place(module, _INPUT, layer):
        module.register_forward_pre_hook(_before)


def mask_output(module: nn.Module, layer: TurnOverDropout, *, batched: bool = True) -> None:
    """Mask what comes out of a module; of a tuple the first.

    Without a dimension of examples, as in embeddings of positions [T, d], the result gets one.
    """
    if _place(module, _OUTPUT, layer):
        module.register_forward_hook(_behind if batched else _behind_alone)


def _place(module: nn.Module, name: str, layer: TurnOverDropout) -> bool:
    """Make a mask a child of the module that it serves, so that it is copied and saved with it; one is enough."""
    if hasattr(module, name):
        return False
    layer.axis = 1 if is_convolution(module) else -1
    layer.train(module.training)
    module.add_module(name, layer)
    return True


def _before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    layer, count = getattr(module, _INPUT), 3 if isinstance(module, nn.MultiheadAttention) else 1
    return (*[layer(given) for given in args[:count]], *args[count:])


def _behind(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    layer = getattr(module, _OUTPUT)
    return (layer(output[0]), *output[1:]) if isinstance(output, tuple) else layer(output)


def _behind_alone(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
    return getattr(module, _OUTPUT)(output[None])


class FixedStatistics(nn.Module):
    """A batch normalisation that keeps its running statistics: the same map of one example in every mode.

    Args:
        norm: What it stands for; weight, bias and buffers keep their names. ``fresh`` says that it has seen no batch;
            it takes its statistics from the one that it is called with while ``measuring`` is set.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.modules.batchnorm._NormBase) -> None:
        super().__init__()
        self.eps = norm.eps
        self.fresh = norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 0
        self.measuring = False
        for name, parameter in norm.named_parameters():
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        for name in ("weight", "bias"):
            if not hasattr(self, name):
                self.register_parameter(name, None)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (h − mean) / √(variance + ε), times the weight plus the bias."""
        if self.measuring and self.fresh:
            others = [axis for axis in range(inputs.ndim) if axis != 1]
            self.running_mean.copy_(inputs.mean(others))
            self.running_var.copy_(inputs.var(others))
        return torch.nn.functional.batch_norm(
            inputs, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
