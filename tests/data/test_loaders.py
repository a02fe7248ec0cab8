"""Dicts of columns and DataLoaders as data: what is taken, in which order, and what is refused."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

import whence as wh
from whence.data import as_examples
from whence.errors import DataError

X = torch.arange(30, dtype=torch.float32).reshape(10, 3)
Y = torch.arange(10) % 2
ROWS = TensorDataset(X, Y)


def pairs(rows: Any) -> Any:
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


def named(rows: Any) -> Any:
    x, y = pairs(rows)
    return UserDict({"x": x, "labels": y})  # as Hugging Face's BatchEncoding is


def arrays(rows: Any) -> Any:
    x, y = pairs(rows)
    return {"x": x.numpy(), "labels": y.tolist()}


COLUMNS: dict[str, Any] = {
    "tensors": {"x": X, "labels": Y},
    "arrays": {"x": X.numpy(), "label": Y.numpy()},
    "lists": {"x": X.tolist(), "y": Y.tolist()},
    "not a dict": UserDict({"targets": Y, "x": X}),
}


@pytest.mark.parametrize("data", COLUMNS.values(), ids=COLUMNS)
def test_a_dict_of_columns(data: Any) -> None:
    batch = as_examples(data).batch(np.array([7, 2]))
    assert set(batch.inputs) == {"x"}
    torch.testing.assert_close(batch.inputs["x"].float(), X[[7, 2]])
    assert batch.targets is not None and batch.targets.tolist() == Y[[7, 2]].tolist()


def test_columns_without_and_with_a_named_target() -> None:
    assert as_examples({"x": X, "z": Y}).targets is None
    examples = as_examples({"x": X, "kind": Y}, label="kind", ids=[f"r{i}" for i in range(10)])
    assert examples.targets is not None and examples.ids.tolist()[3] == "r3"


LOADERS: dict[str, tuple[Any, bool]] = {
    "default": (DataLoader(ROWS, batch_size=4), False),
    "shuffled, last dropped": (DataLoader(ROWS, batch_size=4, shuffle=True, drop_last=True), False),
    "pairs": (DataLoader(ROWS, batch_size=4, shuffle=True, collate_fn=pairs), False),
    "dicts": (DataLoader(ROWS, batch_size=4, collate_fn=named), True),
    "arrays and lists": (DataLoader(ROWS, batch_size=4, collate_fn=arrays), True),
}


@pytest.mark.parametrize("loader, keyed", LOADERS.values(), ids=LOADERS)
def test_a_loader_is_its_data_set_in_order(loader: Any, keyed: bool) -> None:
    examples = as_examples(loader)
    assert examples.ids.tolist() == list(range(10))
    found = torch.cat([batch.inputs["x"] if keyed else batch.inputs for batch in examples.batches(3)])
    assert torch.equal(found, X)
    assert examples.targets is not None and torch.equal(examples.targets, Y)
    some = examples.select(np.array([5, 1])).with_targets(torch.tensor([7, 8]))
    assert some.collated == examples.collated and some.batch(np.array([1])).targets is not None


def test_a_subset_is_what_its_sampler_draws_from() -> None:
    for collate in (None, named):
        loader = DataLoader(ROWS, batch_size=2, sampler=SubsetRandomSampler([8, 1, 5]), collate_fn=collate)
        examples = as_examples(loader)
        assert examples.ids.tolist() == [1, 5, 8]
        assert examples.targets is not None and examples.targets.tolist() == Y[[1, 5, 8]].tolist()
        assert as_examples(loader, ids=[f"r{i}" for i in range(10)]).ids.tolist() == ["r1", "r5", "r8"]


def test_scores_of_a_loader_are_those_of_its_tensors() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).double()
    task = wh.Task(model, weight_decay=0.1)
    truth = wh.Influence(curvature=wh.Exact()).fit(task, (X, Y)).scores((X[:2], Y[:2])).values
    for loader in (DataLoader(ROWS, batch_size=4, shuffle=True), DataLoader(ROWS, batch_size=3, collate_fn=pairs)):
        found = wh.Influence(curvature=wh.Exact()).fit(task, loader).scores((X[:2], Y[:2])).values
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


def test_a_hugging_face_data_set() -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    table = datasets.Dataset.from_dict({"input_ids": X.long().tolist(), "label": Y.tolist()})
    for data in (table, table.with_format("torch"), DataLoader(table.with_format("torch"), batch_size=3)):
        batch = as_examples(data).batch(np.array([4, 0]))
        assert batch.inputs["input_ids"].tolist() == X[[4, 0]].tolist()
        assert batch.targets is not None and batch.targets.tolist() == Y[[4, 0]].tolist()
    with pytest.raises(DataError, match=r"column 'train' must be a tensor.*got Dataset\. Pass one split"):
        as_examples(datasets.DatasetDict({"train": table}))
    with pytest.raises(DataError, match=r"got str under 'text'\. Encode or remove it"):
        as_examples(datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


class Noisy(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> Any:
        return X[row] + torch.rand(3), Y[row]


def loader(collate: Callable[[Any], Any]) -> DataLoader[Any]:
    return DataLoader(ROWS, batch_size=4, collate_fn=collate)


def alone(rows: Any) -> Tensor:
    return pairs(rows)[0].mean()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "lengths": (lambda: {"x": X, "labels": Y[:4]}, r"as many rows as each other, got \{'x': 10, 'labels': 4\}"),
    "targets alone": (lambda: {"labels": Y}, r"inputs beside the targets, got the keys \['labels'\]"),
    "text": (lambda: {"x": X, "text": ["a"] * 10}, "column 'text' must be a tensor or an array of numbers, got list"),
    "text array": (lambda: {"x": np.array(["a"] * 10)}, "column 'x' must be.*got an array of <U1"),
    "ragged": (lambda: {"x": [[1, 2], [3]]}, "different lengths"),
    "empty": (lambda: {}, "inputs beside the targets"),
    "stream": (lambda: DataLoader(Stream()), "must be of a data set with __len__.*got Stream, which can only be read"),
    "no batches": (lambda: DataLoader(ROWS, batch_size=None), "must collate rows, got batch_size=None"),
    "rows lost": (lambda: loader(lambda rows: pairs(rows[:-1] or rows)), r"\(8\) in every tensor, got shape \(7, 3\)"),
    "a mean": (lambda: loader(alone), "one row an example"),
    "words": (lambda: loader(lambda rows: {"x": pairs(rows)[0], "text": ["a"]}), "entry 'text' of a batch must be"),
    "random rows": (lambda: Noisy(), "same each time they are read"),
    "random loader": (lambda: DataLoader(Noisy(), batch_size=4), "same each time they are read"),
}


@pytest.mark.parametrize("make, match", BAD.values(), ids=BAD)
def test_what_is_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        as_examples(make())


def test_targets_of_different_lengths_are_not_held_together() -> None:
    def ragged(rows: Any) -> Any:
        x, y = pairs(rows)
        return x, torch.stack([y, y], 1)[:, : 1 + int(len(rows) == 1)]

    examples = as_examples(TensorDataset(torch.zeros(4097, 1), torch.zeros(4097)))
    ragged_ones = as_examples(DataLoader(TensorDataset(torch.zeros(4097, 1), torch.zeros(4097)), collate_fn=ragged))
    assert examples.targets is not None and len(examples.targets) == 4097
    with pytest.raises(DataError, match="one shape in all batches"):
        _ = ragged_ones.targets
