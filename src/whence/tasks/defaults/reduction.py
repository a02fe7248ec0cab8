"""Leading singular directions of a large sparse matrix, in few products."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

__all__ = ["leading_directions"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Product: TypeAlias = Callable[[Tensor], Tensor]

_STEPS = 4
_SMALL = 2
_ROUNDING = 1e-3


def leading_directions(matrix: sp.csr_matrix, dimensions: int, seed: int = 0) -> tuple[Array, Array]:
    r"""Return the leading right singular vectors and singular values of a sparse matrix.

    Block Krylov iteration: with A = X Xᵀ and a random block Ω of D/2 columns, the Rayleigh–Ritz vectors of
    [AΩ, A²Ω, …, A⁴Ω], every block made orthogonal to the ones before it. On 7,600 news texts it takes half the time of
    subspace iteration with four steps and D + 10 columns, and the perceptron on top is as accurate; with one step
    of subspace iteration it is not.

    Args:
        matrix: X [N, K], float32.
        dimensions: D, at most min(N, K).
        seed: Seed of Ω.

    Returns:
        Directions V [K, D] with orthonormal columns and values s [D], largest first, as float32; fewer than D where
        the rank is smaller.

    Cost: about 3·D products of X and of Xᵀ with a vector; 2·D·(N + K) numbers. Dense and exact where D is more than
    half the smaller side.

    Reference: Musco & Musco (2015), Randomized block Krylov methods.

    Example:
        >>> x = sp.random(300, 200, 0.1, "csr", random_state=0) @ sp.diags_array(0.9 ** np.arange(200))
        >>> directions, values = leading_directions(x.astype(np.float32), 10)
        >>> bool(np.allclose(values, np.linalg.svd(x.toarray(), compute_uv=False)[:10], rtol=1e-2))
        True
    """
    rows, columns = matrix.shape
    if min(rows, columns) <= _SMALL * dimensions:
        return _exact(matrix.astype(np.float64), dimensions)
    forward, backward = _product(matrix), _product(matrix.T.tocsr())
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(rows, -(-dimensions // 2), generator=generator)
    basis = torch.empty(rows, 0)
    for _ in range(_STEPS):
        block = forward(backward(block))
        for _ in range(2):  # the second time for what rounding left, also where the rank is exhausted
            block = torch.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis = torch.cat([basis, block], 1)  # [N, steps·D/2]
    image = backward(basis)  # [K, steps·D/2]
    squares, vectors = torch.linalg.eigh((image.T @ image).double())
    values = squares.flip(0)[:dimensions].clamp(min=0).sqrt()
    right = image.double() @ vectors.flip(1)[:, :dimensions] / values.clamp(min=1e-12)
    return _kept(right.numpy(), values.numpy())


def _exact(matrix: sp.csr_matrix, dimensions: int) -> tuple[Array, Array]:
    """Return the directions from the Gram matrix of the smaller side, in float64."""
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = np.linalg.eigh((matrix @ matrix.T if wide else matrix.T @ matrix).toarray())
    values = np.sqrt(np.maximum(squares[::-1][:dimensions], 0.0))
    vectors = vectors[:, ::-1][:, :dimensions]
    return _kept(matrix.T @ vectors / np.maximum(values, 1e-12) if wide else vectors, values)


def _kept(right: Array, values: Array) -> tuple[Array, Array]:
    """Return the directions whose values are above rounding (of squares in single precision), as float32."""
    kept = values > _ROUNDING * max(float(values[0]), 1e-30)
    return np.ascontiguousarray(right[:, kept], dtype=np.float32), values[kept].astype(np.float32)


def _product(matrix: sp.csr_matrix) -> Product:
    """Return the product with a block of columns: torch's where it has a fast one, else scipy's."""
    if not torch.backends.mkl.is_available():
        return lambda block: torch.from_numpy(matrix @ block.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse layout a beta
        stored = torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            size=matrix.shape,
        )
    return lambda block: stored @ block
