"""Deep embedded clustering: an encoder and centres, trained on a frozen target distribution."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError, DataError
from whence.tasks.losses import CrossEntropy
from whence.tasks.recipe import Recipe
from whence.tasks.task import Task

__all__ = ["Clustering", "DeepClustering", "KullbackLeibler", "target_distribution", "train_clustering"]

_CHUNK = 4096
_SUM = 1e-3  # how far from 1 the probabilities of a target may sum, which float16 explains


@dataclass(frozen=True, kw_only=True)
class KullbackLeibler:
    r"""Divergence ℓ = Σ_k p_k log(p_k / q_k) of q = softmax(outputs) from given probabilities p, in nats.

    Outputs are logits [B, K], targets probabilities [B, K]. Its gradient and curvature in the outputs are those of the
    cross-entropy, q − p and diag(q) − q qᵀ: Gauss–Newton and every curvature of the library apply.

    Example:
        >>> KullbackLeibler()(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])).tolist()
        [0.0]
    """

    @property
    def unit(self) -> str | None:
        """Return "nats"."""
        return "nats"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        if outputs.ndim != 2 or targets.shape != outputs.shape:
            raise DataError(
                f"targets must be probabilities shaped like the outputs {tuple(outputs.shape)}, [B, K], got "
                f"{tuple(targets.shape)}. Use one_hot of the labels, or the cross-entropy."
            )
        if len(targets) and not (float(targets.min()) >= 0 and float((targets.sum(1) - 1).abs().max()) <= _SUM):
            raise DataError("targets must be probabilities that sum to 1 for every example. Divide by their sum.")
        wanted = targets.to(outputs.dtype)
        entropy: Tensor = torch.special.entr(wanted).sum(1)
        return -(wanted * outputs.log_softmax(1)).sum(1) - entropy

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √q_k (e_k − q) for every cluster k: [K, B, K]."""
        return CrossEntropy().roots(outputs, _none_ignored(outputs))

    def draws(self, outputs: Tensor) -> int:
        """Return 1."""
        return CrossEntropy().draws(outputs)

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return q − e_k for clusters k drawn from the model's own q."""
        return CrossEntropy().sample(outputs, _none_ignored(outputs), uniforms)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return diag(q) − q qᵀ [B, K, K]."""
        return CrossEntropy().hessian(outputs, _none_ignored(outputs))


class DeepClustering(nn.Module):
    r"""An encoder and cluster centres; called on inputs it returns logits whose softmax is the soft assignment.

    q_ik = (1 + ‖z_i − μ_k‖²/ν)^(−(ν+1)/2) / Σ_k' (…), z = encoder(x): the logits are −(ν+1)/2 · log(1 + ‖z − μ_k‖²/ν).

    Args:
        encoder: Inputs -> embeddings [B, d].
        centres: μ [K, d], copied; they are trained too.
        degrees: ν, the degrees of freedom of Student's t.

    Raises:
        ConfigError: The centres are not [K, d] of two clusters at least, or ν is not positive.

    Reference: Xie, Girshick & Farhadi (2016), eq. 1; ν = 1 there.

    Example:
        >>> model = DeepClustering(nn.Linear(4, 2), torch.randn(3, 2))
        >>> model(torch.randn(5, 4)).softmax(1).shape
        torch.Size([5, 3])
    """

    def __init__(self, encoder: nn.Module, centres: Tensor, degrees: float = 1.0) -> None:
        super().__init__()
        if centres.ndim != 2 or len(centres) < 2:
            raise ConfigError(f"centres must be [K, d] with K >= 2 clusters, got {tuple(centres.shape)}.")
        if not 0 < degrees < float("inf"):
            raise ConfigError(f"degrees must be positive, got {degrees}.")
        self.encoder = encoder
        self.centres = nn.Parameter(centres.detach().clone())
        self.degrees = degrees

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of all clusters [B, K]."""
        embedded = self.encoder(inputs)  # [B, d]
        if embedded.ndim != 2 or embedded.shape[1] != self.centres.shape[1]:
            raise ConfigError(
                f"the encoder must return [B, {self.centres.shape[1]}], as many numbers as a centre has, got "
                f"{tuple(embedded.shape)}. End it with nn.Flatten() and a linear layer."
            )
        squared = (embedded[:, None, :] - self.centres[None]).square().sum(2)  # [B, K]
        return -(self.degrees + 1) / 2 * torch.log1p(squared / self.degrees)


