"""``whence methods``: what can be computed, what it costs, when it fails."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["methods_command"]


@dataclass(frozen=True)
class _Method:
    name: str
    formula: str
    cost: str
    use: str
    caution: str


METHODS = (
    _Method(
        "ekfac",
        "1/N ∇mᵀ H⁻¹ ∇ℓ with the eigenvalue-corrected Kronecker Fisher",
        "about 5 passes to fit, 2 to score 100 queries",
        "any network of linear, convolution, embedding and norm layers; the default",
        "block-diagonal over layers; sampled labels add noise on overfitted networks",
    ),
    _Method(
        "kfac",
        "the same with A ⊗ G and split damping",
        "about 3 passes to fit",
        "sequences and convolutions: stays factored whatever the length",
        "eigenvalues of the Kronecker product are cruder than EK-FAC's",
    ),
    _Method(
        "exact",
        "the dense Gauss-Newton matrix in float64",
        "N·P² operations; at most 12,000 parameters",
        "linear and softmax models, last layers; the reference for the others",
        "the Hessian of a non-convex network is indefinite and is refused without damping",
    ),
    _Method(
        "identity",
        "1/N ∇mᵀ ∇ℓ, the gradient dot product",
        "nothing to fit",
        "a quick baseline",
        "ranks only; r = .35 with exact influence on softmax regression",
    ),
)


def methods_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the attribution methods: formula, cost, when to use and when not."""
    if as_json:
        print(json.dumps([asdict(method) for method in METHODS], ensure_ascii=False, indent=1))
        return
    table = Table(title="Methods (whence audit --method NAME)", title_justify="left", show_lines=True)
    for heading in ("name", "score", "cost", "use", "caution"):
        table.add_column(heading, style="bold" if heading == "name" else "")
    for method in METHODS:
        table.add_row(*asdict(method).values())
    Console().print(table)
