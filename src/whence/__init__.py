"""whence: which training examples caused a prediction, which are mislabelled, what would change without them."""

from whence.curvature import (
    CG,
    EKFAC,
    KFAC,
    BlockExact,
    DataInf,
    Diagonal,
    Exact,
    Identity,
    Lanczos,
    LiSSA,
    Neumann,
    Nystrom,
    Projected,
    Relative,
)
from whence.data import Examples, LabelledData, as_examples
from whence.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    NumericalError,
    RunFormatError,
    WhenceError,
)
from whence.methods import Influence, InfluenceAttribution, LeaveOneOut, load
from whence.scores import Scores, Signal
from whence.tasks import Recipe, Task
from whence.uses.label_errors import find_label_errors

__all__ = [
    "CG",
    "EKFAC",
    "KFAC",
    "BlockExact",
    "ConfigError",
    "DataError",
    "DataInf",
    "Diagonal",
    "Exact",
    "Examples",
    "Identity",
    "Influence",
    "InfluenceAttribution",
    "LabelledData",
    "Lanczos",
    "LeaveOneOut",
    "LiSSA",
    "MissingExtraError",
    "Neumann",
    "NumericalError",
    "Nystrom",
    "Projected",
    "Recipe",
    "Relative",
    "RunFormatError",
    "Scores",
    "Signal",
    "Task",
    "WhenceError",
    "__version__",
    "as_examples",
    "find_label_errors",
    "load",
]

__version__ = "0.1.0"
