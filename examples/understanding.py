"""Two models agree on a photograph: do they have the same reasons?

    WHENCE_DATA=…/data python examples/understanding.py [--rows 900]

1. Take photographs of dogs and fish (Tiny ImageNet, research use only: read from WHENCE_DATA, never bundled).
2. Fit an RBF-SVM on raw pixels, trained with the true hinge, and a small convolutional network, all of it.
3. Ask both for the training images that help and harm one held-out photograph (`Task.from_sklearn`, `Influence`).
4. Compare the size of influence with distance in pixels: the kernel machine looks at near rows, the network does not.

`benchmarks/influence_understanding.py` does it for all held-out photographs, with a figure.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.svm import SVC
from torch import nn

import whence as wh

NAMES = np.array(["dog", "fish"])


def photographs(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Return images [N, 3, 16, 16] in [0, 1] and labels, and held-out ones; None where the data are absent."""
    path = Path(os.environ.get("WHENCE_DATA", "")) / "dogfish" / "dogfish_32.npz"
    if "WHENCE_DATA" not in os.environ or not path.is_file():
        return None
    with np.load(path) as stored:
        x, y, train = stored["x"], stored["y"].astype(np.int64), stored["split"] == "train"
    small = x.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255
    some = np.random.default_rng(0).permutation(np.flatnonzero(train))[:rows]
    return small[some], y[some], small[~train], y[~train]


def build() -> nn.Module:
    """Return a small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 2),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Tell the story; return the correlations of influence with distance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=900, help="training photographs")
    options = parser.parse_args(arguments)
    found = photographs(options.rows)
    if found is None:
        print("The photographs are not here: name the folder of data sets in WHENCE_DATA. Nothing was done.")
        return {}
    x, y, held, held_labels = found
    flat, flat_held = x.reshape(len(x), -1), held.reshape(len(held), -1)
    machine = SVC(C=1.0, gamma="scale", tol=1e-8).fit(flat, y)
    recipe = wh.Recipe(build=build, learning_rate=2e-3, epochs=10, weight_decay=1e-3, batch_size=32)
    images = x.astype(np.float32)
    network = recipe.train(wh.as_examples((images, y)))
    with torch.no_grad():
        guesses = network(torch.from_numpy(held.astype(np.float32))).argmax(1).numpy()
    right = np.flatnonzero((machine.predict(flat_held) == held_labels) & (guesses == held_labels))
    query = int(right[0])
    print(f"{len(x)} photographs; {len(right)} of {len(held)} others are read rightly by both; this is a "
          f"{NAMES[held_labels[query]]}")  # fmt: skip
    kernel = wh.Influence(curvature=wh.Exact()).fit(
        wh.Task.from_sklearn(machine, measurement=wh.Margin()), (flat, y)
    )  # fmt: skip
    deep = wh.Influence(curvature=wh.EKFAC()).fit(recipe.task(network, wh.Margin()), (images, y))
    asked = held_labels[query : query + 1]
    scores = {
        "RBF-SVM": kernel.scores((flat_held[query : query + 1], asked)),
        "network": deep.scores((held[query : query + 1].astype(np.float32), asked)),
    }
    distance = np.linalg.norm(flat - flat_held[query], axis=1)
    figures = {}
    for name, one in scores.items():
        helps = -one.values[0].double().numpy()  # removal lowers the margin: the row helps
        counts = np.abs(helps) > 1e-6 * np.abs(helps).max()
        figures[name] = float(spearmanr(np.abs(helps[counts]), distance[counts])[0])
        order = np.argsort(-helps)
        print(f"{name}: {counts.mean():.0%} of the rows count; correlation of |influence| with distance "
              f"{figures[name]:+.2f}")  # fmt: skip
        print(f"  most helpful: {', '.join(NAMES[y[order[:8]]])}; most harmful: {', '.join(NAMES[y[order[:-9:-1]]])}")
    return figures


if __name__ == "__main__":
    main()
