"""Data: examples with ids and fingerprints, readers, noise injectors."""

from whence.data.examples import Batch, Examples, id_keys, mix, uniform
from whence.data.labelled import Content, Kind, LabelledData
from whence.data.noise import Noise, other_class_noise, pair_noise, uniform_noise
from whence.data.queries import read_like
from whence.data.readers import ReadOptions, from_arrays, from_frame, read
from whence.data.rows import as_examples

__all__ = [
    "Batch",
    "Content",
    "Examples",
    "Kind",
    "LabelledData",
    "Noise",
    "ReadOptions",
    "as_examples",
    "from_arrays",
    "from_frame",
    "id_keys",
    "mix",
    "other_class_noise",
    "pair_noise",
    "read",
    "read_like",
    "uniform",
    "uniform_noise",
]
