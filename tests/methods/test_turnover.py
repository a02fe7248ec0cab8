"""Turn-over dropout against a network written out with dense masks, and what its averages must keep."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import whence as wh
from whence.data import Batch, Examples, id_keys
from whence.tasks import example_masks


def data(rows: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] + 0.3 * torch.randn(rows, generator=generator) > 0).long()


def build() -> nn.Module:
    layers = nn.Linear(5, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 2)
    return nn.Sequential(*layers).double()


RECIPE = wh.Recipe(build=build, epochs=3, batch_size=8, learning_rate=0.03)
NAMES = np.array([f"row {number}" for number in range(30)])


def factors(ids: np.ndarray, p: float, seed: int, *, flipped: bool) -> tuple[Tensor, Tensor]:
    """The dense factors of both masked layers [N, d], with the shares that are really kept."""
    found = []
    for width, layer in ((12, "2"), (9, "5.input")):
        own = torch.from_numpy(example_masks(id_keys(ids), width, p=p, seed=seed, layer=layer))
        kept = own.sum(1, keepdim=True).double()
        found.append(~own * width / (width - kept) if flipped else own * width / kept)
    return found[0], found[1]


def by_hand(w: dict[str, Tensor], x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    hidden = torch.tanh(x @ w["0.weight"].T + w["0.bias"]) * first
    hidden = torch.tanh(hidden @ w["3.weight"].T + w["3.bias"]) * second
    return hidden @ w["5.weight"].T + w["5.bias"]


def dense_scores(model: nn.Module, queries: Any, ids: np.ndarray, p: float, seed: int) -> Tensor:
    w, truth = dict(model.named_parameters()), torch.zeros(len(queries[1]), len(ids), dtype=torch.float64)
    for i in range(len(ids)):
        losses = []
        for flipped in (True, False):
            first, second = factors(ids[i : i + 1], p, seed, flipped=flipped)
            losses.append(F.cross_entropy(by_hand(w, queries[0], first, second), queries[1], reduction="none"))
        truth[:, i] = (losses[0] - losses[1]).detach()
    return truth


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_scores_are_those_of_the_network_written_out(p: float) -> None:
    train, queries = wh.as_examples(data(), ids=NAMES), data(7, seed=1)
    fitted = wh.TurnOver(p=p, insert="5", seeds=(0, 4, 9)).fit(RECIPE, train)
    models = [task.model for task in fitted.tasks]
    truth = torch.stack([dense_scores(m, queries, NAMES, p, s) for m, s in zip(models, (0, 4, 9), strict=True)])
    scores = fitted.scores(queries)
    assert scores.standard_error is not None
    torch.testing.assert_close(scores.values, truth.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores.standard_error, truth.std(0) / 3**0.5, rtol=1e-9, atol=1e-10)
    assert scores.unit is None
    own = dense_scores(fitted.tasks[0].model, data(), NAMES, p, 0).diagonal()
    alone = wh.TurnOver().fit(fitted.tasks[0], train)
    np.testing.assert_allclose(alone.self_scores().values, own, rtol=1e-9, atol=1e-10)
    assert alone.scores(queries).standard_error is None
    assert alone.self_scores().standard_error is None


def test_seen_and_unseen_losses_make_self_scores() -> None:
    train = wh.as_examples(data(), ids=NAMES)
    fitted = wh.TurnOver(insert="5", seeds=(3,)).fit(RECIPE, train)
    w = dict(fitted.tasks[0].model.named_parameters())
    for flipped, signal in ((False, fitted.seen_losses()), (True, fitted.unseen_losses())):
        logits = by_hand(w, data()[0], *factors(NAMES, 0.5, 3, flipped=flipped))
        truth = F.cross_entropy(logits, data()[1], reduction="none").detach()
        np.testing.assert_allclose(signal.values, truth, rtol=1e-10)
        assert signal.unit == "nats"
    difference = fitted.unseen_losses().values - fitted.seen_losses().values
    np.testing.assert_allclose(fitted.self_scores().values, difference, rtol=1e-9, atol=1e-12)


def test_training_gives_every_example_its_own_mask() -> None:
    """Two full-batch steps of gradient descent, written out."""
    recipe = wh.Recipe(build=build, optimizer="sgd", momentum=0.0, learning_rate=0.2, epochs=2, batch_size=30)
    fitted = wh.TurnOver(p=0.3, insert="5", seeds=(7,)).fit(recipe, wh.as_examples(data(), ids=NAMES))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        w = {name: value.detach().requires_grad_() for name, value in build().named_parameters()}
    first, second = factors(NAMES, 0.3, 7, flipped=False)
    for _ in range(2):
        loss = F.cross_entropy(by_hand(w, data()[0], first, second), data()[1])
        gradients = torch.autograd.grad(loss, list(w.values()))
        w = {n: (v - 0.2 * g).detach().requires_grad_() for (n, v), g in zip(w.items(), gradients, strict=True)}
    for name, value in fitted.tasks[0].model.named_parameters():
        torch.testing.assert_close(value, w[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_neither_batches_nor_order_change_scores(size: int) -> None:
    train = wh.as_examples(data(), ids=NAMES)
    fitted = wh.TurnOver(seeds=(0, 1)).fit(RECIPE, train)
    order = np.random.default_rng(0).permutation(30)
    again = wh.TurnOver(batch_size=size).fit(fitted.tasks, train.select(order))
    one, two = fitted.scores(data(5, seed=2)), again.scores(data(5, seed=2))
    torch.testing.assert_close(one.values[:, order], two.values, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(fitted.self_scores().values[order], again.self_scores().values, rtol=1e-9, atol=1e-10)


def test_many_queries_are_answered_as_a_few_at_a_time() -> None:
    x, y = data(270, seed=3)
    fitted = wh.TurnOver(seeds=(0,)).fit(RECIPE, data())
    parts = [fitted.scores((x[rows], y[rows])).values for rows in (slice(0, 100), slice(100, 270))]
    torch.testing.assert_close(fitted.scores((x, y)).values, torch.cat(parts), rtol=1e-9, atol=1e-10)


class Counting(nn.Module):
    """Counts the rows that go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.rows += len(inputs)
        return inputs


