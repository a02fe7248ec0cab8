"""Turn the results of cross-loss influence on clusterings and encoders into tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pieces import machine, table

KINDS = ("exact Hessian", "Gauss-Newton", "matched loss", "matched loss, exact Hessian")
PARTS = ("clustering", "small-clustering", "auto-encoder", "contrastive")

_TRIED = """\
*Tried for the contrastive encoder* (r and slope of all pairs with the exact Hessian, groups of 2 %; fixed probe, then
refitted probe). 14 × 14 pixels, 600 images, 16 tanh units, code of 8, four negatives, weight decay .003, the first
configuration, whose gates failed: −.02, −.33 fixed with a damping of 1e-4; .19, 3.0 and .47, 2.1 with none. There a
*single* random image moves the weights by 5 % (median), a group by 26 %; beside the 25 directions that are exactly flat
(rotations of a code of 8 span at most 28) 888 of 3,288 eigenvalues lie below the weight decay: next to all images are
told apart with no loss, the few that are not hold the weights where they are, and no first order reaches as far as the
model then goes. At 7 × 7 pixels: 300 images, 8 units, code of 6, four negatives, decay .003: .23, 2.4 and .50, 3.9;
1,000 images, 8 units, code of 4, 16 negatives, decay .01: .64, 2.5 and .80, 1.5 (strongest single images .91 and .98);
2,000 images, 8 softplus units, 8 negatives, decay .01: .49, 1.4 and .80, 1.3 (groups of 1 %: −.03 and .87); a
linear encoder, 1,000 images, 8 negatives, decay .01: .91, 1.1 and .96, 1.2; 16 tanh units, code of 4, 8 negatives,
decay .02, views that are not shifted: .89, 1.1 and .95, 1.0. The table has the last one, its views shifted; the same
with decay .01 is a better encoder (probe accuracy .49) and just misses: .82, 1.0 and .79, 1.1 (single images .93, 1.4
and .95, 1.3). What helps is a loss that is not solved (more negatives, more decay, more images a parameter), then a
measurement that follows the code; the price of the decay is the encoder: see the probe's accuracy.

*Mixture, like for like*: the matched loss with its own exact Hessian (least damping of a list that makes it definite:
.003 to .03), softplus β = 10, five draws: median r .93, .87, .95, .94 and .86, against .999 of ours in each.

*The clustering's slope*, at 1,000 images of 7 × 7 pixels, 514 parameters: 1.04 for single random images, 1.14 for the
strongest, 1.12 in random groups of 1 %, 1.20 of 2 %, 1.12 of 5 %, 1.13, 1.20 and 1.42 in groups of one digit (5 % are
half of its images). A group takes its own curvature with it, which first order leaves in: the Newton step of the
Hessian without it has slopes between .89 and 1.00, but is no use for half a digit (r = −.07), where the Hessian that is
left has negative directions.
"""


def crossloss_models(results: dict[str, Any]) -> Iterable[str]:
    """Return the lines of all tables, for the results that are there."""
    if found := results.get("crossloss_mixture"):
        yield from _mixture(found)
    parts = {part: results[f"crossloss_digits-{part}"] for part in PARTS if f"crossloss_digits-{part}" in results}
    if parts:
        yield from _digits(parts)


def _mixture(result: dict[str, Any]) -> Iterable[str]:
    """One row an activation and kind of score."""
    settings, figures = result["settings"], result["figures"]
    yield "## Cross-loss influence: deep embedded clustering of a mixture\n"
    stops = figures["ReLU, gradient norm"]
    yield (
        f"{settings['points']} points of three Gaussians, {settings['seeds']} draws, network 2 → 12 → 12, weight decay "
        f"{settings['weight_decay']}. Trained on KL to a frozen target distribution to a gradient norm of "
        f"{settings['gradient_norm']:g}, measured by −log q of the cluster of {settings['queries']} new points; every "
        "training point left out and the network trained again **on KL**, the other points' targets as they were. "
        "*Matched loss*: the same weights attributed as if trained on the measurement. Mean, least and most of the "
        "draws; slope of actual on predicted. No published figure stands beside it: the released code's ground truth "
        "retrains with NLL. True ReLUs put the minimum on a kink, where no removal has a derivative: training reaches "
        f"gradient norms of only {min(stops):g} to {max(stops):g}; softplus(β) is within ln 2 / β of a ReLU. "
        f"{machine(result)}\n"
    )
    rows = []
    for name, one in figures.items():
        if isinstance(one, dict):
            rows += [
                [f"{name}, {kind}", *(_span([run[kind][key] for run in one["runs"]])
                                      for key in ("r_median", "r_tenth", "slope_median", "r_all", "slope_all"))]
                for kind in KINDS
                if kind in one["runs"][0]
            ]  # fmt: skip
    header = ["", "r, median query", "r, tenth percentile", "slope, median query", "r, all pairs", "slope, all pairs"]
    yield table(header, rows) + "\n"


def _digits(results: dict[str, Any]) -> Iterable[str]:
    """One row a model and curvature."""
    settings = next(iter(results.values()))["settings"]
    yield "## Cross-loss influence: models of digits trained without labels\n"
    told = "; ".join(
        f"{part}: {one['settings']['rows']:,} images, {one['settings']['parameters']:,} parameters, weight decay "
        f"{one['settings']['weight_decay']:g}, {one['settings']['groups']} groups of {one['settings']['share']:.0%}, "
        f"{_quality(one['figures'])}"
        for part, one in results.items()
    )
    yield (
        "MNIST at 14 × 14 pixels (the small clustering and the contrastive encoder: 7 × 7), trained in float64 to a "
        f"gradient norm of {settings['gradient_norm']:g} on the model's own loss; groups of images "
        "(random, or of one digit) removed and trained again. Measured on "
        f"{settings['queries']} held-out images: −log q of their cluster, or the cross-entropy of a supervised linear "
        "probe, which is fitted once and stays fixed, through the encoder; *refitted probe*: `RidgeProbe`, the squared "
        "error of a ridge probe that is fitted anew to the codes before and after. A contrastive loss has "
        f"eight negatives of its own. {told}. The auto-encoder's settings are the third tried: a tanh code with "
        "weight decay .001 and groups of 5 % gave r = .22 with the Hessian (a code that turns at next to no loss), "
        f"damping of 1e-4 with the present ones r = .80 and slope 1.80. {machine(next(iter(results.values())))}\n"
    )
    yield _TRIED + "\n"
    rows = []
    for part, one in results.items():
        for name, found in one["figures"].items():
            if isinstance(found, dict) and "r_all" in found:
                rows.append([f"{part}, {name}", *(f"{found[key]:.3f}" for key in
                                                  ("r_all", "slope_all", "r_median", "r_tenth"))])  # fmt: skip
            elif isinstance(found, dict) and "refused" in found:
                rows.append([f"{part}, {name}", "refused: no minimum", "", "", ""])
    yield table(["", "r, all pairs", "slope", "r, median query", "r, tenth percentile"], rows) + "\n"


def _quality(figures: dict[str, Any]) -> str:
    """Say how good a model is."""
    if "probe_accuracy" in figures:
        return f"probe accuracy {figures['probe_accuracy']:.2f}"
    return f"{figures['clusters_that_are_the_digit']:.2f} of the images in the cluster of their digit"


def _span(values: list[float]) -> str:
    """Mean, least and most."""
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
