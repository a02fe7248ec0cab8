"""Pairs of rows above a similarity, exactly and without comparing all pairs; groups around first rows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

__all__ = ["Similar", "SimilarTexts", "SimilarVectors", "image_vectors", "leaders", "normalised"]

Array: TypeAlias = "np.ndarray[Any, Any]"

SHINGLE = 4
BUCKETS = 1 << 22
BUDGET_SHINGLES = 24_000_000
BUDGET_PAIRS = 20_000_000
BLOCK = 1024
BUDGET_CANDIDATES = 5_000_000
PROJECTED = 12
IMAGE_SIDE = 16
WORDS = re.compile(r"\w+")


class Similar(Protocol):
    """Answers which of some rows resemble which of others."""

    rows: int
    limited: bool  # some candidates were left out to stay within the work budget

    def pairs(self, some: Array, others: Array) -> tuple[Array, Array]:
        """Positions [P] in ``some`` and [P] in ``others`` of pairs of two rows at or above the similarity."""
        ...

    def all_pairs(self) -> tuple[Array, Array] | None:
        """Earlier and later row of every pair, or None if they must be asked for block by block."""
        ...


def leaders(similar: Similar) -> Array:
    """Give every row the first earlier row that leads a group and resembles it, else itself.

    Every row resembles its leader directly, so that groups do not grow by chains.

    Returns:
        [N] int64, ``leader[i] <= i``.

    Cost: N / 1024 calls of ``similar.pairs`` against the leaders so far.
    """
    found = similar.all_pairs()
    if found is not None:
        return _assigned(similar.rows, *found)
    leader = np.arange(similar.rows, dtype=np.int64)
    known = np.zeros(0, dtype=np.int64)
    for start in range(0, similar.rows, BLOCK):
        block = np.arange(start, min(start + BLOCK, similar.rows))
        left, right = similar.pairs(block, known)
        first = np.full(len(block), similar.rows, dtype=np.int64)
        np.minimum.at(first, left, known[right])
        joined = first < similar.rows
        leader[block[joined]] = first[joined]
        open_rows = block[~joined]
        left, right = similar.pairs(open_rows, open_rows)
        earlier = right < left
        leader[open_rows] = open_rows[_assigned(len(open_rows), right[earlier], left[earlier])]
        known = np.concatenate([known, open_rows[leader[open_rows] == open_rows]])
    return leader


def _assigned(rows: int, earlier: Array, later: Array) -> Array:
    """The same for given pairs: rows in order join the first leader that they are paired with."""
    leader = list(range(rows))
    order = np.lexsort((earlier, later))
    for row, other in zip(later[order].tolist(), earlier[order].tolist(), strict=True):
        if leader[row] == row and leader[other] == other:
            leader[row] = other
    return np.array(leader, dtype=np.int64)


def normalised(text: str) -> str:
    """Letters and digits only, folded, single spaces: what a reader would call the same text."""
    words = " ".join(WORDS.findall(unicodedata.normalize("NFKC", text).casefold()))
    return words if len(words) >= 8 else text


class SimilarTexts:
    r"""Pairs of texts by the Jaccard similarity of their sets of 4-character shingles.

    $J(A, B) = |A \cap B| / |A \cup B| \ge t$ implies that A and B share l of the
    $|A| - \lceil t|A| \rceil + l$ rarest shingles of each; only such pairs are compared (exact, no sketch).

    Args:
        texts: N texts.
        similarity: t in (0, 1].

    Reference: Bayardo, Ma and Srikant 2007, "Scaling up all pairs similarity search". Deviations: shingles
    are hashed to 22 bits; beyond 24 million shingles in all, a fixed share of shingle values is used;
    a block whose common shingles would give over 20 million candidates ignores the commonest.
    """

    def __init__(self, texts: Sequence[str], similarity: float) -> None:
        self.rows = len(texts)
        self.limited = False
        self.similarity = similarity
        document, column = _shingles(texts)
        self.sizes = np.bincount(document, minlength=self.rows)
        document, number = _rarest_first(document, column)
        rank = np.arange(len(number)) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
        needed = np.ceil(similarity * self.sizes - 1e-9).astype(np.int64)
        self.shared = np.maximum((self.sizes - needed + 1) // 4, 1)
        prefix = rank < np.repeat(self.sizes - needed + self.shared, self.sizes)
        common = number >= 0  # a shingle of one text is shared with none
        shape = (self.rows, int(number.max(initial=0)) + 1)
        self.sets = _rows_of(document[common], number[common], shape)
        self.prefixes = _rows_of(document[common & prefix], number[common & prefix], shape)

    def pairs(self, some: Array, others: Array) -> tuple[Array, Array]:
        """Positions of the pairs at or above the similarity."""
        if not len(some) or not len(others):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        left, right, count = self._candidates(self.prefixes[some], self.prefixes[others])
        enough = count >= np.minimum(self.shared[some[left]], self.shared[others[right]])
        left, right = left[enough], right[enough]
        small = np.minimum(self.sizes[some[left]], self.sizes[others[right]])
        large = np.maximum(self.sizes[some[left]], self.sizes[others[right]])
        possible = small >= self.similarity * large - 1e-9
        left, right = left[possible], right[possible]
        good = np.zeros(len(left), dtype=bool)
        for start in range(0, len(left), 20_000):
            part = slice(start, start + 20_000)
            a, b = some[left[part]], others[right[part]]
            shared = np.asarray(self.sets[a].multiply(self.sets[b]).sum(axis=1)).ravel()
            good[part] = shared >= self.similarity * (self.sizes[a] + self.sizes[b] - shared) - 1e-6
        return left[good], right[good]

    def all_pairs(self) -> tuple[Array, Array] | None:
        """None: texts are asked for block by block."""
        return None

    def _candidates(self, some: Any, others: Any) -> tuple[Array, Array, Array]:
        """Pairs that share rare shingles, and how many."""
        width = some.shape[1]
        here = np.bincount(some.indices, minlength=width)
        there = np.bincount(others.indices, minlength=width)
        work = here.astype(np.int64) * there
        if int(work.sum()) > BUDGET_PAIRS:
            self.limited = True
            busy = np.argsort(work)
            allowed = np.zeros(width, dtype=bool)
            allowed[busy[np.cumsum(work[busy]) <= BUDGET_PAIRS]] = True
            some.data = some.data * allowed[some.indices]
            some.eliminate_zeros()
        found = (some @ others.T).tocoo()
        return found.row.astype(np.int64), found.col.astype(np.int64), found.data


def _rarest_first(document: Array, column: Array) -> tuple[Array, Array]:
    """Shingles by document and then by rarity, numbered by it; -1 for those that only one text has."""
    frequency = np.bincount(column, minlength=BUCKETS)
    used = np.flatnonzero(frequency)
    rarity = np.zeros(BUCKETS, dtype=np.int64)
    rarity[used[np.argsort(frequency[used], kind="stable")]] = np.arange(len(used))
    keys = np.sort(document * BUCKETS + rarity[column])
    alone = int((frequency == 1).sum())
    return keys // BUCKETS, np.maximum(keys % BUCKETS - alone, -1)


def _rows_of(document: Array, column: Array, shape: tuple[int, int]) -> Any:
    """A sparse 0/1 matrix from sorted row numbers and their columns."""
    start = np.concatenate([[0], np.cumsum(np.bincount(document, minlength=shape[0]))])
    return sparse.csr_matrix((np.ones(len(column), dtype=np.float32), column, start), shape=shape)


def _shingles(texts: Sequence[str]) -> tuple[Array, Array]:
    """Document and hashed value of every distinct shingle of every text."""
    total = sum(map(len, texts)) + 2 * len(texts)
    stride = -(-total // BUDGET_SHINGLES)
    documents, columns = [], []
    start = 0
    while start < len(texts):
        stop, length = start, 0
        while stop < len(texts) and (stop == start or length + len(texts[stop]) < 4_000_000):
            length += len(texts[stop])
            stop += 1
        document, column = _hashed(texts[start:stop], stride)
        documents.append(document + start)
        columns.append(column)
        start = stop
    if not documents:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate(documents), np.concatenate(columns)


def _hashed(texts: Sequence[str], stride: int) -> tuple[Array, Array]:
    """The same for one chunk of texts: windows of four code points, mixed to 22 bits."""
    padded = [f" {' '.join(text.casefold().split())} ".ljust(SHINGLE) for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    points = points.astype(np.uint64)
    sizes = np.array([len(text) for text in padded])
    document = np.repeat(np.arange(len(padded)), sizes)
    windows = len(points) - SHINGLE + 1
    mixed = np.zeros(windows, dtype=np.uint64)
    for offset in range(SHINGLE):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + points[offset : offset + windows]
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    inside = document[:windows] == document[SHINGLE - 1 :]
    if stride > 1:
        inside &= (mixed >> np.uint64(40)) % np.uint64(stride) == 0
    bucket = (mixed[inside] & np.uint64(BUCKETS - 1)).astype(np.int64)
    keys = np.sort(document[:windows][inside].astype(np.int64) * BUCKETS + bucket)
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    return keys // BUCKETS, keys % BUCKETS


class SimilarVectors:
    r"""Pairs of vectors by cosine, $\cos(u, v) \ge t$.

    For unit vectors $\|u - v\|^2 = 2 - 2\cos(u, v)$, and with P orthonormal the map
    $u \mapsto (Pu, \|u - P^\top P u\|)$ brings no two vectors farther apart: candidates come from a k-d tree
    in the 12 leading principal directions (from blockwise matrix products if there would be over five
    million), and are verified in full.

    Args:
        vectors: [N, D] numbers, centred as the caller wants; zero vectors resemble nothing.
        similarity: t in (0, 1].
    """

    def __init__(self, vectors: Array, similarity: float) -> None:
        self.rows = len(vectors)
        self.limited = False
        self.similarity = similarity
        norms = np.linalg.norm(vectors, axis=1)
        self.some = np.flatnonzero(norms > 1e-12)
        self.units = (vectors / np.where(norms > 1e-12, norms, 1.0)[:, None]).astype(np.float32)  # [N, D]
        projected = self.units
        if vectors.shape[1] > PROJECTED:
            sample = self.units[:: max(self.rows // 4096, 1)].astype(np.float64)
            _, directions = np.linalg.eigh(sample.T @ sample)
            projected = self.units @ directions[:, -PROJECTED:].astype(np.float32)  # [N, 12]
        rest = np.sqrt(np.clip(1.0 - (projected.astype(np.float64) ** 2).sum(axis=1), 0.0, 1.0))
        self.points = np.column_stack([projected, rest]).astype(np.float32)  # [N, 13]

    def all_pairs(self) -> tuple[Array, Array] | None:
        """Earlier and later row of every pair; None if the candidates are too many to list."""
        if len(self.some) < 2:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        points = self.points[self.some].astype(np.float64)
        radius = float(np.sqrt(max(2.0 - 2.0 * self.similarity, 0.0))) + 1e-3
        step = max(len(points) // 1000, 1)
        tree = cKDTree(points)
        expected = step * int(cKDTree(points[::step]).count_neighbors(tree, radius)) // 2
        if expected > BUDGET_CANDIDATES:
            return None
        pairs = self.some[tree.query_pairs(radius, output_type="ndarray")]  # [P, 2]
        good = self._verified(pairs[:, 0], pairs[:, 1])
        return pairs[good].min(axis=1), pairs[good].max(axis=1)

    def pairs(self, some: Array, others: Array) -> tuple[Array, Array]:
        """Positions of the pairs at or above the similarity, by matrix products."""
        lefts, rights = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(others), 8192):
            part = others[start : start + 8192]
            left, right = np.nonzero(self.points[some] @ self.points[part].T >= self.similarity - 1e-5)
            good = self._verified(some[left], part[right])
            lefts.append(left[good])
            rights.append(right[good] + start)
        return np.concatenate(lefts), np.concatenate(rights)

    def _verified(self, first: Array, second: Array) -> Array:
        """[P] bool: the cosine of the whole vectors reaches the similarity."""
        good = np.zeros(len(first), dtype=bool)
        for start in range(0, len(first), 50_000):
            part = slice(start, start + 50_000)
            cosine = np.einsum("pd,pd->p", self.units[first[part]], self.units[second[part]])
            good[part] = cosine >= self.similarity - 1e-6
        return good


def image_vectors(images: Array) -> Array:
    """Images as centred vectors of at most 16 x 16 means per channel, float32 [N, D]."""
    rows, height, width, channels = images.shape
    down, across = -(-height // IMAGE_SIDE), -(-width // IMAGE_SIDE)
    kept_height, kept_width = height - height % down, width - width % across
    vectors = np.empty((rows, (kept_height // down) * (kept_width // across) * channels), dtype=np.float32)
    for start in range(0, rows, BLOCK):
        block = images[start : start + BLOCK, :kept_height, :kept_width].astype(np.float32)
        cells = block.reshape(len(block), kept_height // down, down, kept_width // across, across, channels)
        vectors[start : start + BLOCK] = cells.mean(axis=(2, 4)).reshape(len(block), -1)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors
