"""Fitted scikit-learn estimators as a module, a loss and a weight decay; scikit-learn itself is never imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor, nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError, DataError
from whence.tasks.estimator_losses import ClassWeighted, OneVersusRest, SquaredHinge
from whence.tasks.kernels import Kernel, KernelSpan
from whence.tasks.losses import BinaryCrossEntropy, CrossEntropy, MeanSquaredError, SmoothHinge, SmoothLoss

__all__ = ["FittedEstimator", "fitted_estimator"]

_CHUNK = 512

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedEstimator:
    """What a fitted estimator minimised, and how it takes rows. Made by `fitted_estimator`.

    Args:
        name: Its class.
        model: Its decision function, float64.
        loss: Its loss, without class weights.
        total_decay: ρ of (ρ/2)‖w‖² next to the summed loss.
        decay_factors: By name of a parameter, what ρ is multiplied with.
        batch_rows: Rows of a mini-batch, each of which carried the whole ρ; None if one step saw all rows.
        steps: Fitted transformers that came before it, by name.
        classes: Labels in the order of class positions; None where targets are numbers.
        features: Columns that it takes.
        columns: Their names, where it was fitted to a DataFrame without steps before it.
        class_weight: None, "balanced" or weights by label.
        rows: How many rows it was fitted to, where that can be known.
        stationary: Whether it is linear with a smooth objective, which has no gradient at the rows of the fit.
    """

    name: str
    model: nn.Module
    loss: SmoothLoss
    total_decay: float
    decay_factors: Mapping[str, float] = field(default_factory=dict)
    batch_rows: int | None = None
    steps: tuple[tuple[str, Any], ...] = ()
    classes: np.ndarray | None = None
    features: int = 0
    columns: np.ndarray | None = None
    class_weight: Any = None
    rows: int | None = None
    stationary: bool = False

    def __repr__(self) -> str:
        """Return the steps' and the estimator's names."""
        return " → ".join([*(name for name, _ in self.steps), self.name])

    def examples(self, data: Any, ids: Any) -> Examples:
        """Return examples of (X, y), or of X alone, as the estimator sees them.

        Raises:
            DataError: Rows, columns or labels do not fit it.
        """
        if isinstance(data, Examples):
            if data.prepared:
                return data
            raise DataError(
                f"examples for {self!r} must be rows that its steps have seen, got Examples of raw rows. "
                "Pass (X, y), or make them with task.examples((X, y), ids=...)."
            )
        pair = isinstance(data, (tuple, list)) and len(data) == 2
        x, y = data if pair else (data, None)
        if ids is None and isinstance(x, pd.DataFrame) and x.index.is_unique:
            ids = x.index.to_numpy()
        values = self._transformed(x)
        targets = None if y is None else self._targets(y)
        if targets is not None and len(targets) != values.shape[0]:
            raise DataError(
                f"X and y must have as many rows as each other, got {values.shape[0]} and {len(targets)}. "
                "Pass one label a row."
            )
        counted = as_examples(np.arange(values.shape[0]), ids=ids)
        return Examples(ids=counted.ids, fetch=_fetch(values, targets), prepared=True)

    def objective(self, examples: Examples) -> dict[str, Any]:
        """Return what of the task follows from the training examples: its weight decay and class weights.

        Raises:
            DataError: They are not those that the estimator was fitted to.
        """
        count = len(examples)
        if self.rows is not None and count != self.rows:
            raise DataError(
                f"training examples must be the {self.rows} rows that {self!r} was fitted to, got {count}. "
                "Pass the same X and y."
            )
        if examples.targets is None:
            raise DataError(f"training examples of {self!r} must have labels, got X alone. Pass (X, y).")
        loss = self._weighted(examples.targets)
        if self.stationary:
            self._check_rows(examples, loss)
        if self.batch_rows is not None and self.batch_rows < count:  # then one row fewer leaves a batch as it is
            return {"weight_decay": self.total_decay / self.batch_rows, "total_decay": None, "loss": loss}
        return {"total_decay": self.total_decay, "loss": loss}

    def _check_rows(self, examples: Examples, loss: SmoothLoss) -> None:
        """Raise unless the gradient of the objective is well below that at other rows of the same kind.

        There it is about (Σ‖∇ℓ_i‖²)^½ long, since nothing made the rows' gradients cancel. Cost: a pass over them.
        """
        named = dict(self.model.named_parameters())
        total = {name: self.total_decay * self.decay_factors.get(name, 1.0) * p.detach() for name, p in named.items()}
        squares = lengths = 0.0
        for batch in examples.batches(_CHUNK):
            assert batch.targets is not None
            outputs = self.model(batch.inputs).detach().requires_grad_()
            (slopes,) = torch.autograd.grad(loss(outputs, batch.targets).sum(), outputs)
            size = batch.inputs.square().sum(1) + len(total) - 1  # with a 1 for the bias
            squares += float((slopes.reshape(len(size), -1).square().sum(1) * size).sum())
            lengths += float(size.sum())
            total["weight"] += slopes.reshape(len(size), -1).T @ batch.inputs
            if "bias" in total:
                total["bias"] += slopes.reshape(len(size), -1).sum(0)
        found = sum(float(gradient.square().sum()) for gradient in total.values()) ** 0.5
        if found > 0.5 * squares**0.5 + 1e-8 * lengths**0.5:  # the latter is rounding where the fit is perfect
            raise DataError(
                f"training examples must be the rows that {self!r} was fitted to, to the minimum of its objective; its "
                f"gradient there is {found / max(squares**0.5, 1e-300):.2f} of what other rows would give. Pass the "
                "same X and y, fit without sample_weight, or to a smaller tol."
            )

    def _weighted(self, targets: Tensor) -> SmoothLoss:
        """Return the loss with the class weights that scikit-learn would have used."""
        if self.class_weight is None or self.classes is None:
            return self.loss
        if isinstance(self.class_weight, str):
            counts = torch.bincount(targets.long(), minlength=len(self.classes)).double()
            weights = tuple((len(targets) / (len(counts) * counts)).tolist())
        else:
            weights = tuple(float(self.class_weight.get(label, 1.0)) for label in self.classes.tolist())
        return ClassWeighted(self.loss, weights)

    def _transformed(self, x: Any) -> Any:
        """Return the rows after all steps, as a float64 array or sparse matrix [N, features]."""
        names = getattr(x, "columns", None)
        if self.columns is not None and names is not None and list(names) != self.columns.tolist():
            raise DataError(
                f"columns of X must be {self.columns.tolist()[:6]} as in the fit of {self.name}, got "
                f"{list(names)[:6]}. Select and order them alike."
            )
        x = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        for name, step in self.steps:
            try:
                x = step.transform(x)
            except Exception as error:  # a transformer may raise anything at rows that it does not know
                raise DataError(
                    f"X must be rows that step {name!r} takes, got: {error}. Pass X as the pipeline was fitted to it."
                ) from error
        try:
            values = x.tocsr().astype(np.float64) if scipy.sparse.issparse(x) else np.asarray(x, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"X must be numbers, got: {error}. Fit a pipeline whose first steps encode them."
            ) from error
        if values.ndim != 2 or values.shape[1] != self.features:
            raise DataError(
                f"X must be [N, {self.features}] for {self!r}, got shape {values.shape}. Pass the columns of the fit."
            )
        return values

    def _targets(self, y: Any) -> Tensor:
        """Return labels as class positions, numbers as they are."""
        values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if self.classes is None:
            try:
                return torch.from_numpy(np.array(values, dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise DataError(f"y must be numbers for {self!r}, got {values.dtype}. Encode it.") from error
        labels = values.reshape(-1)
        positions = pd.Index(self.classes).get_indexer(pd.Index(labels))
        if (positions < 0).any():
            raise DataError(
                f"labels must be among the classes {self.classes.tolist()[:10]} of {self!r}, got "
                f"{labels.tolist()[int(np.argmax(positions < 0))]!r}. Use the labels that it was fitted to."
            )
        return torch.from_numpy(positions.astype(np.int64))


def fitted_estimator(estimator: Any, temperature: float) -> FittedEstimator:
    """Read a fitted estimator, or a pipeline that ends in one; see `Task.from_sklearn`.

    Raises:
        ConfigError: It is not fitted, or none of those known.
    """
    steps: list[tuple[str, Any]] = []
    while "Pipeline" in _kinds(estimator):
        steps += [(name, step) for name, step in estimator.steps[:-1] if step not in (None, "passthrough")]
        estimator = estimator.steps[-1][1]
    name = type(estimator).__name__
    reader = next((_READERS[kind] for kind in _kinds(estimator) if kind in _READERS), None)
    if reader is None or "LogisticRegressionCV" in _kinds(estimator):
        raise ConfigError(
            f"estimator must be one of {sorted(_READERS)}, or a Pipeline that ends in one, got {name}. "
            "Write its model as a torch module and use Task(model, ...)."
        )
    if not any(hasattr(estimator, name) for name in ("coef_", "coefs_", "dual_coef_")):
        raise ConfigError(f"estimator must be fitted, got a {name} that is not. Call its fit(X, y) first.")
    read = reader(estimator, temperature)
    names = getattr(estimator, "feature_names_in_", None)
    columns = None if steps else names
    settings = {"features": int(estimator.n_features_in_), "class_weight": getattr(estimator, "class_weight", None)}
    span = read.pop("span", None)
    if span is not None:
        steps.append(("kernel", span))
        settings["features"] = span.size
    return FittedEstimator(name=name, steps=tuple(steps), columns=columns, **{**settings, **read})


def _logistic(estimator: Any, temperature: float) -> dict[str, Any]:
    """Read a LogisticRegression."""
    penalty, ratio = getattr(estimator, "penalty", "l2"), getattr(estimator, "l1_ratio", None)
    if (penalty in ("l1", "elasticnet") and (penalty == "l1" or ratio)) or (penalty == "deprecated" and ratio):
        raise _refused(estimator, "an l2 penalty or none", f"penalty={penalty!r} with l1_ratio={ratio!r}")
    classes = np.asarray(estimator.classes_)
    rest = estimator.solver == "liblinear" or getattr(estimator, "multi_class", "auto") == "ovr"
    if len(classes) == 2 and getattr(estimator, "multi_class", "auto") == "multinomial":
        raise _refused(estimator, "one logit for two classes", 'multi_class="multinomial"')
    loss: SmoothLoss = BinaryCrossEntropy()
    if len(classes) > 2:
        loss = OneVersusRest(loss) if rest else CrossEntropy()
    decay = 0.0 if penalty is None else 1.0 / float(estimator.C)
    return {
        "model": _linear(estimator), "loss": loss, "total_decay": decay, "classes": classes, "stationary": True,
        "decay_factors": _intercept(estimator, estimator.solver == "liblinear"),
    }  # fmt: skip


def _svc(estimator: Any, temperature: float) -> dict[str, Any]:
    """Read a LinearSVC."""
    if estimator.penalty != "l2":
        raise _refused(estimator, "an l2 penalty", f"penalty={estimator.penalty!r}")
    classes = np.asarray(estimator.classes_)
    smooth = SmoothHinge(temperature=temperature)
    loss: SmoothLoss = smooth if estimator.loss == "hinge" else SquaredHinge()
    if len(classes) > 2:
        loss = smooth if estimator.multi_class == "crammer_singer" else OneVersusRest(loss)
    elif estimator.multi_class == "crammer_singer":
        raise _refused(estimator, "one against the rest for two classes", 'multi_class="crammer_singer"')
    return {
        "model": _linear(estimator), "loss": loss, "total_decay": 1.0 / float(estimator.C), "classes": classes,
        "decay_factors": _intercept(estimator, True), "stationary": estimator.loss == "squared_hinge",
    }  # fmt: skip


def _kernel_svc(estimator: Any, temperature: float) -> dict[str, Any]:
    """Read an SVC of two classes: a linear one in coordinates of the span of its support vectors."""
    classes = np.asarray(estimator.classes_)
    if len(classes) != 2:
        raise _refused(estimator, "two classes", f"{len(classes)}")
    if not isinstance(estimator.kernel, str) or scipy.sparse.issparse(estimator.support_vectors_):
        wrong = "sparse rows" if isinstance(estimator.kernel, str) else f"kernel={estimator.kernel!r}"
        raise _refused(estimator, "a named kernel and dense rows", wrong)
    kernel = Kernel(
        name=estimator.kernel, gamma=float(estimator._gamma), degree=int(estimator.degree),
        offset=float(estimator.coef0),
    )  # fmt: skip
    span = KernelSpan(estimator.support_vectors_, kernel)
    return {
        "model": _layer(span.weights(estimator.dual_coef_), np.asarray(estimator.intercept_)), "span": span,
        "loss": SmoothHinge(temperature=temperature), "total_decay": 1.0 / float(estimator.C), "classes": classes,
        "decay_factors": {"bias": 0.0},
    }  # fmt: skip


def _ridge(estimator: Any, temperature: float) -> dict[str, Any]:
    """Read a Ridge: the squared error is a mean over outputs here, a sum there."""
    alphas = np.unique(np.asarray(estimator.alpha, dtype=np.float64))
    if len(alphas) > 1 or estimator.positive:
        wrong = "positive=True" if estimator.positive else f"alpha={alphas.tolist()[:4]}"
        raise _refused(estimator, "one alpha and free signs", wrong)
    model = _linear(estimator)
    return {
        "model": model, "loss": MeanSquaredError(), "total_decay": 2.0 * float(alphas[0]) / model.out_features,
        "decay_factors": _intercept(estimator, False), "stationary": True,
    }  # fmt: skip


def _network(estimator: Any, temperature: float) -> dict[str, Any]:
    """Read an MLPClassifier; the weight decay of a mini-batch is alpha over its rows."""
    if estimator.early_stopping:
        raise _refused(estimator, "all its rows to train on", "early_stopping=True, which held some out")
    modules: list[nn.Module] = []
    for position, (weights, bias) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        modules += [_ACTIVATIONS[estimator.activation]()] if position else []
        modules.append(_layer(weights.T, bias))
    model = nn.Sequential(*modules)
    full = estimator.solver == "lbfgs"
    several = estimator.out_activation_ == "softmax"
    classes = np.asarray(estimator.classes_)
    labels = None if len(classes) > 2 and not several else classes  # several labels a row stay 0/1
    batch = 200 if estimator.batch_size == "auto" else int(estimator.batch_size)
    seen = 0 if full or estimator.warm_start else estimator.t_ / max(1, estimator.n_iter_)
    return {
        "model": model.eval(), "loss": CrossEntropy() if several else BinaryCrossEntropy(),
        "total_decay": float(estimator.alpha), "batch_rows": None if full else batch, "classes": labels,
        "decay_factors": {name: 0.0 for name, _ in model.named_parameters() if name.endswith("bias")},
        "rows": int(seen) if seen and seen == int(seen) else None,
    }  # fmt: skip


_READERS: Mapping[str, Callable[[Any, float], dict[str, Any]]] = {
    "LinearSVC": _svc, "LogisticRegression": _logistic, "MLPClassifier": _network, "Ridge": _ridge, "SVC": _kernel_svc,
}  # fmt: skip


def _kinds(estimator: Any) -> list[str]:
    """Return the names of an estimator's classes that are scikit-learn's or derive from them."""
    kinds = type(estimator).__mro__
    theirs = any(kind.__module__.split(".")[0] == "sklearn" for kind in kinds)
    return [kind.__name__ for kind in kinds] if theirs else []


def _linear(estimator: Any) -> nn.Linear:
    """Return the decision function of a linear estimator."""
    weights = np.atleast_2d(estimator.coef_.toarray() if scipy.sparse.issparse(estimator.coef_) else estimator.coef_)
    bias = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), (len(weights),))
    return _layer(weights, bias if estimator.fit_intercept else None)


def _layer(weights: np.ndarray, bias: np.ndarray | None) -> nn.Linear:
    """Return a linear map in float64."""
    made = nn.Linear(weights.shape[1], weights.shape[0], bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(np.array(weights, dtype=np.float64)))
        if bias is not None:
            made.bias.copy_(torch.from_numpy(np.array(bias, dtype=np.float64)))
    return made.eval()


def _intercept(estimator: Any, decayed: bool) -> dict[str, float]:
    """Return the intercept's factor: liblinear decays b / intercept_scaling, other solvers leave it out."""
    if not estimator.fit_intercept:
        return {}
    return {"bias": 1.0 / float(estimator.intercept_scaling) ** 2 if decayed else 0.0}


def _refused(estimator: Any, expected: str, found: str) -> ConfigError:
    """Return the error for a setting without an objective that can be differentiated twice here."""
    return ConfigError(f"{type(estimator).__name__} must have {expected}, got {found}. Fit it with another setting.")


def _fetch(values: Any, targets: Tensor | None) -> Callable[[np.ndarray], tuple[Tensor, Tensor | None]]:
    """Return what gives rows of an array or a sparse matrix as tensors; only asked rows are ever made dense."""
    sparse = scipy.sparse.issparse(values)

    def fetch(rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        picked = values[rows].toarray() if sparse else values[rows]
        return torch.from_numpy(picked), None if targets is None else targets[torch.from_numpy(rows)]

    return fetch
