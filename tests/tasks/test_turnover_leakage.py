"""What leaks is what autograd says; strictly, training on an example leaves its flipped sub-network as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turnover_samples import SAMPLES, bert, make, masked_messages, mlp, numbers

import whence as wh
from whence.tasks import example_masks, masks

each = pytest.mark.parametrize("name", SAMPLES)


def rows_of(task: wh.Task, rows: Any) -> Any:
    return task.place(wh.as_examples(rows).batch(np.arange(len(rows[1]))))


def mlp_losses(p: dict[str, Tensor], x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """The small MLP written out, its one dropout as a product with a dense factor."""
    hidden = torch.relu(x @ p["0.weight"].T + p["0.bias"]) * factor
    hidden = torch.relu(hidden @ p["3.weight"].T + p["3.bias"])
    return F.cross_entropy(hidden @ p["5.weight"].T + p["5.bias"], y, reduction="none")


def encoder_losses(p: dict[str, Tensor], tokens: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """The encoder written out, dropout at both places by the same factor."""
    x = p["words.weight"][tokens] + p["places.weight"]
    query, key, value = (x @ p[f"{n}.weight"].T + p[f"{n}.bias"] for n in ("query", "key", "value"))
    attended = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1) @ value
    x = F.layer_norm(x + attended * factor[:, None], (8,), p["norm.weight"], p["norm.bias"])
    down = torch.relu(x @ p["up.weight"].T + p["up.bias"]) @ p["down.weight"].T + p["down.bias"]
    x = F.layer_norm(x + down * factor[:, None], (8,), p["last_norm.weight"], p["last_norm.bias"])
    return F.cross_entropy(x.mean(1) @ p["head.weight"].T + p["head.bias"], y, reduction="none")


@pytest.mark.parametrize(
    ("name", "losses", "layer", "width"), [("mlp", mlp_losses, "2", 16), ("encoder", encoder_losses, "drop", 8)]
)
def test_the_list_of_leaks_is_autograds(name: str, losses: Any, layer: str, width: int) -> None:
    model, (x, y) = make(name)
    made = wh.turn_over(model, p=0.375)
    found = wh.leakage(wh.Task(made), (x, y))
    p = {n: value.detach().requires_grad_() for n, value in model.named_parameters()}
    own = torch.from_numpy(example_masks(np.arange(len(y), dtype=np.uint64), width, p=0.375, layer=layer))
    counts = {n: np.zeros(2) for n in p}
    for i in range(len(y)):
        seen = losses(p, x[i : i + 1], y[i : i + 1], own[i : i + 1] / 0.375)
        asked = losses(p, x, y, (~own[i : i + 1] / 0.625).expand(len(y), -1))
        used = [sum(torch.autograd.grad(loss, list(p.values()), retain_graph=True)[k].abs() for loss in asked)
                for k in range(len(p))]  # fmt: skip
        for (n, _), gradient, use in zip(p.items(), torch.autograd.grad(seen, list(p.values())), used, strict=True):
            counts[n] += [int((use != 0).sum()), int(((use != 0) & (gradient != 0)).sum())]
    for n, (used_count, leaking) in counts.items():
        if n == "key.bias":
            continue  # softmax does not see it: its gradient is rounding alone, which differs with the formula
        assert found.table.loc[n, "used"] == pytest.approx(used_count / len(y)), n
        assert found.table.loc[n, "leaking"] == pytest.approx(leaking / len(y)), n
    assert set(found.leaks) - {"key.bias"} == {n for n, (_, leaking) in counts.items() if leaking} - {"key.bias"}
    assert found.share > 0


def after_a_step(model: nn.Module, rows: Any, number: int) -> tuple[Tensor, Tensor]:
    """Flipped outputs of all rows under an example's masks, before and after some training on that example alone."""
    examples = wh.as_examples(rows)
    alone = examples.select(np.array([number]))
    recipe = wh.Recipe(build=nn.Identity, outputs=wh.turn_over_outputs, optimizer="sgd", learning_rate=0.3, epochs=3)
    found = []
    for trained in (model, recipe.train(alone, start=model)):
        task = wh.Task(trained)
        batch = rows_of(task, rows)
        with torch.no_grad(), task.evaluating(), masks(trained, alone.keys.repeat(len(batch)), flipped=True):
            found.append(task.forward(batch))
    return found[0], found[1]


@each
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_strict_training_on_an_example_leaves_its_flipped_network_bit_identical(name: str, p: float) -> None:
    model, rows = make(name)
    strict = wh.turn_over(model, p=p, strict=rows)
    report = wh.leakage(wh.Task(strict), rows)
    assert report.leaks == []
    assert report.statistics == ()
    assert float(report.table["gradient_share"].max()) == 0.0
    matrices = [n for n, v in strict.named_parameters() if v.ndim > 1 and not v.requires_grad]
    assert matrices == [], "every matrix is still trained"
    with torch.random.fork_rng():
        for number in (0, 3):
            before, after = after_a_step(strict, rows, number)
            assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "bert"])
