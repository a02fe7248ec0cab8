"""Turn the results of bias traced to sentences into tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pieces import machine, table

SETS = {"npov": "Wikipedia neutrality corpus", "fiction": "fifteen novels"}


def crossloss_words(results: dict[str, Any]) -> Iterable[str]:
    """Return the lines of all tables, for the results that are there."""
    parts = {name: results[f"crossloss_words-{name}"] for name in SETS if f"crossloss_words-{name}" in results}
    if not parts:
        return
    yield "## Cross-loss influence: bias of word vectors traced to sentences\n"
    any_one = next(iter(parts.values()))
    settings = any_one["settings"]
    told = "; ".join(
        f"{SETS[name]}: {one['figures']['sentences']:,} sentences, {one['figures']['words']:,} words of five or more "
        f"occurrences, {one['settings']['epochs']} epochs, k = {one['settings']['removed']}"
        for name, one in parts.items()
    )  # fmt: skip
    yield (
        f"Skip-gram with negative sampling, width {settings['width']}, window {settings['window']}, "
        f"{settings['negatives']} negatives; {told}. WEAT effect sizes (X to A, in standard deviations). The k "
        "sentences that the scores (`RowBlocks`, model of seed 0) say to lower or raise the effect on removal are left "
        "out and the vectors trained again, same first vectors, noise words and order: means over "
        f"{settings['seeds']} seeds with 95 % t-intervals. *Touching*: random sentences among those that hold a word "
        "of the test. Edits take as many sentences by each seed's own scores; hard debiasing takes out the gender "
        "direction. Changes predicted by sums of scores overshoot: the effect size ends at ±2. "
        f"{machine(any_one)}\n"
    )
    rows = [row for name, one in parts.items() for key, test in one["figures"]["tests"].items()
            for row in _rows(f"{name}, {key}", test)]  # fmt: skip
    yield table(["", "effect", "change", "predicted", "p-value, mean", "loss of other sentences"], rows) + "\n"
    yield "Words of each list with a vector, and their occurrences; a test is asked if every list has four:\n"
    counts = [row for name, one in parts.items() for row in _counts(name, one["figures"]["counts"])]
    yield table(["", "X", "Y", "A", "B", "asked of it"], counts) + "\n"


def _rows(name: str, test: dict[str, Any]) -> Iterable[list[str]]:
    """One row for the vectors as they are and for every way to change them."""
    p = test["p_before"]
    yield [f"{name}: all sentences", _span(test["before"]), "", "", f"{sum(p) / len(p):.3f}", ""]
    for which, one in test["removals"].items():
        p = one["p_after"]
        yield [f"{name}: without {which}", _span(one["after"]), _span(one["change"]), f"{one['predicted']:+.2f}",
               f"{sum(p) / len(p):.3f}", ""]  # fmt: skip
    for which, one in test["edits"].items():
        rise = f"{one['others_loss_rise']['mean']:+.1%}" if "others_loss_rise" in one else ""
        yield [f"{name}: {which}", _span(one["effect"]), "", "", f"{one['p']['mean']:.3f}", rise]


def _span(found: dict[str, float]) -> str:
    """Return a mean with its interval."""
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def _counts(name: str, tests: dict[str, Any]) -> Iterable[list[str]]:
    """One row a test."""
    for key, test in tests.items():
        lists = test["lists"].items()
        cells = [f"{label} {one['there']}/{one['words']}, {one['occurrences']:,}" for label, one in lists]
        yield [f"{name}, {key}", *cells, "yes" if test["asked"] else "" if test["enough"] else "too rare"]
