"""One training step."""

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_lom.objective import Evaluation
from pyro_lom.types import OrderlessPosterior


def take_step(
    fabric: Fabric,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Float[Tensor, "B C H W"],
    *,
    orderless: OrderlessPosterior | None = None,
    only: tuple[str, ...] | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> Evaluation:
    """One step of an objective that `fabric.setup` gave back as `module`, and of its multipliers.

    The batch is taken in `accumulate` equal parts, one after another, whose mean gradient is that of the whole.
    """
    parts = images.chunk(accumulate)
    given = [None] * len(parts)
    if orderless is not None:
        pieces = [part.chunk(accumulate) for part in (orderless.loc, orderless.scale)]
        given = [OrderlessPosterior(*piece) for piece in zip(*pieces, strict=True)]
    evaluations = []
    optimizer.zero_grad()
    for part, posterior in zip(parts, given, strict=True):
        with fabric.no_backward_sync(module, enabled=len(evaluations) + 1 < accumulate):
            evaluation = module(part, orderless=posterior, only=only)
            fabric.backward(evaluation.loss / accumulate)
        evaluations.append(tree_map(torch.detach, evaluation))
    evaluation = tree_map(lambda *values: sum(values) / accumulate, *evaluations)
    if clip_norm is not None:
        fabric.clip_gradients(module, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    module.update({name: fabric.all_reduce(error, reduce_op="mean") for name, error in evaluation.errors.items()})
    return evaluation
