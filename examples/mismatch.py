"""My model is wrong about a few people: is it the wrong population, and which rows and features say so?

    python examples/mismatch.py [--rows 500]

1. Take bundled census rows and drop most single parents from the training rows: as in Koh & Liang (2017), who dropped
   20 of 24 children from hospital data, a few of one kind stay, and seem to say that such people earn much.
2. Fit logistic regression and see that it errs on the single parents it was not shown.
3. Ask which training rows stand behind these errors, and which of their features (`wh.domain_mismatch`).
4. See how the weight decay decides whether so few rows can do that.

The same on a file: whence mismatch FILE.csv --label label --column relationship --value Unmarried
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import whence as wh

DATA = Path(__file__).parent / "data" / "adult_1000.csv.gz"
NUMBERS, WORDS = ["age", "education-num", "hours-per-week"], ["relationship"]
GROUP = "Unmarried"


def people(rows: int) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame, np.ndarray]:
    """Return a training table with four single parents, three of whom earn much, and held-out single parents."""
    table = pd.read_csv(DATA)
    much, alone = table["label"].eq(">50K").to_numpy(), table["relationship"].eq(GROUP).to_numpy()
    kept = np.concatenate([np.flatnonzero(alone & much)[:3], np.flatnonzero(alone & ~much)[:1]])
    rows_of = np.sort(np.concatenate([kept, np.flatnonzero(~alone)[:rows]]))
    held = np.setdiff1d(np.flatnonzero(alone), kept)
    columns = table[[*NUMBERS, *WORDS]]
    return columns.iloc[rows_of], much[rows_of], columns.iloc[held], much[held]


def fit(table: pd.DataFrame, label: np.ndarray, weight_decay: float) -> Pipeline:
    """Return a fitted pipeline; weight decay stands beside the mean loss."""
    encode = make_column_transformer(
        (StandardScaler(), NUMBERS), (OneHotEncoder(sparse_output=False), WORDS), verbose_feature_names_out=False
    )
    machine = LogisticRegression(C=1 / (weight_decay * len(table)), solver="newton-cholesky", tol=1e-10)
    return make_pipeline(encode, machine).fit(table, label)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Tell the story; return its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500, help="other training rows")
    options = parser.parse_args(arguments)
    table, label, held, held_label = people(options.rows)
    figures: dict[str, float] = {}
    for weight_decay in (1e-2, 1e-3, 1e-4):
        fitted = fit(table, label, weight_decay)
        names = fitted[0].get_feature_names_out().tolist()
        groups = {name: [i for i, one in enumerate(names) if one.startswith(name)] for name in [*NUMBERS, *WORDS]}
        attribution = wh.Influence(curvature=wh.Exact()).fit(wh.Task.from_sklearn(fitted), (table, label))
        found = wh.domain_mismatch(
            attribution, (held, held_label), training_subgroup=table["relationship"].eq(GROUP).to_numpy(),
            features=groups, shown=6,
        )  # fmt: skip
        print(f"weight decay {weight_decay:g}: {found}")
        figures[f"{weight_decay:g}"] = found.subgroup_ratio or 0.0
    print("\nthe strongest rows at the last one (negative: they make the errors; positive: they hold against them):")
    shown = found.rows.assign(relationship=table.loc[found.rows["id"], "relationship"].to_numpy())
    print(shown[["rank", "id", "relationship", "target", "score", "ratio"]].round(3).to_string(index=False))
    print("\nwhat of the responsible rows matters, in nats of the mean loss:")
    assert found.features_responsible is not None
    print(found.features_responsible.round(4).to_string(index=False))
    figures["wrong"], figures["asked"] = float(len(found.wrong)), float(found.asked)
    return figures


if __name__ == "__main__":
    main()
