"""Small data sets of each kind, and the results of an imagined audit of them."""

from typing import Any

import numpy as np
import pandas as pd

from whence.data.labelled import LabelledData
from whence.report import (
    MethodCard,
    ModelCard,
    Notice,
    RunCard,
    SecondsCard,
    SuspicionCard,
)

WORDS = ["free", "prize", "call", "now", "tonight", "home", "dinner", "love", "match", "goal", "shares", "oil"]


def make_data(kind: str, rows: int = 60, classes: int = 2, seed: int = 0) -> LabelledData:
    rng = np.random.default_rng(seed)
    content: Any
    if kind == "text":
        content = [" ".join(rng.choice(WORDS, 8)) for _ in range(rows)]
    elif kind == "image":
        content = rng.integers(0, 256, (rows, 8, 6, 1), dtype=np.uint8)
    else:
        content = pd.DataFrame({"age": rng.integers(18, 90, rows).astype(float), "work": rng.choice(WORDS, rows)})
        content["work"] = content["work"].astype(object)
        content.loc[0, "age"], content.loc[1, "work"] = np.nan, None
    return LabelledData(
        ids=np.array([f"r{i}" for i in range(rows)]),
        kind=kind,  # type: ignore[arg-type]
        content=content,
        labels=rng.integers(0, classes, rows),
        classes=tuple(f"class {i}" for i in range(classes)),
        source="some.csv",
        notes=("A note of the reader.",),
    )


def make_frame(data: LabelledData, flagged: int = 6, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows, classes = len(data), len(data.classes)
    order = rng.permutation(rows)
    suggested = (data.labels[order] + 1 + rng.integers(0, max(classes - 1, 1), rows)) % classes
    return pd.DataFrame(
        {
            "id": data.ids[order],
            "label": [data.classes[i] for i in data.labels[order]],
            "suggested_label": [data.classes[i] for i in suggested],
            "suspicion": np.linspace(0.999, 0.001, rows),
            "rank": np.arange(1, rows + 1),
            "is_suspect": np.arange(rows) < flagged,
            "self_influence": np.sort(rng.lognormal(-6, 2, rows))[::-1],
            "margin": rng.normal(size=rows),
            "duplicate_of": pd.Series([None] * rows, dtype=object),
            "conflict": False,
        }
    )


def make_evidence(data: LabelledData, frame: pd.DataFrame, count: int = 3) -> dict[str, list[tuple[str, float]]]:
    ids = [str(name) for name in data.ids]
    return {
        str(name): [(ids[(7 * i + j) % len(ids)], -0.03 / (j + 1)) for j in range(count)]
        for i, name in enumerate(frame["id"])
    }


RUN = RunCard(
    whence="0.1.0",
    created="2025-01-02T03:04:05+00:00",
    model=ModelCard(name="text-mlp", held_out_accuracy=0.979, majority_accuracy=0.866, parameters=12345),
    method=MethodCard(name="influence", signals={"margin": "How sure the model is."}),
    suspicion=SuspicionCard(threshold=0.62, noise_rate=0.094, noise_interval=(0.086, 0.103)),
    seconds=SecondsCard(read=0.5, train=12.0, total=187.0),
    warnings=(Notice(title="Labels are memorised.", text="Trust the folds."),),
)
