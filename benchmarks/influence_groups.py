"""Removing 5 % of the rows at once: first-order and second-order group influence against retraining.

    python benchmarks/influence_groups.py [--threads 1] [--tiny]

Softmax and logistic regression on four real sets; ten coherent groups (the rows nearest to a row of their own class)
and ten random ones on each, retrained exactly; the change of every query's loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_transformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import support
import tables
import whence as wh
from influence_mislabels import Rows, digits, messages, recipe_of

SHARE = 0.05
DECAY = 1e-3
QUERIES = 100


def main() -> None:
    """Run the sets."""
    arguments = support.parser(__doc__.splitlines()[0], threads=1).parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    tiny = arguments.tiny
    sets = {"sms": messages, "mnist": digits, "german_credit": credit, "spambase": mails}
    groups = 2 if tiny else 10
    settings = {
        "tiny": tiny, "threads": arguments.threads, "share": SHARE, "weight_decay": DECAY, "groups": groups,
        "queries": QUERIES,
    }  # fmt: skip
    report = support.Report("influence_groups", settings, judged=not tiny)
    with support.Clock() as clock:
        for name in list(sets)[: 1 if tiny else None]:
            one_set(report, name, sets[name](tiny), groups)
    report.figures["seconds"] = clock.wall
    folder = support.results_folder(arguments)
    report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def credit(tiny: bool) -> Rows:
    """Return the German credit table, one-hot and standardised."""
    table = pd.read_csv(support.need(support.data_folder() / "german_credit" / "german_credit.csv.gz"))
    return encoded(table, (table.pop("credit") == 2).to_numpy(), 800)


def mails(tiny: bool) -> Rows:
    """Return spambase, log(1 + x) and standardised."""
    table = pd.read_csv(support.need(support.data_folder() / "spambase" / "spambase.csv.gz"))
    label = table.pop("result").to_numpy() == 1
    return encoded(np.log1p(table), label, 3_600)


def encoded(table: pd.DataFrame, label: np.ndarray, cut: int) -> Rows:
    """Return the rows in an order drawn once, as numbers."""
    words = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    made = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), words), remainder=StandardScaler()
    )
    order = np.random.default_rng(0).permutation(len(table))
    first, rest = table.iloc[order[:cut]], table.iloc[order[cut:]]
    x, xt = made.fit_transform(first), made.transform(rest)
    y = label[order].astype(np.int64)
    return Rows(x=np.asarray(x, dtype=np.float64), y=y[:cut], xt=np.asarray(xt, dtype=np.float64), yt=y[cut:])


def one_set(report: support.Report, name: str, rows: Rows, count: int) -> None:
    """Predict both orders, retrain, compare."""
    recipe, train = recipe_of(rows, DECAY), wh.as_examples((rows.x, rows.y))
    asked = np.random.default_rng(1).choice(len(rows.xt), min(QUERIES, len(rows.xt)), replace=False)
    queries = wh.as_examples((rows.xt[asked], rows.yt[asked]))
    base = recipe.train(train)
    attribution = wh.Influence(curvature=wh.Exact()).fit(recipe.task(base), train)
    size = max(1, round(SHARE * len(rows.x)))
    kinds = {"coherent": coherent(rows, size, count), "random": drawn(rows, size, count)}
    for kind, groups in kinds.items():
        named = {f"{kind} {number}": ids for number, ids in enumerate(groups)}
        predicted = {order: attribution.group_scores(named, queries, order=order).values.numpy() for order in (1, 2)}
        retraining = wh.Retraining(recipe=recipe, start=base)
        actual = wh.leave_group_out(retraining, train, queries, named).values.numpy()
        figures = {f"order {order}": compared(values, actual) for order, values in predicted.items()}
        report.figures[f"{name}, {kind}"] = {**figures, "rows": len(rows.x), "group": size, "inputs": rows.x.shape[1]}
        print(f"  {name}, {kind}: {figures}", flush=True)
        first, second = (figures[f"order {order}"]["relative_error"] for order in (1, 2))
        report.gate(f"{name}, {kind} groups of 5 %: second order's error over first order's", second / first, high=1)


def coherent(rows: Rows, size: int, count: int) -> list[np.ndarray]:
    """Return for some rows drawn at random those of their class that lie nearest."""
    generator, groups = np.random.default_rng(2), []
    for row in generator.choice(len(rows.x), count, replace=False):
        alike = np.flatnonzero(rows.y == rows.y[row])
        distance = np.linalg.norm(rows.x[alike] - rows.x[row], axis=1)
        groups.append(alike[np.argsort(distance, kind="stable")[:size]])
    return groups


def drawn(rows: Rows, size: int, count: int) -> list[np.ndarray]:
    """Return random groups."""
    generator = np.random.default_rng(3)
    return [generator.choice(len(rows.x), size, replace=False) for _ in range(count)]


def compared(predicted: np.ndarray, actual: np.ndarray) -> dict[str, Any]:
    """Return r, slope of actual on predicted and relative error, over all queries and groups [Q, groups]."""
    p, a = predicted.ravel(), actual.ravel()
    return {
        "r": float(np.corrcoef(p, a)[0, 1]), "slope": float(np.polyfit(p, a, 1)[0]),
        "relative_error": float(np.linalg.norm(p - a) / np.linalg.norm(a)),
        "largest": float(np.abs(actual).max()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