def target_distribution(memberships: Tensor) -> Tensor:
    r"""Return the sharpened assignment p_ik = (q_ik² / f_k) / Σ_k' (q_ik'² / f_k'), f_k = Σ_i q_ik.

    Args:
        memberships: q [N, K], of all training examples: p of one example depends on the others through f.

    Returns:
        p [N, K].

    Reference: Xie, Girshick & Farhadi (2016), eq. 3.

    Example:
        >>> target_distribution(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))[0].tolist()
        [0.9411764740943909, 0.05882352963089943]
    """
    weighted = memberships.square() / memberships.sum(0)
    return weighted / weighted.sum(1, keepdim=True)


def train_clustering(  # noqa: PLR0913 - a training is its list of settings, as a recipe is
    data: Any,
    *,
    encoder: nn.Module,
    clusters: int,
    weight_decay: float = 1e-3,
    rounds: int = 10,
    epochs: int = 20,
    learning_rate: float = 1e-2,
    batch_size: int = 256,
    gradient_norm: float = 1e-6,
    degrees: float = 1.0,
    seed: int = 0,
) -> Clustering:
    r"""Train deep embedded clustering, then freeze its target distribution and train on until the gradient vanishes.

    Centres by k-means of the embeddings; in every round the targets p are taken from the memberships q and Adam lowers
    (1/N) Σ_i KL(p_i‖q_i) + (λ/2)‖θ‖² for some epochs, until no example changes its cluster. Then p stays as it is and
    the same objective is minimised by L-BFGS. Targets that follow q have no minimum to be trained to (q sharpens
    for ever, and the objective's Hessian is indefinite), and removing one example would change every other's loss:
    with p frozen, ℓ_i is the example's own, and *removal keeps the other examples' targets*.

    Args:
        data: Inputs: anything that `as_examples` takes; targets are not looked at.
        encoder: Inputs -> embeddings [B, d]; copied. Pretrain it (as an auto-encoder, say) where inputs are images.
        clusters: K.
        weight_decay: λ, of encoder and centres. Above 0: it is what makes the minimum one.
        rounds: Most updates of the targets.
        epochs: Passes over the data in a round.
        learning_rate: Of Adam.
        batch_size: Examples a step.
        gradient_norm: Where L-BFGS stops, in float64.
        degrees: ν of Student's t.
        seed: Of k-means and the order of examples.

    Returns:
        A `Clustering`.

    Raises:
        ConfigError: A number is out of range.
        NumericalError: The gradient norm is not reached. A network of ReLUs often has its minimum on a kink, where no
            gradient vanishes: use a smooth activation (``nn.Softplus(beta=10)`` is a ReLU to within .07).

    Cost: rounds · epochs passes, then an L-BFGS run of hundreds to thousands of full-batch passes.
    Reference: Xie, Girshick & Farhadi (2016), §3. Deviations: Adam, weight decay, and frozen targets at the end.

    Example:
        >>> points = torch.cat([torch.randn(20, 2) - 5, torch.randn(20, 2) + 5])
        >>> encoder = nn.Linear(2, 2)
        >>> _ = nn.init.eye_(encoder.weight)
        >>> found = train_clustering(points, encoder=encoder, clusters=2, weight_decay=0.01)
        >>> len(set(found.labels[:20].tolist())), len(set(found.labels.tolist()))
        (1, 2)
    """
    if not weight_decay > 0:
        raise ConfigError(f"weight_decay must be positive, got {weight_decay}. Without it there is no minimum.")
    for name, value, least in (("clusters", clusters, 2), ("rounds", rounds, 1), ("epochs", epochs, 1)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}.")
    inputs = as_examples(data)
    if len(inputs) < clusters:
        raise ConfigError(f"data must have at least as many rows as clusters ({clusters}), got {len(inputs)}.")
    embedder = copy.deepcopy(encoder).double().eval()
    centres = KMeans(clusters, n_init=10, random_state=seed).fit(_outputs(embedder, inputs).numpy()).cluster_centers_
    model: nn.Module = DeepClustering(embedder, torch.from_numpy(centres), degrees)
    start = copy.deepcopy(model)
    settings: dict[str, Any] = {"loss": KullbackLeibler(), "weight_decay": weight_decay, "build": partial(_new, start)}
    follow = Recipe(
        optimizer="adam", learning_rate=learning_rate, epochs=epochs, batch_size=batch_size, **settings
    )  # fmt: skip
    moved = []
    for number in range(rounds):
        before = _memberships(model, inputs)
        model = follow.train(inputs.with_targets(target_distribution(before)), start=model, seed=seed + number)
        moved.append(int((_memberships(model, inputs).argmax(1) != before.argmax(1)).sum()))
        if moved[-1] == 0:
            break
    examples = inputs.with_targets(target_distribution(_memberships(model, inputs)))
    recipe = Recipe(optimizer="lbfgs", gradient_norm=gradient_norm, **settings)
    trained = recipe.train(examples, start=model)
    assert isinstance(trained, DeepClustering)
    return Clustering(model=trained, examples=examples, recipe=recipe, moved=tuple(moved))


