"""Removal and correction curves against ridge regression in closed form, and their intervals and controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ridge
import scipy.stats
import torch
from torch import nn

import whence as wh
from whence.errors import ConfigError
from whence.evaluate import Accuracy, Margin, Retraining, Sweep, correction_curve, removal_curve, verdict
from whence.evaluate.retraining import Corrections
from whence.evaluate.statistics import over_draws, over_seeds

SHARES = (0.1, 0.2, 0.5)


def scored(values: np.ndarray, train: wh.Examples, queries: wh.Examples) -> wh.Scores:
    return wh.Scores(values=torch.from_numpy(values), query_ids=queries.ids, ids=train.ids, unit="squared target")


def test_removal_on_ridge_is_the_closed_form() -> None:
    train, queries = ridge.problem()
    values = np.random.default_rng(0).normal(size=(5, 30))
    scores = scored(values, train, queries)
    curve = removal_curve(Retraining(recipe=ridge.recipe()), train, queries, scores, sweep=Sweep(shares=SHARES))
    order = np.argsort(values.mean(0))
    full = ridge.losses(train, queries, np.ones(30, dtype=bool)).mean()
    assert curve.measurements == ["loss"] and curve.rankings == ["scores"] and curve.units == {"loss": "squared target"}
    assert curve.before["loss"].value == pytest.approx(full, rel=1e-10)
    for point, count in zip(curve.of("scores", "loss"), (3, 6, 15), strict=True):
        kept = np.ones(30, dtype=bool)
        kept[order[:count]] = False
        truth = ridge.losses(train, queries, kept).mean()
        assert (point.count, point.changed, point.share) == (count, count, count / 30)
        assert point.value.value == pytest.approx(truth, rel=1e-8)
        assert point.change.value == pytest.approx(truth - full, rel=1e-8)
        predicted = 30 / (30 - count) * values[:, order[:count]].sum(1).mean()
        assert point.predicted == pytest.approx(predicted, rel=1e-12), "the group's score, averaged over queries"


def test_predictions_of_influence_are_those_of_group_scores_and_right() -> None:
    train, queries = ridge.problem(200)
    recipe = ridge.recipe()
    fitted = wh.Influence(curvature=wh.Exact()).fit(recipe.task(recipe.train(train)), train)
    scores = fitted.scores(queries)
    curve = removal_curve(Retraining(recipe=recipe), train, queries, scores, sweep=Sweep(shares=(0.01, 0.03)))
    order = np.argsort(scores.values.mean(0).numpy())
    for point in curve.points:
        group = fitted.group_scores({"first": train.ids[order[: point.count]]}, queries)
        assert point.predicted == pytest.approx(float(group.values.mean()), rel=1e-9)
        assert point.change.value == pytest.approx(point.predicted, rel=0.25), "small removals are nearly linear"
        assert point.change.value < point.control.low, "the most harmful examples beat random ones"


def test_batches_and_order_of_rows_do_not_matter() -> None:
    train, queries = ridge.problem()
    signal = wh.Signal(values=np.arange(30) // 4, ids=train.ids, name="ties", unit=None)
    order = np.random.default_rng(1).permutation(30)
    frames = [
        removal_curve(
            Retraining(recipe=ridge.recipe()), rows, queries, signal, sweep=Sweep(shares=SHARES, seed=3)
        ).to_frame() for rows in (train, train.select(order))
    ]  # fmt: skip
    np.testing.assert_allclose(
        frames[0].select_dtypes("number"), frames[1].select_dtypes("number"), rtol=1e-9, atol=1e-9
    )


def noisy(examples: Any, *, weights: torch.Tensor, seed: int, start: nn.Module | None) -> nn.Module:
    """Return a classifier of one feature whose bias depends on the seed, and on which examples are kept."""
    model = nn.Linear(1, 2).double()
    share = float(weights[:10].sum()) / 10
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.1 * seed + 0.5 * share, 0.0]))
    return model


def classified(count: int = 40) -> wh.Examples:
    x = torch.linspace(-1, 1, count, dtype=torch.float64)[:, None]
    return wh.as_examples((x, (x[:, 0] > 0).long()))


def test_every_measurement_of_every_seed_is_compared_with_its_own_start() -> None:
    train = classified()
    settings = Retraining(recipe=wh.Recipe(train=noisy), seeds=(0, 1, 2))
    curve = removal_curve(settings, train, train, list(range(40)), sweep=Sweep(shares=(0.25,), controls=2))
    models = {
        (seed, removed): noisy(train, weights=(torch.arange(40) >= removed).double(), seed=seed, start=None)
        for seed in range(3) for removed in (0, 10)
    }  # fmt: skip
    x, y = train.fetch(np.arange(40))
    right = {key: (model(x).argmax(1) == y).double().mean().item() for key, model in models.items()}
    loss = {key: nn.functional.cross_entropy(model(x), y).item() for key, model in models.items()}
    for name, truth in (("loss", loss), ("accuracy", right)):
        point = curve.of("ids", name)[0]
        changes = np.array([truth[seed, 10] - truth[seed, 0] for seed in range(3)])
        assert point.change.value == pytest.approx(changes.mean())
        half = scipy.stats.t.ppf(0.975, 2) * changes.std(ddof=1) / 3**0.5
        np.testing.assert_allclose(point.change.high - changes.mean(), half, atol=1e-12)
        np.testing.assert_allclose(changes.mean() - point.change.low, half, atol=1e-12)
        assert point.advantage.value == pytest.approx(point.change.value - point.control.value)
        assert point.predicted is None
    assert curve.units == {"loss": "nats", "accuracy": "share right"}


def test_margin_scores_predict_the_accuracy() -> None:
    train = classified()
    settings = Retraining(recipe=wh.Recipe(train=noisy))
    # removing one of the first ten lowers the logit of class 0 by .05: margins of class 1 rise, those of 0 fall
    sign = torch.where(train.fetch(np.arange(40))[1] == 1, 0.05, -0.05).double()
    values = torch.zeros(40, 40, dtype=torch.float64)
    values[:, :10] = 30 / 40 * sign[:, None]  # a group of ten is scaled by 40/30
    scores = wh.Scores(values=values, query_ids=train.ids, ids=train.ids, unit="logits")
    curve = removal_curve(
        settings, train, train, list(range(40)), predictions={"accuracy": scores}, sweep=Sweep(shares=(0.25,))
    )
    point = curve.of("ids", "accuracy")[0]
    assert point.predicted == pytest.approx(point.change.value, abs=1e-12) and point.change.value > 0
    assert "accuracy by 12.50 points; predicted 12.50" in verdict(curve).sentence


def labelled(examples: Any, *, weights: torch.Tensor, seed: int, start: nn.Module | None) -> nn.Module:
    """Return the class means' classifier: a closed form that sees the labels."""
    batch = examples.batch(np.arange(len(examples)))
    means = torch.stack([batch.inputs[batch.targets == c].mean(0) for c in (0, 1)])
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(2 * means)
        model.bias.copy_(-means.square().sum(1))
    return model


