"""The methods of the matrix: whence in its settings, humble baselines, and the peers of the speed benchmark."""

from __future__ import annotations

from peers import CONTENDERS, DOT, EKFAC, KFAC, OTHER, Contender

BASELINE = "baseline"


def _whence(label: str, method: str, curvature: str) -> Contender:
    return Contender(
        library="whence", package="whence", adapter="ours", label=f"whence {label}", method=method,
        settings={"curvature": curvature},
    )  # fmt: skip


def _baseline(kind: str, label: str) -> Contender:
    return Contender(
        library="whence", package="whence", adapter="baselines", label=label, method=BASELINE, settings={"kind": kind}
    )


METHODS: dict[str, Contender] = {
    "whence-ekfac-auto": _whence("EK-FAC, damping auto", EKFAC, "ekfac-auto"),
    "whence-ekfac": _whence("EK-FAC", EKFAC, "ekfac"),
    "whence-kfac": _whence("K-FAC", KFAC, "kfac"),
    "whence-diagonal": _whence("diagonal", OTHER, "diagonal"),
    "whence-datainf": _whence("DataInf", OTHER, "datainf"),
    "whence-identity": _whence("gradient dot product", DOT, "identity"),
    "random": _baseline("random", "random"),
    "loss": _baseline("loss", "loss"),
    "margin": _baseline("margin", "margin"),
    "knn": _baseline("knn", "kNN"),
    "similarity": _baseline("similarity", "feature similarity"),
    **{
        name: CONTENDERS[name]
        for name in (
            "kronfluence-ekfac", "kronfluence-ekfac-fastest", "captum-tracin", "captum-last", "pydvl-ekfac",
            "pydvl-nystroem", "trak-512", "dattri-tracin", "dattri-ekfac", "dattri-trak",
        )
    },
}  # fmt: skip


def kind(name: str) -> str:
    """Return whether a method is "ours", a "baseline" or a "peer"'s."""
    if METHODS[name].method == BASELINE:
        return "baseline"
    return "ours" if METHODS[name].ours else "peer"


def installed(names: list[str]) -> list[str]:
    """Return the methods that can be imported; the others are named."""
    for name in names:
        if not METHODS[name].installed:
            print(f"{name} is left out: {METHODS[name].library} is not installed (benchmarks/requirements.txt).")
    return [name for name in names if METHODS[name].installed]
