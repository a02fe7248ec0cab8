"""Put measured figures into pages: ``{{ name; argument; … }}`` is read from benchmarks/results when the site is built.

- ``{{ value; FILE; KEY; …; FORMAT }}``: one number of FILE.json, keys below "figures" (;; for ;), a format such as .3f
- ``{{ matrix; METHOD; … }}``: rows of matrix.json: retraining, leave-one-out, detection and cost on three tasks
- ``{{ lds; METHOD; … }}``: rows of lds.json; semicolons part the methods, whose names hold commas
- ``{{ detectors; METHOD; … }}``: rows of detectors_*.json: AUC / average precision by regime
- ``{{ speed; FILE; MODEL; WHO; … }}``: rows of a file of speeds
- ``{{ label_errors }}``: the audit beside cross-validation
- ``{{ groups }}``, ``{{ mismatch }}``, ``{{ flips }}``, ``{{ prune }}``, ``{{ cleanse }}``, ``{{ weat }}``,
  ``{{ response }}``: of their own benchmarks
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CALL = re.compile(r"\{\{\s*([a-z_]+)\s*((?:;[^{}]*)?)\}\}")
TASKS = {
    "mnist_mlp": "perceptron on MNIST",
    "sms_text": "default for texts on SMS spam",
    "spambase": "default for tables on Spambase",
}
REGIMES = {
    "mnist_memorised": "MNIST, memorised",
    "mnist_early": "MNIST, stopped early",
    "cifar10n": "CIFAR-10N",
    "sms": "SMS",
    "ag_news": "AG News",
}
SETS = {
    "sms": "SMS spam",
    "ag_news": "AG News",
    "spambase": "Spambase",
    "mnist": "MNIST",
    "cifar10n_aggre": "CIFAR-10N aggregate, people's errors",
    "cifar10n_worse": "CIFAR-10N worst, people's errors",
}
SPEEDS = {
    "whence-ekfac": "whence EK-FAC",
    "whence-kfac": "whence K-FAC",
    "whence-identity": "whence identity",
    "whence-last": "whence identity, last layer",
    "whence-projected": "whence projected, rank 8, nothing kept",
    "kronfluence-ekfac": "kronfluence EK-FAC, defaults",
    "kronfluence-ekfac-fastest": "kronfluence EK-FAC, fastest settings",
    "captum-tracin": "captum TracInCP, batch 32",
    "captum-last": "captum TracInCPFast, last layer",
    "trak-512": "traker TRAK-512",
    "dattri-tracin": "dattri TracIn",
    "dattri-ekfac": "dattri EK-FAC",
}


@cache
def result(name: str) -> dict[str, Any]:
    """Return one file of results; pages that name an absent one do not build."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"a page asks for {path.name}, which is not in benchmarks/results")
    return dict(json.loads(path.read_text("utf-8")))


def value(file: str, *path: str) -> str:
    """Return one number of a file, formatted."""
    *keys, how = path
    found: Any = result(file)["figures"]
    for key in keys:
        if isinstance(found, dict) and key not in found:
            raise KeyError(f"{file}.json has no {key!r} among {sorted(found)}")
        found = found[int(key)] if isinstance(found, list) else found[key]
    return format(found, how)


def matrix(*methods: str) -> str:
    """Return the rows of these methods on the three tasks."""
    cells = result("matrix")["figures"]["cells"]
    rows = []
    for task, title in TASKS.items():
        for place, method in enumerate(methods):
            one = cells[task][method]
            metrics = one["metrics"]
            truths = [_interval(metrics.get(truth)) for truth in ("lds", "loo", "detection")]
            passes = f"{one['passes']:.2g}" if one["passes"] < 10 else f"{one['passes']:.0f}"
            rows.append(["" if place else title, one["label"], *truths, f"{metrics['seconds']:.2g}", passes])
    header = ["task", "method", "LDS", "leave-one-out", "detection", "processor s", "in passes"]
    about = (
        "2,000 training rows, 200 labels flipped, 100 queries. LDS: rank correlation with models trained on random "
        "halves. Leave-one-out: the same with single rows removed. Detection: average precision of self-scores at the "
        "flipped labels."
    )
    return table(header, rows) + provenance("matrix", about)


def lds(*methods: str) -> str:
    """Return the rows of these methods in the linear datamodelling benchmark."""
    found = result("lds")["figures"]["methods"]
    rows = []
    for name in methods:
        one, together = found[name], found.get(f"{name}, 5 members")
        alone = _interval([one["lds"], one["low"], one["high"]])
        rows.append([name, alone, f"{together['lds']:.3f}" if together else "", f"{one['seconds']:.2g}"])
    header = ["method", "LDS, one checkpoint", "five together", "s a checkpoint"]
    about = (
        "A perceptron of 2,986 parameters on 2,000 MNIST rows, 200 queries, 100 random halves × 5 seeds trained again. "
        f"A method without error would reach {result('lds')['figures']['ceiling']:.3f}."
    )
    return table(header, rows) + provenance("lds", about)


