"""kronfluence's EK-FAC on a classifier, as its documentation says to use it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

Pair = tuple[torch.Tensor, torch.Tensor]


class Classification(Task):
    """Cross-entropy with sampled labels for the Fisher, as in kronfluence's own examples."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
        """Return the summed loss."""
        inputs, labels = batch
        logits = model(inputs)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(functional.softmax(logits.detach(), dim=-1), num_samples=1).flatten()
        return functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
        """Return the queries' summed loss."""
        return self.compute_train_loss(batch, model)


class Analysis:
    """One analysis: default settings, or the fastest (batch 32, rank-32 query gradients, damping by heuristic)."""

    def __init__(self, model: nn.Module, train: Pair, queries: Pair, folder: str, fastest: bool) -> None:
        task = Classification()
        self.analyzer = Analyzer(
            "mlp", prepare_model(model, task), task, cpu=True, disable_tqdm=True, output_dir=folder
        )
        self.train, self.queries = TensorDataset(*train), TensorDataset(*queries)
        self.batch = 32 if fastest else None  # None: kronfluence looks for the largest that fits
        self.damping = None if fastest else 1e-8  # the default; None is 0.1 times the mean eigenvalue
        self.rank = 32 if fastest else None

    def fit(self) -> None:
        """Fit all factors."""
        self.analyzer.fit_all_factors("ekfac", self.train, per_device_batch_size=self.batch)

    def self_scores(self) -> np.ndarray:
        """Return self-scores [N]."""
        self.analyzer.compute_self_scores(
            "self", "ekfac", self.train, per_device_train_batch_size=self.batch, score_args=self._arguments()
        )
        return self.analyzer.load_self_scores("self")["all_modules"].numpy()

    def pairwise(self, *, low_rank: bool = True) -> np.ndarray:
        """Return pairwise scores [Q, N]; all queries in one batch, so that the training rows are visited once."""
        name = "pairwise" if low_rank else "full"
        self.analyzer.compute_pairwise_scores(
            name,
            "ekfac",
            self.queries,
            self.train,
            per_device_query_batch_size=len(self.queries),
            per_device_train_batch_size=self.batch,
            score_args=self._arguments(self.rank if low_rank else None),
        )
        return self.analyzer.load_pairwise_scores(name)["all_modules"].numpy()

    def _arguments(self, rank: int | None = None) -> ScoreArguments:
        return ScoreArguments(damping_factor=self.damping, query_gradient_low_rank=rank)
