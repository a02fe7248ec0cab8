"""Humble baselines: what a method must beat to be worth its cost. They rank only; their unit is None."""

from whence.methods.baselines.base import BaselineAttribution
from whence.methods.baselines.bm25 import BM25
from whence.methods.baselines.difficulty import LossBaseline, MarginBaseline
from whence.methods.baselines.neighbours import Neighbours
from whence.methods.baselines.random import RandomBaseline
from whence.methods.baselines.shapley import NeighbourShapley
from whence.methods.baselines.similarity import Similarity

__all__ = [
    "BM25",
    "BaselineAttribution",
    "LossBaseline",
    "MarginBaseline",
    "NeighbourShapley",
    "Neighbours",
    "RandomBaseline",
    "Similarity",
]
