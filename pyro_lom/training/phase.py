"""A phase of training, and its learning rates."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Decay = Literal["none", "linear", "halving", "cosine"]


@dataclass(frozen=True)
class Phase:
    """One phase of training. The paper trains both pairs in one phase; short trainings may train them in turn."""

    steps: int
    batch_size: int  # scenes per step on each device
    learning_rate: float
    warmup_steps: int = 0  # linear, from 0
    decay: Decay = "none"
    pairs: tuple[str, ...] | None = None  # names of the pairs that train, None for all; the others stay unchanged
    prepare: Callable[[], None] | None = None  # called once, before the phase's first step

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate at `step` of the phase, counted from 0.

        "linear" decays to 1/50 in the second half. "halving" decays by half every 100,000 steps after the warm-up.
        "cosine" decays to 1/100 by half a cosine after the warm-up, as NVAE's training does.
        """
        factor = 1.0
        if self.decay == "linear":
            factor = min(1.0, max(0.02, 2 * (1 - step / self.steps)))
        elif self.decay == "halving":
            factor = 0.5 ** (max(0, step - self.warmup_steps) / 100_000)
        elif self.decay == "cosine":
            share = min(1.0, max(0, step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
            factor = 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2
        return self.learning_rate * factor * min(1.0, (step + 1) / max(1, self.warmup_steps))
