"""traker's TRAK with one checkpoint and 512 projected dimensions; it offers no self-scores."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput, ImageClassificationModelOutput

from workloads import Workload

WIDTH = 512


class NextToken(AbstractModelOutput):
    """The margin of every next token, summed over the positions of a sequence; Q is the mean of 1 − p."""

    def __init__(self) -> None:
        """Set nothing: the base class asks for it."""

    @staticmethod
    def get_output(model: nn.Module, weights: Any, buffers: Any, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the margin of one sequence."""
        logits = torch.func.functional_call(model, (weights, buffers), tokens[None])[0]  # [T, V]
        given = torch.nn.functional.one_hot(targets, logits.shape[-1]).bool()
        others = logits.masked_fill(given, float("-inf")).logsumexp(-1)
        return ((logits * given).sum(-1) - others).sum()

    def get_out_to_loss_grad(self, model: nn.Module, weights: Any, buffers: Any, batch: Any) -> Tensor:
        """Return Q of every sequence [B, 1]."""
        tokens, targets = batch
        logits = torch.func.functional_call(model, (weights, buffers), tokens)
        p = logits.softmax(-1).gather(-1, targets[..., None])[..., 0]
        return (1 - p).mean(1, keepdim=True).detach()


class Analysis:
    """One TRAKer."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        self.workload = workload
        self.batch = 100 if workload.sequences else 500
        self.state = {name: value.clone() for name, value in workload.model.state_dict().items()}
        self.traker = TRAKer(
            model=workload.model,
            task=NextToken() if workload.sequences else ImageClassificationModelOutput(),
            train_set_size=len(workload.train[0]),
            save_dir=str(folder / "trak"),
            device="cpu",
            proj_dim=WIDTH,
            logging_level=logging.ERROR,
            use_half_precision=False,
        )

    def fit(self) -> None:
        """Project the training rows and invert their covariance."""
        self.traker.load_checkpoint(self.state, model_id=0)
        for rows in self._batches(self.workload.train):
            self.traker.featurize(rows, num_samples=len(rows[0]))
        self.traker.finalize_features()

    def pairwise(self) -> np.ndarray:
        """Return scores [Q, N]."""
        count = len(self.workload.queries[0])
        self.traker.start_scoring_checkpoint("queries", self.state, model_id=0, num_targets=count)
        for rows in self._batches(self.workload.queries):
            self.traker.score(rows, num_samples=len(rows[0]))
        return np.array(self.traker.finalize_scores("queries")).T

    def self_scores(self) -> None:
        """Return nothing: traker has no such call."""

    def _batches(self, pair: tuple[Tensor, Tensor]) -> Iterator[list[Tensor]]:
        for start in range(0, len(pair[0]), self.batch):
            yield [values[start : start + self.batch] for values in pair]


def make(workload: Workload, folder: Path) -> Analysis:
    """Return an analysis; the features go to the folder."""
    return Analysis(workload, folder)
