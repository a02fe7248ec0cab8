"""dattri's TracIn (without projection), EK-FAC and TRAK with one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from dattri.algorithm import IFAttributorEKFAC, TracInAttributor, TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from workloads import Workload, per_example

WIDTH = 512
RELATIVE = 0.1  # damping of EK-FAC times the mean eigenvalue; its default, 0, divides by zero at dead inputs


class Analysis:
    """One attributor. It computes the queries' gradients again for every batch of training rows: large batches help."""

    def __init__(self, workload: Workload, kind: str) -> None:
        self.kind = kind
        batch = {"mlp": 500, "cnn": 250, "transformer": 50}[workload.name]
        self.rows = DataLoader(TensorDataset(*workload.train), batch_size=batch)
        self.queries = DataLoader(TensorDataset(*workload.queries), batch_size=len(workload.queries[0]))
        model, dims = workload.model, workload.train[0].ndim

        def loss(parameters: Any, data: tuple[Tensor, Tensor]) -> Tensor:
            """Return the mean loss of a batch, or the loss of one example without a batch dimension."""
            x, y = data
            x, y = (x, y) if x.ndim == dims else (x[None], y[None])
            return per_example(torch.func.functional_call(model, parameters, (x,)), y).mean()

        def probability(parameters: Any, data: tuple[Tensor, Tensor]) -> Tensor:
            """Return the probability of the given label, for sequences the geometric mean over positions."""
            return torch.exp(-loss(parameters, data) / (data[1].numel() if workload.sequences else 1))

        task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
        self.attributor: Any
        if kind == "tracin":
            self.attributor = TracInAttributor(task=task, weight_list=torch.ones(1), normalized_grad=False)
            self.attributor.projector_kwargs = None  # None as an argument stands for a projection to 512 dimensions
        elif kind == "ekfac":
            self.attributor = IFAttributorEKFAC(task=task)
        else:
            self.attributor = TRAKAttributor(
                task=task, correct_probability_func=probability, projector_kwargs={"proj_dim": WIDTH}
            )

    def fit(self) -> None:
        """Fit and project what the method has."""
        if self.kind != "tracin":
            self.attributor.cache(self.rows)
        if self.kind == "ekfac":
            values = torch.cat([layer.flatten() for layer in self.attributor.cached_lambdas.values()])
            self.attributor.damping = RELATIVE * float(values.mean())

    def pairwise(self) -> np.ndarray:
        """Return scores [Q, N]."""
        if self.kind == "trak":
            return self.attributor.attribute(self.queries).T.detach().numpy()
        return self.attributor.attribute(self.rows, self.queries).T.detach().numpy()

    def self_scores(self) -> np.ndarray | None:
        """Return self-scores [N]; its EK-FAC and TRAK have none that works after ``cache`` in batches."""
        return self.attributor.self_attribute(self.rows).detach().numpy() if self.kind == "tracin" else None


def make(workload: Workload, folder: Path, kind: str) -> Analysis:
    """Return an analysis; nothing is written."""
    return Analysis(workload, kind)
