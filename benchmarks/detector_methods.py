"""Every method that ranks training rows by suspicion, on one trained model; values and costs are kept as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import whence as wh
from detector_sets import Noisy
from measure import memory
from rivals import label_quality
from whence.audit.blinded import blinded
from whence.audit.members import fit_members
from whence.tasks.defaults import default_for
from whence.uses.label_errors import Members
from whence.uses.noise_rate import estimate_noise

RP = 256  # random features a checkpoint
MASKS = (0,)  # seeds of turn-over dropout: one, as in the paper


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One regime: noisy rows, a recipe, and what was trained on them.

    Args:
        rows: The rows.
        recipe: How the model was trained.
        gex: GEX's settings here.
        arnoldi: Layers for Arnoldi; None for all.
        folds: Of out-of-fold predictions.
        masked: Layers whose inputs turn-over dropout masks.
        early: Epochs of EL2N's models.
        seed: Seed of everything.
        folder: Where values and weights are kept, so that an interrupted run resumes.
        dtype: Precision of the model and of what is measured; trainings are in float32.
    """

    rows: Noisy
    recipe: wh.Recipe
    gex: wh.GEX
    arnoldi: Any
    folds: int
    masked: tuple[str, ...]
    early: int
    seed: int
    folder: Path
    dtype: torch.dtype = torch.float32

    @property
    def values(self) -> Path:
        """Where values are kept."""
        return self.folder if self.dtype == torch.float32 else self.folder / "float64"

    @cached_property
    def run(self) -> wh.Checkpoints:
        """The training run, read where it was kept."""
        path = self.folder / "checkpoints.pt"
        if path.is_file():
            kept = torch.load(path, weights_only=True)
            build = self.recipe.build
            assert build is not None
            model = build().to(self.dtype)
            model.load_state_dict(kept["weights"][-1])
            weights = [{name: value.to(self.dtype) for name, value in one.items()} for one in kept["weights"]]
            return wh.Checkpoints(
                weights=tuple(weights), learning_rates=tuple(kept["rates"]), epochs=tuple(kept["epochs"]),
                model=model.eval(),
            )  # fmt: skip
        start = time.perf_counter()
        run = wh.record_checkpoints(self.recipe, self.rows.train, count=5, seed=self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {"weights": list(run.weights), "rates": list(run.learning_rates), "epochs": list(run.epochs)}
        torch.save({**kept, "seconds": time.perf_counter() - start}, path)
        return run

    @property
    def training_seconds(self) -> float | None:
        """What the training took, whenever that was."""
        _ = self.run
        seconds: float | None = torch.load(self.folder / "checkpoints.pt", weights_only=True).get("seconds")
        return seconds

    @cached_property
    def task(self) -> wh.Task:
        """The trained model."""
        return self.recipe.task(self.run.model)

    @cached_property
    def references(self) -> wh.Examples:
        """Clean examples, 50 of every class."""
        return self.rows.references(50, self.seed)

    def own(self, method: Any) -> np.ndarray:
        """Return a method's self-scores."""
        return np.asarray(method.fit(self.task, self.rows.train).self_scores().values)

    def suspicion(self, baseline: Any) -> np.ndarray:
        """Return a baseline's suspicions."""
        return np.asarray(baseline.fit(self.task, self.rows.train).suspicion().values)

    def by_class(self, method: Any) -> np.ndarray:
        """Return the class-based harm to clean references."""
        return np.asarray(wh.class_based(method.fit(self.task, self.rows.train), self.references).values)

    @cached_property
    def fitted_gex(self) -> wh.GEXAttribution:
        """GEX."""
        return self.gex.fit(self.task, self.rows.train)

    @cached_property
    def held(self) -> wh.OutOfFold:
        """Out-of-fold predictions."""
        return wh.out_of_fold(self.recipe, self.rows.train, folds=self.folds, seed=self.seed)

    def quality(self, method: str) -> np.ndarray:
        """Return minus cleanlab's label quality from the out-of-fold probabilities."""
        probabilities = self.held.outputs.softmax(1).numpy()
        return -label_quality(self.rows.labels, probabilities, method)

    @cached_property
    def turned(self) -> wh.TurnOverAttribution:
        """Turn-over dropout: trainings of its own."""
        return wh.TurnOver(seeds=MASKS, insert=self.masked).fit(self.recipe, self.rows.train)

    @cached_property
    def audited(self) -> Members:
        """Both fits of the model that `whence audit` trains by itself, and its judge."""
        data = self.rows.data
        default = default_for(data, seed=self.seed)
        inputs = default.preparation.transform(data) if default.inputs is None else default.inputs
        examples = wh.as_examples((inputs, torch.from_numpy(data.labels)))
        fits = fit_members(examples, default.recipe, refit=default.refit, counts=default.counts, seed=self.seed)
        return Members(logits=fits.logits, refit_logits=fits.refit_logits, judges=fits.judges)

    def early_recipe(self) -> wh.Recipe:
        """The recipe, stopped early."""
        r = self.recipe
        return wh.Recipe(
            build=r.build, optimizer="sgd", learning_rate=r.learning_rate, schedule="constant", epochs=self.early,
            batch_size=r.batch_size,
        )  # fmt: skip


def _ranked(subject: Subject, source: Any) -> np.ndarray:
    """Rank as `find_label_errors` does."""
    frame = wh.find_label_errors(source, labels=subject.rows.labels, evidence=0)
    frame.index = frame["id"].astype(str)
    return frame.loc[[str(row) for row in range(len(subject.rows.labels))], "suspicion"].to_numpy()


def _own(subject: Subject) -> np.ndarray:
    """Rank with EK-FAC on the model alone."""
    config = wh.Influence(curvature=wh.EKFAC(damping="auto"), layers="last")
    return _ranked(subject, config.fit(subject.task, subject.rows.train))


def _audit_of_own(subject: Subject) -> np.ndarray:
    """Rank as `whence audit --model` does: with its own model's say where the user's sees hardly any wrong label."""
    with torch.no_grad(), subject.task.evaluating():
        parts = [subject.task.forward(batch).double() for batch in subject.rows.train.batches(1024)]
    logits = torch.cat(parts).numpy()
    labels = subject.rows.labels
    if not blinded(estimate_noise(logits, labels).rate, subject.audited, labels):
        return _own(subject)
    return _ranked(subject, replace(subject.audited, logits=logits, others=(subject.audited.logits,)))


def _tracin(subject: Subject, **settings: Any) -> wh.TracIn:
    return wh.TracIn(checkpoints=subject.run, **settings)


EKFAC = wh.EKFAC(damping="auto")
METHODS: dict[str, Callable[[Subject], np.ndarray]] = {
    "random": lambda s: s.suspicion(wh.RandomBaseline(seed=s.seed)),
    "loss": lambda s: s.suspicion(wh.LossBaseline()),
    "margin": lambda s: s.suspicion(wh.MarginBaseline()),
    "feature similarity": lambda s: s.suspicion(wh.Similarity()),
    "kNN": lambda s: s.suspicion(wh.Neighbours()),
    "kNN-Shapley": lambda s: s.suspicion(wh.NeighbourShapley()),
    "GEX": lambda s: np.asarray(s.fitted_gex.self_scores().values),
    "TracIn-RP": lambda s: s.own(_tracin(s, projection=RP)),
    "TracIn, last layer": lambda s: s.own(_tracin(s, layers="last")),
    "Arnoldi": lambda s: s.own(wh.Influence(
        curvature=wh.Lanczos(rank=10, max_steps=40, require_convergence=False), layers=s.arnoldi, seed=s.seed)),
    "EK-FAC": lambda s: s.own(wh.Influence(curvature=EKFAC, seed=s.seed)),
    "K-FAC": lambda s: s.own(wh.Influence(curvature=wh.KFAC(damping="auto"), seed=s.seed)),
    "EK-FAC, last layer": lambda s: s.own(wh.Influence(curvature=EKFAC, layers="last", seed=s.seed)),
    "gradient dot": lambda s: s.own(wh.GradientDot()),
    "TRAK": lambda s: s.own(wh.TRAK(dimension=512)),
    "representer": lambda s: s.own(wh.Representer()),
    "find_label_errors": _own,
    "whence audit": lambda s: _ranked(s, s.audited),
    "whence audit --model": _audit_of_own,
    "turn-over dropout": lambda s: np.asarray(s.turned.self_scores().values),
    "gradient dot, class-based*": lambda s: s.by_class(wh.GradientDot(layers="last")),
    "EK-FAC, class-based*": lambda s: s.by_class(wh.Influence(curvature=EKFAC, layers="last", seed=s.seed)),
    "TracIn, class-based*": lambda s: s.by_class(_tracin(s, layers="last")),
    "EL2N": lambda s: np.asarray(wh.el2n(s.early_recipe(), s.rows.train, seeds=(s.seed, s.seed + 1)).values),
    "forgetting": lambda s: np.asarray(wh.forgetting(s.recipe, s.rows.train, seed=s.seed).values),
    "out-of-fold loss": lambda s: np.asarray(s.held.loss.values),
    "confident learning": lambda s: s.quality("normalized_margin"),
}  # fmt: skip


def doubled(subject: Subject) -> Subject:
    """Return the same subject in double precision, its training taken from float32."""
    _ = subject.run
    train = subject.rows.train
    batch = train.batch(np.arange(len(train)))
    rows = replace(subject.rows, train=wh.as_examples((batch.inputs.double(), batch.targets)))
    return replace(subject, rows=rows, dtype=torch.float64)


def measured(subject: Subject, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return values, seconds and added memory by method; what the folder holds is not computed again."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        path = subject.values / f"{name.replace(' ', '_').replace('*', '')}.npz"
        if not path.is_file():
            _ = subject.task
            before = memory(fresh=True)
            wall, cpu = time.perf_counter(), time.process_time()
            values = METHODS[name](subject)
            cost = [time.perf_counter() - wall, time.process_time() - cpu, max(0.0, memory() - before)]
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, values=values, cost=cost)
            print(f"  {name}: {cost[0]:.1f} s, {cost[1]:.1f} s of processor", flush=True)
        with np.load(path) as kept:
            seconds, cpu_seconds, added = (float(v) for v in kept["cost"])
            found[name] = {
                "values": kept["values"], "seconds": seconds, "cpu_seconds": cpu_seconds, "memory_mb": added,
            }  # fmt: skip
    return found
