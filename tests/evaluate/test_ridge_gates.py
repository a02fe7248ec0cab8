"""On ridge regression everything has a closed form: it is reproduced to 1e-8, whatever does the retraining.

The truth is NumPy alone, in float64. J(θ) = (1/n) Σ (x·θ − y)² + (λ/2) ‖θ‖², so θ = (2XᵀX + nλI)⁻¹ 2Xᵀy.
"""

from __future__ import annotations

import numpy as np
import pytest
import ridge
import scipy.stats
import torch

import whence as wh
from whence.evaluate import (
    Retraining,
    SubsetOutputs,
    lds,
    leave_group_out,
    leave_one_out,
    sample_subsets,
    train_subsets,
)


def arrays(examples: wh.Examples) -> tuple[np.ndarray, np.ndarray]:
    x, y = examples.fetch(np.arange(len(examples)))
    return np.asarray(x), np.asarray(y)[:, 0]


def changes_by_sherman_morrison(train: wh.Examples, queries: wh.Examples) -> np.ndarray:
    """Return the change of every query's squared error when row i goes [Q, N], from the fit to all rows alone.

    Without i the normal matrix is A = 2XᵀX + nλI − (2xᵢxᵢᵀ + λI); A − 2xᵢxᵢᵀ is downdated by rank one.
    """
    (x, y), (xq, yq) = arrays(train), arrays(queries)
    count = len(x)
    identity = ridge.DECAY * np.eye(x.shape[1])
    theta = np.linalg.solve(2 * x.T @ x + count * identity, 2 * x.T @ y)
    inverse = np.linalg.inv(2 * x.T @ x + (count - 1) * identity)
    full = (xq @ theta - yq) ** 2
    columns = []
    for row, target in zip(x, y, strict=True):
        downdated = inverse + np.outer(inverse @ row, row @ inverse) * 2 / (1 - 2 * row @ inverse @ row)
        without = downdated @ (2 * x.T @ y - 2 * row * target)
        columns.append((xq @ without - yq) ** 2 - full)
    return np.stack(columns, 1)


def group_changes(train: wh.Examples, queries: wh.Examples, groups: list[np.ndarray]) -> np.ndarray:
    """Return the change when groups of rows go [Q, G], by solving again."""
    (x, y), (xq, yq) = arrays(train), arrays(queries)
    losses = []
    for rows in [np.array([], dtype=int), *groups]:
        kept = np.setdiff1d(np.arange(len(x)), rows)
        gram = 2 * x[kept].T @ x[kept] + len(kept) * ridge.DECAY * np.eye(x.shape[1])
        losses.append((xq @ np.linalg.solve(gram, 2 * x[kept].T @ y[kept]) - yq) ** 2)
    return np.stack(losses[1:], 1) - losses[0][:, None]


CASES = {
    "closed form": (ridge.recipe(), False, 1e-8),
    "lbfgs, warm": (ridge.descending(1e-9), True, 1e-8),
    "lbfgs, cold": (ridge.descending(1e-7), False, 1e-6),  # values of J hide gradients below 1e-8 without a good start
}


@pytest.mark.parametrize("name", CASES)
def test_leave_one_out_and_leave_group_out(name: str) -> None:
    recipe, start, tolerance = CASES[name]
    train, queries = ridge.problem()
    settings = Retraining(recipe=recipe, start=recipe.train(train) if start else None)
    one = leave_one_out(settings, train, queries, train.ids)
    np.testing.assert_allclose(one.values, changes_by_sherman_morrison(train, queries), rtol=0, atol=tolerance)
    groups = [np.arange(3), np.array([7]), np.arange(5, 25)]
    found = leave_group_out(settings, train, queries, {f"g{i}": train.ids[g] for i, g in enumerate(groups)})
    np.testing.assert_allclose(found.values, group_changes(train, queries, groups), rtol=0, atol=tolerance)


def test_the_datamodelling_score_of_a_linear_function_is_one() -> None:
    """Outputs of ridge with a fixed curvature are linear in which rows are kept: Σ_{i kept} x_q·H⁻¹xᵢyᵢ."""
    train, queries = ridge.problem(40, 6)
    (x, y), (xq, _) = arrays(train), arrays(queries)
    inverse = np.linalg.inv(2 * x.T @ x / len(x) + ridge.DECAY * np.eye(x.shape[1]))
    parts = 2 / len(x) * xq @ inverse @ (x * y[:, None]).T  # [Q, N]
    subsets = sample_subsets(train, 50)
    values = torch.from_numpy(np.stack([parts[:, kept].sum(1) for kept in subsets.kept]))[:, None]
    outputs = SubsetOutputs(values=values, query_ids=queries.ids, unit=None)
    scores = wh.Scores(values=torch.from_numpy(-parts), query_ids=queries.ids, ids=train.ids, unit=None)
    found = lds(scores, subsets, outputs)
    np.testing.assert_allclose(found.per_query, 1, atol=1e-8)
    assert found.interval.low == pytest.approx(1, abs=1e-8)


def test_the_datamodelling_score_is_that_of_a_plain_reference() -> None:
    """Written down again with SciPy, for influence and real retraining over several seeds."""
    train, queries = ridge.problem(40, 6)
    recipe = ridge.recipe()
    subsets = sample_subsets(train, 32)
    outputs = train_subsets(Retraining(recipe=recipe), train, queries, subsets)
    noise = torch.randn(32, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = SubsetOutputs(values=outputs.values + 0.1 * noise, query_ids=queries.ids, unit=None)
    scores = wh.Influence(curvature=wh.Exact()).fit(recipe.task(recipe.train(train)), train).scores(queries)
    found = lds(scores, subsets, outputs)
    reference = []
    for q in range(6):
        predicted = [-sum(float(scores.values[q, i]) for i in np.flatnonzero(kept)) for kept in subsets.kept]
        actual = [float(np.mean([outputs.values[m, s, q] for s in range(3)])) for m in range(32)]
        reference.append(scipy.stats.spearmanr(predicted, actual).statistic)
    np.testing.assert_allclose(found.per_query, reference, atol=1e-6)
    assert found.value == pytest.approx(np.mean(reference), abs=1e-6)
