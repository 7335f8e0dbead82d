"""Where numbers stop being numbers."""

import torch
from lightning_fabric import Fabric
from torch import Tensor


class NonFiniteLoss(Exception):
    """A term of the objective, or a weight, became NaN or infinite."""


class NonFiniteWatch:
    """Remembers, on the device, in which step each term of an objective first became NaN or infinite.

    `never` is a step that does not come.
    """

    def __init__(self, never: int):
        self.never = never
        self._first: Tensor | None = None

    def note(self, step: int, terms: dict[str, Tensor]) -> None:
        """Nothing is read back."""
        self._sites = list(terms)
        bad = torch.where(torch.isfinite(torch.stack(list(terms.values()))), self.never, step)
        self._first = bad if self._first is None else torch.minimum(self._first, bad)

    def check(self, fabric: Fabric, last_good: str) -> None:
        """Read back, and compared over all processes.

        Raises:
            NonFiniteLoss: names site and step, and `last_good`.
        """
        first = fabric.all_reduce(self._first, reduce_op="min").tolist()
        step = min(first)
        if step < self.never:
            site = self._sites[first.index(step)]
            raise NonFiniteLoss(
                f"the loss is not finite: site {site} first became NaN or infinite in step {step}; {last_good}"
            )
