"""Small models of every kind for the tests of turn-over dropout, and text messages as token ids."""

from __future__ import annotations

import csv
import gzip
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

MESSAGES = Path(__file__).parents[2] / "examples" / "data" / "sms_spam.csv.gz"
WORDS, LENGTH = 120, 10


class Encoder(nn.Module):
    """A transformer written out: attention of one head, a residual block of two matrices, norms."""

    def __init__(self, width: int = 8, words: int = WORDS) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(LENGTH, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        weights = (self.query(x) @ self.key(x).mT / x.shape[-1] ** 0.5).softmax(-1)
        x = self.norm(x + self.drop(weights @ self.value(x)))
        x = self.last_norm(x + self.drop(self.down(torch.relu(self.up(x)))))
        return self.head(x.mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 3),
    )  # fmt: skip


def bert(width: int = 16, layers: int = 1) -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, num_labels=2,
            intermediate_size=2 * width, max_position_embeddings=LENGTH,
        )
    )  # fmt: skip


def torch_encoder() -> nn.Module:
    """PyTorch's own encoder layer, which calls a fused kernel in evaluation mode."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Embedding(WORDS, 8), layer, nn.Flatten(), nn.Linear(8 * LENGTH, 2))


def numbers(rows: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator, dtype=torch.float64), torch.arange(rows) % 3


def pictures(rows: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(rows) % 3


def messages(rows: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return real text messages as ids of their hashed words, 0 behind their end, and which are spam; half each."""
    with gzip.open(MESSAGES, "rt", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    kinds = [[row for row in found if row["label"] == kind] for kind in ("ham", "spam")]
    chosen = [kinds[number % 2][seed * rows + number // 2] for number in range(rows)]
    ids = torch.zeros(rows, LENGTH, dtype=torch.long)
    for row, message in enumerate(chosen):
        for place, word in enumerate(message["text"].lower().split()[:LENGTH]):
            ids[row, place] = 1 + zlib.crc32(word.encode()) % (WORDS - 1)
    return ids, torch.arange(rows) % 2


def masked_messages(rows: int = 8, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return the same as a Hugging Face model takes them."""
    ids, labels = messages(rows, seed)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}, labels


SAMPLES: dict[str, tuple[Any, Any]] = {
    "mlp": (mlp, numbers), "cnn": (cnn, pictures), "encoder": (Encoder, messages), "bert": (bert, masked_messages),
    "torch encoder": (torch_encoder, messages),
}  # fmt: skip


def make(name: str) -> tuple[nn.Module, Any]:
    """Return a model in float64 and its rows."""
    build, rows = SAMPLES[name]
    torch.manual_seed(0)
    return build().double(), rows()
