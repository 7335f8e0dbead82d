"""One training step."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_lom.objective import Evaluation, Objective
from pyro_lom.types import OrderlessPosterior


def adam(parameters: Iterable[nn.Parameter], learning_rate: float, *, cuda_graph: bool = False) -> torch.optim.Adam:
    """Adam, fused; a CUDA graph finds the learning rate on the device."""
    parameters = list(parameters)
    if not cuda_graph:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    rate = torch.tensor(learning_rate, device=parameters[0].device)
    return torch.optim.Adam(parameters, lr=rate, fused=True, capturable=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def set_up(
    fabric: Fabric, objective: Objective, optimizer: torch.optim.Optimizer, only: Iterable[str] | None = None
) -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    """The pairs that train, all or those named in `only`, and their optimiser, as `take_step` wants them."""
    pairs = {name: fabric.setup_module(objective.pairs[name]) for name in (only or objective.pairs)}
    return pairs, fabric.setup_optimizers(optimizer)


def take_step(
    fabric: Fabric,
    pairs: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    images: Float[Tensor, "B C H W"],
    *,
    orderless: OrderlessPosterior | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> Evaluation:
    """One step of the `pairs` that `set_up` gave back, and of their multipliers.

    A pair's backward pass runs before the next pair's forward pass: their gradients do not meet, and the graph of one
    decoder is all that is held at once. The batch is taken in `accumulate` equal parts, one after another, whose mean
    gradient is that of the whole.
    """
    parts = images.chunk(accumulate)
    given = [None] * len(parts)
    if orderless is not None:
        pieces = [part.chunk(accumulate) for part in (orderless.loc, orderless.scale)]
        given = [OrderlessPosterior(*piece) for piece in zip(*pieces, strict=True)]
    evaluations = []
    optimizer.zero_grad()
    for number, (part, posterior) in enumerate(zip(parts, given, strict=True), start=1):
        total = Evaluation(0.0, {}, {})
        for pair in pairs.values():
            with fabric.no_backward_sync(pair, enabled=number < accumulate):
                evaluation, posterior = pair(part, orderless=posterior)
                fabric.backward(evaluation.loss / accumulate)
            total += tree_map(torch.detach, evaluation)
        evaluations.append(total)
    evaluation = tree_map(lambda *values: sum(values) / accumulate, *evaluations)
    if clip_norm is not None:
        # Of all that the optimiser holds, whichever module one names.
        fabric.clip_gradients(pair, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    for name, error in evaluation.errors.items():
        pairs[name].elbo.update(fabric.all_reduce(error, reduce_op="mean"))
    return evaluation
