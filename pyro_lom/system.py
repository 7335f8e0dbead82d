"""Systems: pairs of a model and a guide, each with the criterion that trains it."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lom.checks import check_images
from pyro_lom.elbo import Terms
from pyro_lom.program import Guide, Model


class Criterion(Protocol):
    """What a pair minimises: a plain ELBO (`TraceScene_ELBO`), a GECO rule (`geco.py`), or an annealed ELBO.

    All values are in nats per scene. A criterion with state is an `nn.Module` that keeps it in buffers.
    """

    def terms(self, model, guide, images: Tensor) -> Terms: ...  # of the ELBO, by site and scene
    def combine(self, terms: Terms) -> Float[Tensor, ""]: ...  # the loss of these terms
    def penalty(self, model: Model, guide: Guide) -> Float[Tensor, ""] | float: ...  # of the weights; 0 for most
    def update(self, error: Float[Tensor, ""]) -> None: ...  # once per step, with the error over all processes
    def report(self, error: float) -> dict[str, float]: ...  # numbers for log, progress bar and curves


class Pair(NamedTuple):
    """A model, its guide, and their criterion.

    `reads` is the name of the pair of the same system whose inferred posterior this pair's guide receives.
    """

    model: Model
    guide: Guide
    criterion: Criterion
    reads: str | None = None


System = dict[str, Pair]
"""Pairs by name in training order; the last one is the result."""


def result(system: System) -> Pair:
    """Return the last pair, which is the result of the system."""
    return list(system.values())[-1]


def infer(system: System, images: Float[Tensor, "B C H W"], names: Iterable[str] | None = None) -> dict[str, Any]:
    """Infer each posterior once, without gradients; return what each pair's guide receives as `inferred`.

    The keys are the pairs in `names`, or all pairs, and the pairs that they read.

    Raises:
        UserError: images are wrong, or a program is in training mode (`pyro_lom/checks.py: check_images`).
    """
    received: dict[str, Any] = {}
    sources = {name: system[name].reads or name for name in (system if names is None else names)}
    check_images(images, *(program for source in sources.values() for program in system[source][:2]))
    with torch.no_grad():
        for name, source in sources.items():
            if source not in received:
                received[source] = system[source].guide.infer(images)
            if source != name:
                received[name] = system[source].guide.pass_on(received[source])
    return received
