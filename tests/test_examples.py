"""Examples: everything that has rows, ids, keys and the uniform numbers drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from whence.data import Examples, as_examples, uniform
from whence.data.examples import id_keys
from whence.errors import ConfigError, DataError

X = torch.arange(12, dtype=torch.float32).reshape(4, 3)
Y = torch.tensor([0, 1, 1, 0])


class Rows(Dataset[Any]):
    """A torch data set whose rows are made by a function."""

    def __init__(self, row: Callable[[int], Any]) -> None:
        self.row = row

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index >= 4:
            raise IndexError
        return self.row(index)


FRAME = pd.DataFrame({"a": X[:, 0].numpy(), "b": X[:, 1].numpy(), "c": X[:, 2].numpy(), "label": Y.numpy()})
PAIRS: dict[str, Any] = {
    "tensors": (X, Y),
    "arrays": (X.numpy(), Y.numpy()),
    "lists": (X.tolist(), Y.tolist()),
    "list of two": [X, Y],
    "examples": as_examples((X, Y)),
    "frame": FRAME,
    "TensorDataset": TensorDataset(X, Y),
    "rows of pairs": Rows(lambda i: (X[i], int(Y[i]))),
    "rows of arrays": Rows(lambda i: (X[i].numpy(), Y[i].numpy())),
    "rows of lists": Rows(lambda i: (X[i].tolist(), int(Y[i]))),
    "list of pairs": [(X[i], Y[i]) for i in range(4)],
}


@pytest.mark.parametrize("data", PAIRS.values(), ids=PAIRS)
def test_anything_with_rows(data: Any) -> None:
    examples = as_examples(data)
    assert len(examples) == 4
    for rows in ([0, 1, 2, 3], [2, 0], [3], [1, 2]):
        batch = examples.batch(np.array(rows))
        torch.testing.assert_close(torch.as_tensor(batch.inputs).float(), X[rows])
        assert batch.targets is not None
        assert batch.targets.tolist() == Y[rows].tolist()
        assert batch.ids.tolist() == rows
        assert len(batch) == len(rows)
    assert examples.targets is not None
    assert examples.targets.tolist() == Y.tolist()


NAMED: dict[str, Any] = {
    "dict": ({"x": X, "z": Y.float()}, Y),
    "rows of dicts": Rows(lambda i: {"x": X[i], "z": float(Y[i]), "labels": int(Y[i])}),
    "rows of dicts of lists": Rows(lambda i: {"x": X[i].tolist(), "z": float(Y[i]), "y": int(Y[i])}),
}


@pytest.mark.parametrize("data", NAMED.values(), ids=NAMED)
def test_named_inputs(data: Any) -> None:
    batch = as_examples(data).batch(np.array([3, 1]))
    assert set(batch.inputs) == {"x", "z"}
    torch.testing.assert_close(batch.inputs["x"].float(), X[[3, 1]])
    assert batch.targets is not None
    assert batch.targets.tolist() == [0, 1]
    assert batch.row(1).inputs["x"].tolist() == X[[1]].tolist()


@pytest.mark.parametrize("data", [((X, Y), Y), Rows(lambda i: (X[i], Y[i], Y[i]))], ids=["tensors", "rows"])
def test_several_inputs(data: Any) -> None:
    batch = as_examples(data).batch(np.array([0, 2]))
    assert isinstance(batch.inputs, tuple)
    assert batch.inputs[0].tolist() == X[[0, 2]].tolist()
    assert batch.inputs[1].tolist() == Y[[0, 2]].tolist()
    assert batch.targets is not None
    assert batch.targets.tolist() == Y[[0, 2]].tolist()


@pytest.mark.parametrize("data", [X, X.numpy(), (X, None), Rows(lambda i: X[i]), FRAME[["a", "b", "c"]]])
def test_inputs_alone(data: Any) -> None:
    examples = as_examples(data)
    assert examples.targets is None
    torch.testing.assert_close(examples.batch(np.array([1])).inputs, X[[1]])


def test_two_rows_are_rows() -> None:
    """A list of two pairs is a data set of two rows, not inputs and targets."""
    examples = as_examples([(X[0], Y[0]), (X[1], Y[1])])
    batch = examples.batch(np.array([0, 1]))
    assert batch.inputs.tolist() == X[:2].tolist()
    assert batch.targets is not None
    assert batch.targets.tolist() == [0, 1]


def test_frames_keep_their_index_as_ids() -> None:
    assert as_examples(FRAME.set_index(pd.Index(["p", "q", "r", "s"]))).ids.tolist() == ["p", "q", "r", "s"]
    assert as_examples(FRAME.set_index(pd.Index([5, 5, 6, 7]))).ids.tolist() == [0, 1, 2, 3]
    assert as_examples(FRAME, ids=[9, 8, 7, 6]).ids.tolist() == [9, 8, 7, 6]
    assert as_examples(FRAME.rename(columns={"label": "kind"}), label="kind").targets is not None
    numbered = as_examples(FRAME.set_axis([0, 1, 2, 3], axis=1), label="3")
    assert numbered.targets is not None
    assert numbered.batch(np.array([0])).inputs.shape == (1, 3)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "lengths": (lambda: as_examples((X, Y[:3])), r"as many rows.*\[3, 4\]"),
    "lengths of several inputs": (lambda: as_examples(((X, Y[:2]), Y)), "as many rows"),
    "no rows": (lambda: as_examples((X[:0], Y[:0])), "at least one row"),
    "empty data set": (lambda: as_examples([]), "at least one row"),
    "no rows at all": (lambda: as_examples(5), "must have rows.*got int"),
    "a scalar": (lambda: as_examples(torch.tensor(3.0)), "one row an example"),
    "scalar targets": (lambda: as_examples((X, torch.tensor(1))), "one row an example"),
    "a generator": (lambda: as_examples(iter([1])), "must have rows"),
    "text": (lambda: as_examples((np.array(["a", "b"]), Y[:2])), "must be numbers"),
    "text targets": (lambda: as_examples((X, np.array(list("abcd")))), "must be numbers"),
    "objects": (lambda: as_examples(np.array([None, 1, 2], dtype=object)), "must be numbers"),
    "text column": (lambda: as_examples(FRAME.assign(a="x")), r"columns must be numbers.*\['a'\]"),
    "no such label": (lambda: as_examples(FRAME, label="kind"), "one of the columns.*'kind'"),
    "text label": (lambda: as_examples(FRAME.assign(label=list("abcd"))), "must be numbers"),
    "ragged lists": (lambda: as_examples(([[1, 2], [3]], [0, 1])), "different lengths"),
    "ragged rows": (lambda: as_examples([(X[0], 0), (X[1, :2], 1), (X[2], 0)]).targets, "same shape.*Pad"),
    "rows of text": (lambda: as_examples([("a", 0), ("b", 1), ("c", 0)]).targets, "must be numbers.*got str"),
    "rows with other keys": (lambda: as_examples([{"x": X[0]}, {"z": X[0]}]).batch(np.arange(2)), "same shape"),
    "repeated ids": (lambda: as_examples((X, Y), ids=["a", "b", "a", "c"]), "ids must be unique, got 'a' 2 times"),
    "repeated numbers": (lambda: as_examples((X, Y), ids=[1, 2, 3, 3]), "ids must be unique, got 3 2 times"),
    "too few ids": (lambda: as_examples((X, Y), ids=["a"]), r"one entry a row \(4\), got 1"),
    "ids of two dimensions": (lambda: as_examples((X, Y), ids=X.numpy()), "one entry a row"),
    "missing ids": (lambda: as_examples((X, Y), ids=["a", None, "b", "c"]), "ids must not be missing"),
    "unknown id": (lambda: as_examples((X, Y)).rows_of([9]), "one of the 4 examples, got 9. Ids look like 0"),
}


@pytest.mark.parametrize("make, match", BAD.values(), ids=BAD)
def test_what_is_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        make()


def test_other_targets() -> None:
    examples = as_examples((X, Y), ids=list("abcd"))
    other = examples.with_targets(1 - Y)
    batch = other.batch(np.array([2, 0]))
    assert batch.targets is not None
    assert batch.targets.tolist() == [0, 1]
    assert other.ids.tolist() == list("abcd")
    with pytest.raises(ConfigError, match=r"labels must have one entry a row \(4\), got 3"):
        examples.with_targets(Y[:3])


def test_selection() -> None:
    examples = as_examples((X, Y), ids=list("abcd"))
    some = examples.select(np.array([3, 1]))
    assert some.ids.tolist() == ["d", "b"]
    assert some.batch(np.array([1])).inputs.tolist() == X[[1]].tolist()
    assert some.keys.tolist() == examples.keys[[3, 1]].tolist()
    assert some.rows_of(["b"]).tolist() == [1]
    assert [len(batch) for batch in examples.batches(3)] == [3, 1]


def test_fingerprints_follow_content_and_order() -> None:
    base = as_examples((X, Y)).fingerprint
    assert as_examples((X.clone(), Y.clone())).fingerprint == base
    assert as_examples((X.numpy(), Y.numpy())).fingerprint == base
    others = [
        as_examples((X + 1e-6, Y)), as_examples((X, 1 - Y)), as_examples((X.double(), Y)), as_examples((X, None)),
        as_examples((X.flip(0), Y.flip(0))), as_examples((X, Y), ids=[0, 1, 2, 4]),
        as_examples((X, Y), ids=list("0123")),
    ]  # fmt: skip
    assert len({base, *(examples.fingerprint for examples in others)}) == 1 + len(others)


def test_batches_move_only_floats() -> None:
    batch = as_examples(((X, Y), Y)).batch(np.arange(2)).to(dtype=torch.float64)
    assert batch.inputs[0].dtype == torch.float64
    assert batch.inputs[1].dtype == torch.int64


ids_strategy = st.one_of(
    st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20, unique=True),
    st.lists(st.text(min_size=1, max_size=5).filter(lambda s: "\x00" not in s), min_size=1, max_size=20, unique=True),
)


@settings(max_examples=60, deadline=None)
@given(ids=ids_strategy, seed=st.integers(0, 2**40), stream=st.integers(0, 5), data=st.data())
def test_uniform_numbers_are_functions_of_id_seed_and_stream(
    ids: list[Any], seed: int, stream: int, data: st.DataObject
) -> None:
    keys = id_keys(np.array(ids))
    drawn = uniform(keys, seed, stream)
    assert ((drawn >= 0) & (drawn < 1)).all()
    order = np.array(data.draw(st.permutations(range(len(ids)))))
    assert np.array_equal(uniform(id_keys(np.array(ids)[order]), seed, stream), drawn[order])
    alone = [uniform(keys[i : i + 1], seed, stream)[0] for i in range(len(ids))]
    assert np.array_equal(alone, drawn)


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_uniform_numbers_are_uniform_and_independent(kind: str) -> None:
    count = 50_000
    ids = np.arange(count) if kind == "integers" else np.array([f"row-{i}" for i in range(count)])
    keys = id_keys(ids)
    draws = np.stack([uniform(keys, seed, stream) for seed in (0, 1) for stream in (0, 1, 2)])
    spread = 5 / np.sqrt(count)
    assert np.abs(draws.mean(1) - 0.5).max() < spread * 0.29
    assert np.abs(draws.var(1) - 1 / 12).max() < spread * 0.08
    assert np.abs(np.corrcoef(draws) - np.eye(6)).max() < spread
    for row in draws:
        counts = np.bincount((row * 64).astype(int), minlength=64)
        assert ((counts - count / 64) ** 2 / (count / 64)).sum() < 63 + 6 * np.sqrt(2 * 63)
        assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < spread  # neighbours in id are unrelated
        assert abs(np.corrcoef(row, np.arange(count))[0, 1]) < spread


def test_uniform_numbers_are_the_same_everywhere() -> None:
    """Fixed by hand: a change would change every sampled label of every stored run."""
    assert uniform(id_keys(np.array([0, 1, -1])), 0).tolist() == pytest.approx(EXPECTED_INTEGERS, abs=0)
    assert uniform(id_keys(np.array(["a", "é"])), 7, 2).tolist() == pytest.approx(EXPECTED_STRINGS, abs=0)


EXPECTED_INTEGERS = [0.7356207036927632, 0.2088940520170619, 0.2522937752350449]
EXPECTED_STRINGS = [0.07873611997389474, 0.4983634438022775]


def test_examples_made_by_hand() -> None:
    def fetch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return X[rows], Y[rows]

    assert Examples(ids=np.array(["x", "y", "z", "w"]), fetch=fetch).rows_of(np.array(["z"])).tolist() == [2]
