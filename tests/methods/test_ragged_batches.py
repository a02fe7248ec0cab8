"""Rows of different lengths, padded batch by batch by a user's collate_fn: padding must change no score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import whence as wh
from whence.curvature import Curvature
from whence.errors import DataError

LENGTHS = [3, 9, 1, 5, 2, 9, 4, 7, 6, 2, 8, 1]
COUNT = len(LENGTHS)
CURVATURES: dict[str, Curvature] = {
    "kfac": wh.KFAC(fisher="sampled"),
    "kfac-whole": wh.KFAC(split=False),
    "ekfac": wh.EKFAC(),
    "ekfac-sampled": wh.EKFAC(fisher="sampled"),
    "diagonal": wh.Diagonal(),
    "datainf": wh.DataInf(),
    "projected": wh.Projected(),
}


class Transformer(nn.Module):
    """One block of attention with a mask; a class a sequence, or a tag a token."""

    def __init__(self, *, tags: bool, masked: bool = True, counted: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6), nn.Embedding(16, 6)
        self.attention, self.norm = nn.MultiheadAttention(6, 2, batch_first=True), nn.LayerNorm(6)
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.tags, self.masked, self.counted = tags, masked, counted

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask if self.masked else torch.ones_like(attention_mask)
        places = (mask.cumsum(1) - 1).clamp(min=0) if self.counted else torch.arange(input_ids.shape[1])
        x = self.words(input_ids) + self.places(places)
        x = self.norm(x + self.attention(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0])
        x = torch.tanh(self.inner(x))
        if not self.tags:
            x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.head(x), "hidden": x}


def model_of(**settings: bool) -> Transformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Transformer(**settings).double()


def rows_of(tags: bool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for length in LENGTHS:
        labels = rng.integers(0, 3, length).tolist() if tags else int(rng.integers(0, 3))
        rows.append({"input_ids": rng.integers(1, 11, length).tolist(), "labels": labels})
    return rows


def padder(*, left: bool, random: bool = False) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Return a collate_fn as of Hugging Face: it pads to the longest row of the batch."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[int], filler: int) -> Tensor:
            rest = [filler] * (longest - len(values))
            return torch.tensor(rest + values if left else values + rest)

        labels = [row["labels"] for row in rows]
        tags = isinstance(labels[0], list)
        found = torch.stack([padded(row["input_ids"], 0) for row in rows])
        if random:
            found = torch.where(torch.rand(found.shape) < 0.5, torch.zeros_like(found), found)
        return {
            "input_ids": found,
            "attention_mask": torch.stack([padded([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.stack([padded(one, -100) for one in labels]) if tags else torch.tensor(labels),
        }

    return collate


def loader_of(rows: Any, collate: Any) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=3, shuffle=True, drop_last=True, collate_fn=collate)


def gradients(model: nn.Module, rows: list[dict[str, Any]]) -> Tensor:
    """Return every row's gradient [N, P] of its loss, the row alone and without padding, by plain autograd."""
    found = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logits = model(ids, torch.ones_like(ids))["logits"]
        loss = F.cross_entropy(logits.reshape(-1, 3), torch.tensor(row["labels"]).reshape(-1), reduction="sum")
        parts = torch.autograd.grad(loss, list(model.parameters()))
        found.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(found)


CASES = {
    "class, right": (False, False),
    "class, left": (False, True),
    "tags, right": (True, False),
    "tags, left": (True, True),
}


@pytest.mark.parametrize("tags, left", CASES.values(), ids=CASES)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_padding_batch_size_and_order_change_no_score(curvature: str, tags: bool, left: bool) -> None:
    model, rows = model_of(tags=tags, counted=left).eval(), rows_of(tags)
    task, collate = wh.Task(model, weight_decay=0.02), padder(left=left)
    truth: tuple[Tensor, Tensor] | None = None
    for size, shuffled in [(1, False), (7, True), (None, False)]:
        order = np.random.default_rng(1).permutation(COUNT) if shuffled else np.arange(COUNT)
        back = np.argsort(order)
        loader = loader_of([rows[i] for i in order], collate)
        config = wh.Influence(curvature=CURVATURES[curvature], batch_size=size)
        attribution = config.fit(task, wh.as_examples(loader, ids=order))
        scores = attribution.scores(loader_of(rows[:5], collate)).values[:, back]
        own = torch.from_numpy(attribution.self_scores().values[back])
        if truth is None:
            truth = scores, own
        for found, wanted in zip((scores, own), truth, strict=True):
            assert float((found - wanted).norm()) <= 1e-9 * float(wanted.norm()), (size, shuffled)


@pytest.mark.parametrize("tags, left", CASES.values(), ids=CASES)
@pytest.mark.parametrize("size", [1, 4, COUNT])
def test_gradients_are_those_of_the_rows_without_padding(tags: bool, left: bool, size: int) -> None:
    model, rows = model_of(tags=tags, counted=left).eval(), rows_of(tags)
    loader = loader_of(rows, padder(left=left))
    attribution = wh.Influence(curvature=wh.Identity(), batch_size=size).fit(wh.Task(model), loader)
    truth = gradients(model, rows)
    torch.testing.assert_close(attribution.scores(loader).values * COUNT, truth @ truth.T, rtol=1e-9, atol=1e-12)
    padded = padder(left=left)(rows)
    torch.testing.assert_close(attribution.scores(padded).values * COUNT, truth @ truth.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tags", [False, True])
def test_a_model_that_sees_the_padding_is_refused(tags: bool) -> None:
    model = model_of(tags=tags, masked=False)
    loader = loader_of(rows_of(tags), padder(left=False))
    with pytest.raises(DataError, match=r"must not depend on how far collate_fn pads it, got .* for id 2 alone"):
        wh.Influence().fit(wh.Task(model), loader)
    attribution = wh.Influence().fit(wh.Task(model), padder(left=False)(rows_of(tags)))  # of one length
    with pytest.raises(DataError, match="must not depend"):
        attribution.scores(loader)


def test_random_masking_is_refused() -> None:
    loader = loader_of(rows_of(False), padder(left=False, random=True))
    with pytest.raises(DataError, match=r"same each time they are read.*Leave random augmentation"):
        wh.Influence().fit(wh.Task(model_of(tags=False)), loader)


def test_a_recipe_trains_on_a_loader_as_on_its_rows() -> None:
    rows, collate = rows_of(False), padder(left=False)
    recipe = wh.Recipe(build=lambda: model_of(tags=False), epochs=2, batch_size=5)
    one = recipe.train(loader_of(rows, collate), exclude=[3])
    two = recipe.train(collate(rows), exclude=[3])
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
