"""Tasks: a model, its training loss, what is measured, and how it was trained."""

from whence.tasks.clustering import (
    Clustering,
    DeepClustering,
    KullbackLeibler,
    target_distribution,
    train_clustering,
)
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
from whence.tasks.probe import RidgeProbe
from whence.tasks.recipe import Recipe
from whence.tasks.task import Task
from whence.tasks.turnover import (
    Leakage,
    TurnOverDropout,
    branch_losses,
    example_masks,
    leakage,
    mask_layers,
    masks,
    reseed,
    turn_over,
    turn_over_outputs,
)

__all__ = [
    "BinaryCrossEntropy",
    "ClassWeighted",
    "Clustering",
    "CrossEntropy",
    "DeepClustering",
    "Hinge",
    "KullbackLeibler",
    "Leakage",
    "Loss",
    "MeanSquaredError",
    "OneVersusRest",
    "Recipe",
    "RidgeProbe",
    "SigmoidCrossEntropy",
    "SmoothHinge",
    "SmoothLoss",
    "SquaredHinge",
    "Task",
    "TurnOverDropout",
    "branch_losses",
    "example_masks",
    "leakage",
    "loss_by_name",
    "mask_layers",
    "masks",
    "reseed",
    "target_distribution",
    "train_clustering",
    "turn_over",
    "turn_over_outputs",
]
