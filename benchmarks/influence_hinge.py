"""Influence on a linear SVM: the true hinge's weights, a smooth hinge's derivatives, true-hinge retraining.

    python benchmarks/influence_hinge.py [--threads 1] [--tiny]

MNIST, 1 against 7, all 13,007 rows, weight decay .01, no intercept, scikit-learn's LinearSVC(loss="hinge"). For each of
some test images the 100 rows of largest predicted influence are left out, one at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC, LinearSVC

import support
import tables
import whence as wh

WEIGHT_DECAY = 0.01
TEMPERATURES = (0.0, 0.0001, 0.001, 0.01, 0.1)
RANKED_BY = 0.001  # the temperature whose scores choose the rows that are left out
COSTS, KERNEL_ROWS, KERNEL_LEFT_OUT = (0.1, 1.0), 1_000, 50
PUBLISHED = {0.0: 0.632, 0.001: 0.950, 0.1: 0.914}
Rows = dict[str, np.ndarray]


def main() -> None:
    """Fit, predict, leave out, compare."""
    arguments = support.parser(__doc__.splitlines()[0], threads=1).parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    rows = two_classes(arguments.tiny)
    near, random = (5, 1) if arguments.tiny else (100, 3)
    settings = {
        "tiny": arguments.tiny, "threads": arguments.threads, "rows": len(rows["x"]), "weight_decay": WEIGHT_DECAY,
        "left_out": near, "published": {str(t): r for t, r in PUBLISHED.items()},
    }  # fmt: skip
    report = support.Report("influence_hinge", settings, judged=not arguments.tiny)
    with support.Clock() as clock:
        linear(report, rows, near, random)
        kernel(report, rows, near, arguments.tiny)
    report.figures["seconds"] = clock.wall
    folder = support.results_folder(arguments)
    report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def two_classes(tiny: bool) -> Rows:
    """Return all ones and sevens in float64, y = 1 for seven; tiny: bundled rows, 16 pixels each."""
    if tiny:
        found = support.images(True)
        found = {n: a.reshape(-1, 28, 28)[:, 3::7, 3::7].reshape(len(a), -1) if a.ndim == 2 else a
                 for n, a in found.items()}  # fmt: skip
    else:
        folder = support.data_folder() / "mnist"
        with np.load(support.need(folder / "mnist_train.npz")) as train, \
                np.load(support.need(folder / "mnist_test.npz")) as test:  # fmt: skip
            found = {"x": train["x"], "y": train["y"], "xt": test["x"], "yt": test["y"]}
        found = {n: a.reshape(len(a), -1) / 255 if n.startswith("x") else a for n, a in found.items()}
    kept = {name: np.isin(found["y" + name], (1, 7)) for name in ("", "t")}
    return {
        n: a[kept[n[1:]]].astype(np.float64) if n.startswith("x") else (a[kept[n[1:]]] == 7).astype(np.int64)
        for n, a in found.items()
    }


def linear(report: support.Report, rows: Rows, near: int, random: int) -> None:
    """All temperatures on the linear machine, each query by itself and in the mean."""
    def fit(kept: np.ndarray) -> LinearSVC:
        machine = LinearSVC(
            C=1 / (WEIGHT_DECAY * len(rows["x"])), loss="hinge", fit_intercept=False, tol=1e-8, max_iter=1_000_000
        )
        return machine.fit(rows["x"][kept], rows["y"][kept])

    fitted = fit(np.arange(len(rows["x"])))
    queries = choose(hinges(fitted, rows, np.arange(len(rows["xt"]))), random)
    predicted = {t: scores(fitted, rows, queries, t) for t in TEMPERATURES}
    chosen = [strongest(one, near) for one in predicted[RANKED_BY]]
    with support.Clock() as clock:
        actual = left_out(fit, rows, queries, np.unique(np.concatenate(chosen)))
    report.figures |= {"test_accuracy": float(fitted.score(rows["xt"], rows["yt"])), "refits": actual.shape[1]}
    print(f"  {actual.shape[1]} refits in {clock.wall:.0f} s", flush=True)
    wanted = np.unique(np.concatenate(chosen))
    found: dict[str, Any] = {}
    for t, values in predicted.items():
        lines = [
            line(one[members], real[np.searchsorted(wanted, members)])
            for one, real, members in zip(values, actual, chosen, strict=True)
        ]
        found[str(t)] = summary(lines, queries)
        told = {k: v for k, v in found[str(t)].items() if k != "queries"}
        print(f"  t = {t:g}: {told} (published r: {PUBLISHED.get(t, '–')})", flush=True)
    report.figures["temperatures"] = found
    report.gate("t = .001: mean r over queries (published .950)", found["0.001"]["r_mean"], low=0.95)
    report.gate("t = .001: least r of a query", found["0.001"]["r_least"], low=0.95)
    rise = found["0.001"]["r_mean"] - found["0.0"]["r_mean"]
    report.gate("t = .001: mean r above that of t = 0 (published .950 - .632)", rise, low=0.1)
    report.gate("t = .001: mean slope of actual on predicted", found["0.001"]["slope_mean"], low=0.9, high=1.1)


def kernel(report: support.Report, rows: Rows, near: int, tiny: bool) -> None:
    """The same with an RBF kernel on some of the rows: SVC in coordinates of its support vectors."""
    some = np.random.default_rng(0).permutation(len(rows["x"]))[: 60 if tiny else KERNEL_ROWS]
    part = {**rows, "x": rows["x"][some], "y": rows["y"][some]}
    report.figures["rbf"] = {str(cost): one_cost(part, cost, near) for cost in COSTS}
    for cost, found in report.figures["rbf"].items():
        for t, one in found["temperatures"].items():
            print(f"  RBF, C = {cost}, t = {t}: r {one['r_mean']:.4f} (least {one['r_least']:.4f}), "
                  f"slope {one['slope_mean']:.3f}")  # fmt: skip
    mean = report.figures["rbf"][str(COSTS[0])]["temperatures"]["0.001"]["r_mean"]
    report.gate(f"RBF kernel, {KERNEL_ROWS:,} rows, C = {COSTS[0]}, t = .001: mean r over queries", mean, low=0.95)


def one_cost(part: Rows, cost: float, near: int) -> dict[str, Any]:
    """Return what is found at one C: the larger it is, the more rows lie on the margin, where removal is not smooth."""
    def fit(kept: np.ndarray) -> SVC:
        return SVC(C=cost, gamma=0.02, tol=1e-8).fit(part["x"][kept], part["y"][kept])

    fitted = fit(np.arange(len(part["x"])))
    queries = choose(hinges(fitted, part, np.arange(len(part["xt"]))), 0)
    predicted = {t: scores(fitted, part, queries, t) for t in TEMPERATURES if t}
    chosen = [strongest(one, min(near, KERNEL_LEFT_OUT)) for one in predicted[RANKED_BY]]
    wanted = np.unique(np.concatenate(chosen))
    actual = left_out(fit, part, queries, wanted)
    found = {
        str(t): summary([
            line(one[members], real[np.searchsorted(wanted, members)])
            for one, real, members in zip(values, actual, chosen, strict=True)
        ], queries) for t, values in predicted.items()
    }  # fmt: skip
    bounded = int((np.abs(fitted.dual_coef_) >= cost * (1 - 1e-9)).sum())
    return {
        "rows": len(part["x"]), "support": len(fitted.support_), "beyond the margin": bounded, "refits": len(wanted),
        "temperatures": found,
    }  # fmt: skip


def scores(fitted: Any, rows: Rows, queries: np.ndarray, temperature: float) -> np.ndarray:
    """Return predicted changes of the queries' (smooth) hinge [Q, N]; at 0 the curvature is the weight decay alone."""
    asked = rows["xt"][queries], rows["yt"][queries]
    if temperature:
        task = wh.Task.from_sklearn(fitted, temperature=temperature)
        attribution = wh.Influence(curvature=wh.Exact()).fit(task, (rows["x"], rows["y"]))
        return attribution.scores(asked).values.numpy()
    task = wh.Task(wh.Task.from_sklearn(fitted).model, loss="hinge")
    attribution = wh.Influence(curvature=wh.Identity()).fit(task, (rows["x"], rows["y"].astype(np.float64)))
    return attribution.scores((asked[0], asked[1].astype(np.float64))).values.numpy() / WEIGHT_DECAY


