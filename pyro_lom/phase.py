"""A stretch of training, and its learning rates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Phase:
    """A stretch of training. The paper has one, of both pairs; a short training may take the pairs in turn.

    `pairs` names those whose ELBO is maximised, None means all; the others stand still. `prepare` runs once, at the
    phase's first step.
    """

    steps: int
    batch_size: int  # scenes a step, on each device
    learning_rate: float
    warmup_steps: int = 0  # linear, from 0
    decay: Literal["none", "linear", "halving"] = "none"
    pairs: tuple[str, ...] | None = None
    prepare: Callable[[], None] | None = None

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the phase's own step 0, 1, ...

        "linear" falls to a fiftieth over the second half; "halving" is continuous, by a half every 100,000 steps after
        the warm-up.
        """
        factor = 1.0
        if self.decay == "linear":
            factor = min(1.0, max(0.02, 2 * (1 - step / self.steps)))
        elif self.decay == "halving":
            factor = 0.5 ** (max(0, step - self.warmup_steps) / 100_000)
        return self.learning_rate * factor * min(1.0, (step + 1) / max(1, self.warmup_steps))
