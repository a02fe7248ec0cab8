"""What a box refuses."""

from __future__ import annotations

import pytest
import torch

import whence as wh
from whence.uses.attack_box import Box


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("box", [Box(), Box(low=None, high=None)])
def test_inputs_that_are_not_finite_are_refused(box: Box, value: float) -> None:
    with pytest.raises(wh.ConfigError, match="inputs must be finite"):
        box.check(torch.tensor([[0.5, value]]))
    box.check(torch.tensor([[0.5, 0.0]]))
