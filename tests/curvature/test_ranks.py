"""The rank that more examples will need, against grids with noise of a known size."""

from __future__ import annotations

import math

import pytest
import torch

import whence as wh
import zoo
from whence.curvature import BlockPreconditioner, EigenInverse, with_rank_of
from whence.curvature.kronecker import low_rank

TOLERANCE = 0.07
DAMPING = 0.05


def noisy(count: int) -> tuple[int, BlockPreconditioner]:
    """Return a preconditioner as a fit to ``count`` examples gives it: noise of the mean of so many squares."""
    generator = torch.Generator().manual_seed(count)
    sides = [torch.logspace(0, -3, size, dtype=torch.float64) for size in (24, 40)]
    draws = torch.randn(24, 40, generator=generator, dtype=torch.float64)
    values = sides[0][:, None] * sides[1] * (1 + math.sqrt(2 / count) * draws).clamp(min=0.01)
    grid = 1 / (values + DAMPING * values.mean())
    u, v, _ = low_rank(grid, values.sum(1), values.sum(0), TOLERANCE)
    eye = torch.eye(24, dtype=torch.float64)
    inverse = EigenInverse(eye, torch.eye(40, dtype=torch.float64), 0, grid, u, v)
    damping = float(DAMPING * values.mean())
    return count, BlockPreconditioner({"0": inverse}, {"layers": {"0": {"damping": damping}}})


def rank(preconditioner: object) -> int:
    assert isinstance(preconditioner, BlockPreconditioner)
    inverse = preconditioner.inverses["0"]
    assert isinstance(inverse, EigenInverse)
    return len(inverse.u)


def test_the_rank_of_more_examples_is_found_from_few() -> None:
    few, more, whole = noisy(20), noisy(60), noisy(2000)
    found = rank(with_rank_of(2000, few, more, decay=0.0, tolerance=TOLERANCE))
    assert rank(more[1]) >= 2 * rank(whole[1]), "the case must be one in which noise takes rank"
    assert abs(found - rank(whole[1])) <= max(1, 0.5 * rank(whole[1]))


@pytest.mark.parametrize("count", [40, 60])
def test_no_extrapolation_to_as_many_or_fewer(count: int) -> None:
    few, more = noisy(20), noisy(60)
    assert rank(with_rank_of(count, few, more, decay=0.0, tolerance=TOLERANCE)) == rank(more[1])


def test_what_has_no_grid_stays_as_it_is() -> None:
    case = zoo.make("mlp", count=40)
    fitted = wh.Influence(curvature=wh.Identity()).fit(wh.Task(case.model), case.train).preconditioner
    found = with_rank_of(400, (10, fitted), (40, fitted), decay=0.0, tolerance=TOLERANCE)
    said = [(fit.state()[0], fit.summary()) for fit in (found, fitted)]
    assert said[0] == said[1]