def test_corrections_are_trained_on_corrected_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.arange(60) % 2
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64) + 2 * right[:, None]
    wrong = right.clone()
    wrong[:12] = 1 - wrong[:12]
    train, queries = wh.as_examples((x, wrong)), (x, right)
    seen: list[tuple[int, int]] = []
    settings = Retraining(recipe=wh.Recipe(train=labelled), progress=lambda *at: seen.append(at))
    best, worst = list(range(60)), list(range(59, -1, -1))
    curve = correction_curve(
        settings, train, queries, {"best": best, "worst": worst}, labels=right, sweep=Sweep(shares=(0.1, 0.2, 1.0))
    )
    for name, order in (("best", best), ("worst", worst)):
        for point in curve.of(name, "loss"):
            labels = wrong.clone()
            labels[order[: point.count]] = right[order[: point.count]]
            model = labelled(wh.as_examples((x, labels)), weights=torch.ones(60), seed=0, start=None)
            assert point.value.value == pytest.approx(nn.functional.cross_entropy(model(x), right).item(), rel=1e-10)
            assert point.changed == int((labels != wrong).sum())
    assert [p.changed for p in curve.of("worst", "loss")] == [0, 0, 12]
    assert curve.of("worst", "accuracy")[0].change.value == 0, "nothing to correct is nothing changed"
    assert seen[-1] == (len(seen), len(seen)) and len(seen) < 1 + 3 * 5, "the same labels are trained once"
    sentence = verdict(curve, of="best").sentence
    assert "correcting the 6 examples (10 %) that 'best' puts first, of which 6 got another label, leaves" in sentence


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 3))


