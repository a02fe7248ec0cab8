"""pyDVL's influence models: EK-FAC with updated eigenvalues, and the Nyström sketch of the Hessian."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydvl.influence.torch import EkfacInfluence, NystroemSketchInfluence
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from workloads import Workload, per_example

REGULARIZATION = 0.1  # of the Nyström sketch, as in the documentation
RELATIVE = 0.1  # of EK-FAC: times the mean eigenvalue, as whence's default
RANK = 100


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a batch."""
    return per_example(outputs, targets).mean()


class Analysis:
    """An influence model; the queries' factors are computed once, the training rows then come in batches."""

    def __init__(self, workload: Workload, kind: str) -> None:
        self.workload = workload
        self.batch = 32 if workload.sequences else 100
        self.rows = DataLoader(TensorDataset(*workload.train), batch_size=self.batch)
        self.influence: Any
        if kind == "ekfac":
            self.influence = EkfacInfluence(workload.model, update_diagonal=True)
        else:
            self.influence = NystroemSketchInfluence(workload.model, mean_loss, REGULARIZATION, RANK)

    def fit(self) -> None:
        """Fit the curvature."""
        self.influence = self.influence.fit(self.rows)
        if isinstance(self.influence, EkfacInfluence):
            values = torch.cat(list(self.influence.ekfac_representation.diags))
            self.influence.hessian_regularization = RELATIVE * float(values.mean())

    def pairwise(self) -> np.ndarray:
        """Return scores [Q, N]."""
        factors = self.influence.influence_factors(*self.workload.queries)
        parts = [self.influence.influences_from_factors(factors, x, y) for x, y in self.rows]
        return torch.cat(parts, 1).detach().numpy()

    def self_scores(self) -> np.ndarray:
        """Return self-scores [N]: there is no call of its own, so the diagonal of every batch with itself."""
        parts = [self.influence.influences(x, y).diagonal() for x, y in self.rows]
        return torch.cat(parts).detach().numpy()


def make(workload: Workload, folder: Path, kind: str) -> Analysis:
    """Return an analysis; nothing is written."""
    return Analysis(workload, kind)
