"""Domain mismatch: what is reported, from scores and gradients that are recomputed by hand; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import whence as wh

COUNT = 120


def people(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, labels and who is young: the third column says so, and so does nothing else."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(COUNT, 4, generator=generator, dtype=torch.float64)
    young = torch.arange(COUNT) % 4 == 0
    x[:, 2] = young.double()
    y = (x[:, 0] + 0.3 * torch.randn(COUNT, generator=generator, dtype=torch.float64) > 0).long()
    return x, y, young


def mismatched() -> tuple[Any, Tensor, Tensor, np.ndarray, np.ndarray]:
    """Return an attribution of a training set with three young rows, all of one label; held-out rows; who is young."""
    x, y, young = people()
    kept = torch.nonzero(young & (y == 1))[:3, 0]
    x[kept, 0] = torch.tensor([-0.9, -1.0, -1.1], dtype=torch.float64)  # what else is known of them says the contrary
    rows = torch.cat([torch.nonzero(~young)[:, 0], kept])
    task = wh.Task.from_sklearn(
        LogisticRegression(C=1 / (1e-3 * len(rows)), tol=1e-12, max_iter=10_000).fit(x[rows], y[rows])
    )
    examples = task.examples((x[rows], y[rows]), ids=[f"row {i}" for i in rows.tolist()])
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, examples)
    xt, yt, asked = people(1)
    return attribution, xt, yt, asked.numpy(), young[rows].numpy()


def test_the_rows_and_their_feature_are_found() -> None:
    attribution, xt, yt, asked, own = mismatched()
    names = ["x", "noise", "young", "more noise"]
    found = wh.domain_mismatch(attribution, (xt, yt), subgroup=asked, training_subgroup=own, features=names)
    logits = attribution.task.model(xt)[:, 0].detach()
    wrong = np.flatnonzero(asked & ((logits > 0).long() != yt).numpy())
    assert found.wrong.tolist() == wrong.tolist()
    assert found.asked == int(asked.sum())
    mean = attribution.scores((xt[wrong], yt[wrong])).values.mean(0).numpy()
    order = np.argsort(-np.abs(mean))
    assert found.rows["id"].tolist() == attribution.ids[order[:20]].tolist()
    np.testing.assert_allclose(found.rows["score"], mean[order[:20]])
    assert found.rows["in_subgroup"].tolist() == own[order[:20]].tolist()
    assert found.rows["target"].tolist() == attribution.examples.targets[torch.from_numpy(order[:20].copy())].tolist()
    assert set(found.responsible) == set(attribution.ids[own])
    sizes = np.abs(mean)
    assert found.subgroup_ratio == pytest.approx(sizes[own].min() / sizes[~own].max())
    assert found.ratio == pytest.approx(found.subgroup_ratio)
    assert found.subgroup_share == pytest.approx(sizes[own].sum() / sizes.sum())
    assert found.features is not None
    assert "young" in found.features_responsible["feature"].iloc[:2].tolist()
    mine = found.features[found.features["feature"] == "young"]
    assert (mine["value"] == 1).all()
    assert (mine["rank"] <= 2).all()
    alone = np.abs(attribution.scores((xt[wrong[:1]], yt[wrong[:1]])).values[0].numpy())
    assert found.by_query["ratio_low"].iloc[0] == pytest.approx(alone[own].min() / alone[~own].max())
    assert "3 training rows responsible" in repr(found)


def test_derivatives_are_those_of_the_mean_score() -> None:
    """By finite differences of what replacing the row predicts, and effects for a change to the average row."""
    attribution, xt, yt, asked, _ = mismatched()
    found = wh.domain_mismatch(attribution, (xt, yt), subgroup=asked)
    queries = attribution.task.examples((xt, yt)).select(attribution.task.examples((xt, yt)).rows_of(found.wrong))
    row = found.responsible[0]
    batch = attribution.examples.batch(attribution.examples.rows_of([row]))
    every = attribution.examples.batch(np.arange(len(attribution.examples))).inputs
    mine = found.features[found.features["id"] == row].set_index("feature")
    for place in range(4):
        step = torch.zeros(1, 4, dtype=torch.float64)
        step[0, place] = 1e-5
        moved = [
            attribution.replacement_scores([row], (batch.inputs + sign * step, batch.targets), queries).values.mean()
            for sign in (1, -1)
        ]
        slope = float(moved[0] - moved[1]) / 2e-5
        assert mine.loc[str(place), "derivative"] == pytest.approx(slope, rel=1e-5)
        delta = float(every[:, place].mean() - batch.inputs[0, place])
        assert mine.loc[str(place), "effect"] == pytest.approx(slope * delta, rel=1e-5)


def test_groups_of_inputs() -> None:
    attribution, xt, yt, asked, _ = mismatched()
    single = wh.domain_mismatch(attribution, (xt, yt), subgroup=asked).features
    grouped = wh.domain_mismatch(attribution, (xt, yt), subgroup=asked, features={"a": [0, 2], "b": [1]}).features
    for row in single["id"].unique():
        one, two = (f[f["id"] == row].set_index("feature") for f in (single, grouped))
        assert two.loc["a", "effect"] == pytest.approx(one.loc["0", "effect"] + one.loc["2", "effect"])
        norm = np.hypot(one.loc["0", "derivative"], one.loc["2", "derivative"])
        assert two.loc["a", "sensitivity"] == pytest.approx(norm)
        assert sorted(two.index) == ["a", "b"]


@pytest.mark.parametrize("given", ["mask", "ids", "tensor"])
def test_subgroups_by_mask_or_ids(given: str) -> None:
    attribution, xt, yt, asked, own = mismatched()
    queries = attribution.task.examples((xt, yt), ids=[f"q{i}" for i in range(COUNT)])
    forms = {
        "mask": (asked, own), "tensor": (torch.from_numpy(asked), torch.from_numpy(own)),
        "ids": (queries.ids[asked].tolist(), attribution.ids[own].tolist()),
    }  # fmt: skip
    subgroup, training = forms[given]
    found = wh.domain_mismatch(attribution, queries, subgroup=subgroup, training_subgroup=training)
    assert found.asked == int(asked.sum())
    assert found.subgroup_rows == 3


def test_order_and_batches_change_nothing() -> None:
    attribution, xt, yt, asked, _ = mismatched()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    plain = wh.domain_mismatch(attribution, (xt, yt), subgroup=asked)
    shuffled = wh.domain_mismatch(attribution, (xt[order], yt[order]), subgroup=asked[order.numpy()])
    assert shuffled.rows["id"].tolist() == plain.rows["id"].tolist()
    np.testing.assert_allclose(shuffled.rows["score"], plain.rows["score"], rtol=1e-9)


def test_networks_and_inputs_that_are_not_numbers() -> None:
    x, y, young = people()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 9, (COUNT, 3), generator=generator)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    attribution = wh.Influence().fit(wh.Task(model), (tokens, y))
    found = wh.domain_mismatch(attribution, (tokens, y), training_subgroup=young)
    assert found.features is None
    assert found.features_responsible is None
    with pytest.raises(wh.DataError, match="features must go with inputs"):
        wh.domain_mismatch(attribution, (tokens, y), features=["a"])
    network = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 2))
    deep = wh.Influence().fit(wh.Task(network), (x.float(), y))
    assert wh.domain_mismatch(deep, (x.float(), y), features=list("abcd")).features["feature"].nunique() == 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mask of another length": ({"subgroup": np.ones(3, dtype=bool)}, "subgroup must be a mask of 120 rows"),
    "empty": ({"subgroup": np.zeros(COUNT, dtype=bool)}, "subgroup must hold some of the 120 rows, got 0"),
    "all training rows": ({"training_subgroup": np.ones(93, dtype=bool)}, "training_subgroup must hold some of the 93"),
    "too few names": ({"features": ["a"]}, r"features must have one name an input \(4\), got 1"),
    "no such input": ({"features": {"a": [9]}}, "features must name inputs 0 … 3"),
    "one row shown": ({"shown": 1}, "shown must be at least 2"),
}


@pytest.mark.parametrize("settings, message", REFUSED.values(), ids=REFUSED)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    attribution, xt, yt, _, _ = mismatched()
    with pytest.raises(wh.ConfigError, match=message):
        wh.domain_mismatch(attribution, (xt, yt), **settings)


def test_nothing_wrong_and_no_labels() -> None:
    attribution, xt, _, _, _ = mismatched()
    right = (attribution.task.model(xt)[:, 0] > 0).long()
    with pytest.raises(wh.ConfigError, match="subgroup must have wrong predictions, got none among 120"):
        wh.domain_mismatch(attribution, (xt, right))
    with pytest.raises(wh.ConfigError, match="queries must have one label each"):
        wh.domain_mismatch(attribution, xt)
