"""Understanding a model: influence against distance, of a kernel machine on pixels and of a deep network's features.

    python benchmarks/influence_understanding.py --cache FOLDER [--threads 1] [--tiny]

900 photographs of dogs and fish (32×32), 100 held out. The kernel machine is an RBF-SVM on raw pixels (true hinge,
differentiated as a smooth one); the network is the one of `influence_attack.py`, trained on CIFAR-10, under a logistic
top layer. For held-out photographs that both predict rightly: is the size of the influence on their margin (their
hinge is 0) a matter of distance in pixels, and do rows of the other class help? A figure is written beside the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.svm import SVC

import influence_attack
import support
import tables
import whence as wh

COST = 1.0
HELPFUL = 10
KINDS = ("RBF-SVM on pixels", "network's features")


def main() -> None:
    """Fit both, explain, compare."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    size = influence_attack.TINY if arguments.tiny else influence_attack.Size()
    settings = {
        "tiny": arguments.tiny, "threads": arguments.threads, "cost": COST, "helpful": HELPFUL,
        "weight_decay": size.weight_decay,
        "published": "influence of the RBF-SVM falls with pixel distance, that of the network does not; of the "
        "network's most helpful images some are of the other class (Koh & Liang 2017, figure 4)",
    }  # fmt: skip
    report = support.Report("influence_understanding", settings, judged=not arguments.tiny)
    with support.Clock() as clock:
        train, test, other = influence_attack.data(arguments.tiny)
        cache = influence_attack.Cache(arguments.cache, size)
        extractor, accuracy = influence_attack.features(size, other, cache, arguments.tiny)
        found = compare(report, (train, test), extractor, size.weight_decay)
    report.figures |= {"seconds": clock.wall, "feature_net_accuracy": accuracy}
    folder = support.results_folder(arguments)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "influence_understanding.svg").write_text(figure(**found), "utf-8")
    report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=1)
    made.add_argument("--cache", type=Path, default=None, help="folder with the network's weights, or for them")
    return made.parse_args()


