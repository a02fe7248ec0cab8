"""Comparing methods: who is recommended, what does not apply, and the three ground truths on known answers."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import whence as wh
from whence.evaluate import (
    Contender,
    ErrorTruth,
    LeaveOneOutTruth,
    SubsetOutputs,
    SubsetTruth,
    compare,
    pass_seconds,
    sample_subsets,
)
from whence.evaluate.subsets import removed_sums

IDS = np.arange(30)
QUERIES = np.arange(100, 140)


def scores(seed: int, noise: float = 0.0, unit: str | None = "nats") -> wh.Scores:
    """The true scores with some noise, or nothing but noise."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    other = torch.randn(40, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = other if np.isinf(noise) else true + noise * other
    return wh.Scores(values=values, query_ids=QUERIES, ids=IDS, unit=unit)


def clock(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
    """Let the contenders take so many seconds, in their order."""
    times = itertools.chain.from_iterable((10.0 * place, 10.0 * place + s) for place, s in enumerate(seconds))
    monkeypatch.setattr(sys.modules["whence.evaluate.compare"], "time", SimpleNamespace(perf_counter=times.__next__))


def entrant(name: str, found: wh.Scores, **more: bool) -> Contender:
    return Contender(name=name, run=lambda: found, **more)


CHANCE = entrant("random", scores(9, np.inf, None), baseline=True, floor=True)
TRUTH = LeaveOneOutTruth(actual=scores(0))


def test_the_cheapest_that_nothing_beats_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, [8.0, 1.0, 0.1, 0.01])
    methods = [entrant("dear", scores(1, 0.1)), entrant("cheap", scores(2, 0.101)), entrant("poor", scores(3, 3.0))]
    found = compare([*methods, CHANCE], TRUTH, seconds=0.5)
    assert [entry.name for entry in found.entries[2:]] == ["poor", "random"]
    assert found.recommended == "cheap" and "cheap" in found.reason and "random" not in found.reason
    by_name = {entry.name: entry for entry in found.entries}
    assert by_name["dear"].passes == pytest.approx(16) and by_name["cheap"].passes == pytest.approx(2)
    assert by_name["dear"].equal and by_name["cheap"].equal and not by_name["poor"].equal
    frame = found.to_frame()
    assert list(frame.index) == [entry.name for entry in found.entries] and frame.loc["poor", "seconds"] < 1


def test_costs_within_a_factor_of_two_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, [1.5, 1.0, 0.01])
    found = compare([entrant("best", scores(0)), entrant("next", scores(2, 0.001)), CHANCE], TRUTH, seconds=1)
    assert found.recommended == "best"
    clock(monkeypatch, [2.5, 1.0, 0.01])
    found = compare([entrant("best", scores(0)), entrant("next", scores(0)), CHANCE], TRUTH, seconds=1)
    assert found.recommended == "next"


def test_a_much_cheaper_one_that_is_nearly_as_accurate_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, named in (([9.0, 1.0, 0.1, 0.01], True), ([4.0, 1.0, 0.1, 0.01], False)):
        clock(monkeypatch, seconds)
        methods = [entrant("dear", scores(0)), entrant("near", scores(2, 0.2)), entrant("poor", scores(3, 3.0))]
        found = compare([*methods, CHANCE], TRUTH, seconds=1)
        assert found.recommended == "dear" and ("too dear: near has" in found.reason) == named
        assert "poor" not in found.reason


def test_nothing_is_recommended_that_does_not_beat_chance() -> None:
    found = compare([entrant("noise", scores(5, np.inf)), CHANCE], TRUTH, seconds=1)
    assert found.recommended is None and "random" in found.reason


def test_what_does_not_apply_says_why() -> None:
    def refuse() -> wh.Scores:
        raise wh.ConfigError("layers must be small, got large ones.")

    told: list[str] = []
    found = compare([Contender(name="no", run=refuse), entrant("yes", scores(0)), CHANCE], TRUTH, seconds=1,
                    progress=told.append)  # fmt: skip
    assert told == ["no", "yes", "random"] and found.recommended == "yes"
    last = found.entries[-1]
    assert (last.name, last.accuracy, last.note) == ("no", None, "layers must be small, got large ones.")
    with pytest.raises(wh.ConfigError, match="at least one contender must apply"):
        compare([Contender(name="no", run=refuse)], TRUTH, seconds=1)
    with pytest.raises(wh.ConfigError, match="different names"):
        compare([CHANCE, CHANCE], TRUTH, seconds=1)


