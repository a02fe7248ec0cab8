"""whence itself, as its users write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import whence as wh
from workloads import Workload

CURVATURES = {"ekfac": wh.EKFAC, "kfac": wh.KFAC, "identity": wh.Identity}


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


def make(workload: Workload, folder: Path, curvature: str, **options: Any) -> Analysis:
    """Return an analysis; nothing is written."""
    return Analysis(workload, wh.Influence(curvature=CURVATURES[curvature](), **options))
