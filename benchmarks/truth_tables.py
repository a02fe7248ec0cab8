"""Turn the results of retraining into tables: linear datamodelling scores, and agreement with leave-one-out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pieces import machine, table


def truth(results: dict[str, Any]) -> Iterable[str]:
    """Return the lines of both tables, for the results that are there."""
    if found := results.get("lds"):
        yield from _lds(found)
    if found := results.get("retraining"):
        yield from _retraining(found)


def _lds(result: dict[str, Any]) -> Iterable[str]:
    """One row a method, best first."""
    settings, figures = result["settings"], result["figures"]
    yield "## Linear datamodelling score\n"
    yield (
        f"MLP 49-32-32-10 on {settings['rows']:,} MNIST images (7×7), {settings['queries']} queries; "
        f"{settings['subsets']} random halves × {settings['seeds']} seeds retrained. Rank correlation of the summed "
        "scores with the retrained models' losses, mean over queries with a 95 % bootstrap interval; one checkpoint, "
        f"and the mean over {settings['members']}. The retrainings' own reliability is {figures['reliability']:.3f}: "
        f"a method without error would reach {figures['ceiling']:.3f}. {machine(result)}\n"
    )
    methods = figures["methods"]
    rows = []
    for name in sorted((n for n in methods if not n.endswith("members")), key=lambda n: -methods[n]["lds"]):
        one = methods[name]
        several = methods.get(f"{name}, {settings['members']} members")
        checkpoints = one.get("checkpoints", [])
        rows.append([
            name, _interval(one), f"{sum(checkpoints) / len(checkpoints):.4f}" if len(checkpoints) > 1 else "",
            "" if several is None else _interval(several), f"{one['seconds']:.2g}",
            f"{one['passes']:.0f}",
        ])  # fmt: skip
    header = ["", "one checkpoint", "mean of checkpoints", "all together", "seconds a checkpoint", "in passes"]
    yield table(header, rows)
    yield ""
    for name, error in figures["refused"].items():
        yield f"{name}: no scores. {error}\n"


def _retraining(result: dict[str, Any]) -> Iterable[str]:
    """One row a comparison."""
    settings, figures = result["settings"], result["figures"]
    yield "## A convolutional network against leave-one-out\n"
    yield (
        f"Tanh network of {figures['parameters']:,} parameters, {settings['rows']:,} MNIST images, weight decay "
        f"{settings['weight_decay']}, trained and retrained from the same weights by L-BFGS to a gradient norm of "
        f"{settings['gradient_norm']:g}; {settings['left_out']} rows left out one at a time, {settings['queries']} "
        f"queries. Slope and intercept (nats) are of actual on predicted. {machine(result)}\n"
    )
    rows = [
        [
            name, f"{one['pooled_r']:.4f} [{one['pooled_r_low']:.4f}, {one['pooled_r_high']:.4f}]",
            f"{one['median_query_r']:.4f}", f"{one['least_query_r']:.4f}", f"{one['pooled_slope']:.3f}",
            f"{one['median_query_slope']:.3f}", f"{one['pooled_intercept']:.2g}",
        ]
        for name, one in figures["agreement"].items()
    ]  # fmt: skip
    header = ["", "r, all together", "median query's r", "least", "slope", "median query's slope", "intercept"]
    yield table(header, rows)
    yield ""


def _interval(entry: dict[str, Any]) -> str:
    """Return a score with its interval."""
    return f"{entry['lds']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"
