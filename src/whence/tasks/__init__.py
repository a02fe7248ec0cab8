"""Tasks: a model, its training loss, what is measured, and how it was trained."""

from whence.tasks.estimator_losses import ClassWeighted, OneVersusRest, SquaredHinge
from whence.tasks.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Hinge,
    Loss,
    MeanSquaredError,
    SigmoidCrossEntropy,
    SmoothHinge,
    SmoothLoss,
    loss_by_name,
)
from whence.tasks.recipe import Recipe
from whence.tasks.task import Task

__all__ = [
    "BinaryCrossEntropy",
    "ClassWeighted",
    "CrossEntropy",
    "Hinge",
    "Loss",
    "MeanSquaredError",
    "OneVersusRest",
    "Recipe",
    "SigmoidCrossEntropy",
    "SmoothHinge",
    "SmoothLoss",
    "SquaredHinge",
    "Task",
    "loss_by_name",
]
