"""Masks are functions of ids alone, exactly balanced, and reach the layers through a context."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from turnover_samples import make, mlp, numbers

import whence as wh
from whence.data import id_keys
from whence.tasks import TurnOverDropout, example_masks, mask_layers, masks
from whence.tasks.turnover.masks import _lowest

KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5, unique=True)
GOLDEN, ALL = 0x9E3779B97F4A7C15, 2**64 - 1


def mixed(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & ALL
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & ALL
    return value ^ (value >> 31)


def by_hand(key: int, width: int, kept: int, seed: int, layer: str) -> list[bool]:
    """One mask with Python's integers: the units with the smallest 32-bit halves of SplitMix64 numbers."""
    state = mixed(key + GOLDEN * (seed + 1) & ALL)
    state = mixed(state + int(id_keys(np.array([layer]))[0]) & ALL)
    numbers = [mixed(state + GOLDEN * (unit // 2 + 1) & ALL) >> 32 * (unit % 2) & 2**32 - 1 for unit in range(width)]
    chosen = set(sorted(range(width), key=lambda unit: (numbers[unit], unit))[:kept])
    return [unit in chosen for unit in range(width)]


@settings(max_examples=60, deadline=None)
@given(KEYS, st.integers(2, 90), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_masks_are_balanced_and_as_by_hand(keys: list[int], width: int, p: float, seed: int) -> None:
    kept = round(p * width)
    found = np.array(keys, dtype=np.uint64)
    if not 0 < kept < width:
        with pytest.raises(wh.ConfigError, match="keep and drop at least one"):
            example_masks(found, width, p=p, seed=seed)
        return
    chosen = example_masks(found, width, p=p, seed=seed, layer="a.b")
    assert chosen.sum(1).tolist() == [kept] * len(keys)
    assert chosen.tolist() == [by_hand(key, width, kept, seed, "a.b") for key in keys]


def test_equal_numbers_do_not_unbalance_a_mask() -> None:
    drawn = np.array([[5, 5, 5, 5], [1, 5, 5, 0], [3, 2, 1, 0]], dtype=np.uint32)
    assert _lowest(drawn, 2).tolist() == [[True, True, False, False], [True, False, False, True],
                                          [False, False, True, True]]  # fmt: skip


def test_large_integer_ids_do_not_collide() -> None:
    near = [start + step for start in (0, 2**24, 2**31, 2**53, 2**62, -(2**63)) for step in range(300)]
    chosen = example_masks(id_keys(np.array(near)), 64)
    assert len(np.unique(chosen, axis=0)) == len(near)


def test_all_balanced_subsets_are_equally_likely() -> None:
    count = 6000
    chosen = example_masks(np.arange(count, dtype=np.uint64), 4)
    found = {subset: int((chosen[:, list(subset)].all(1)).sum()) for subset in itertools.combinations(range(4), 2)}
    assert sum(found.values()) == count
    assert sum((n - count / 6) ** 2 / (count / 6) for n in found.values()) < 20.5  # χ²₅, p = .001


def test_seeds_and_layers_draw_other_masks() -> None:
    keys = np.arange(50, dtype=np.uint64)
    first = example_masks(keys, 32)
    for other in (example_masks(keys, 32, seed=1), example_masks(keys, 32, layer="x")):
        assert 0.4 < (first == other).mean() < 0.6


def test_neither_batch_nor_order_changes_a_mask() -> None:
    keys = id_keys(np.array([f"row {i}" for i in range(70)]))
    whole, order = example_masks(keys, 2000, p=0.3), np.random.default_rng(0).permutation(70)
    assert np.array_equal(example_masks(keys[order], 2000, p=0.3), whole[order])
    assert all(np.array_equal(example_masks(keys[i : i + 1], 2000, p=0.3)[0], whole[i]) for i in (0, 33, 69))
    assert example_masks(keys[:0], 8).shape == (0, 8)


@pytest.mark.parametrize("p", [0.5, 0.25, 0.7])
def test_both_branches_are_unbiased_for_any_p(p: float) -> None:
    layer, keys = TurnOverDropout(p, key="x"), np.arange(40, dtype=np.uint64)
    inputs = torch.randn(40, 11, dtype=torch.float64)
    kept = round(p * 11)
    with masks(layer, keys, flipped="both"):
        seen, unseen = layer(torch.ones(1, 11, dtype=torch.float64)).split(40)
    torch.testing.assert_close(seen.sum(1), torch.full((40,), 11.0, dtype=torch.float64))
    torch.testing.assert_close(unseen.sum(1), torch.full((40,), 11.0, dtype=torch.float64))
    assert set(seen.unique().tolist()) == {0.0, 11 / kept}
    assert bool(((seen == 0) != (unseen == 0)).all())
    for flipped, factor in ((False, seen), (True, unseen)):
        with masks(layer, keys, flipped=flipped):
            torch.testing.assert_close(layer(inputs), inputs * factor)


def test_units_are_channels_in_images_and_the_last_dimension_elsewhere() -> None:
    keys = np.arange(3, dtype=np.uint64)
    for layer, shape, axis in (
        (TurnOverDropout(), (3, 6, 2, 2), 1), (TurnOverDropout(), (3, 5, 6), 2),
        (TurnOverDropout(axis=1), (3, 6, 5), 1),
    ):  # fmt: skip
        with masks(layer, keys):
            made = layer(torch.ones(shape)).movedim(axis, 1).flatten(2)
        assert bool((made == made[:, :, :1]).all())
        assert (made[:, :, 0] > 0).sum(1).tolist() == [3, 3, 3]


def test_without_keys_it_is_the_average_network_and_refuses_to_train() -> None:
    model = wh.turn_over(mlp().double()).eval()
    plain, (x, _) = mlp().double().eval(), numbers()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "seed" not in name})
    assert torch.equal(model(x), plain(x))
    with pytest.raises(wh.ConfigError, match="must know the examples' keys in training"):
        model.train()(x)


def test_contexts_nest_and_end_with_an_error() -> None:
    model = wh.turn_over(mlp().double()).eval()
    x, keys = numbers()[0], np.arange(12, dtype=np.uint64)
    average = model(x)
    with masks(model, keys):
        own = model(x)
        with masks(model, keys, flipped=True):
            other = model(x)
        assert torch.equal(model(x), own)
    assert not torch.equal(own, other)
    with pytest.raises(ValueError, match="stop"), masks(model, keys):
        raise ValueError("stop")
    assert torch.equal(model(x), average)


def test_rows_that_are_no_examples_are_refused() -> None:
    layer = TurnOverDropout(key="odd")
    keys = np.arange(3, dtype=np.uint64)
    with pytest.raises(wh.ConfigError, match="'odd' must have examples as their first dimension"), masks(layer, keys):
        layer(torch.ones(2, 4))
    with pytest.raises(wh.ConfigError, match="model must have masked layers"), masks(nn.Linear(2, 2), keys):
        pass
    with pytest.raises(wh.ConfigError, match="p must lie between 0 and 1"):
        TurnOverDropout(1.0)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "bert", "torch encoder"])
