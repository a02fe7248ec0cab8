r"""Which training images, altered so little that nobody sees it, would flip which predictions of one's own model?

An audit of robustness: it needs the training data, the recipe and the model, which only their owner has. The answer
is a list of training examples that predictions hang on, how far each can push them, and whether retraining on
altered copies really does, beside controls that alter the same examples as much at random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from whence.curvature import Identity
from whence.data import Examples, as_examples
from whence.errors import ConfigError, NumericalError
from whence.scores import Signal
from whence.tasks import Recipe
from whence.uses.attack_box import Box
from whence.uses.attack_victim import Held, Method, Victim

__all__ = ["Attack", "AttackSettings", "Control", "attack"]

_PROGRESS = 1e-3  # of the rise so far: less is no progress
_STEPS = {True: (0.04, 100), False: (0.01, 2_000)}  # in radii, for one target and for several


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How an attack is made.

    Args:
        box: How far an example may be moved.
        images: How many training examples are altered: those that could move the targets the farthest.
        step: η in levels; None for 0.04 radii against one target and 0.01 against several (0.02 and 0.005 grey levels
            in the half-level box of the paper), or as many as reach the edge in half of the steps.
        steps: At most so many; None for 100 against one target and 2,000 against several.
        patience: Steps without progress after which to stop.
        until_flipped: Stop once every target's prediction has flipped.
        random_controls: Draws of random signs in the same box.
        gradient_control: Also ascend with the identity for H⁻¹ (matching of plain gradients).
        seed: Of training and of the random signs.

    Raises:
        ConfigError: A value is out of range.
    """

    box: Box = field(default_factory=Box)
    images: int = 1
    step: float | None = None
    steps: int | None = None
    patience: int = 10
    until_flipped: bool = True
    random_controls: int = 10
    gradient_control: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "steps", "patience", "step"):
            value = getattr(self, name)
            if value is not None and not (value >= 1 or (name == "step" and value > 0)):
                raise ConfigError(f"{name} must be {'positive' if name == 'step' else 'at least 1'}, got {value}.")
        if self.random_controls < 0:
            raise ConfigError(f"random_controls must be zero or positive, got {self.random_controls}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """The same examples altered in another way, and the model trained again.

    Args:
        name: "random signs", "gradient matching" or "rounded to whole levels".
        margins: Of the targets, a row a draw [R, Q].
        flipped: Whether each prediction was right and is now another [R, Q].
    """

    name: str
    margins: Tensor
    flipped: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Attack:
    """What altering a few training examples does to predictions.

    Args:
        settings: How it was made.
        ids: The altered training examples [K].
        labels: Their labels [K], unchanged.
        original: Their inputs [K, ...].
        deltas: What was added [K, ...], of the step at which the targets' mean measurement was highest.
        targets: One row a target: ``query, label, predicted_before, predicted_after, margin_before, margin_after,
            flipped``. The margin is the output of the label minus the largest other one, after retraining; a
            prediction that was wrong before cannot flip.
        controls: What other alterations of the same examples do.
        history: One row a step: ``step, measurement, margin, flipped, largest`` (mean measurement and margin, number
            of flips, largest |δ| in levels).
        reach: First-order rise of the targets' mean measurement that each training example alone could cause [N].
        stopped: Why the ascent ended.
        model: The model trained on the altered examples.
    """

    settings: AttackSettings
    ids: np.ndarray
    labels: Tensor
    original: Tensor
    deltas: Tensor
    targets: pd.DataFrame
    controls: tuple[Control, ...]
    history: pd.DataFrame
    reach: Signal
    stopped: str
    model: nn.Module

    def __repr__(self) -> str:
        """Return counts and the outcome."""
        return f"Attack({len(self.ids)} altered, {self.flips} of {len(self.targets)} flipped, {self.stopped})"

    @property
    def perturbed(self) -> Tensor:
        """The altered inputs [K, ...]."""
        return self.original + self.deltas

    @property
    def margin_drop(self) -> float:
        """Mean fall of the targets' margins."""
        return float((self.targets["margin_before"] - self.targets["margin_after"]).mean())

    @property
    def flips(self) -> int:
        """Number of flipped predictions."""
        return int(self.targets["flipped"].sum())

    def control_drop(self, name: str) -> float | None:
        """Mean size of a control's margin drops, |before − after|, over draws and targets; None without it.

        The size and not the mean, in which random drops of both signs would cancel.
        """
        before = torch.tensor(self.targets["margin_before"].to_list(), dtype=torch.float64)
        found = [control for control in self.controls if control.name == name]
        return float((before - found[0].margins).abs().mean()) if found else None

    def summary(self) -> dict[str, Any]:
        """Return figures and settings, JSON-able."""
        box = self.settings.box
        controls = {
            one.name: {
                "drop": self.control_drop(one.name), "flipped": float(one.flipped.sum(1).double().mean()),
                "draws": len(one.margins), "least_margin": float(one.margins.min()),
            }
            for one in self.controls
        }  # fmt: skip
        random = self.control_drop("random signs")
        return {
            "box": {f.name: getattr(box, f.name) for f in fields(box)},
            "images": len(self.ids), "ids": self.ids.tolist(), "targets": len(self.targets), "flips": self.flips,
            "margin_before": float(self.targets["margin_before"].mean()), "margin_drop": self.margin_drop,
            "relative_drop": self.margin_drop / float(self.targets["margin_before"].abs().mean()),
            "times_random": None if not random else self.margin_drop / random,
            "steps": int(self.history["step"].max()), "stopped": self.stopped,
            "largest_levels": float(self.deltas.abs().max()) / box.level, "controls": controls,
        }  # fmt: skip


def attack(
    recipe: Recipe,
    train: Any,
    targets: Any,
    *,
    method: Method,
    frozen: nn.Module | None = None,
    settings: AttackSettings | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Attack:
    r"""Alter training examples inside a box so that retraining raises the loss of chosen targets, and verify it.

    x ← clip(x + η sign(I)), I = −(1/N) ∇m̄ᵀ H⁻¹ ∇_x∇_θ ℓ_x, m̄ the mean measurement of the targets; the model is trained
    again and I computed anew at every step. Altered are the examples with the largest ‖I‖₁ (‖I‖₂ under "l2").

    Its purpose is to audit one's own model: which training examples predictions hang on, and how much it would take.

    Args:
        recipe: How the model is trained on what ``frozen`` gives. An "lbfgs" recipe (a convex top layer) starts every
            training from the model before; any other is replayed from the same seed.
        train: Training examples whose inputs are one floating-point tensor.
        targets: Labelled examples that the model classifies.
        method: Such as ``whence.Influence(curvature=whence.Exact())``; it is fitted to the trained part alone.
        frozen: A feature extractor in front of the trained model, which no training changes: maps are pulled back
            through it to the inputs. Without it all layers of the recipe's model are trained, and attributed as the
            method says.
        settings: Box, number of images, steps, controls.
        on_step: Called with (step, most steps).

    Returns:
        An `Attack`. The controls alter the same examples: random signs at the edge of the box, ascent by plain
        gradients, and the attack's own result stored in whole levels.

    Raises:
        ConfigError: Inputs lie outside the valid range or are not one floating-point tensor, there are fewer examples
            than images, or the targets are no classes.

    Cost: a training and a solve a step, twice with the gradient control; a training a random control. The method is
        fitted once, and again where the weights have moved by 5 % since: its curvature serves those between. An exact
        recipe's trainings within the ascent stop at up to 100 times its gradient norm; what is reported reaches it.
    Reference: Koh & Liang (2017), §5.2; Goodfellow et al. (2015) for the sign. The gradient control is the inner
        product of gradients, as in Geiping et al. (2021) without its normalisation.

    Example:
        >>> import whence as wh
        >>> x, y = torch.rand(40, 6), torch.tensor([0, 1] * 20)
        >>> recipe = wh.Recipe(build=lambda: nn.Linear(6, 2), optimizer="lbfgs", weight_decay=0.1)
        >>> found = wh.attack(recipe, (x, y), (x[:1], y[:1]), method=wh.Influence(curvature=wh.Exact()))
        >>> found.deltas.shape, bool(found.deltas.abs().max() <= 0.5 / 255)
        (torch.Size([1, 6]), True)
    """
    settings = AttackSettings() if settings is None else settings
    frozen = None if frozen is None else copy.deepcopy(frozen).eval()
    victim = Victim(
        recipe=recipe, examples=as_examples(train), targets=as_examples(targets), frozen=frozen, seed=settings.seed
    )
    if victim.targets.targets is None or victim.examples.targets is None:
        raise ConfigError("train and targets of an attack must have labels, got inputs alone. Pass (inputs, labels).")
    if settings.images > len(victim.examples):
        raise ConfigError(f"images must be at most {len(victim.examples)} training examples, got {settings.images}.")
    victim.inputs(np.arange(1))  # refused before anything is trained
    model = victim.train(victim.seen)
    held = Held(method)
    reach = _reach(victim, held, model, settings.box)
    rows = np.argsort(-reach, kind="stable")[: settings.images]
    original = victim.inputs(rows)
    settings.box.check(original)
    ascent = _Ascent(victim, settings, rows, original, model)
    delta, history, stopped = ascent.run(held, on_step)
    found = ascent.verify(delta)
    controls = ascent.controls(delta, method)
    unit = recipe.task(model).unit
    return Attack(
        settings=settings,
        ids=victim.examples.ids[rows],
        labels=victim.examples.targets[torch.from_numpy(rows)],
        original=original,
        deltas=delta,
        targets=_targets(victim, ascent.before, found),
        controls=controls,
        history=pd.DataFrame(history),
        reach=Signal(values=reach, ids=victim.examples.ids, name="reach", unit=unit),
        stopped=stopped,
        model=found.model,
    )


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What retraining on altered examples gave."""

    model: nn.Module
    examples: Examples
    margins: Tensor
    predicted: Tensor
    measured: float


@dataclass(frozen=True, eq=False)
class _Ascent:
    """Steps from the original inputs, and their verification."""

    victim: Victim
    settings: AttackSettings
    rows: np.ndarray
    original: Tensor
    model: nn.Module

    @cached_property
    def before(self) -> _Outcome:
        """The outcome without an alteration."""
        return _Outcome(self.model, self.victim.seen, *self.victim.judge(self.model))

    def verify(self, delta: Tensor, warm: nn.Module | None = None) -> _Outcome:
        """Train on altered examples and judge: roughly, from a step before, or exactly, from the original model."""
        examples = self.victim.with_rows(self.rows, self.original + delta)
        model = self.victim.train(examples, self.model if warm is None else warm, roughly=warm is not None)
        return _Outcome(model, examples, *self.victim.judge(model))

    def run(
        self, held: Held, on_step: Callable[[int, int], None] | None = None
    ) -> tuple[Tensor, list[dict[str, Any]], str]:
        """Return the best δ, the history and why it ended."""
        box, first = self.settings.box, self.before
        share, most = _STEPS[len(self.victim.targets) == 1]
        most = most if self.settings.steps is None else self.settings.steps
        step = max(share, 2 / most) * box.radius if self.settings.step is None else self.settings.step
        now, delta = first, torch.zeros_like(self.original)
        best, progress = (first.measured, delta), (first.measured, 0)
        history = [self._entry(0, now, first, delta)]
        for number in range(1, most + 1):
            maps = self.victim.maps(held, now.model, now.examples, self.rows, self.original + delta)
            moved = box.clip(box.ascend(delta, maps, step), self.original)
            if torch.equal(moved, delta):
                return best[1], history, "nothing moves any more"
            delta = moved
            now = self.verify(delta, now.model)
            if not np.isfinite(now.measured):
                raise NumericalError(f"measurement must be finite, got {now.measured} in step {number}.")
            history.append(self._entry(number, now, first, delta))
            if on_step is not None:
                on_step(number, most)
            if now.measured > best[0]:
                best = now.measured, delta
            if self.settings.until_flipped and history[-1]["flipped"] == max(1, int((first.margins > 0).sum())):
                return delta, history, "every prediction has flipped"
            if now.measured - progress[0] > _PROGRESS * abs(progress[0] - first.measured):
                progress = now.measured, number
            if number - progress[1] >= self.settings.patience:
                return best[1], history, "no progress"
        return best[1], history, "all steps were taken"

    def controls(self, delta: Tensor, method: Method) -> tuple[Control, ...]:
        """Return what other alterations of the same examples do."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        made = []
        if self.settings.random_controls:
            draws = [self.settings.box.random(self.original, generator) for _ in range(self.settings.random_controls)]
            made.append(self._control("random signs", draws))
        if self.settings.gradient_control and hasattr(method, "curvature"):
            plain: Method = replace(method, curvature=Identity())  # type: ignore[type-var]
            made.append(self._control("gradient matching", [self.run(Held(plain))[0]]))
        made.append(self._control("rounded to whole levels", [self.settings.box.rounded(delta)]))
        return tuple(made)

    def _control(self, name: str, deltas: list[Tensor]) -> Control:
        first, found = self.before, [self.verify(delta) for delta in deltas]
        return Control(
            name=name,
            margins=torch.stack([one.margins for one in found]),
            flipped=torch.stack([_flipped(one, first) for one in found]),
        )

    def _entry(self, step: int, now: _Outcome, first: _Outcome, delta: Tensor) -> dict[str, Any]:
        return {
            "step": step, "measurement": now.measured, "margin": float(now.margins.mean()),
            "flipped": int(_flipped(now, first).sum()), "largest": float(delta.abs().max()) / self.settings.box.level,
        }  # fmt: skip


def _reach(victim: Victim, held: Held, model: nn.Module, box: Box) -> np.ndarray:
    """Return how far each example alone can raise the mean measurement inside the box, to first order [N]."""
    rows = np.arange(len(victim.examples))
    maps = victim.maps(held, model, victim.seen, rows, victim.inputs(rows))
    norms = maps.flatten(1).norm(1 if box.norm == "linf" else 2, dim=1) * box.size
    found: np.ndarray = norms.double().cpu().numpy()
    return found


def _flipped(now: _Outcome, first: _Outcome) -> Tensor:
    """Return which predictions were right and are now others [Q]."""
    return (first.margins > 0) & (now.predicted != first.predicted)


def _targets(victim: Victim, first: _Outcome, now: _Outcome) -> pd.DataFrame:
    """Return one row a target."""
    assert victim.targets.targets is not None
    return pd.DataFrame(
        {
            "query": victim.targets.ids,
            "label": victim.targets.targets.reshape(len(victim.targets)).numpy(),
            "predicted_before": first.predicted.numpy(),
            "predicted_after": now.predicted.numpy(),
            "margin_before": first.margins.numpy(),
            "margin_after": now.margins.numpy(),
            "flipped": _flipped(now, first).numpy(),
        }
    )
