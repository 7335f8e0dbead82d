"""Schedules: numbers that depend on the training step."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Ramp(NamedTuple):
    """A number that is `first` until step `start`, `last` from step `end` on, and linear between."""

    first: float
    last: float
    end: int
    start: int = 0

    def at(self, step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the number at `step`, on the step's device."""
        share = ((step - self.start) / max(1, self.end - self.start)).clamp_min(0)
        share = torch.where(step >= self.end, 1.0, share)
        return self.first * (1 - share) + self.last * share
