"""Networks and data of the turn-over benchmark."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

import support
import whence as wh

WORDS = 200
LENGTH = 24


def mlp(widths: tuple[int, ...]) -> nn.Module:
    """Linear layers with dropout behind every hidden one."""
    layers: list[nn.Module] = []
    for number, (one, other) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(one, other)] + ([nn.ReLU(), nn.Dropout()] if number < len(widths) - 2 else [])
    return nn.Sequential(*layers)


def vgg() -> nn.Module:
    """Six convolutions with batch normalisation, two linear layers; dropout before the linear ones, as in VGG."""
    layers: list[nn.Module] = []
    for number, (one, other) in enumerate(((1, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64))):
        layers += [nn.Conv2d(one, other, 3, padding=1), nn.BatchNorm2d(other), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number % 2 else []
    head = [nn.Flatten(), nn.Dropout(), nn.Linear(64 * 9, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *head)


class Encoder(nn.Module):
    """A small transformer on words: two layers of attention and feed-forward with dropout where BERT has it."""

    def __init__(self, width: int = 32, classes: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head_drop, self.head = nn.Dropout(0.1), nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.drop(self.norm(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.head_drop(x.mean(1)))


class Block(nn.Module):
    """Attention of four heads and a feed-forward layer, each with dropout, residual and norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drops = nn.ModuleList(nn.Dropout(0.1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return hidden states [B, T, width]."""
        heads = [layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        attended = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.drops[0](self.out(attended)))
        return self.norms[1](x + self.drops[1](self.down(nn.functional.gelu(self.up(x)))))


def digits(tiny: bool) -> dict[str, Tensor]:
    """Return MNIST x [N, 784], y, xt, yt as tensors."""
    return {name: torch.from_numpy(values) for name, values in support.images(tiny).items()}


def messages(tiny: bool) -> tuple[Tensor, Tensor]:
    """Return text messages as positions of their words among the most frequent ones, and which are spam."""
    table = pd.read_csv(support.ROOT / "examples" / "data" / "sms_spam.csv.gz", na_filter=False)
    order = np.random.default_rng(0).permutation(len(table))[: 64 if tiny else 1000]
    texts, spam = table["text"].to_numpy()[order], table["label"].eq("spam").to_numpy()[order]
    words = TfidfVectorizer(max_features=WORDS - 2).fit(texts)
    split, known = words.build_analyzer(), words.vocabulary_
    ids = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, text in enumerate(texts):
        for place, word in enumerate(split(text)[:LENGTH]):
            ids[row, place] = 2 + known[word] if word in known else 1
    return ids, torch.from_numpy(spam.astype(np.int64))


def reviews(tiny: bool, rows: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return sentences of film reviews to train on, and whole reviews from elsewhere to validate and test on."""
    if tiny:
        x, y = messages(tiny)
        found = torch.zeros(len(x), WORDS).scatter_(1, x, 1.0)
        return {"train": (found[:40], y[:40]), "validation": (found[40:50], y[40:50]), "test": (found[50:], y[50:])}
    folder = support.data_folder()
    draw = np.random.default_rng(0)
    tables = {}
    for name, file in (("train", "rotten_tomatoes/rt_polarity.csv.gz"), ("elsewhere", "imdb/imdb.csv.gz")):
        table = pd.read_csv(support.need(folder / file), na_filter=False)
        tables[name] = table.iloc[draw.permutation(len(table))]
    words = TfidfVectorizer(max_features=1000, sublinear_tf=True).fit(tables["train"]["text"][:rows])

    def features(table: pd.DataFrame) -> tuple[Tensor, Tensor]:
        x = words.transform(table["text"]).toarray().astype(np.float32)
        return torch.from_numpy(x), torch.from_numpy(np.array(table["label"], dtype=np.int64))

    away = tables["elsewhere"]
    parts = {"train": tables["train"][:rows], "validation": away[:300], "test": away[1000:]}
    return {name: features(part) for name, part in parts.items()}


def networks(tiny: bool) -> dict[str, tuple[Any, wh.Examples]]:
    """Return by name a network and real rows for it."""
    found = digits(tiny)
    rows = 64 if tiny else 1000
    pictures = found["x"][:rows].view(-1, 1, 28, 28)
    many = found["x"], found["y"]
    return {
        "MLP 784-512-512-10": (functools.partial(mlp, (784, 512, 512, 10)), wh.as_examples(many)),
        "VGG-like CNN": (vgg, wh.as_examples((pictures, found["y"][:rows]))),
        "transformer": (Encoder, wh.as_examples(messages(tiny))),
    }
