"""Which training images do my predictions hang on? An audit of one's own model, from maps to a verified attack.

    python examples/attack.py [--rows 150] [--steps 100]

1. Train a small classifier of two kinds of clothes on bundled Fashion-MNIST images.
2. Ask which training images, and which of their pixels, matter for one prediction (`perturbation`).
3. Alter the strongest by at most two grey levels, train again, and compare what happens with what was predicted.
4. Let the attack do that step by step, beside random changes of the same size (`wh.attack`).

It needs the training data, the recipe and the model: what only their owner has. Its purpose is to find out how little
it would take, before somebody else does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import whence as wh

DATA = Path(__file__).parent / "data" / "fashion_mnist_1000.npz"
PULLOVER, COAT = 2, 4


def images() -> tuple[Tensor, Tensor]:
    """Return pullovers and coats [N, 784] in [0, 1], and their labels 0 and 1."""
    with np.load(DATA) as stored:
        kept = np.isin(stored["y"], (PULLOVER, COAT))
        x, y = stored["x"][kept], stored["y"][kept]
    return torch.from_numpy(x).double().flatten(1) / 255, torch.from_numpy((y == COAT).astype(np.int64))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Tell the story; return its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=150, help="training images")
    parser.add_argument("--steps", type=int, default=100, help="steps of the attack")
    options = parser.parse_args(arguments)
    x, y = images()
    train, held = (x[: options.rows], y[: options.rows]), (x[options.rows :], y[options.rows :])
    recipe = wh.Recipe(
        build=lambda: nn.Linear(784, 2), optimizer="lbfgs", weight_decay=0.01, gradient_norm=1e-7
    )  # fmt: skip
    model = recipe.train(wh.as_examples(train))
    with torch.no_grad():
        margins = (model(held[0])[:, 1] - model(held[0])[:, 0]) * (2 * held[1] - 1)
    right = torch.nonzero(margins > 0)[:, 0]
    chosen = int(right[margins[right].argmin()])
    query = held[0][chosen : chosen + 1], held[1][chosen : chosen + 1]
    print(f"{len(train[0])} training images, {float((margins > 0).double().mean()):.1%} of the others read rightly")

    attribution = wh.Influence(curvature=wh.Exact()).fit(recipe.task(model), train)
    maps = attribution.perturbation(attribution.ids, query)
    strongest = maps.reach().top(3)
    print("training images that could move this prediction the farthest, per unit of a box:")
    print(strongest[["rank", "id", "score"]].to_string(index=False))
    first = int(strongest["id"].iloc[0])
    names = [f"row {i // 28}, column {i % 28}" for i in range(784)]
    print(f"pixels of image {first} that matter most:")
    one = attribution.perturbation([first], query)
    print(one.features(3, names=names)[["feature", "value", "derivative"]].to_string(index=False))

    box = wh.Box(radius=2.0)
    delta = box.clip(box.size * one.values[0].sign(), train[0][first : first + 1])
    altered = train[0].clone()
    altered[first] += delta[0]
    again = recipe.train(wh.as_examples((altered, train[1])), start=model)
    predicted, replaced = (
        float(found.values[0, 0])
        for found in (
            one.predict(delta), attribution.replacement_scores([first], (altered[first][None], y[first][None]), query)
        )
    )  # fmt: skip
    with torch.no_grad():
        before, after = (float(nn.functional.cross_entropy(m(query[0]), query[1])) for m in (model, again))
    print(f"two grey levels on image {first}: loss rises by {after - before:.3g} nats; map: {predicted:.3g}, "
          f"difference of gradients: {replaced:.3g}")  # fmt: skip

    settings = wh.AttackSettings(box=box, images=3, steps=options.steps, step=0.2)
    found = wh.attack(recipe, train, query, method=wh.Influence(curvature=wh.Exact()), settings=settings)
    row, random = found.targets.iloc[0], found.control_drop("random signs") or float("nan")
    print(f"images {found.ids.tolist()} altered by at most {box.radius:g} levels: margin {row['margin_before']:.3f} → "
          f"{row['margin_after']:.3f} ({'flipped' if found.flips else 'not flipped'}); random changes of the same "
          f"size move it by {random:.2g}. {found.stopped.capitalize()}.")  # fmt: skip
    return {
        "actual": after - before, "predicted": predicted, "replaced": replaced, "drop": found.margin_drop,
        "random": random,
    }  # fmt: skip


if __name__ == "__main__":
    main()
