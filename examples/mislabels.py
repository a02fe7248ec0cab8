"""Some of my labels are wrong and I can look at a few hundred rows: in which order?

    python examples/mislabels.py [--rows 1500] [--draws 3]

1. Take bundled SMS messages and flip a tenth of the labels, so that the truth is known.
2. Train logistic regression on words, and rank the messages by self-influence (how much each one is its own reason),
   by predicted leave-one-out loss, by plain loss, and at random.
3. See how many wrong labels each order finds, and how far the held-out loss falls when the first ones get their right
   label and the model is trained again (`wh.detection`, `wh.correction_curve`).

`benchmarks/influence_mislabels.py` does the same for 40 draws, on text and images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

import whence as wh

DATA = Path(__file__).parent / "data" / "sms_spam.csv.gz"
SHARES = (0.05, 0.1, 0.2)
WORDS = 200


def messages(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return messages as tf-idf [N, words], whether they are spam, and held-out ones."""
    table = pd.read_csv(DATA, na_filter=False).sample(frac=1, random_state=0)
    labels = torch.from_numpy(table["label"].eq("spam").to_numpy().astype(np.int64))
    words = TfidfVectorizer(max_features=WORDS, sublinear_tf=True).fit(table["text"][:rows])
    x = torch.from_numpy(words.transform(table["text"]).toarray())
    return x[:rows], labels[:rows], x[rows:], labels[rows:]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Tell the story; return how many per cent of the wrong labels the first tenth of each order holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1500, help="training rows")
    parser.add_argument("--draws", type=int, default=3, help="draws of the flips")
    options = parser.parse_args(arguments)
    x, right, held, held_labels = messages(options.rows)
    recipe = wh.Recipe(
        build=lambda: nn.Linear(x.shape[1], 2, dtype=torch.float64), optimizer="lbfgs", weight_decay=1e-3,
        gradient_norm=1e-6,
    )  # fmt: skip
    lines, queries = [], wh.as_examples((held, held_labels))
    for draw in range(options.draws):
        flipped = np.random.default_rng(draw).choice(len(x), len(x) // 10, replace=False)
        given = right.clone()
        given[flipped] = 1 - given[flipped]
        train = wh.as_examples((x, given))
        base = recipe.train(train)
        attribution = wh.Influence(curvature=wh.Exact()).fit(recipe.task(base), train)
        out = attribution.leave_one_out()
        orders = {
            "self-influence": attribution.self_scores(),
            "self-influence, corrected": attribution.self_scores(leverage_corrected=True),
            "leave-one-out loss": wh.Signal(values=out.losses, ids=out.ids, name="left out", unit="nats"),
            "loss": wh.Signal(values=out.fitted_losses, ids=out.ids, name="loss", unit="nats"),
        }
        found = wh.detection((given != right).numpy(), orders, shares=SHARES, resamples=2)
        curve = wh.correction_curve(
            wh.Retraining(recipe=recipe, start=base), train, queries, orders, labels=right,
            sweep=wh.Sweep(shares=SHARES, controls=1, seed=draw),
        )  # fmt: skip
        before = curve.before["loss"].value
        for name in orders:
            for point in curve.of(name, "loss"):
                share = found.detectors[name].found[min(SHARES, key=lambda s, p=point: abs(s - p.share))].value
                lines.append((name, point.share, share, before - point.value.value))
                if name == "loss":
                    lines.append(("random", point.share, point.share, -point.control.value))
    table = pd.DataFrame(lines, columns=["order", "inspected", "found", "gain"])
    table = table.assign(inspected=table["inspected"].round(2))
    mean = table.groupby(["order", "inspected"], sort=False).mean().reset_index()
    print(f"{len(x):,} messages, a tenth of the labels flipped, mean of {options.draws} draws")
    print("found: share of the wrong labels; gain: fall of the held-out loss, in nats")
    print(mean.pivot(index="order", columns="inspected", values=["found", "gain"]).round(4).to_string())
    tenth = mean[mean["inspected"] == 0.1].set_index("order")["found"]
    return {str(name): 100 * float(value) for name, value in tenth.items()}


if __name__ == "__main__":
    main()
