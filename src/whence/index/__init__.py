"""Features of training examples on disk, and searches over them; never a model."""

from whence.index.block import FLAT, Block, Layout, Part
from whence.index.index import Index, frame_of, open_index
from whence.index.manifest import KIND
from whence.index.products import Products
from whence.index.queries import Columns, Dense, QueryFeatures, QueryPart, Terms
from whence.index.search import TopK, best
from whence.index.writer import IndexWriter

__all__ = [
    "FLAT",
    "KIND",
    "Block",
    "Columns",
    "Dense",
    "Index",
    "IndexWriter",
    "Layout",
    "Part",
    "Products",
    "QueryFeatures",
    "QueryPart",
    "Terms",
    "TopK",
    "best",
    "frame_of",
    "open_index",
]
