"""Attacks on training sets: the box holds, the maps are right, retraining bears the result out, controls do not."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import whence as wh
from whence.uses.attack_victim import Held, Victim, altered, margins

EXACT = wh.Influence(curvature=wh.Exact())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), radius=st.floats(0.01, 300.0), norm=st.sampled_from(["linf", "l2"]),
    bounded=st.booleans(), size=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_a_box_is_never_left(seed: int, radius: float, norm: Any, bounded: bool, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    box = wh.Box(radius=radius, norm=norm, level=1 / 255, low=0.0 if bounded else None, high=1.0 if bounded else None)
    original = torch.rand(3, 2, 4, generator=generator)
    original[0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    delta = size * torch.randn(3, 2, 4, generator=generator) / 255
    maps = torch.randn(3, 2, 4, generator=generator)
    for found in (
        box.clip(delta, original), box.random(original, generator),
        box.clip(box.ascend(box.clip(delta, original), maps, radius), original),
    ):  # fmt: skip
        assert box.contains(found, original)
        torch.testing.assert_close(box.clip(found, original), found, rtol=1e-5, atol=1e-9)
        sizes = found.abs().amax((1, 2)) if norm == "linf" else found.flatten(1).norm(dim=1)
        assert bool((sizes <= radius / 255 * (1 + 1e-6)).all())
        if bounded:
            assert bool(((original + found >= 0) & (original + found <= 1)).all())
    assert not box.contains(torch.full_like(original, 3 * radius / 255), original - 5 * radius)


def test_half_a_level_cannot_be_stored() -> None:
    box = wh.Box(radius=2.0)
    delta = torch.tensor([[0.5, -0.5, 0.499, 0.51, -1.2, 1.5, 1.6, 2.0]]) / 255
    expected = torch.tensor([[0.0, 0.0, 0.0, 1.0, -1.0, 1.0, 2.0, 2.0]]) / 255
    torch.testing.assert_close(box.rounded(delta), expected)


def test_random_signs_are_as_large_as_any_change() -> None:
    original = torch.full((2, 3, 5), 0.5)
    for norm in ("linf", "l2"):
        box = wh.Box(radius=1.5, norm=norm)  # type: ignore[arg-type]
        drawn = box.random(original, torch.Generator().manual_seed(0))
        sizes = drawn.abs() if norm == "linf" else drawn.flatten(1).norm(dim=1)
        torch.testing.assert_close(sizes, torch.full_like(sizes, 1.5 / 255))


def photographs(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return grey images [N, 1, 4, 4] in [0, 1] of two overlapping kinds."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    x = 0.5 + 0.18 * torch.randn(count, 1, 4, 4, generator=generator)
    x[:, 0, :2] += 0.15 * (y[:, None, None] * 2 - 1)
    return x.clamp(0, 1), y


def flat(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


CONVEX = wh.Recipe(build=flat, optimizer="lbfgs", weight_decay=0.005, gradient_norm=1e-7)


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, y = photographs()
    return (x[:40], y[:40]), (x[40:], y[40:])


def refitted(train: tuple[Tensor, Tensor], found: wh.Attack) -> nn.Module:
    """Train again on the perturbed images by hand."""
    x = train[0].double().clone()
    x[torch.from_numpy(found.ids)] = (found.original + found.deltas).double()
    return CONVEX.train(wh.as_examples((x, train[1])))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_on_softmax_regression(norm: Any) -> None:
    train, test = data()
    target = test[0][:1], test[1][:1]
    box = wh.Box(radius=20.0 if norm == "linf" else 60.0, norm=norm)
    wanted = wh.AttackSettings(box=box, images=2, steps=12, step=0.2 * box.radius, random_controls=4)
    seen: list[tuple[int, int]] = []
    found = wh.attack(CONVEX, train, target, method=EXACT, settings=wanted, on_step=lambda *now: seen.append(now))
    assert box.contains(found.deltas, found.original)
    assert float(found.perturbed.min()) >= 0
    assert float(found.perturbed.max()) <= 1
    torch.testing.assert_close(found.original, train[0][torch.from_numpy(found.ids)])
    torch.testing.assert_close(found.labels, train[1][torch.from_numpy(found.ids)])
    row = found.targets.iloc[0]
    gap, predicted = margins(refitted(train, found)(target[0].double()).detach(), target[1])
    assert row["margin_after"] == pytest.approx(float(gap), abs=1e-4)
    assert row["predicted_after"] == int(predicted)
    assert row["flipped"] == (row["margin_before"] > 0 and row["predicted_before"] != row["predicted_after"])
    random, plain = found.control_drop("random signs"), found.control_drop("gradient matching")
    assert random is not None
    assert plain is not None
    assert found.margin_drop > 3 * random
    assert found.margin_drop > 0.9 * plain
    assert seen
    assert seen[0] == (1, 12)
    history = found.history
    assert list(history.columns) == ["step", "measurement", "margin", "flipped", "largest"]
    assert history["largest"].max() <= box.radius * (1 + 1e-6)
    assert history["measurement"].iloc[-1] > history["measurement"].iloc[0]
    summary = found.summary()
    assert summary["images"] == 2
    assert repr(found).startswith("Attack(2 altered, ")
    assert summary["times_random"] == pytest.approx(found.margin_drop / random)
    assert summary["controls"]["random signs"]["draws"] == 4


def test_the_reach_is_what_a_small_box_gives() -> None:
    """In a box so small that everything is linear the rise is the reach, and the top rows are the ones altered."""
    train, test = data()
    train = train[0].double(), train[1]
    exact = wh.Recipe(build=flat, optimizer="lbfgs", weight_decay=0.05, gradient_norm=1e-8)
    target = test[0][3:4].double(), test[1][3:4]
    box = wh.Box(radius=0.2, low=None, high=None)
    wanted = wh.AttackSettings(box=box, step=0.2, steps=3, random_controls=0, gradient_control=False)
    found = wh.attack(exact, train, target, method=EXACT, settings=wanted)
    original = exact.train(wh.as_examples(train))
    before, after = (F.cross_entropy(model(target[0]), target[1]).item() for model in (original, found.model))
    rise = after - before
    best = int(np.argmax(found.reach.values))
    assert found.ids.tolist() == [best]
    assert rise == pytest.approx(float(found.reach.values[best]), rel=2e-3)
    assert found.stopped == "nothing moves any more"
    assert [control.name for control in found.controls] == ["rounded to whole levels"]
    assert found.control_drop("rounded to whole levels") == pytest.approx(0, abs=1e-9)
    assert found.control_drop("random signs") is None
    assert found.summary()["times_random"] is None


def test_a_wide_box_flips_predictions_and_the_attack_stops() -> None:
    train, test = data()
    model = CONVEX.train(wh.as_examples(train))
    with torch.no_grad():
        gap, _ = margins(model(test[0].double()), test[1])
    close = torch.nonzero(gap > 0)[:, 0][gap[gap > 0].argsort()[:2]]
    wanted = wh.AttackSettings(
        box=wh.Box(radius=120.0), images=6, steps=60, random_controls=2, gradient_control=False, step=6.0
    )
    found = wh.attack(CONVEX, train, (test[0][close], test[1][close]), method=EXACT, settings=wanted)
    assert found.stopped == "every prediction has flipped"
    assert found.flips == 2
    assert found.targets["flipped"].all()
    assert found.summary()["flips"] == 2
    assert found.history["flipped"].iloc[-1] == 2
    assert len(found.history) < 61


def test_a_wrong_prediction_cannot_flip() -> None:
    train, test = data()
    wrong = test[0][:1], 1 - test[1][:1]
    wanted = wh.AttackSettings(box=wh.Box(radius=60.0), steps=5, random_controls=1, gradient_control=False)
    found = wh.attack(CONVEX, train, wrong, method=EXACT, settings=wanted)
    assert found.targets["margin_before"].iloc[0] < 0
    assert found.flips == 0
    assert found.stopped != "every prediction has flipped"


class Features(nn.Module):
    """A frozen extractor."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.map = nn.Conv2d(1, 3, 2)
        with torch.no_grad():
            for p in self.map.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.map(x))).flatten(1)