def test_leave_one_out_truth_by_hand() -> None:
    actual = scores(0)
    shuffled = np.random.default_rng(0).permutation(30)
    moved = wh.Scores(values=actual.values[:, shuffled], query_ids=QUERIES, ids=IDS[shuffled], unit="nats")
    tenth = wh.Scores(values=10 * actual.values, query_ids=QUERIES, ids=IDS, unit="nats")
    flipped = wh.Scores(values=-actual.values, query_ids=QUERIES, ids=IDS, unit=None)
    found = LeaveOneOutTruth(actual=actual).judge({"moved": moved, "ten times": tenth, "flipped": flipped})
    assert [found.accuracy[name].value for name in ("moved", "ten times", "flipped")] == pytest.approx([1, 1, -1])
    assert found.details["ten times"]["slope"].value == pytest.approx(0.1) and "flipped" not in found.details
    assert found.gain("moved", "flipped").low == pytest.approx(2) and found.ceiling is None


def test_ceiling_of_seeds_that_agree() -> None:
    values = scores(0).values.numpy()
    same = LeaveOneOutTruth(actual=scores(0), by_seed=np.stack([values, values])).judge({"s": scores(0)})
    assert same.ceiling == pytest.approx(1.0)
    apart = np.stack([values, scores(7, np.inf).values.numpy()])
    assert LeaveOneOutTruth(actual=scores(0), by_seed=apart).judge({"s": scores(0)}).ceiling < 0.4  # type: ignore[operator]


def test_subset_truth_of_a_linear_measurement_is_one() -> None:
    true = scores(0)
    subsets = sample_subsets(wh.as_examples(torch.zeros(30, 1)), 12)
    outputs = torch.from_numpy(removed_sums(true.values, IDS, subsets).T[:, None, :].copy())
    truth = SubsetTruth(subsets=subsets, outputs=SubsetOutputs(values=outputs, query_ids=QUERIES, unit="nats"))
    found = truth.judge({"true": true, "chance": scores(4, np.inf)})
    assert found.accuracy["true"].value == pytest.approx(1.0) and abs(found.accuracy["chance"].value) < 0.2
    assert found.gain("true", "chance").low > 0.7 and found.ceiling is None
    assert abs(found.accuracy["chance"].value) < found.chance["chance"] < found.accuracy["true"].value
    alone = compare([entrant("noise", scores(4, np.inf))], truth, seconds=1)
    assert alone.recommended is None and "shuffled ids" in alone.reason, "no baseline is needed to know it"
    assert compare([entrant("noise", scores(4, np.inf)), entrant("true", true)], truth, seconds=1).recommended == "true"


def test_error_truth_ranks_signals() -> None:
    known = np.arange(30) % 5 == 0
    signals = {
        "right": wh.Signal(values=known + 0.0, ids=IDS, name="a", unit=None),
        "wrong": wh.Signal(values=-1.0 * known, ids=IDS, name="b", unit=None),
    }
    found = ErrorTruth(known=known).judge(signals)
    assert found.accuracy["right"].value == 1.0 and found.details["wrong"]["auc"].value == 0.0
    with pytest.raises(wh.ConfigError, match="scores"):
        ErrorTruth(known=known).judge({"s": scores(0)})
    with pytest.raises(wh.ConfigError, match="signal"):
        TRUTH.judge(signals)


@pytest.mark.parametrize("build", [lambda: nn.Linear(3, 2), lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))])
def test_a_plain_pass_leaves_the_model_alone(build: Callable[[], nn.Module]) -> None:
    model = build().train()
    train = wh.as_examples((torch.randn(300, 3), torch.randint(0, 2, (300,))))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert pass_seconds(wh.Task(model), train) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())
