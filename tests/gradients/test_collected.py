"""Gradients joined in buffers that are used again equal those joined by concatenation."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.gradients import Collected, Gradients, Matrix, Outer, concatenate


def _part(rows: int, positions: int, multiplied: bool, seed: int) -> Gradients:
    """Return gradients of two layers, one of them multiplied out or not."""
    generator = torch.Generator().manual_seed(seed)
    outer = Outer(
        torch.randn(rows, positions, 3, generator=generator), torch.randn(rows, positions, 4, generator=generator)
    )
    other = torch.randn(rows, 2, 5, generator=generator)
    return Gradients({"one": Matrix(outer.matrix()) if multiplied else outer, "two": Matrix(other)})


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.booleans()), min_size=1, max_size=5),
    rounds=st.integers(1, 3),
)
def test_joined_equals_concatenated(shapes: list[tuple[int, int, bool]], rounds: int) -> None:
    """Whatever forms the parts have, and however often the buffers were used before."""
    held = Collected(sum(rows for rows, _, _ in shapes))
    for turn in range(rounds):
        parts = [_part(*shape, seed=10 * turn + i) for i, shape in enumerate(shapes)]
        for part in parts:
            held.add(part)
        assert held.count == held.rows
        joined, expected = held.joined(), concatenate(parts)
        assert held.count == 0
        for name, factor in expected.layers.items():
            assert torch.equal(joined.layers[name].matrix(), factor.matrix())