def detectors(*methods: str) -> str:
    """Return the rows of these methods as detectors of wrong labels, in the regimes that were measured."""
    shown = {name: result(f"detectors_{name}")["figures"]["methods"] for name in REGIMES}
    unknown = [name for name in methods if not any(name in found for found in shown.values())]
    if unknown:
        raise KeyError(f"no regime has the detectors {unknown}")
    rows = []
    for name in methods:
        entries = [found.get(name) for found in shown.values()]
        pairs = ("" if e is None else f"{e['auc']:.3f}&nbsp;/&nbsp;{e['average_precision']:.3f}" for e in entries)
        rows.append([name, *pairs])
    about = "AUC / average precision at finding wrong labels: a tenth flipped, on CIFAR-10N the errors of people."
    return table(["", *REGIMES.values()], rows) + provenance("detectors_mnist_memorised", about)


def speed(file: str, model: str, *names: str) -> str:
    """Return seconds of fit, queries and self-scores; > where the time allowed ran out."""
    figures = result(f"speed-{file}")["figures"]
    rows = []
    for name in names:
        one = figures["contenders"][model][name]
        steps = [_seconds(one, step) for step in ("fit", "pairwise", "self")]
        close = one.get("agreement", {}).get("exact/pairwise")
        rows.append([SPEEDS[name], *steps, f"{one['memory_mb']:,.0f}", "" if close is None else f"{close:.3f}"])
    about = figures["models"][model]
    text = (
        f"{about['parameters']:,} parameters, {about['rows']:,} rows, {about['queries']} queries. r: median "
        "correlation with EK-FAC on the whole eigen-grid, over queries."
    )
    header = ["", "fit s", "queries s", "self-scores s", "MB added", "r"]
    return table(header, rows) + provenance(f"speed-{file}", text)


def label_errors() -> str:
    """Return average precision of the audit and of 5-fold cross-validation of the same features and network."""
    rows = []
    for name, title in SETS.items():
        figures = result(f"label_errors-{name}")["figures"]
        ours = [run["average_precision"]["suspicion"] for run in figures["runs"].values()]
        ratio = [run["suspect_ratio"] for run in figures["runs"].values()]
        gain = figures["gain over self_confidence"]
        rows.append([
            title, f"{sum(ours) / len(ours):.3f}", f"{gain['theirs']:.3f}",
            _gain(gain), f"{min(ratio):.2f} – {max(ratio):.2f}",
        ])  # fmt: skip
    about = (
        "Average precision against the wrong labels, mean of five seeds: a tenth flipped, or the errors of people. "
        "5-fold: self-confidence from cross-validation of the same features, network and recipe."
    )
    header = ["data", "whence audit", "5-fold", "gain [95 %]", "suspects / wrong labels"]
    return table(header, rows) + provenance("label_errors-sms", about)


def groups() -> str:
    """Return predicted against real changes of groups of 5 % of the rows."""
    rows = []
    for name, one in result("influence_groups")["figures"].items():
        if isinstance(one, dict):
            first, second = one["order 1"], one["order 2"]
            rows.append([name, *(f"{part[key]:.3f}" for key in ("r", "slope") for part in (first, second))])
    about = "Groups of 5 % of the rows, changes of 100 queries' losses against exact retraining; slope on predicted."
    return table(["", "r, first order", "r, second", "slope, first", "slope, second"], rows) + provenance(
        "influence_groups", about
    )


def mismatch() -> str:
    """Return how far the few children stand above the next row, by weight decay."""
    rows = []
    for decay, draws in result("influence_mismatch")["figures"]["decays"].items():
        ratios = sorted(draw["least_ratio"] for draw in draws)
        wrong = median(draw["wrong"] / draw["asked"] for draw in draws)
        first = sum(draw["age_first"] for draw in draws)
        rows.append([
            decay, f"{wrong:.0%}", f"{median(ratios):.1f} [{ratios[0]:.1f}, {ratios[-1]:.1f}]",
            f"{sum(draw['children_lead'] for draw in draws)} of {len(draws)}", f"{first} of {len(draws)}",
        ])  # fmt: skip
    header = ["weight decay", "children wrong", "times the next row", "children head the list", "age comes first"]
    return table(header, rows) + provenance("influence_mismatch", "In brackets the least and the most of the draws.")


def flips() -> str:
    """Return how few rows flip a prediction."""
    rows = []
    for name, one in result("brittleness")["figures"]["orders"].items():
        rows.append([name, f"{one['flipped']:.0%}", "" if one["median"] is None else f"{one['median']:g}"])
    about = "Predictions of small margin on 1,000 MNIST rows, rows removed in this order and the model trained again."
    return table(["order", "flipped", "rows needed, median"], rows) + provenance("brittleness", about)


def prune() -> str:
    """Return test accuracy after pruning."""
    figures = result("detectors_prune")["figures"]
    names = ("GEX", "GEX, balanced", "random")
    rows = [[share, *(f"{one[name]:.4f}" for name in names)] for share, one in figures.items() if share != "all"]
    about = f"Test accuracy, 5,000 clean MNIST rows, {figures['all']:.4f} with all of them; the same number of steps."
    return table(["dropped", *names], rows) + provenance("detectors_prune", about)


