"""Per-example gradients, kept factored: capture, inner products, streaming passes."""

from whence.gradients.autograd import dense_query_gradients, parameter_gradients
from whence.gradients.capture import Tape, record
from whence.gradients.collected import Collected
from whence.gradients.factors import Factor, Gradients, Lookup, Matrix, Outer, by_columns, concatenate, squared_norm
from whence.gradients.layers import Coverage, Layer, find_layers
from whence.gradients.stream import (
    Chunk,
    Fisher,
    GradientStream,
    check_capture,
    chunk_size,
    decay_grids,
)

__all__ = [
    "Chunk",
    "Collected",
    "Coverage",
    "Factor",
    "Fisher",
    "GradientStream",
    "Gradients",
    "Layer",
    "Lookup",
    "Matrix",
    "Outer",
    "Tape",
    "by_columns",
    "check_capture",
    "chunk_size",
    "concatenate",
    "decay_grids",
    "dense_query_gradients",
    "find_layers",
    "parameter_gradients",
    "record",
    "squared_norm",
]
