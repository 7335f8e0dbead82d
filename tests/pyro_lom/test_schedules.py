"""Ramps are constant, linear, constant."""

import pytest
import torch

from pyro_lom.schedules import Ramp


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (Ramp(10.0, 1.0, end=4), [10.0, 7.75, 5.5, 3.25, 1.0, 1.0]),
        (Ramp(1.0, 0.5, start=1, end=3), [1.0, 1.0, 0.75, 0.5, 0.5, 0.5]),
        (Ramp(0.0, 1.0, end=0), [1.0] * 6),
        (Ramp(0.0, 1.0, start=2, end=2), [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_a_ramp(ramp, expected):
    found = [ramp.at(torch.tensor(step)) for step in range(6)]
    assert [value.item() for value in found] == expected
    assert {value.shape for value in found} == {()}
