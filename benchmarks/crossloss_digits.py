"""Cross-loss influence on MNIST: a clustering, an auto-encoder and a contrastive encoder, asked with labels.

    python benchmarks/crossloss_digits.py [--parts clustering contrastive …] [--threads 1] [--tiny]

Three models are trained without labels, in float64 until the gradient vanishes, on images of 14 × 14 pixels,
in part of 7 × 7:

- deep embedded clustering (KL to a frozen target distribution), measured by −log q of a held-out image's cluster; once
  more of half the images at 7 × 7 pixels, in groups of 2 % for 5 % and one by one;
- an auto-encoder (squared error), measured by the cross-entropy of a supervised linear probe on its code;
- a contrastive encoder (every image's own two views against eight fixed views of other images, drawn once by seed, so
  that each training loss is its own), measured twice: by a ridge probe that is fitted anew to the codes wherever the
  encoder is (`wh.RidgeProbe`), and by a fixed probe; images of 7 × 7 pixels, which the exact Hessian can be had for.

A *fixed* probe is fitted once to the codes of the training images: retraining moves the encoder under it. Rotating the
codes changes no contrastive loss, but everything that a fixed probe says. Groups of the training images (random ones,
and ones of a single digit) are removed, the model trained again on its own loss, and the change of the measurements
compared with the prediction; for the contrastive encoder single images too, those that are predicted to matter most
and random ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import support
import tables
import whence as wh
from whence.evaluate.measurements import Several

PARTS = ("clustering", "small-clustering", "auto-encoder", "contrastive")
ASKED, HELD = 8, 500
GRADIENT_NORM = 1e-6
NEGATIVES = 8
RIDGE = 1e-2
DENSE = 1500  # parameters up to which the Hessian is had as a matrix, which takes no damping for a solver to stop
BEFORE = {"learning_rate": 3e-3, "schedule": "cosine", "batch_size": 64}  # of Adam, before L-BFGS
TOLERANCE = 1e-3
INNER = wh.EKFAC(damping=0.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a part is measured.

    Args:
        rows: Training images.
        weight_decay: λ.
        share: Share of the images in a group.
        groups: Random groups; five of a digit each come to them.
        damping: Of the exact Hessian. Rotating an embedding changes no loss, but what a fixed probe makes of it: in
            these directions the Hessian is 0 and the measurement's gradient is not.
        singles: Single images that matter most, and as many random ones, that are removed too.
        pixels: Of an image's side.
    """

    rows: int
    weight_decay: float
    share: float
    groups: int
    damping: float
    singles: int = 0
    pixels: int = 14

    def curvatures(self, parameters: int) -> dict[str, Any]:
        """Return the curvatures that are compared."""
        hessian: Any = wh.Exact(damping=self.damping, hessian=True) if parameters <= DENSE else wh.CG(
            damping=self.damping, hessian=True, tolerance=TOLERANCE, preconditioner=INNER
        )  # fmt: skip
        return {
            "exact Hessian": hessian,
            "Gauss-Newton": wh.CG(damping=0.0, tolerance=TOLERANCE, preconditioner=INNER),
            "EK-FAC": INNER,
        }


PLANS = {
    "clustering": Plan(rows=2000, weight_decay=5e-4, share=0.05, groups=8, damping=0.0),
    "small-clustering": Plan(rows=1000, weight_decay=5e-4, share=0.02, groups=8, damping=1e-6, singles=10, pixels=7),
    "auto-encoder": Plan(rows=1000, weight_decay=3e-3, share=0.02, groups=6, damping=0.0),
    "contrastive": Plan(rows=1000, weight_decay=0.02, share=0.02, groups=6, damping=1e-5, singles=10, pixels=7),
}


@dataclass(frozen=True)
class Story:
    """A model that was trained without labels, and what is asked of it: measurements by what is added to a name."""

    recipe: wh.Recipe
    model: nn.Module
    train: wh.Examples
    measurements: dict[str, Any]
    queries: wh.Examples
    told: dict[str, float]


