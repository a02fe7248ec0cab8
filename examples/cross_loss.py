"""My encoder was trained without labels. Which of its training images spoil what I use it for?

    python examples/cross_loss.py [--rows 600]

1. Train an auto-encoder on bundled Fashion-MNIST images, without labels, until its gradient vanishes.
2. Fit a linear probe to its codes: does a code tell a shirt, a coat, a bag? From here on the probe stays as it is.
3. Ask which training images the probe's loss on held-out shirts depends on. The training loss is the squared error of
   the images, the measurement is the probe's cross-entropy through the encoder (`Task(measurement=...)`): the same
   `Influence` as ever, and the measurement may be any differentiable number.
4. Remove the most harmful images, train the auto-encoder again, and compare with what was predicted; remove as many
   random ones, too.

`benchmarks/crossloss_digits.py` does it on MNIST, for a contrastive encoder and a clustering as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import whence as wh

DATA = Path(__file__).parent / "data" / "fashion_mnist_1000.npz"
SHIRT = 6
WEIGHT_DECAY = 4e-3


class AutoEncoder(nn.Module):
    """Fourteen by fourteen pixels to sixteen numbers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(196, 16), nn.Tanh()).double()
        self.decoder = nn.Linear(16, 196).double()

    def forward(self, x: Tensor) -> Tensor:
        """Return the images again."""
        pixels: Tensor = self.decoder(self.encoder(x))
        return pixels


def images() -> tuple[Tensor, Tensor]:
    """Return images [1000, 196] in [0, 1] and their labels."""
    with np.load(DATA) as stored:
        x, y = stored["x"], stored["y"].astype(np.int64)
    return torch.from_numpy(x.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196) / 255), torch.from_numpy(y)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Tell the story; return the predicted and the actual change of the probe's loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600, help="training images")
    options = parser.parse_args(arguments)
    x, y = images()
    x, y, held, held_labels = x[: options.rows], y[: options.rows], x[options.rows :], y[options.rows :]

    train = wh.as_examples((x, x))  # what goes in must come out: no labels
    first = wh.Recipe(build=AutoEncoder, loss="mse", weight_decay=WEIGHT_DECAY, learning_rate=3e-3, epochs=30)
    recipe = wh.Recipe(
        build=AutoEncoder, loss="mse", weight_decay=WEIGHT_DECAY, optimizer="lbfgs", gradient_norm=1e-6
    )  # fmt: skip
    model = recipe.train(train, start=first.train(train))
    with torch.no_grad():
        codes = model.encoder(x)
    probe = wh.Recipe(build=lambda: nn.Linear(16, 10), optimizer="lbfgs", weight_decay=1e-3).train((codes, y))
    for parameter in probe.parameters():
        parameter.requires_grad_(False)
    shirts = held[held_labels == SHIRT]

    def shirt_loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(probe(model.encoder(shirts)), torch.full((len(shirts),), SHIRT))

    with torch.no_grad():
        right = (probe(model.encoder(held)).argmax(1) == held_labels).double().mean()
        print(f"{len(x)} images; the probe reads {float(right):.0%} of {len(held)} others rightly; "
              f"its loss on shirts is {float(shirt_loss(model)):.3f} nats")  # fmt: skip
    curvature = wh.CG(damping=0.0, hessian=True, tolerance=1e-3, preconditioner=wh.EKFAC(damping=0.0))
    attribution = wh.Influence(curvature=curvature).fit(recipe.task(model, shirt_loss), train)
    scores = attribution.scores()  # no queries: the measurement is of the model alone
    count = len(x) // 20
    harmful = scores.ids[scores.values[0].argsort()[:count].numpy()]
    groups = {"harmful": harmful.tolist(), "random": np.random.default_rng(0).permutation(len(x))[:count].tolist()}
    predicted = attribution.group_scores(groups).values[0].tolist()
    retraining = wh.Retraining(recipe=recipe, start=model, measurement=shirt_loss)
    actual = wh.leave_group_out(retraining, train, None, groups).values[0].tolist()
    kinds = np.bincount(y[train.rows_of(harmful)].numpy(), minlength=10)
    print(f"of the {count} images that harm shirts the most, {kinds[SHIRT]} are shirts themselves")
    figures = {}
    for name, before, after in zip(groups, predicted, actual, strict=True):
        figures |= {f"{name}, predicted": before, f"{name}, actual": after}
        print(f"without {count} {name} images the loss on shirts changes by {after:+.4f} (predicted {before:+.4f})")
    return figures


if __name__ == "__main__":
    main()