def test_what_lies_before_the_masks_is_computed_once_for_a_batch_of_sub_networks() -> None:
    torch.manual_seed(0)
    model = wh.turn_over(nn.Sequential(nn.Linear(5, 8), Counting(), nn.Dropout(), Counting(), nn.Linear(8, 2)).double())
    fitted = wh.TurnOver(batch_size=10).fit(wh.Task(model), data())
    fitted.scores(data(4, seed=1))
    trial = (1 + 4, 4 + 4)  # two examples, both branches, the query once and repeated
    assert model[1].rows - trial[0] == 4 * 3
    assert model[3].rows - trial[1] == 4 * 2 * 30


class CountsItsInputs(nn.Module):
    """Looks at the number of its inputs' rows, as a model may that reshapes its hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(5, 8), nn.Dropout(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.first(x)).reshape(len(x), -1)[:, -8:])


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.inputs), batch.targets, reduction="none")


def test_models_that_cannot_share_get_the_query_repeated() -> None:
    torch.manual_seed(0)
    reshaping = wh.turn_over(CountsItsInputs().double())
    plain = wh.turn_over(nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.Linear(8, 2)).double())
    for layer, name in ((0, "first"), (2, "last")):
        getattr(reshaping, name).load_state_dict(plain[layer].state_dict())
    plain[1].key = "drop"
    truth = wh.TurnOver().fit(wh.Task(plain), data()).scores(data(3, seed=1)).values
    for task in (wh.Task(reshaping), wh.Task(plain, own_loss), wh.Task(plain, measurement=own_loss)):
        torch.testing.assert_close(wh.TurnOver().fit(task, data()).scores(data(3, seed=1)).values, truth)


def test_flipped_labels_have_large_self_scores_and_a_duplicate_helps() -> None:
    x, y = data(120)
    wrong = np.arange(120) % 10 == 0
    noisy = torch.where(torch.from_numpy(wrong), 1 - y, y)
    wide = functools.partial(perceptron, 128)
    fitted = wh.TurnOver(seeds=range(4)).fit(wh.Recipe(build=wide, epochs=60, learning_rate=1e-2), (x, noisy))
    assert roc_auc_score(wrong, fitted.self_scores().values) > 0.7
    assert roc_auc_score(wrong, fitted.unseen_losses().values) > 0.9
    assert fitted.scores((x, noisy)).values.diagonal().mean() > 5 * abs(fitted.scores((x, noisy)).values.mean())


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, 2)).double()


def test_the_users_model_and_recipe_stay() -> None:
    outputs = RECIPE.outputs
    fitted = wh.TurnOver(seeds=(0,)).fit(RECIPE, data())
    model = fitted.tasks[0].model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    fitted.scores(data(2))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert RECIPE.outputs is outputs
    assert RECIPE.build is build


def test_a_loop_of_ones_own_must_use_its_seed() -> None:
    def loop(examples: Examples, *, seed: int, start: Any, weights: Tensor) -> nn.Module:
        recipe = wh.Recipe(build=lambda: wh.turn_over(build(), seed=seed), outputs=wh.turn_over_outputs, epochs=1)
        return recipe.train(examples, seed=seed)

    def careless(examples: Examples, *, seed: int, start: Any, weights: Tensor) -> nn.Module:
        return loop(examples, seed=0, start=start, weights=weights)

    assert len(wh.TurnOver(seeds=(0, 1)).fit(wh.Recipe(train=loop), data()).tasks) == 2
    with pytest.raises(wh.ConfigError, match="same mask seed twice"):
        wh.TurnOver(seeds=(0, 1)).fit(wh.Recipe(train=careless), data())


def test_an_influence_function_takes_the_average_network() -> None:
    fitted = wh.TurnOver(seeds=(0,), insert="5").fit(RECIPE, data())
    plain = build()
    plain.load_state_dict({n: v for n, v in fitted.tasks[0].model.state_dict().items() if "seed" not in n})
    found, truth = (
        wh.Influence(curvature=wh.KFAC()).fit(task, data()).scores(data(3, seed=1)).values
        for task in (fitted.tasks[0], wh.Task(plain))
    )
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"seeds": ()}, "seeds must be"), ({"seeds": (1, 1)}, "seeds must be"), ({"batch_size": 0}, "batch_size must"),
     ({"p": 1.0}, "p must lie")],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(wh.ConfigError, match=message):
        wh.TurnOver(**settings)


def test_models_without_masks_are_refused() -> None:
    with pytest.raises(wh.ConfigError, match="members must have masked layers"):
        wh.TurnOver().fit(wh.Task(build()), data())
    with pytest.raises(wh.ConfigError, match="at least one"):
        wh.TurnOver().fit([], data())


def test_members_are_resumed_and_are_not_mixed_up(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    kept = functools.partial(wh.TurnOver, folder=tmp_path / "m", progress=lambda *seen: done.append(seen))
    first = kept(seeds=(0, 5)).fit(RECIPE, data())
    again = kept(seeds=(5, 7)).fit(RECIPE, data())
    assert done == [(1, 2), (2, 2), (2, 2)]
    for old, new in zip(first.tasks[1].model.parameters(), again.tasks[0].model.parameters(), strict=True):
        assert torch.equal(old, new)
    fresh = wh.TurnOver(seeds=(5, 7)).fit(RECIPE, data())
    assert torch.equal(again.scores(data(4)).values, fresh.scores(data(4)).values)
    torch.manual_seed(3)
    kept(seeds=(5, 7)).fit(RECIPE, data())
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(wh.RunFormatError, match="same p,"):
        kept(p=0.3).fit(RECIPE, data())
    with pytest.raises(wh.RunFormatError, match="same recipe's epochs"):
        kept().fit(wh.Recipe(build=build, epochs=2, batch_size=8, learning_rate=0.03), data())
    with pytest.raises(wh.ConfigError, match="must have build= for members"):
        kept().fit(wh.Recipe(train=lambda examples, **_: build()), data())


def test_a_recipe_that_trains_without_masks_is_refused() -> None:
    with pytest.raises(wh.ConfigError, match="must train by gradient descent for turn-over dropout"):
        wh.TurnOver(seeds=(0,)).fit(wh.Recipe(build=build, optimizer="lbfgs", weight_decay=0.1), data())
