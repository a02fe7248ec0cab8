"""Who takes part in the speed benchmark: whence in its settings, and other libraries, one adapter a file."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from workloads import Workload

CLASSIFIERS = ("mlp", "cnn")
EVERY = (*CLASSIFIERS, "transformer")
EKFAC, KFAC, DOT, OTHER = "EK-FAC", "K-FAC", "gradient dot products", "another approximation"


class Run(Protocol):
    """One analysis of a workload; making it belongs to its ``fit`` time."""

    def fit(self) -> None:
        """Do everything that needs no queries."""

    def pairwise(self) -> np.ndarray:
        """Return the scores of all training examples for all queries [Q, N]; any positive scale, positive = helpful."""

    def self_scores(self) -> np.ndarray | None:
        """Return every training example's score for itself [N], None where the library offers none."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A library in one setting.

    Args:
        library: Name of the distribution.
        package: What is imported.
        adapter: Module of this package whose ``make(workload, folder, **settings)`` returns a `Run`.
        label: In the tables.
        method: What it computes: one of ``EKFAC``, ``KFAC``, ``DOT``, ``OTHER``.
        settings: Of ``make``.
        models: Which workloads it can take.
        layers: Layers that it attributes: "all" (where the library can), "linear" (linear and convolutional) or "last".
        note: Shown below the table.
    """

    library: str
    package: str
    adapter: str
    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = EVERY
    layers: Literal["all", "linear", "last"] = "all"
    note: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is this library."""
        return self.library == "whence"

    @property
    def installed(self) -> bool:
        """Whether the library can be imported."""
        return importlib.util.find_spec(self.package) is not None

    def load(self) -> Callable[[Workload, Path], Run]:
        """Import the library and return what makes a fresh analysis; the folder is for the library's files."""
        return partial(importlib.import_module(f"peers.{self.adapter}").make, **self.settings)


def _whence(label: str, method: str, **settings: Any) -> Contender:
    layers = "last" if settings.get("layers") == "last" else "all"
    return Contender(
        library="whence", package="whence", adapter="ours", label=f"whence {label}", method=method,
        settings=settings, layers=layers,
    )  # fmt: skip


def _kronfluence(label: str, method: str, strategy: str, *, fastest: bool) -> Contender:
    return Contender(
        library="kronfluence", package="kronfluence", adapter="with_kronfluence", label=f"kronfluence {label}",
        method=method, settings={"strategy": strategy, "fastest": fastest}, layers="linear",
    )  # fmt: skip


def _pydvl(label: str, method: str, kind: str, models: tuple[str, ...]) -> Contender:
    return Contender(
        library="pyDVL", package="pydvl", adapter="with_pydvl", label=f"pyDVL {label}", method=method,
        settings={"kind": kind}, models=models,
    )  # fmt: skip


def _dattri(label: str, method: str, kind: str, models: tuple[str, ...] = EVERY) -> Contender:
    return Contender(
        library="dattri", package="dattri", adapter="with_dattri", label=f"dattri {label}", method=method,
        settings={"kind": kind}, models=models,
    )  # fmt: skip


CONTENDERS: dict[str, Contender] = {
    "whence-ekfac": _whence("EK-FAC", EKFAC, curvature="ekfac"),
    "whence-nothing-kept": _whence("EK-FAC, nothing kept in memory", EKFAC, curvature="ekfac", memory_budget=0),
    "whence-kfac": _whence("K-FAC", KFAC, curvature="kfac"),
    "whence-identity": _whence("identity", DOT, curvature="identity"),
    "whence-projected": _whence("projected, rank 8, nothing kept", OTHER, curvature="projected", memory_budget=0),
    "whence-last": _whence("identity, last layer", DOT, curvature="identity", layers="last"),
    "kronfluence-ekfac": _kronfluence("EK-FAC, defaults", EKFAC, "ekfac", fastest=False),
    "kronfluence-ekfac-fastest": _kronfluence("EK-FAC, fastest", EKFAC, "ekfac", fastest=True),
    "kronfluence-kfac": _kronfluence("K-FAC, defaults", KFAC, "kfac", fastest=False),
    "kronfluence-kfac-fastest": _kronfluence("K-FAC, fastest", KFAC, "kfac", fastest=True),
    "kronfluence-identity": _kronfluence("identity, defaults", DOT, "identity", fastest=False),
    "kronfluence-identity-fastest": _kronfluence("identity, fastest", DOT, "identity", fastest=True),
    "captum-tracin": Contender(
        library="captum", package="captum", adapter="with_captum", label="captum TracInCP, batch 32", method=DOT,
        settings={"last": False}, layers="linear",
    ),
    "captum-last": Contender(
        library="captum", package="captum", adapter="with_captum", label="captum TracInCPFast, last layer", method=DOT,
        settings={"last": True}, models=CLASSIFIERS, layers="last",
        note="captum's last-layer TracIn takes one vector an example: no sequences.",
    ),
    "pydvl-ekfac": _pydvl("EK-FAC", EKFAC, "ekfac", ("mlp",)),
    "pydvl-nystroem": _pydvl("Nyström, rank 100", OTHER, "nystroem", EVERY),
    "trak-512": Contender(
        library="traker", package="trak", adapter="with_trak", label="traker TRAK-512", method=OTHER,
    ),
    "dattri-tracin": _dattri("TracIn", DOT, "tracin"),
    "dattri-ekfac": _dattri("EK-FAC", EKFAC, "ekfac", ("mlp",)),
    "dattri-trak": _dattri("TRAK-512", OTHER, "trak"),
}  # fmt: skip
