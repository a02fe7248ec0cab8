"""captum's TracIn with one checkpoint: gradient dot products over all layers, or over the last one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from captum.influence import TracInCP, TracInCPFast
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from workloads import Workload, per_example


class SummedLoss(nn.Module):
    """What captum asks for: a loss that says that it is a sum over examples."""

    reduction = "sum"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss."""
        return per_example(outputs, targets).sum()


class Analysis:
    """TracIn: there is nothing to fit."""

    def __init__(self, workload: Workload, folder: Path, last: bool) -> None:
        self.workload = workload
        model = workload.model
        checkpoint = folder / "checkpoint.pt"
        torch.save(model.state_dict(), checkpoint)
        rows = TensorDataset(*workload.train)
        shared = {"train_dataset": rows, "checkpoints": [str(checkpoint)], "loss_fn": SummedLoss()}
        if last:
            layer = model.get_submodule(workload.linear_layers[-1])
            self.tracin = TracInCPFast(model, layer, batch_size=512, **shared)
        else:
            layers = None if workload.linear_only else workload.linear_layers
            self.tracin = TracInCP(model, layers=layers, batch_size=32, sample_wise_grads_per_batch=True, **shared)

    def fit(self) -> None:
        """Do nothing."""

    def pairwise(self) -> np.ndarray:
        """Return scores [Q, N]."""
        return self.tracin.influence(self.workload.queries).detach().numpy()

    def self_scores(self) -> np.ndarray:
        """Return self-scores [N]."""
        return self.tracin.self_influence().detach().numpy()


def make(workload: Workload, folder: Path, last: bool) -> Analysis:
    """Return an analysis; the checkpoint goes to the folder."""
    return Analysis(workload, folder, last)
