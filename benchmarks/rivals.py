"""What label-error detection is held against: cleanlab's scores, and tuned logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

try:
    from cleanlab.rank import get_label_quality_scores
except ImportError:
    get_label_quality_scores = None

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)


def label_quality(labels: np.ndarray, probabilities: np.ndarray, method: str) -> np.ndarray:
    """Return cleanlab's label quality [N] in 0 … 1 (small: suspect), by its package where it is installed.

    self_confidence is the probability of the given label; normalized_margin is
    (that − the largest probability of another label + 1) / 2.
    """
    rows = np.arange(len(labels))
    given = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    quality = given if method == "self_confidence" else (given - others.max(1) + 1) / 2
    if get_label_quality_scores is not None:
        theirs = get_label_quality_scores(labels, probabilities, method=method)
        assert np.allclose(theirs, quality), f"cleanlab's {method} must equal its formula"
        return np.asarray(theirs)
    return quality


def logistic_regressions(train: Any, test: Any, prepared: tuple[Any, Any]) -> dict[str, float]:
    """Return held-out accuracies of logistic regressions, the penalty chosen by validation on the training rows.

    One on the features usual for the kind of data (tf-idf of words and pairs, standardised and one-hot columns,
    pixels), one on the base model's own features where these are vectors.
    """
    accuracy = {"logistic_usual_features": _accuracy(_usual(train.kind), _rows(train), _rows(test), train, test)}
    if prepared[0].ndim == 2:
        own, held = (np.asarray(part.double()) for part in prepared)
        scaled = make_pipeline(StandardScaler(), _regression())
        accuracy["logistic_base_features"] = _accuracy(scaled, own, held, train, test)
    return accuracy


def _accuracy(pipeline: Pipeline, inputs: Any, held: Any, train: Any, test: Any) -> float:
    """Tune on the training rows, train again on all of them, return the accuracy on the test rows."""
    split = StratifiedShuffleSplit(2, test_size=0.2, random_state=0)
    search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, cv=split)
    return float(search.fit(inputs, train.labels).score(held, test.labels))


def _usual(kind: str) -> Pipeline:
    """Return features usual for the kind of data, then logistic regression."""
    if kind == "text":
        return make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2), _regression())
    if kind == "image":
        return make_pipeline(_regression(100))
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
    )
    return make_pipeline(columns, _regression())


def _regression(steps: int = 500) -> LogisticRegression:
    return LogisticRegression(max_iter=steps)


def _rows(data: Any) -> Any:
    """Return the content as scikit-learn takes it."""
    if data.kind == "image":
        return data.content.reshape(len(data), -1).astype(np.float32) / 255 - 0.5
    return data.content