def test_maps_through_frozen_features_are_those_of_the_whole_model() -> None:
    x, y = photographs()
    frozen = Features().double().eval()
    recipe = wh.Recipe(build=lambda: nn.Linear(27, 2), optimizer="lbfgs", weight_decay=0.01, gradient_norm=1e-7)
    examples, targets = wh.as_examples((x[:40].double(), y[:40])), wh.as_examples((x[40:44].double(), y[40:44]))
    victim = Victim(recipe=recipe, examples=examples, targets=targets, frozen=frozen)
    head = victim.train(victim.seen)
    rows = np.array([7, 2])
    found = victim.maps(Held(EXACT), head, victim.seen, rows, victim.inputs(rows))
    whole = wh.Task(nn.Sequential(frozen, head), weight_decay=0.01)
    attribution = wh.Influence(curvature=wh.Exact(), layers="last").fit(whole, examples)
    expected = attribution.perturbation(rows, targets, reduce="mean").values[0]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)


def test_frozen_features_are_used_in_evaluation_mode_and_left_alone() -> None:
    x, y = photographs()
    frozen = Features()
    before = copy.deepcopy(frozen.state_dict())
    recipe = wh.Recipe(
        build=lambda: nn.Linear(27, 1), loss="binary_cross_entropy", optimizer="lbfgs", weight_decay=0.01
    )  # fmt: skip
    wanted = wh.AttackSettings(box=wh.Box(radius=8.0), steps=4, random_controls=2)
    train, target = (x[:40], y[:40].float()), (x[41:43], y[41:43].float())
    runs = [wh.attack(recipe, train, target, method=EXACT, frozen=frozen, settings=wanted) for _ in range(2)]
    torch.testing.assert_close(runs[0].deltas, runs[1].deltas, rtol=0, atol=0)
    assert frozen.training
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
    assert runs[0].margin_drop > 0


