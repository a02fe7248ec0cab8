"""Turn the results of the influence benchmarks into tables, published figures beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pieces import machine, table

SETS = ("sms", "mnist")


def influences(results: dict[str, Any]) -> Iterable[str]:
    """Return the lines of all tables, for the results that are there."""
    if found := results.get("influence_hinge"):
        yield from _hinge(found)
    if found := results.get("influence_mismatch"):
        yield from _mismatch(found)
    parts = {name: results[f"influence_mislabels-{name}"] for name in SETS if f"influence_mislabels-{name}" in results}
    if parts:
        yield from _mislabels(parts)
    if found := results.get("influence_groups"):
        yield from _groups(found)
    if found := results.get("influence_linear"):
        yield from _linear(found)
    if found := results.get("influence_understanding"):
        yield from _understanding(found)


def _hinge(result: dict[str, Any]) -> Iterable[str]:
    """One row a temperature."""
    settings, figures = result["settings"], result["figures"]
    yield "## Hinge loss: smooth derivatives at the true hinge's weights\n"
    yield (
        f"Linear SVM, MNIST 1 against 7, {settings['rows']:,} rows, weight decay {settings['weight_decay']}; for each "
        f"of some test images the {settings['left_out']} rows of largest influence left out one at a time, and "
        "scikit-learn's LinearSVC(loss=\"hinge\") fitted again. Below it SVC with an RBF kernel on 1,000 rows, where "
        "rows on the margin make the set of support vectors change: the smaller C is, the fewer. "
        f"{machine(result)}\n"
    )
    published = settings["published"]
    rows = [
        [f"linear, t = {t}", f"{one['r_mean']:.4f}", f"{one['r_least']:.4f}", f"{one['slope_mean']:.3f}",
         f"{published[t]:.3f}" if t in published else ""]
        for t, one in figures["temperatures"].items()
    ]  # fmt: skip
    rows += [
        [f"RBF, C = {cost}, t = {t}", f"{one['r_mean']:.4f}", f"{one['r_least']:.4f}", f"{one['slope_mean']:.3f}", ""]
        for cost, kernel in figures["rbf"].items() for t, one in kernel["temperatures"].items()
    ]  # fmt: skip
    yield table(["", "r, mean over queries", "least", "slope", "published r"], rows) + "\n"


def _mismatch(result: dict[str, Any]) -> Iterable[str]:
    """One row a weight decay."""
    yield "## Domain mismatch: 20 of 24 children dropped\n"
    yield (
        f"Readmission of diabetic patients, logistic regression on {result['settings']['rows']:,} balanced rows, "
        f"{result['settings']['draws']} draws of patients; medians over draws, in brackets least and most. *Times the "
        "next*: the weakest of the four children over the strongest other row, by the mean score over all children "
        "predicted wrongly, and for single ones (median). Published: 27–41 (Koh & Liang 2017, one child). "
        f"{machine(result)}\n"
    )
    rows = []
    for decay, draws in result["figures"]["decays"].items():
        least, single = ([one[key] for one in draws] for key in ("least_ratio", "median_query_ratio"))
        rows.append([
            decay, f"{np.median([one['wrong'] / one['asked'] for one in draws]):.0%}",
            f"{np.median(least):.1f} [{min(least):.1f}, {max(least):.1f}]",
            f"{np.median(single):.1f} [{min(single):.1f}, {max(single):.1f}]",
            *(f"{np.mean([one[key] for one in draws]):.0%}" for key in ("children_lead", "age_first")),
        ])  # fmt: skip
    header = ["weight decay", "children wrong", "times the next", "one child", "children head the list",
              "age is the first feature of all four"]  # fmt: skip
    yield table(header, rows) + "\n"


def _mislabels(results: dict[str, Any]) -> Iterable[str]:
    """One row a set and order of inspection."""
    any_one = next(iter(results.values()))
    shares = any_one["figures"]["shares"]
    yield "## Check and fix: inspecting a tenth of flipped labels\n"
    yield (
        f"{any_one['settings']['draws']} draws of the flips; held-out accuracy after the first rows of an order got "
        "their right label and the model was trained again; mean over the curve, and the paired gain over inspecting "
        f"by loss, with 95 % t-intervals over draws. {machine(any_one)}\n"
    )
    rows = []
    for name, result in results.items():
        figures = result["figures"]
        for order, one in figures["orders"].items():
            gain = figures["gains"][order].get("loss")
            rows.append([
                f"{name}, {order}", f"{figures['before']['mean']:.4f}",
                *(f"{value['mean']:.4f}" for value in one["accuracy"]), f"{figures['mean_accuracy'][order]:.4f}",
                "" if gain is None else f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]",
                f"{one['average_precision']['mean']:.3f}",
            ])  # fmt: skip
    header = ["", "before", *(f"{share:.0%}" for share in shares), "mean", "gain over loss", "average precision"]
    yield table(header, rows) + "\n"


def _groups(result: dict[str, Any]) -> Iterable[str]:
    """One row a set and kind of group."""
    settings = result["settings"]
    yield "## Groups of 5 % of the rows\n"
    yield (
        f"{settings['groups']} groups of each kind, {settings['queries']} queries, weight decay "
        f"{settings['weight_decay']}: changes of the queries' losses as predicted to first and to second order, "
        f"against exact retraining. {machine(result)}\n"
    )
    rows = []
    for name, one in result["figures"].items():
        if isinstance(one, dict):
            first, second = one["order 1"], one["order 2"]
            rows.append([
                name, f"{one['group']} of {one['rows']:,}", f"{first['r']:.4f}", f"{second['r']:.4f}",
                f"{first['slope']:.3f}", f"{second['slope']:.3f}", f"{first['relative_error']:.3f}",
                f"{second['relative_error']:.3f}",
            ])  # fmt: skip
    header = ["", "rows", "r, first", "r, second", "slope, first", "slope, second", "error, first", "error, second"]
    yield table(header, rows) + "\n"


def _linear(result: dict[str, Any]) -> Iterable[str]:
    """One row a solver."""
    yield "## Direct inverse, conjugate gradients, LiSSA\n"
    yield (
        "Softmax regression on 10,000 MNIST rows, weight decay .01, no damping: scores of three queries against the "
        f"direct inverse's. {machine(result)}\n"
    )
    rows = [
        [name, f"{one['r_least']:.6f}", f"{one['relative_error']:.2g}"]
        for name, one in result["figures"].items() if isinstance(one, dict)
    ]  # fmt: skip
    yield table(["", "least r", "relative error"], rows) + "\n"


def _understanding(result: dict[str, Any]) -> Iterable[str]:
    """One row a model."""
    figures = result["figures"]
    yield "## Influence against distance, dogs and fish\n"
    yield (
        f"900 photographs (32×32), {figures['queries']} held-out ones that both models predict rightly. Spearman's "
        "correlation of |influence| with distance in pixels over rows that have influence; share of all influence that "
        "the nearest tenth of the rows has; how many of the ten most helpful rows are of the other class. Means over "
        f"photographs, 95 % t-intervals. {machine(result)}\n"
    )
    yield "![Influence against distance](results/influence_understanding.svg)\n"
    keys = ("spearman_of_those_that_count", "share_of_nearest_tenth", "other_class_among_helpful",
            "own_class_among_harmful")  # fmt: skip
    rows = [
        [name, f"{one['accuracy']:.2f}",
         *(f"{one[key]['mean']:.3f} [{one[key]['low']:.3f}, {one[key]['high']:.3f}]" for key in keys)]
        for name, one in figures["kinds"].items()
    ]  # fmt: skip
    header = ["", "accuracy", "Spearman with distance", "nearest tenth's share", "other class among helpful",
              "own class among harmful"]  # fmt: skip
    yield table(header, rows) + "\n"
