"""Turn-over dropout: layers whose masks belong to examples, the conversion of a model, and what leaks."""

from whence.tasks.turnover.convert import turn_over
from whence.tasks.turnover.leakage import Leakage, leakage
from whence.tasks.turnover.masks import TurnOverDropout, example_masks, mask_layers, masks, reseed
from whence.tasks.turnover.outputs import branch_losses, turn_over_outputs

__all__ = [
    "Leakage",
    "TurnOverDropout",
    "branch_losses",
    "example_masks",
    "leakage",
    "mask_layers",
    "masks",
    "reseed",
    "turn_over",
    "turn_over_outputs",
]