def compare(
    report: support.Report, parts: tuple[influence_attack.Pair, influence_attack.Pair], extractor: Any, decay: float
) -> dict[str, Any]:
    """Return distances and falls of the margin without each row for one photograph; figures over all of them."""
    (x, y), (xt, yt) = ((pixels.flatten(1).double().numpy(), labels.long().numpy()) for pixels, labels in parts)
    with torch.no_grad():
        seen, asked = (torch.cat([extractor(part) for part in p.split(256)]).double().numpy() for p, _ in parts)
    machine = SVC(C=COST, gamma="scale", tol=1e-8).fit(x, y)
    kernel = wh.Task.from_sklearn(machine, temperature=0.001, measurement=wh.Margin())
    recipe = wh.Recipe(
        build=lambda: torch.nn.Linear(seen.shape[1], 1), loss="binary_cross_entropy", optimizer="lbfgs",
        weight_decay=decay, gradient_norm=1e-7,
    )  # fmt: skip
    top = recipe.train(wh.as_examples((seen, y)))
    right = (machine.predict(xt) == yt) & ((top(torch.from_numpy(asked))[:, 0] > 0).numpy() == (yt == 1))
    queries = np.flatnonzero(right)
    sides = {KINDS[0]: (kernel, (x, y), (xt[queries], yt[queries])),
             KINDS[1]: (recipe.task(top, wh.Margin()), (seen, y), (asked[queries], yt[queries]))}  # fmt: skip
    scores = {
        name: -wh.Influence(curvature=wh.Exact()).fit(task, rows).scores(which).values.numpy()  # helps: positive
        for name, (task, rows, which) in sides.items()
    }
    distances = np.sqrt(np.maximum((xt[queries] ** 2).sum(1)[:, None] + (x**2).sum(1) - 2 * xt[queries] @ x.T, 0))
    accuracy = {KINDS[0]: float(machine.score(xt, yt)),
                KINDS[1]: float(((top(torch.from_numpy(asked))[:, 0] > 0).numpy() == (yt == 1)).mean())}  # fmt: skip
    told = {}
    for name, values in scores.items():
        told[name] = {"accuracy": accuracy[name], **described(values, distances, y, yt[queries])}
        print(f"  {name}: {told[name]}", flush=True)
    report.figures |= {"kinds": told, "queries": len(queries), "support_vectors": len(machine.support_)}
    judge(report, told)
    shown = int(np.argsort(distances.min(1))[len(queries) // 2])
    one = {name: values[shown] for name, values in scores.items()}
    return {"distance": distances[shown], "scores": one, "same": y == yt[queries][shown]}


def described(values: np.ndarray, distances: np.ndarray, y: np.ndarray, yt: np.ndarray) -> dict[str, Any]:
    """Return how influence follows distance, and how often helpful rows are of the other class."""
    ranks = [float(stats.spearmanr(np.abs(one), d)[0]) for one, d in zip(values, distances, strict=True)]
    moved = [np.abs(one) > 1e-6 * np.abs(one).max() for one in values]
    among = [float(stats.spearmanr(np.abs(one[m]), d[m])[0])
             for one, d, m in zip(values, distances, moved, strict=True)]  # fmt: skip
    near = [np.argsort(d, kind="stable")[: len(d) // 10] for d in distances]
    share = [float(np.abs(one[n]).sum() / np.abs(one).sum()) for one, n in zip(values, near, strict=True)]
    helpful = [y[np.argsort(-one, kind="stable")[:HELPFUL]] != label for one, label in zip(values, yt, strict=True)]
    harmful = [y[np.argsort(one, kind="stable")[:HELPFUL]] == label for one, label in zip(values, yt, strict=True)]
    return {
        "spearman": spread(ranks), "spearman_of_those_that_count": spread(among),
        "share_of_nearest_tenth": spread(share),
        "other_class_among_helpful": spread([float(h.mean()) for h in helpful]),
        "own_class_among_harmful": spread([float(h.mean()) for h in harmful]),
        "rows_that_count": float(np.mean([m.mean() for m in moved])),
    }  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    """Return the mean over queries and a 95 % t-interval."""
    mean, count = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5) if count > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half}


def judge(report: support.Report, told: dict[str, Any]) -> None:
    """Hold what the paper says against the figures."""
    kernel, network = (told[name] for name in KINDS)
    falls = kernel["spearman_of_those_that_count"]["high"]
    report.gate("RBF-SVM: |influence| falls with distance, Spearman over rows that count, upper end", falls, high=0)
    less = abs(kernel["spearman_of_those_that_count"]["mean"]) - abs(network["spearman_of_those_that_count"]["mean"])
    report.gate("|Spearman| with distance, RBF-SVM minus network", less, low=0.1)
    less = kernel["share_of_nearest_tenth"]["low"] - network["share_of_nearest_tenth"]["high"]
    report.gate("share of all influence in the nearest tenth, RBF-SVM's lower end minus network's upper", less, low=0)
    helped = network["other_class_among_helpful"]["low"]
    report.gate(f"network: other class among the {HELPFUL} most helpful, lower end", helped, low=0.05)


def figure(distance: np.ndarray, scores: dict[str, np.ndarray], same: np.ndarray) -> str:
    """Return both scatters of one photograph as an SVG: score, in units of the largest, against distance in pixels."""
    width, height, gap = 380, 300, 60
    left, right = float(distance.min()), float(distance.max())
    parts = []
    for place, (name, values) in enumerate(scores.items()):
        x0, top = gap + place * (width + gap), float(np.abs(values).max())
        parts.append(f'<text x="{x0}" y="24" class="title">{name}</text>')
        parts.append(f'<line x1="{x0}" x2="{x0 + width}" y1="{40 + height / 2}" y2="{40 + height / 2}"/>')
        for d, value, own in zip(distance, values, same, strict=True):
            x, y = x0 + width * (d - left) / (right - left), 40 + height / 2 * (1 - value / top)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" class="{"own" if own else "other"}"/>')
        parts.append(f'<text x="{x0}" y="{height + 66}">distance in pixels →; above the line helpful</text>')
    style = (
        "text{font:12px sans-serif;fill:#444}.title{font-size:14px;font-weight:bold}line{stroke:#999}"
        ".own{fill:#1f6f8b;opacity:.5}.other{fill:#c2452d;opacity:.5}"
    )
    legend = (
        f'<circle cx="{gap}" cy="{height + 84}" r="4" class="own"/>'
        f'<text x="{gap + 10}" y="{height + 88}">own class</text>'
        f'<circle cx="{gap + 90}" cy="{height + 84}" r="4" class="other"/>'
        f'<text x="{gap + 100}" y="{height + 88}">other class</text>'
    )
    whole = 2 * (width + gap) + gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height + 100}" width="{whole}"><style>{style}'
        f'</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}{legend}</svg>\n'
    )


if __name__ == "__main__":
    main()