def cleanse() -> str:
    """Return the change of accuracy on a shifted test set."""
    figures = result("turnover-cleansing")["figures"]
    names = ("turn-over", "EK-FAC influence", "random")
    rows = []
    for share, one in figures["shares"].items():
        gains = (_gain(one[name]) for name in names)
        rows.append([f"{float(share):.0%}", *gains])
    about = (
        "Change of accuracy on 6,055 IMDB reviews after leaving out the sentences of Rotten Tomatoes that harm 300 "
        f"others, ten trainings; {figures['before']:.3f} before."
    )
    return table(["left out", *names], rows) + provenance("turnover-cleansing", about)


def response() -> str:
    """Return the predicted and the measured change of accuracy after decisions."""
    rows = []
    for name, cases in result("predicted_change")["figures"].items():
        for place, (case, one) in enumerate(cases.items()):
            value, low, high = (100 * number for number in one["change"])
            measured = f"{value:+.1f} <small>[{low:+.1f}, {high:+.1f}]</small>"
            rows.append(["" if place else SETS.get(name, name), case, measured, f"{100 * one['response']:+.1f}",
                         f"{100 * one['first order']:+.1f}"])  # fmt: skip
    about = "Change of held-out accuracy in points, five trainings with 95 % intervals; 6 % of the labels were wrong."
    header = ["data", "decided", "measured", "predicted", "first-order scores"]
    return table(header, rows) + provenance("predicted_change", about)


def weat() -> str:
    """Return what removing and editing does to the association of gender and career in two texts."""
    texts = {"npov": "Wikipedia", "fiction": "fifteen novels"}
    found = {title: result(f"crossloss_words-{name}")["figures"] for name, title in texts.items()}
    tests = {title: one["tests"]["weat6b"] for title, one in found.items()}
    removals = {
        "sentences that cause it": "lowers", "sentences that hold it back": "raises", "as many at random": "random 0",
        "as many of those with its words": "touching 0",
    }  # fmt: skip
    rows = [["nothing", *(_effect(one["before"]) for one in tests.values())]]
    rows += [[title, *(_effect(one["removals"][key]["after"]) for one in tests.values())]
             for title, key in removals.items()]  # fmt: skip
    edits = {"nothing; vectors edited": "undo by both", "nothing; hard debiasing": "hard debiasing"}
    rows += [[title, *(_effect(one["edits"][key]["effect"]) for one in tests.values())] for title, key in edits.items()]
    removed = {title: result(f"crossloss_words-{name}")["settings"]["removed"] for name, title in texts.items()}
    counts = "; ".join(f"{title}: {removed[title]} of {one['sentences']:,} sentences" for title, one in found.items())
    about = f"Effect of WEAT 6b after training again, in standard deviations, 5 seeds with 95 % t-intervals. {counts}."
    return table(["left out", *tests], rows) + provenance("crossloss_words-npov", about)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def provenance(name: str, about: str) -> str:
    """Return the line below a table: what was measured, on what, when."""
    found = result(name)
    machine = found["machine"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return (
        f"\n{about} {machine['processor']}, {threads}, torch {machine['versions']['torch']}, {found['date']}. "
        f"[All rows](@measured).\n{{: .provenance }}\n"
    )


def _interval(found: list[float] | None) -> str:
    return "" if found is None else f"{found[0]:.3f} <small>[{found[1]:.3f}, {found[2]:.3f}]</small>"


def _effect(found: dict[str, float]) -> str:
    return f"{found['mean']:+.2f} <small>[{found['low']:+.2f}, {found['high']:+.2f}]</small>"


def _gain(found: dict[str, float]) -> str:
    return f"{found['mean']:+.3f} <small>[{found['low']:+.3f}, {found['high']:+.3f}]</small>"


def _seconds(one: dict[str, Any], step: str) -> str:
    """One step's median, or the time after which it was stopped, or nothing."""
    if step in one["seconds"]:
        return f"{one['seconds'][step]:.3g}"
    stopped = one.get("stopped") or {}
    return f"> {stopped['seconds']:.0f}" if stopped.get("step") == step else ""


MACROS: dict[str, Callable[..., str]] = {
    "value": value, "matrix": matrix, "lds": lds, "detectors": detectors, "speed": speed, "label_errors": label_errors,
    "groups": groups, "mismatch": mismatch, "flips": flips, "prune": prune, "cleanse": cleanse,
    "weat": weat, "response": response,
}  # fmt: skip


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fill in the figures of one page."""

    def fill(call: re.Match[str]) -> str:
        parts = call[2].replace(";;", "\0").split(";")[1:]
        name, rest = call[1], [part.strip().replace("\0", ";") for part in parts]
        return MACROS[name](*rest) if name in MACROS else call[0]

    up = "../" * page.file.src_uri.count("/")
    return CALL.sub(fill, markdown).replace("(@measured)", f"({up}measured.md)")
