"""The humble baselines, with the interface of a method."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import whence as wh
from workloads import Workload

KINDS = {
    "random": wh.RandomBaseline(),
    "loss": wh.LossBaseline(),
    "margin": wh.MarginBaseline(),
    "knn": wh.Neighbours(),
    "similarity": wh.Similarity(),
}


class Analysis:
    """One baseline."""

    def __init__(self, workload: Workload, kind: str) -> None:
        self.workload, self.kind = workload, kind

    def fit(self) -> None:
        """Do what needs no queries."""
        self.fitted = KINDS[self.kind].fit(wh.Task(self.workload.model), self.workload.train)

    def pairwise(self) -> np.ndarray:
        """Return scores [Q, N]."""
        return self.fitted.scores(self.workload.queries).values.numpy()

    def self_scores(self) -> np.ndarray:
        """Return suspicions [N]: larger is more suspect, as a self-score is."""
        return self.fitted.suspicion().values


def make(workload: Workload, folder: Path, kind: str) -> Analysis:
    """Return an analysis; nothing is written."""
    return Analysis(workload, kind)
