"""Data: examples with ids and fingerprints, readers, noise injectors."""

from whence.data.examples import Batch, Examples, as_examples, id_keys, uniform
from whence.data.labelled import Kind, LabelledData

__all__ = ["Batch", "Examples", "Kind", "LabelledData", "as_examples", "id_keys", "uniform"]
