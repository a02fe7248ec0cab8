"""``whence methods``: what can be computed, what it costs, when it fails."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.markup import escape
from rich.table import Table

from whence.cli.console import print_json, terminal
from whence.cli.options import AsJson, Quiet

__all__ = ["methods_command"]


@dataclass(frozen=True)
class _Method:
    name: str
    formula: str
    cost: str
    use: str
    caution: str
    call: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "call", self.call or f"--method {self.name}")


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
        "diagonal",
        "every parameter by itself: H = diag(F)",
        "1 pass to fit",
        "a cheap baseline; a preconditioner for cg",
        "no correlations at all: far from the exact scores",
        "wh.Diagonal()",
    ),
    _Method(
        "block-exact",
        "the dense Gauss-Newton matrix or Hessian of every layer by itself",
        "1 pass and N·P² operations a layer of P parameters; at most 12,000 a layer",
        "small layers, and to see what K-FAC leaves out",
        "no cross-terms between layers",
        "wh.BlockExact()",
    ),
    _Method(
        "cg",
        "the exact Gauss-Newton answer by conjugate gradients, preconditioned on request",
        "1 product with all the data a step; a pass each where gradients do not fit the memory budget",
        "the exact answer where the dense matrix is too large; few queries",
        "self-scores take a solve an example; needs the training data after loading",
        "wh.CG(preconditioner=wh.EKFAC())",
    ),
    _Method(
        "lissa",
        "h ← v + (1 − damp) h − H_batch h / scale, effective damping stated",
        "depth·repeats·batch / N passes a block of queries",
        "large data sets and strong damping",
        "noisy; thousands of steps where damping is weak",
        "wh.LiSSA()",
    ),
    _Method(
        "neumann",
        "x ← x + α P (v − (H + λ) x) with P from EK-FAC",
        "EK-FAC's fit and 1 product a step",
        "a few corrections of EK-FAC by the exact curvature",
        "cg with the same preconditioner needs fewer products to converge",
        "wh.Neumann()",
    ),
    _Method(
        "lanczos",
        "leading eigenvectors of the whole curvature, 1/λ elsewhere",
        "1 product a step, some 4·rank steps",
        "many queries at weak cost once fitted",
        "what lies outside the leading directions is not told apart",
        "wh.Lanczos(rank=100)",
    ),
    _Method(
        "nystrom",
        "a random low-rank approximation of the whole curvature, 1/λ elsewhere",
        "2 products with rank vectors",
        "as lanczos, in two passes",
        "less accurate than lanczos at the same rank",
        "wh.Nystrom(rank=100)",
    ),
    _Method(
        "datainf",
        "the average of N per-example inverses, layer by layer",
        "1 pass to fit, 1 a block of queries",
        "comparison with published results",
        "swaps average and inverse",
        "wh.DataInf()",
    ),
    _Method(
        "projected",
        "the exact Fisher inside a space of k_out·k_in numbers a layer (LoGra)",
        "2 passes to fit, features of a few thousand numbers",
        "sequences and convolutions, an index of many examples",
        "what lies outside the space counts nothing",
        "wh.Projected(rank=16)",
    ),
    _Method(
        "identity",
        "1/N ∇mᵀ ∇ℓ, the gradient dot product",
        "nothing to fit",
        "a quick baseline",
        "ranks only; r = .35 with exact influence on softmax regression",
    ),
    _Method(
        "gex",
        "1/M Σ D_q D_i with D = ℓ(ψ_m) − max(ℓ(θ̂), τ) over M models around the trained one",
        "M short trainings and M + 1 forward passes; no gradients of single rows",
        "wrong labels that a network has memorised",
        "members must leave the basin; where wrong labels are not memorised the plain loss does as well",
        "wh.GEX(members=8, steps=160, learning_rate=\"auto\")",
    ),
    _Method(
        "turn-over",
        "1/M Σ m_q(f under 1 − m(i)) − m_q(f under m(i)): dropout masks that belong to examples",
        "M trainings with its dropout; 2·M·N forward rows a query after the first masked layer",
        "models that are trained with dropout anyway; unseen losses without a validation set",
        "one mask seed is noise: average several; output biases, norms and unmasked layers leak (wh.leakage)",
        "wh.TurnOver(seeds=range(8)).fit(recipe, train)",
    ),
    _Method(
        "gradient-cosine",
        "∇mᵀ∇ℓ / (‖∇m‖ ‖∇ℓ‖)",
        "nothing to fit",
        "explanations that outliers do not head",
        "self-scores are all 1; classes of references make it worse",
        "wh.GradientCosine()",
    ),
    _Method(
        "tracin",
        "1/N Σ_c η_c ∇m(θ_c)ᵀ ∇ℓ(θ_c) over checkpoints; random-projected with projection=",
        "a pass a checkpoint",
        "a training run whose checkpoints were kept; needs no minimum",
        "no curvature: frequent directions dominate; ranks only",
        "wh.TracIn(checkpoints=wh.record_checkpoints(recipe, train))",
    ),
    _Method(
        "trak",
        "φ_qᵀ (ΦᵀΦ)⁻¹ φ_i (1 − p_i), φ the projected gradient of the log-odds",
        "a pass a model and N·D² operations",
        "classifiers, several models, an index of flat features",
        "one model alone is noisy; ranks only",
        "wh.TRAK(members=[...], dimension=2048)",
    ),
    _Method(
        "arnoldi",
        "lanczos, whose symmetric case it is; its self-scores are Arnoldi influence",
        "as lanczos",
        "comparison with published results",
        "as lanczos",
        "wh.Lanczos(rank=10, require_convergence=False)",
    ),
    _Method(
        "representer",
        "α_i[y_q] ⟨h_i, h_q⟩ of a head fitted again, α = −∂ℓ/∂f / (λN)",
        "a forward pass and a convex fit of the head",
        "terms of a logit that add up to it",
        "explains the refitted head, not the network; ranks only",
        "wh.Representer()",
    ),
    _Method(
        "class-based",
        "−min_c of the mean score for clean references of class c",
        "the scores of 50 references a class",
        "any method's scores, where some rows are known to be right",
        "hurts cosines; plain sums may be better at the very top",
        "wh.class_based(attribution, references)",
    ),
    _Method(
        "baselines",
        "loss, margin, nearest neighbours, exact kNN-Shapley values, feature cosine, BM25, random",
        "a forward pass; N² products of features",
        "what a method must beat to be worth its cost",
        "rank only",
        "wh.LossBaseline(), wh.NeighbourShapley(), …",
    ),
    _Method(
        "training signals",
        "EL2N, forgetting counts, out-of-fold loss",
        "one training or several",
        "wrong labels, hard rows; no queries",
        "EL2N must stop early; out-of-fold loss takes a training a fold",
        "wh.el2n(recipe, train), wh.forgetting(…), wh.out_of_fold(…)",
    ),
)


def methods_command(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the attribution methods: formula, cost, when to use and when not.

    Example: whence methods --json
    """
    if as_json:
        print_json("methods", {"methods": [asdict(method) for method in METHODS]})
        return
    console = terminal()
    console.print("[dim]audit:  [/] whence audit DATA --method NAME")
    console.print("[dim]library:[/] wh.Influence(curvature=wh.NAME()).fit(task, train)")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for method in METHODS:
        table.add_row("", "")
        table.add_row("", f"[bold]{method.name}[/]  {escape(method.call)}")
        for what in ("formula", "cost", "use", "caution"):
            table.add_row(what, escape(str(getattr(method, what))))
    console.print(table)
