"""L-BFGS with and without a change of variables."""

from __future__ import annotations

import numpy as np
import pytest

from whence.errors import NumericalError
from whence.tasks.convex import lbfgs

SIZE = 40


class Counted:
    """f(θ) = ½ (θ − c)ᵀ A (θ − c) + κ Σ (θ − c)⁴, eigenvalues of A from 1e-4 to 10, with its evaluations counted."""

    def __init__(self, quartic: float) -> None:
        generator = np.random.default_rng(0)
        basis = np.linalg.qr(generator.normal(size=(SIZE, SIZE)))[0]
        self.matrix = basis * np.logspace(-4, 1, SIZE) @ basis.T
        self.centre = generator.normal(size=SIZE)
        self.quartic = quartic
        self.count = 0

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        self.count += 1
        step = point - self.centre
        value = step @ self.matrix @ step / 2 + self.quartic * (step**4).sum()
        return float(value), self.matrix @ step + 4 * self.quartic * step**3

    def root(self) -> np.ndarray:
        """Return R with R Rᵀ = A⁻¹."""
        return np.linalg.cholesky(np.linalg.inv(self.matrix))


def test_with_the_exact_hessian_the_first_step_is_the_last() -> None:
    function = Counted(0.0)
    found = lbfgs(function, np.zeros(SIZE), gradient_norm=1e-10, inverse_root=function.root())
    np.testing.assert_allclose(found, function.centre, rtol=0, atol=1e-6)
    assert function.count <= 6


@pytest.mark.parametrize("quartic", [0.0, 1e-4, 1e-2])
def test_the_root_changes_the_path_and_not_the_end(quartic: float) -> None:
    plain, rooted = Counted(quartic), Counted(quartic)
    wanted = lbfgs(plain, np.zeros(SIZE), gradient_norm=1e-9)
    found = lbfgs(rooted, np.zeros(SIZE), gradient_norm=1e-9, inverse_root=rooted.root())
    for point in (wanted, found):
        assert np.linalg.norm(Counted(quartic)(point)[1]) <= 1e-9, "the norm is that of θ's gradient"
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    assert rooted.count < plain.count


def test_a_poor_root_only_costs_steps() -> None:
    function = Counted(1e-3)
    poor = np.diag(np.logspace(-0.5, 0.5, SIZE))
    found = lbfgs(function, np.zeros(SIZE), gradient_norm=1e-8, inverse_root=poor)
    assert np.linalg.norm(function(found)[1]) <= 1e-8


def test_a_start_at_the_minimum_is_returned() -> None:
    function = Counted(0.0)
    assert lbfgs(function, function.centre, gradient_norm=1e-9) is function.centre
    assert function.count == 1


def test_values_lost_in_rounding_do_not_stop_it() -> None:
    """A large constant hides the values' differences; gradients still lead to the minimum."""
    function = Counted(0.0)

    def shifted(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(point)
        return value + 1e9, gradient

    near = function.centre + 1e-6
    found = lbfgs(shifted, near, gradient_norm=1e-11, inverse_root=1.1 * function.root())
    assert np.linalg.norm(function(found)[1]) <= 1e-11
    with pytest.raises(NumericalError, match="gradient norm must reach"):
        lbfgs(shifted, near, gradient_norm=1e-11)