def test_conversion_copies_keeps_names_and_survives_copies(name: str) -> None:
    model, rows = make(name)
    kept = copy.deepcopy(model)
    insert = {"mlp": "3", "cnn": "*[0-9]", "encoder": "up", "bert": "*.query", "torch encoder": "*.linear1"}[name]
    insert = "3" if name == "cnn" else insert
    made = wh.turn_over(model, insert=insert, seed=4)
    assert [n for n, _ in made.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert all(torch.equal(value, kept.state_dict()[n]) for n, value in model.state_dict().items())
    assert not mask_layers(model)
    assert any(layer.key == f"{insert.replace('*.', '')}.input" or insert[0] == "*" for layer in mask_layers(made))
    assert {int(layer.seed) for layer in mask_layers(made)} == {4}
    batch = wh.as_examples(rows).batch(np.arange(4))
    task = wh.Task(made)
    with task.evaluating(), masks(made, batch.keys):
        found = task.forward(batch)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        twin.load_state_dict(wh.reseed(copy.deepcopy(made), 9).state_dict())
        again = wh.Task(twin)
        with again.evaluating(), masks(twin, batch.keys):
            assert not torch.equal(again.forward(batch), found)
        with again.evaluating(), masks(wh.reseed(twin, 4), batch.keys):
            assert torch.equal(again.forward(batch), found)


def test_dropout_that_stands_in_two_places_is_one_layer() -> None:
    drop = nn.Dropout()
    made = wh.turn_over(nn.Sequential(nn.Linear(4, 6), drop, nn.Linear(6, 6), drop))
    assert made[1] is made[3]
    assert isinstance(wh.turn_over(nn.Dropout()), TurnOverDropout)


def test_fused_encoder_layers_do_not_pass_the_masks_by() -> None:
    model, (tokens, _) = make("torch encoder")
    made, keys = wh.turn_over(model).eval(), np.arange(8, dtype=np.uint64)
    with masks(made, keys):
        graded = made(tokens).detach()
        with torch.no_grad():
            torch.testing.assert_close(made(tokens), graded)
    assert not torch.allclose(graded, made(tokens))


def test_conversions_that_cannot_work_are_refused() -> None:
    with pytest.raises(wh.ConfigError, match="dropout to replace or layers named"):
        wh.turn_over(nn.Linear(3, 2))
    with pytest.raises(wh.ConfigError, match="insert must name linear or convolution layers"):
        wh.turn_over(mlp(), insert="conv*")


def test_layers_of_one_key_and_other_shares_have_factors_of_their_own() -> None:
    model = nn.Sequential(TurnOverDropout(0.5), TurnOverDropout(0.25)).double()
    ones, keys = torch.ones(3, 8, dtype=torch.float64), np.arange(3, dtype=np.uint64)
    with masks(model, keys):
        half, quarter = model[0](ones), model[1](ones)
        small = model[1](ones.half())
    assert (half != 0).sum(1).tolist() == [4, 4, 4]
    assert (quarter != 0).sum(1).tolist() == [2, 2, 2]
    assert small.dtype == torch.float16
    torch.testing.assert_close(quarter.sum(1), ones.sum(1))


def test_a_layer_that_two_patterns_name_is_masked_once() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    once, twice = wh.turn_over(net, insert="2"), wh.turn_over(net, insert=["2", "*2", "2"])
    x, keys = torch.randn(4, 3, dtype=torch.float64), np.arange(4, dtype=np.uint64)
    found = []
    for model in (once, twice):
        with masks(model, keys):
            found.append(model(x))
    assert torch.equal(*found)
