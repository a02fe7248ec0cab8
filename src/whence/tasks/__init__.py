"""Tasks: a model, its training loss, what is measured, and how it was trained."""

from whence.tasks.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Hinge,
    Loss,
    MeanSquaredError,
    SmoothHinge,
    SmoothLoss,
    loss_by_name,
)
from whence.tasks.recipe import Recipe
from whence.tasks.task import Task

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Hinge",
    "Loss",
    "MeanSquaredError",
    "Recipe",
    "SmoothHinge",
    "SmoothLoss",
    "Task",
    "loss_by_name",
]
