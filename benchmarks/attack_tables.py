"""Turn the results of the training-set attack into tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pieces import machine, table


def attacks(results: dict[str, Any]) -> Iterable[str]:
    """Return the lines, if the attack was run."""
    if not (found := results.get("influence_attack")):
        return
    settings, figures = found["settings"], found["figures"]
    one, many = figures["one image, half a level"], figures["one image, many targets"]
    yield "## An attack on the training set\n"
    yield (
        f"Frozen features ({settings['features']}) of a network trained on CIFAR-10 (accuracy "
        f"{figures['feature_net_accuracy']:.3f}), logistic regression on 900 dogs and fish (weight decay "
        f"{settings['weight_decay']}, test accuracy {figures['test_accuracy']:.3f}); {one['targets']} random test "
        f"photographs. One training image, half a grey level: the margin falls by {one['mean_drop']:.4f} of "
        f"{one['mean_margin']:.2f} on average, against {one['drop, random signs']:.4f} (mean size) for random signs "
        f"and {one['drop, gradient matching']:.4f} for ascent by plain gradients in the same box; {one['flipped']} of "
        f"{one['targets']} flip (published, with Inception features: 57 % of 591). Stored in 8 bits nothing is left. "
        f"One image against {many['targets']} dogs at once: {many['flips']} flip (published: 16 of 30), the mean "
        f"margin falls by {many['margin_drop']:.4f} of {many['margin_before']:.2f}. {machine(found)}\n"
    )
    header = ["box, grey levels", "images", "targets", "flipped", "margin drop", "of the margin", "random signs",
              "flipped in 8 bits"]  # fmt: skip
    yield table(header, [
        [f"{row['levels']:g}", str(row["images"]), str(row["targets"]), str(row["flipped"]), f"{row['mean_drop']:.4f}",
         f"{row['relative_drop']:.1%}", f"{row['random_drop']:.4f}", f"{row['rounded_flipped']:g}"]
        for row in figures["curve"]
    ])  # fmt: skip
    yield ""