def test_usual_training_on_an_example_changes_its_flipped_network(name: str) -> None:
    model, rows = make(name)
    usual = wh.turn_over(model)
    assert wh.leakage(wh.Task(usual), rows).leaks
    if name != "cnn":  # batch normalisation does not train on one row
        before, after = after_a_step(usual, rows, 0)
        assert not torch.equal(before, after)


@each
def test_strict_models_learn(name: str) -> None:
    model, rows = make(name)
    examples = wh.as_examples(rows)
    recipe = wh.Recipe(build=nn.Identity, outputs=wh.turn_over_outputs, learning_rate=1e-2, epochs=25)
    strict = wh.turn_over(model, strict=rows)
    losses: list[float] = []
    recipe.train(examples, start=strict, on_epoch=lambda _, __, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert wh.leakage(wh.Task(recipe.train(examples, start=strict)), rows).leaks == []


def test_what_else_leaks_is_named() -> None:
    model, rows = make("cnn")
    report = wh.leakage(wh.Task(wh.turn_over(model)), rows)
    assert report.statistics == ("1", "4")
    assert "running statistics" in str(report)
    assert not report.random
    bert, rows = make("bert")
    report = wh.leakage(wh.Task(wh.turn_over(bert)), rows)
    assert report.unreached == ("bert.encoder.layer.0.attention.self.dropout",)
    assert not report.random
    encoder, rows = make("torch encoder")
    assert wh.leakage(wh.Task(wh.turn_over(encoder)), rows).random, "nn.MultiheadAttention drops by a function"


def test_frozen_parameters_do_not_leak_and_the_model_is_left_alone() -> None:
    made = wh.turn_over(mlp().double())
    made[5].bias.requires_grad_(False)
    state = torch.get_rng_state()
    report = wh.leakage(wh.Task(made), numbers())
    assert "5.bias" not in report.table.index
    assert report.leaks == ["3.bias", "5.weight"]
    assert all(v.grad is None for v in made.parameters())
    assert made.training
    assert torch.equal(torch.get_rng_state(), state)


def test_matrices_of_one_tensor_share_a_mask() -> None:
    made = wh.turn_over(bert(layers=2).double(), strict=masked_messages())
    attention = made.bert.encoder.layer[1].attention.self
    keys = {getattr(attention, name).turn_over_input.key for name in ("query", "key", "value")}
    assert keys == {"bert.encoder.layer.1.attention.self.query.input"}
    assert wh.leakage(wh.Task(made), masked_messages(12, seed=3)).leaks == [], "nor does it leak on other rows"


def test_a_single_matrix_is_masked_before_it() -> None:
    made = wh.turn_over(nn.Linear(6, 3).double(), strict=numbers())
    assert wh.leakage(wh.Task(made), numbers()).leaks == []
    assert made.weight.requires_grad
    assert not made.bias.requires_grad


def test_fixed_statistics_are_those_of_the_masked_rows_or_those_that_were_there() -> None:
    model, (x, y) = make("cnn")
    made = wh.turn_over(model, strict=(x, y)).eval()
    seen: list[Tensor] = []
    made[4].register_forward_hook(lambda _, args, result: seen.extend([*args, result]))
    with torch.no_grad(), masks(made, np.arange(len(y), dtype=np.uint64)):
        made(x)
    torch.testing.assert_close(made[4].running_mean, seen[0].mean((0, 2, 3)))
    torch.testing.assert_close(made[4].running_var, seen[0].var((0, 2, 3)))
    reference = F.batch_norm(seen[0], None, None, made[4].weight, made[4].bias, training=True)
    torch.testing.assert_close(seen[1], reference.detach(), rtol=1e-2, atol=1e-2)
    model.train()(x)
    kept = wh.turn_over(model, strict=(x, y))
    assert torch.equal(kept[4].running_mean, model[4].running_mean)
    assert torch.equal(kept[4].running_var, model[4].running_var)


def test_channels_of_sequences_are_masked_by_their_own_dropout() -> None:
    def network(dropout: nn.Module) -> nn.Module:
        first, second = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(), dropout, second, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                             nn.Linear(8, 3))  # fmt: skip

    rows = torch.randn(8, 3, 10), torch.arange(8) % 3
    found = [wh.leakage(wh.Task(wh.turn_over(network(kind()))), rows).table for kind in (nn.Dropout, nn.Dropout1d)]
    assert found[0].loc["3.weight", "leaking"] > 0  # positions were masked
    assert found[1].loc[["0.weight", "3.weight"], "leaking"].tolist() == [0, 0]