@dataclass(frozen=True, kw_only=True, eq=False)
class Clustering:
    """A trained deep embedded clustering: made by `train_clustering`.

    Args:
        model: Encoder and centres, in float64.
        examples: The training examples; their targets are the frozen distribution p.
        recipe: How the last phase trained. ``Retraining(recipe=..., start=model)`` replays it without some examples.
        moved: How many examples changed their cluster in each round.
    """

    model: DeepClustering
    examples: Examples = field(repr=False)
    recipe: Recipe = field(repr=False)
    moved: tuple[int, ...] = ()

    @cached_property
    def labels(self) -> Tensor:
        """The cluster of every training example [N]."""
        return self.memberships().argmax(1)

    def memberships(self, data: Any = None) -> Tensor:
        """Return the soft assignment q [B, K] of examples, by default of the training examples."""
        return _memberships(self.model, self.examples if data is None else as_examples(data))

    def task(self, measurement: Any = "cross_entropy") -> Task:
        """Return the task: training loss KL(p‖q), measured by −log q of a query's cluster unless said otherwise."""
        return self.recipe.task(self.model, measurement)

    def questions(self, data: Any = None, clusters: Any = None) -> Examples:
        """Return queries "why is this example in this cluster".

        Args:
            data: Inputs; by default the training examples.
            clusters: The cluster asked about, one an example [B]; by default the one it is in.
        """
        asked = self.examples if data is None else as_examples(data)
        wanted = self.memberships(asked).argmax(1) if clusters is None else torch.as_tensor(np.asarray(clusters))
        return asked.with_targets(wanted)


def _new(start: nn.Module) -> nn.Module:
    """Return a copy of a model."""
    return copy.deepcopy(start)


def _outputs(model: nn.Module, examples: Examples) -> Tensor:
    """Return what a float64 model gives for all examples, without gradients."""
    with torch.no_grad():
        return torch.cat([model(batch.to(dtype=torch.float64).inputs) for batch in examples.batches(_CHUNK)])


def _memberships(model: nn.Module, examples: Examples) -> Tensor:
    """Return q [N, K]."""
    return _outputs(model, examples).softmax(1)


def _none_ignored(outputs: Tensor) -> Tensor:
    """Return class targets [B] none of which is ignored."""
    return torch.zeros(len(outputs), dtype=torch.long, device=outputs.device)
