"""kronfluence as its documentation says to use it, for classifiers and sequences."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.utils.data import TensorDataset

from workloads import Workload, per_example


class Prediction(Task):
    """Cross-entropy with sampled labels for the Fisher, as in kronfluence's own examples."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
        """Return the summed loss."""
        inputs, labels = batch
        logits = model(inputs)
        if sample:
            with torch.no_grad():
                probabilities = logits.detach().flatten(0, -2).softmax(-1)
                labels = torch.multinomial(probabilities, num_samples=1).reshape(logits.shape[:-1])
        return per_example(logits, labels).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
        """Return the queries' summed loss."""
        return self.compute_train_loss(batch, model)


class Analysis:
    """One analysis: default settings, or the fastest (batch 32, rank-32 query gradients, damping by heuristic)."""

    def __init__(self, workload: Workload, folder: Path, strategy: str, fastest: bool) -> None:
        task = Prediction()
        model = prepare_model(workload.model, task)
        self.analyzer = Analyzer("speed", model, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
        self.train, self.queries = TensorDataset(*workload.train), TensorDataset(*workload.queries)
        # None: kronfluence looks for the largest that fits, which without a GPU ends with a killed process on sequences
        self.batch = 32 if fastest or workload.sequences else None
        damping = None if fastest else 1e-8  # the default; None is 0.1 times the mean eigenvalue
        rank = 32 if fastest and strategy != "identity" else None
        self.factors = FactorArguments(strategy=strategy)
        self.own = ScoreArguments(damping_factor=damping)
        self.scoring = ScoreArguments(damping_factor=damping, query_gradient_low_rank=rank)

    def fit(self) -> None:
        """Fit all factors."""
        self.analyzer.fit_all_factors(
            "factors", self.train, per_device_batch_size=self.batch, factor_args=self.factors
        )

    def pairwise(self) -> np.ndarray:
        """Return pairwise scores [Q, N]; all queries in one batch, so that the training rows are visited once."""
        self.analyzer.compute_pairwise_scores(
            "pairwise",
            "factors",
            self.queries,
            self.train,
            per_device_query_batch_size=len(self.queries),
            per_device_train_batch_size=self.batch,
            score_args=self.scoring,
        )
        return self.analyzer.load_pairwise_scores("pairwise")["all_modules"].float().numpy()

    def self_scores(self) -> np.ndarray:
        """Return self-scores [N]."""
        self.analyzer.compute_self_scores(
            "self", "factors", self.train, per_device_train_batch_size=self.batch, score_args=self.own
        )
        return self.analyzer.load_self_scores("self")["all_modules"].float().numpy()


def make(workload: Workload, folder: Path, strategy: str, fastest: bool) -> Analysis:
    """Return an analysis; factors and scores go to the folder."""
    logging.getLogger("kronfluence").setLevel(logging.ERROR)
    return Analysis(workload, folder, strategy, fastest)