def test_stacked_corrections_are_those_of_the_recipe(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, right = torch.randn(40, 2, generator=generator), torch.arange(40) % 3
    train = wh.as_examples((x, (right + (torch.arange(40) < 9)) % 3))
    recipe = wh.Recipe(build=network, epochs=4, batch_size=16, learning_rate=0.02)
    removed, fixed = [[], [1, 20], [], []], [[], [0, 3], [5], list(range(40))]
    corrected = Corrections(labels=right, ids=fixed)
    found = Retraining(recipe=recipe, seeds=(0, 3)).measure(train, train, removed, corrected=corrected)
    for job, (gone, ids) in enumerate(zip(removed, fixed, strict=True)):
        labels = train.targets.clone()
        labels[ids] = right[ids]
        for seat, seed in enumerate((0, 3)):
            task = recipe.task(recipe.train(train, exclude=gone, labels=labels, seed=seed))
            with torch.no_grad():
                wanted = task.measurements(task.place(train.batch(np.arange(40))))
            torch.testing.assert_close(found[job, seat], wanted.double(), rtol=1e-6, atol=1e-6)
    settings = Retraining(recipe=recipe, seeds=(0, 3), stack=3, cache=tmp_path)
    for _ in ("made", "read"):
        many = settings.measure(train, train, removed, corrected=corrected)
        torch.testing.assert_close(many, found, rtol=1e-5, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 8
    other = settings.measure(train, train, [[], []], corrected=Corrections(labels=right, ids=[[], [7]]))
    assert not torch.allclose(other[1], found[0], atol=1e-3), "what is corrected is part of a result's name"


def test_corrections_in_processes() -> None:
    train, queries = ridge.problem()
    flipped = -train.fetch(np.arange(30))[1]
    corrected = Corrections(labels=flipped, ids=[[], ["row3"], list(train.ids)])
    one, two = (
        Retraining(recipe=ridge.recipe(), processes=p).measure(train, queries, [[]] * 3, corrected=corrected)
        for p in (1, 2)
    )
    assert torch.equal(one, two)
    outputs = Retraining(recipe=ridge.recipe(), measurement=ridge.output)
    found = outputs.measure(train, queries, [[]] * 3, corrected=corrected)[:, 0]
    torch.testing.assert_close(found[2], -found[0])
    with pytest.raises(ConfigError, match="as many sets"):
        outputs.measure(train, queries, [[]], corrected=corrected)
    with pytest.raises(ConfigError, match="like the examples"):
        outputs.measure(train, queries, [[]], corrected=Corrections(labels=flipped[:2], ids=[[]]))


def test_intervals_are_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 4.5])
    found = over_seeds(values)
    truth = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose([found.low, found.high], truth)
    assert np.isnan(over_seeds(values[:1]).low) and over_seeds(values[:1]).value == 1
    draws = np.array([[1.0], [2.0], [6.0]])
    both = over_draws(draws.mean(0), draws)
    np.testing.assert_allclose(
        [both.low, both.high], scipy.stats.t.interval(0.95, 2, 3.0, scipy.stats.sem(draws[:, 0]))
    )
    assert over_draws(values, np.stack([values, values + 1])).high > over_draws(values, values[None]).high


@pytest.mark.parametrize("outputs", [torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 5.0]]), torch.tensor([[2.0], [-3.0]])])
def test_margins_are_positive_where_the_prediction_is_right(outputs: torch.Tensor) -> None:
    targets = torch.tensor([0, 1])
    right, margin = Accuracy()(outputs, targets), Margin()(outputs, targets)
    assert torch.equal(right == 1, margin > 0)
    expected = [1.0, -2.0] if outputs.shape[1] == 3 else [-2.0, -3.0]
    assert margin.tolist() == expected


def test_refusals() -> None:
    train, queries = ridge.problem()
    settings = Retraining(recipe=ridge.recipe())
    for sweep in ({"shares": ()}, {"shares": (0.0,)}, {"controls": 0}, {"measurements": {}}):
        with pytest.raises(ConfigError):
            Sweep(**sweep)
    with pytest.raises(ConfigError, match="leave some"):
        removal_curve(settings, train, queries, list(train.ids), sweep=Sweep(shares=(1.0,)))
    with pytest.raises(ConfigError, match="largest share"):
        removal_curve(settings, train, queries, ["row1"], sweep=Sweep(shares=(0.2,)))
    with pytest.raises(ConfigError, match="twice"):
        removal_curve(settings, train, queries, ["row1", "row1"], sweep=Sweep(shares=(0.01,)))
    with pytest.raises(ConfigError, match="every example"):
        signal = wh.Signal(values=np.ones(2), ids=np.array(["row1", "row2"]), name="short", unit=None)
        removal_curve(settings, train, queries, signal)
    with pytest.raises(ConfigError, match="finite"):
        signal = wh.Signal(values=np.full(30, np.nan), ids=train.ids, name="nan", unit=None)
        removal_curve(settings, train, queries, signal)
    with pytest.raises(ConfigError, match="at least one"):
        removal_curve(settings, train, queries, {})
    with pytest.raises(ConfigError, match="right targets"):
        correction_curve(settings, train, queries, list(train.ids), labels=torch.zeros(3))
