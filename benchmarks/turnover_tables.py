"""Tables of the turn-over benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pieces import machine, table

PREFIX = "turnover-"


def turnover(results: dict[str, Any]) -> Iterable[str]:
    """Return the lines of all tables, for the parts that are there."""
    parts = {name.removeprefix(PREFIX): found for name, found in results.items() if name.startswith(PREFIX)}
    if not parts:
        return
    yield "## Turn-over dropout\n"
    yield f"{machine(next(iter(parts.values())))}\n"
    shown = {"leaks": _leaks, "cost": _cost, "noise": _noise, "curves": _curves, "cleansing": _cleansing, "loo": _loo}
    for name, show in shown.items():
        if name in parts:
            yield from show(parts[name]["settings"], parts[name]["figures"])


def _leaks(settings: dict[str, Any], figures: dict[str, Any]) -> Iterable[str]:
    yield (
        "What leaks into the sub-network that must not have seen an example, by autograd, mean over "
        f"{settings['rows']} examples: share of the entries it uses that the example's training moves; how much "
        "flipped outputs change when the model is trained on the example alone; and test accuracy of the average "
        f"network after training on {settings['trained']:,} rows (with the model's ordinary dropout).\n"
    )
    rows = [
        [name, f"{one['parameters']:,}", str(one["leaking"]), f"{one['share']:.2%}", str(one["statistics"]),
         f"{one['frozen']} ({one['frozen_share']:.2%})", "" if one["changed"] is None else f"{one['changed']:.2g}",
         f"{one['accuracy']:.3f} ({one['ordinary']:.3f})"]
        for name, one in figures["models"].items()
    ]  # fmt: skip
    header = ["", "parameters", "leak", "share of entries", "running statistics", "frozen", "change", "test accuracy"]
    yield table(header, rows) + "\n"


def _cost(settings: dict[str, Any], figures: dict[str, Any]) -> Iterable[str]:
    yield (
        "One query against all training examples, both sub-networks of each, over two plain forward passes of that "
        f"many rows in batches of the same number of examples; median of {settings['repeats']} in turn.\n"
    )
    rows = [
        [name, f"{one['rows']:,}", f"{one['sweep']:.3f}", f"{one['two_passes']:.3f}", f"{one['ratio']:.2f}"]
        for name, one in figures["models"].items()
    ]
    yield table(["", "rows", "sweep s", "two passes s", "ratio (at most 2.2)"], rows) + "\n"


def _noise(settings: dict[str, Any], figures: dict[str, Any]) -> Iterable[str]:
    one, widths = figures["single"], "-".join(str(width) for width in settings["widths"])
    yield (
        f"MNIST, {settings['rows']:,} rows, 10 % of the labels flipped, perceptron {widths}, "
        f"{settings['epochs']} epochs, {settings['members']} mask "
        f"seeds, harm on {settings['references']} clean rows. **A single mask seed is noise**: its scores have mean "
        f"{one['mean']:.4f} and standard deviation {one['deviation']:.3f} nats (the authors' matrix: "
        f"{one['published']['mean']} and {one['published']['deviation']}), and correlate with those of another seed by "
        f"r = {one['r_between_seeds']:.3f}; {one['beyond_two_errors']:.1%} of the means over all seeds lie beyond two "
        "standard errors.\n"
    )
    rows = [
        [name, f"{d['auc'][0]:.4f} [{d['auc'][1]:.4f}, {d['auc'][2]:.4f}]", f"{d['ap']:.4f}"]
        for name, d in figures["detectors"].items()
    ]
    yield table(["", "AUC [95 %]", "average precision"], rows) + "\n"


def _curves(settings: dict[str, Any], figures: dict[str, Any]) -> Iterable[str]:
    yield (
        f"Learning curves, {settings['rows']:,} MNIST rows, {settings['epochs']} epochs: correlation over epochs of "
        "the training rows' mean loss in unseen (and seen) sub-networks with the test loss of sub-networks, and of the "
        "average network; the unseen loss over that of the test set after the last epoch; the epoch of the least "
        "unseen loss, test loss of sub-networks, and of the average network.\n"
    )
    rows = [
        [str(seed), f"{one['r']:.4f}", f"{one['r_seen']:.3f}", f"{one['r_average']:.3f}", f"{one['ratio']:.3f}",
         " / ".join(str(one["best_epochs"][name]) for name in ("unseen", "test_parts", "test"))]
        for seed, one in enumerate(figures["runs"])
    ]  # fmt: skip
    header = ["seed", "r, unseen", "r, seen", "r, unseen with average network", "unseen / test", "best epochs"]
    yield table(header, rows) + "\n"


def _cleansing(settings: dict[str, Any], figures: dict[str, Any]) -> Iterable[str]:
    yield (
        f"Cleansing for a shifted test set: {settings['rows']:,} sentences of Rotten Tomatoes, scored on "
        f"{settings['validation']} IMDB reviews ({settings['members']} mask seeds); the most harmful left out, "
        f"{settings['retrainings']} trainings each; accuracy on {settings['test']:,} other IMDB reviews, before: "
        f"{figures['before']:.4f}. Influence agrees with itself on the model's share of a class, which a few rows "
        "correct and many overshoot.\n"
    )
    rows = [
        [f"{float(share):.0%}", f"{one['turn-over']['accuracy']:.4f}",
         *(_interval(one[name]) for name in ("turn-over", "EK-FAC influence", "random"))]
        for share, one in figures["shares"].items()
    ]  # fmt: skip
    yield table(["left out", "accuracy", "gain [95 %]", "by EK-FAC influence", "at random"], rows) + "\n"


def _loo(settings: dict[str, Any], figures: dict[str, Any]) -> Iterable[str]:
    yield (
        f"Against real leave-one-out: {settings['rows']} MNIST rows, perceptron with turn-over dropout, "
        f"{settings['left_out']} rows left out, {settings['seeds']} seeds each, {settings['queries']} queries.\n"
    )
    rows = [
        [name, f"{one['r_pooled']:.3f} [{one['interval'][0]:.3f}, {one['interval'][1]:.3f}]", f"{one['r_within']:.3f}",
         f"{one['slope']:.2g}"]
        for name, one in figures.items() if isinstance(one, dict)
    ]  # fmt: skip
    yield table(["", "r, pooled [95 %]", "r within a query", "slope"], rows) + "\n"


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
