"""Detection of NaN and infinite values during training."""

import torch
from lightning_fabric import Fabric
from torch import Tensor


class NonFiniteLoss(Exception):
    """Raised when a term of the objective, a weight or a tensor of the optimiser is NaN or infinite."""


class NonFiniteWatch:
    """Records, on the device, the step in which each term of an objective first became NaN or infinite.

    `never` is a number above all steps. It marks terms that stayed finite.
    """

    def __init__(self, never: int):
        self.never = never
        self._first: Tensor | None = None

    def note(self, step: int, terms: dict[str, Tensor]) -> None:
        """Record which terms are not finite in `step`. This does not synchronise with the device."""
        self._sites = list(terms)
        bad = torch.where(torch.isfinite(torch.stack(list(terms.values()))), self.never, step)
        self._first = bad if self._first is None else torch.minimum(self._first, bad)

    def check(self, fabric: Fabric, last_good: str) -> None:
        """Raise if a term was not finite in any recorded step of any process. This synchronises with the device.

        Raises:
            NonFiniteLoss: the message contains the first sites, their step and `last_good`.
        """
        first = fabric.all_reduce(self._first, reduce_op="min").tolist()
        step = min(first)
        if step < self.never:
            sites = ", ".join(site for site, number in zip(self._sites, first, strict=True) if number == step)
            raise NonFiniteLoss(
                f"the loss is not finite: site {sites} first became NaN or infinite in step {step}; {last_good}"
            )
