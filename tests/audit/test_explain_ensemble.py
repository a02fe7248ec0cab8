"""Explaining by an ensemble: scores come with their standard error, the prediction is the members' mean."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import whence as wh
from whence.audit import Query, Run, explain
from whence.data import from_arrays
from whence.report import render_explanation


def test_scores_are_shown_with_their_standard_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=generator), torch.arange(20) % 2
    data = from_arrays(x.numpy(), y.numpy())
    examples = wh.as_examples((x, torch.from_numpy(data.labels)), ids=data.ids)
    tasks = []
    for _ in range(3):
        model = nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=generator))
        tasks.append(wh.Task(model))
    ensemble = wh.Ensemble().fit(tasks, examples)
    summary = {"model": {"name": "toy"}, "data": {"name": "toy"}, "method": {}}
    manifest = {"whence": "0", "created": "today"}
    run = Run(folder=tmp_path, manifest=manifest, suspects=pd.DataFrame(), summary=summary)
    found = explain(run, data, ensemble, Query(rows=data, inputs=x, position=4), k=3)
    scores = ensemble.scores(wh.as_examples((x[4:5], torch.from_numpy(data.labels[4:5]))))
    assert scores.standard_error is not None
    for entry in (*found["helpful"], *found["harmful"]):
        column = int(np.flatnonzero(data.ids.astype(str) == entry["id"])[0])
        assert entry["score"] == float(scores.values[0, column])
        assert entry["standard_error"] == float(scores.standard_error[0, column])
        assert f"± {entry['standard_error']:.2g}" in render_explanation(found)
    with torch.no_grad():
        mean = torch.stack([task.model(x[4:5])[0].double().log_softmax(-1) for task in tasks]).mean(0).softmax(-1)
    for probability in found["query"]["probabilities"]:
        assert abs(probability["p"] - float(mean[list(data.classes).index(probability["label"])])) < 1e-9