def test_all_layers_of_a_convolutional_network_by_ekfac() -> None:
    """The network is trained again from the same seed on the altered images; nothing of it is frozen."""
    x, y = photographs(48)
    (train, test) = (x[:40], y[:40]), (x[40:], y[40:])

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 4, 3, stride=2), nn.Tanh(), nn.Flatten(),
            nn.Linear(4, 2),
        )  # fmt: skip

    recipe = wh.Recipe(build=build, optimizer="sgd", learning_rate=0.05, epochs=60, batch_size=40, weight_decay=0.01)
    wanted = wh.AttackSettings(
        box=wh.Box(radius=30.0), images=3, step=15.0, steps=2, random_controls=2, gradient_control=False
    )
    found = wh.attack(recipe, train, test, method=wh.Influence(curvature=wh.EKFAC()), settings=wanted)
    altered_inputs = train[0].clone()
    altered_inputs[torch.from_numpy(found.ids)] = found.perturbed
    again = recipe.train(wh.as_examples((altered_inputs, train[1])), seed=0)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value)
    random = found.control_drop("random signs")
    assert random is not None
    assert found.history["measurement"].max() > found.history["measurement"].iloc[0]
    assert found.margin_drop > random
    assert wanted.box.contains(found.deltas, found.original)


def test_examples_with_other_inputs() -> None:
    x, y = photographs(6)
    examples = wh.as_examples((x, y), ids=list("abcdef"))
    values = torch.zeros(2, 1, 4, 4)
    found = altered(examples, np.array([4, 1]), values)
    batch = found.batch(np.array([1, 2, 4]))
    assert batch.ids.tolist() == ["b", "c", "e"]
    assert batch.inputs.flatten(1).abs().sum(1).gt(0).tolist() == [False, True, False]
    assert torch.equal(examples.batch(np.arange(6)).inputs, x)


def test_margins() -> None:
    outputs = torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.0, -1.0]])
    gap, predicted = margins(outputs, torch.tensor([2, 0]))
    assert gap.tolist() == [-1.0, 0.5]
    assert predicted.tolist() == [1, 0]
    gap, predicted = margins(torch.tensor([[2.0], [-1.0]]), torch.tensor([0.0, 0.0]))
    assert gap.tolist() == [-2.0, 1.0]
    assert predicted.tolist() == [1, 0]
    with pytest.raises(wh.ConfigError, match="must be classes with outputs"):
        margins(torch.zeros(2, 3), torch.zeros(2, 3))


def test_what_is_refused() -> None:
    train, test = data()
    with pytest.raises(wh.ConfigError, match=r"inputs must lie between 0\.0 and 1\.0, got"):
        wh.attack(CONVEX, (255 * train[0], train[1]), test, method=EXACT)
    with pytest.raises(wh.ConfigError, match="images must be at most 40"):
        wh.attack(CONVEX, train, test, method=EXACT, settings=wh.AttackSettings(images=41))
    with pytest.raises(wh.ConfigError, match="must have labels"):
        wh.attack(CONVEX, train, test[0], method=EXACT)
    with pytest.raises(wh.ConfigError, match="one floating-point tensor"):
        Victim(recipe=CONVEX, examples=wh.as_examples((torch.ones(3, 2).long(), train[1][:3])), targets=test).inputs(
            np.array([0])
        )
    for settings_, match in (
        ({"images": 0}, "images must be at least 1"), ({"step": 0.0}, "step must be positive"),
        ({"random_controls": -1}, "random_controls must be zero or positive"),
    ):  # fmt: skip
        with pytest.raises(wh.ConfigError, match=match):
            wh.AttackSettings(**settings_)
    for settings_, match in (
        ({"norm": "l1"}, "norm must be"), ({"radius": 0.0}, "radius must be positive"),
        ({"low": 1.0, "high": 0.0}, "low must be below high"),
    ):  # fmt: skip
        with pytest.raises(wh.ConfigError, match=match):
            wh.Box(**settings_)


def test_an_effect_below_the_recipes_gradient_norm_times_a_hundred_is_found() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(30, 4), torch.arange(30) % 2
    norms = {}
    for norm in (1e-6, 1e-8):
        recipe = wh.Recipe(build=lambda: nn.Linear(4, 2), optimizer="lbfgs", weight_decay=0.05, gradient_norm=norm)
        wanted = wh.AttackSettings(random_controls=0, gradient_control=False)
        norms[norm] = wh.attack(recipe, (x, y), (x[:2], y[:2]), method=EXACT, settings=wanted).margin_drop
    assert norms[1e-6] == pytest.approx(norms[1e-8], rel=0.05)
    assert norms[1e-8] > 0


def test_inputs_that_cannot_be_moved_are_refused_before_training() -> None:
    recipe = wh.Recipe(build=lambda: nn.Linear(4, 2), optimizer="lbfgs", weight_decay=0.05)
    x, y = torch.randint(0, 9, (8, 4)), torch.arange(8) % 2
    with pytest.raises(wh.ConfigError, match="one floating-point tensor"):
        wh.attack(recipe, (x, y), (x[:1], y[:1]), method=EXACT)
