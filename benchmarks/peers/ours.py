"""whence itself, as its users write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import whence as wh
from whence.curvature import ProjectedPreconditioner
from workloads import Workload

CURVATURES = {
    "ekfac": wh.EKFAC(),
    "ekfac-auto": wh.EKFAC(damping="auto"),
    "kfac": wh.KFAC(),
    "identity": wh.Identity(),
    "diagonal": wh.Diagonal(),
    "datainf": wh.DataInf(),
    "projected": wh.Projected(rank=8),
}


class Analysis:
    """Influence with one curvature."""

    def __init__(self, workload: Workload, config: wh.Influence) -> None:
        self.workload, self.config = workload, config
        self.task = wh.Task(workload.model)

    def fit(self) -> None:
        """Fit the curvature."""
        self.attribution = self.config.fit(self.task, self.workload.train)

    def pairwise(self) -> np.ndarray:
        """Return scores [Q, N]."""
        return self.attribution.scores(self.workload.queries).values.numpy()

    def self_scores(self) -> np.ndarray:
        """Return self-scores [N]."""
        return np.asarray(self.attribution.self_scores())

    def summary(self) -> dict[str, Any]:
        """Return ranks and damping."""
        found: dict[str, Any] = self.attribution.summary()["curvature"]
        return found


class Projection(Analysis):
    """The same for projected gradients, whose features are what an index holds."""

    def features(self) -> np.ndarray:
        """Return the projected features of all training examples [N, D]: one pass over their gradients."""
        inverse = self.attribution.preconditioner
        assert isinstance(inverse, ProjectedPreconditioner)
        parts = [inverse.features(gradients) for _, gradients in self.attribution.training_gradients()]
        return torch.cat(parts).numpy()


def make(workload: Workload, folder: Path, curvature: str, **options: Any) -> Analysis:
    """Return an analysis; nothing is written."""
    kind = Projection if curvature == "projected" else Analysis
    return kind(workload, wh.Influence(curvature=CURVATURES[curvature], **options))