def main() -> None:
    """Tell the stories and judge them."""
    parser = support.parser(__doc__.splitlines()[0], threads=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    folder = support.results_folder(arguments)
    for part in arguments.parts:
        report = support.Report(f"crossloss_digits-{part}", {
            "tiny": arguments.tiny, "threads": arguments.threads, "gradient_norm": GRADIENT_NORM, "queries": ASKED,
            **dataclasses.asdict(PLANS[part]),
        }, judged=not arguments.tiny)  # fmt: skip
        with support.Clock() as clock:
            measured(report, part, arguments.tiny)
        report.figures["seconds"] = clock.wall
        report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def measured(report: support.Report, part: str, tiny: bool) -> None:
    """Predict and verify one story."""
    plan = PLANS[part]
    x, y, held, held_labels = digits(120 if tiny else plan.rows, tiny)
    story = STORIES[part](x, y, held, held_labels, 3 if tiny else 60)
    report.figures.update(story.told)
    print(f"{part}: {story.told}", flush=True)
    groups = chosen(y, 1 if tiny else plan.groups, plan.share)
    size = sum(p.numel() for p in story.model.parameters())
    report.settings |= {"rows": len(x), "groups": len(groups), "parameters": size}
    sets = {"": groups}
    tasks = {asked: story.recipe.task(story.model, one) for asked, one in story.measurements.items()}
    if plan.singles:
        ranking = wh.Influence(curvature=INNER).fit(next(iter(tasks.values())), story.train).scores(story.queries)
        sets[", single images"] = ranked(ranking, 1 if tiny else plan.singles)
    with support.Clock() as clock:
        actual = retrained(story, [ids for one in sets.values() for ids in one.values()])
    report.figures["retraining"] = {"seconds": clock.wall}
    for (asked, task), changes in zip(tasks.items(), actual, strict=True):
        report.figures["retraining"][f"largest_change{asked}"] = float(np.abs(changes).max())
        for name, curvature in plan.curvatures(size).items():
            compared(report, (name, asked), wh.Influence(curvature=curvature), (task, story, changes), sets)
        for removed in sets:
            judged(report, f"{part}{asked}", "single" if removed else "group", f"exact Hessian{asked}{removed}")


def retrained(story: Story, removed: list[list[Any]]) -> np.ndarray:
    """Return what training again does to every measurement [R, Q, sets]."""
    together = Several(tuple(story.measurements.values()))
    retraining = wh.Retraining(recipe=story.recipe, start=story.model, measurement=together)
    measured = retraining.measure(story.train, story.queries, [[], *removed])[:, 0].numpy()  # [1 + sets, R·Q]
    changes: np.ndarray = (measured[1:] - measured[0]).reshape(len(removed), len(together.parts), -1)
    return changes.transpose(1, 2, 0)


def compared(
    report: support.Report, names: tuple[str, str], method: wh.Influence, truth: tuple[wh.Task, Story, np.ndarray],
    sets: dict[str, dict[str, list[Any]]],
) -> None:  # fmt: skip
    """Predict with one curvature and note how every set of removals agrees with training again."""
    (name, asked), (task, story, actual) = names, truth
    together = {group: ids for one in sets.values() for group, ids in one.items()}
    try:
        with support.Clock() as clock:
            predicted = method.fit(task, story.train).group_scores(together, story.queries)
    except wh.NumericalError as error:  # a Hessian with a negative direction: the point is no minimum
        found: Any = [{"refused": str(error)} for _ in sets]
    else:
        values, columns = predicted.values.numpy(), [np.isin(predicted.ids, list(one)) for one in sets.values()]
        found = [{**agreement(values[:, c], actual[:, c]), "seconds": clock.wall} for c in columns]
    for removed, figures in zip(sets, found, strict=True):
        report.figures[f"{name}{asked}{removed}"] = figures
        print(f"  {name}{asked}{removed}: {figures}", flush=True)


def judged(report: support.Report, what: str, removed: str, key: str) -> None:
    """Judge correlation and slope of the exact Hessian."""
    best = report.figures[key]
    told = f"digits, {what}: predicted with the exact Hessian against real {removed} removal, all pairs"
    report.gate(f"{told}, r", best.get("r_all"), low=0.8)
    report.gate(f"{told}, slope of actual on predicted", best.get("slope_all"), low=0.7, high=1.4)


def ranked(scores: wh.Scores, count: int) -> dict[str, list[Any]]:
    """Return the images that matter most to all queries together, and other random ones, each a group of its own."""
    order = np.argsort(-scores.values.abs().sum(0).numpy())
    rows = [*order[:count], *np.random.default_rng(1).permutation(order[count:])[:count]]
    return {f"image {scores.ids[row]}": [scores.ids[row]] for row in rows}


def digits(count: int, tiny: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images [N, 196] in 0 … 1 and labels, and held-out ones."""
    rows = support.images(tiny)
    small = {
        name: torch.from_numpy(rows[name].reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)).double()
        for name in ("x", "xt")
    }
    labels = {name: torch.from_numpy(rows[name]) for name in ("y", "yt")}
    return small["x"][:count], labels["y"][:count], small["xt"][:HELD], labels["yt"][:HELD]


def chosen(labels: Tensor, count: int, share: float) -> dict[str, list[int]]:
    """Return ids of random groups, and of a group of every second digit."""
    generator, size = np.random.default_rng(0), max(2, int(share * len(labels)))
    groups = {f"random {i}": generator.choice(len(labels), size, replace=False).tolist() for i in range(count)}
    for digit in range(0, 10, 2):
        rows = np.flatnonzero(labels.numpy() == digit)
        groups[f"digit {digit}"] = generator.choice(rows, min(size, len(rows)), replace=False).tolist()
    return groups


def small_clustering(x: Tensor, y: Tensor, held: Tensor, held_labels: Tensor, epochs: int) -> Story:
    """The same of images of 7 × 7 pixels, 8 units and a code of 6."""
    return clustering(halved(x), y, halved(held), held_labels, epochs, "small-clustering", (8, 6))


def clustering(
    x: Tensor, y: Tensor, held: Tensor, held_labels: Tensor, epochs: int, part: str = "clustering",
    sizes: tuple[int, int] = (16, 10),
) -> Story:  # fmt: skip
    """Deep embedded clustering, its encoder first trained as an auto-encoder."""
    build = partial(AutoEncoder, *sizes, nn.Tanh(), x.shape[1])
    start = wh.Recipe(build=build, loss="mse", epochs=epochs, **BEFORE).train((x, x))
    assert isinstance(start, AutoEncoder)
    decay = PLANS[part].weight_decay
    found = wh.train_clustering(
        x, encoder=start.encoder, clusters=10, weight_decay=decay, epochs=5, learning_rate=1e-3,
        gradient_norm=GRADIENT_NORM,
    )  # fmt: skip
    counts = np.zeros((10, 10))
    np.add.at(counts, (found.labels.numpy(), y.numpy()), 1)
    pairs = linear_sum_assignment(-counts)
    told = {
        "clusters_that_are_the_digit": float(counts[pairs].sum()) / len(y),
        "confidence": float(found.memberships().max(1).values.mean()),
    }  # fmt: skip
    return Story(found.recipe, found.model, found.examples, {"": "cross_entropy"}, found.questions(held[:ASKED]), told)


class AutoEncoder(nn.Module):
    """Encoder and decoder of one hidden layer, or of none."""

    def __init__(self, width: int, code: int | None, activation: nn.Module, size: int = 196) -> None:
        super().__init__()
        layers = [nn.Linear(size, width), activation]
        self.encoder = nn.Sequential(*layers, *([] if code is None else [nn.Linear(width, code)])).double()
        back: list[nn.Module] = [] if code is None else [nn.Linear(code, width), activation]
        self.decoder = nn.Sequential(*back, nn.Linear(width, size)).double()

    def forward(self, x: Tensor) -> Tensor:
        """Return the images again [B, 196]."""
        decoded: Tensor = self.decoder(self.encoder(x))
        return decoded

    def embed(self, x: Tensor) -> Tensor:
        """Return codes [B, d]."""
        code: Tensor = self.encoder(x)
        return code


class Contrastive(nn.Module):
    """Called on views [B, 2 + M, 49]: the inner products of the first embedding with all others.

    Not cosines: a loss of normalised embeddings does not see their scale, weight decay takes the weights to zero, and
    there is no minimum to be trained to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(49, 16), nn.Tanh(), nn.Linear(16, 4)).double()

    def forward(self, views: Tensor) -> Tensor:
        """Return logits [B, 1 + M]; the second view is the right one, class 0."""
        embedded = self.embed(views)  # [B, 2 + M, 4]
        return (embedded[:, 1:] * embedded[:, :1]).sum(2)

    def embed(self, x: Tensor) -> Tensor:
        """Return embeddings [..., 4]."""
        embedded: Tensor = self.encoder(x)
        return embedded


def auto_encoder(x: Tensor, y: Tensor, held: Tensor, held_labels: Tensor, epochs: int) -> Story:
    """An auto-encoder of 16 softplus units under a probe.

    A code of tanh units can be turned at next to no loss, and a removal turns it far: on 300 images of 7 × 7 pixels
    with weight decay .001 single removals came out as predicted (r = .98), groups of 5 % did not (.29; softplus .85).
    """
    labelled = x, y, held, held_labels
    return probed(lambda: AutoEncoder(16, None, nn.Softplus(10.0)), "auto-encoder", (x, x), "mse", labelled, epochs)


def contrastive(x: Tensor, y: Tensor, held: Tensor, held_labels: Tensor, epochs: int) -> Story:
    """A contrastive encoder under a probe; an image that is removed stays a negative of others."""
    generator = np.random.default_rng(0)
    others = generator.integers(0, len(x), (len(x), NEGATIVES))
    views = [seen(x, generator), seen(x, generator), *(seen(x[others[:, k]], generator) for k in range(NEGATIVES))]
    train = halved(torch.stack(views, 1)), torch.zeros(len(x), dtype=torch.long)
    labelled = halved(x), y, halved(held), held_labels
    return probed(Contrastive, "contrastive", train, "cross_entropy", labelled, epochs)


def halved(x: Tensor) -> Tensor:
    """Return images [..., 49] of [..., 196]."""
    return x.reshape(*x.shape[:-1], 7, 2, 7, 2).mean((-3, -1)).flatten(-2)


def seen(x: Tensor, generator: np.random.Generator) -> Tensor:
    """Return a view of every image: moved by up to a pixel, darker or lighter, with noise."""
    images = x.reshape(-1, 14, 14)
    moves = generator.integers(-1, 2, (len(x), 2))
    moved = torch.stack([image.roll(tuple(move), (0, 1)) for image, move in zip(images, moves.tolist(), strict=True)])
    scale = torch.from_numpy(generator.uniform(0.7, 1.3, (len(x), 1)))
    return moved.reshape(x.shape) * scale + 0.1 * torch.from_numpy(generator.normal(size=tuple(x.shape)))


def probed(
    build: Callable[[], Any], part: str, train: tuple[Tensor, Tensor], loss: str,
    labelled: tuple[Tensor, Tensor, Tensor, Tensor], epochs: int,
) -> Story:  # fmt: skip
    """Train an encoder without labels, then a linear probe on its embeddings."""
    x, y, held, held_labels = labelled
    examples, decay = wh.as_examples(train), PLANS[part].weight_decay
    start = wh.Recipe(build=build, loss=loss, weight_decay=decay, epochs=epochs, **BEFORE).train(examples)
    recipe = wh.Recipe(build=build, loss=loss, optimizer="lbfgs", weight_decay=decay, gradient_norm=GRADIENT_NORM)
    model: Any = recipe.train(examples, start=start)
    with torch.no_grad():
        codes, held_codes = model.embed(x), model.embed(held)
    probe = wh.Recipe(build=lambda: nn.Linear(codes.shape[1], 10), optimizer="lbfgs", weight_decay=1e-3).train(
        (codes, y)
    )  # fmt: skip
    weight, bias = (p.detach() for p in probe.parameters())

    def measure(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model.embed(batch.inputs) @ weight.T + bias, batch.targets, reduction="none")

    with torch.no_grad():
        right = (held_codes @ weight.T + bias).argmax(1) == held_labels
    queries = wh.as_examples((held[:ASKED], held_labels[:ASKED]))
    told = {"probe_accuracy": float(right.double().mean())}
    if part == "auto-encoder":
        return Story(recipe, model, examples, {"": measure}, queries, told)
    refitted = wh.RidgeProbe((x, y), codes=lambda model, x: model.embed(x), weight_decay=RIDGE)
    measurements = {", refitted probe": refitted, ", fixed probe": measure}
    return Story(recipe, model, examples, measurements, queries, told)


def agreement(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Return r and slope of all pairs, and of queries (median, tenth percentile)."""
    pairs = list(zip(predicted, actual, strict=True))
    r = [float(np.corrcoef(p, a)[0, 1]) for p, a in pairs]
    return {
        "r_all": float(np.corrcoef(predicted.ravel(), actual.ravel())[0, 1]),
        "slope_all": float(np.polyfit(predicted.ravel(), actual.ravel(), 1)[0]),
        "r_median": float(np.median(r)), "r_tenth": float(np.percentile(r, 10)),
    }  # fmt: skip


STORIES = {
    "clustering": clustering,
    "small-clustering": small_clustering,
    "auto-encoder": auto_encoder,
    "contrastive": contrastive,
}

if __name__ == "__main__":
    main()