def hinges(machine: Any, rows: Rows, queries: np.ndarray) -> np.ndarray:
    """Return the true hinge of test images."""
    signs = 2 * rows["yt"][queries] - 1
    return np.maximum(0, 1 - signs * machine.decision_function(rows["xt"][queries]))


def choose(values: np.ndarray, random: int) -> np.ndarray:
    """Return the three test images of largest hinge, and random ones of those right but within the margin."""
    within = np.flatnonzero((values > 0) & (values < 1))
    others = np.random.default_rng(0).choice(within, min(random, len(within)), replace=False)
    return np.unique(np.concatenate([np.argsort(-values, kind="stable")[:3], others]))


def strongest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of largest influence."""
    return np.argsort(-np.abs(values), kind="stable")[:count]


def left_out(fit: Any, rows: Rows, queries: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return real changes of the queries' hinge without each row [Q, rows]."""
    every = np.arange(len(rows["x"]))
    before = hinges(fit(every), rows, queries)
    return np.stack([hinges(fit(np.delete(every, row)), rows, queries) - before for row in wanted.tolist()], 1)


def line(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Return r and slope of actual on predicted."""
    return {
        "r": float(np.corrcoef(predicted, actual)[0, 1]), "slope": float(np.polyfit(predicted, actual, 1)[0]),
        "largest": float(np.abs(actual).max()),
    }  # fmt: skip


def summary(lines: list[dict[str, float]], queries: np.ndarray) -> dict[str, Any]:
    """Return means and extremes over queries."""
    r, slope = ([one[key] for one in lines] for key in ("r", "slope"))
    return {
        "r_mean": float(np.mean(r)), "r_least": min(r), "slope_mean": float(np.mean(slope)),
        "queries": {str(query): one for query, one in zip(queries.tolist(), lines, strict=True)},
    }  # fmt: skip


if __name__ == "__main__":
    main()
