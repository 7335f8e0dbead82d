"""One training step after another."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_lom.cuda_graph import CudaGraphStep
from pyro_lom.objective import Evaluation, Objective
from pyro_lom.types import OrderlessPosterior


class TrainingStep:
    """Steps of an objective, or of those of its pairs named in `only`, and of their multipliers.

    A pair's backward pass runs before the next pair's forward pass: their gradients do not meet, and one pair's graph
    is all that is held at once. Pairs not named, and parameters that ask for no gradient, stand still.

    Args:
        accumulate: equal parts that a batch is taken in, one after another; their mean gradient is that of the whole.
        cuda_graph: record the step once and replay it (`cuda_graph.py`), on one GPU.
        make_optimizer: of a list of parameters; fused Adam by default.

    Attributes:
        trained: the parameters that train, by their names in the objective.
        optimizer: theirs, in this order.
    """

    def __init__(
        self,
        fabric: Fabric,
        objective: Objective,
        only: Iterable[str] | None = None,
        *,
        clip_norm: float | None = None,
        accumulate: int = 1,
        cuda_graph: bool = False,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    ):
        self.fabric, self.objective = fabric, objective
        self.clip_norm, self.accumulate = clip_norm, accumulate
        names = tuple(objective.pairs if only is None else only)
        self.trained = {
            f"pairs.{name}.{parameter_name}": parameter
            for name in names
            for parameter_name, parameter in objective.pairs[name].named_parameters()
            if parameter.requires_grad
        }
        if make_optimizer is None:
            # A graph finds the learning rate on the device.
            rate = torch.zeros((), device=fabric.device) if cuda_graph else 0.0
            make_optimizer = partial(torch.optim.Adam, lr=rate, fused=True, capturable=cuda_graph)
        self.pairs = {name: fabric.setup_module(objective.pairs[name]) for name in names}
        self.optimizer = fabric.setup_optimizers(make_optimizer([*self.trained.values()]))
        self._take = CudaGraphStep(self._evaluate_and_move, fabric.device) if cuda_graph else self._evaluate_and_move

    def __call__(
        self,
        images: Float[Tensor, "B C H W"],
        learning_rate: float,
        *,
        orderless: OrderlessPosterior | None = None,
    ) -> Evaluation:
        """Take a step on `images`.

        `orderless` hands over what the orderless guide found before; the ordered pair alone has to be given it.
        """
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        return self._take(images, orderless)

    def _evaluate_and_move(self, images: Tensor, orderless: OrderlessPosterior | None) -> Evaluation:
        """Everything that happens on the device: a CUDA graph holds this."""
        fabric, evaluations = self.fabric, []
        self.optimizer.zero_grad()
        for number, part in enumerate(images.chunk(self.accumulate)):
            found = None if orderless is None else orderless.map(lambda t, n=number: t.chunk(self.accumulate)[n])
            total = Evaluation(0.0, {}, {})
            for pair in self.pairs.values():
                with fabric.no_backward_sync(pair, enabled=number + 1 < self.accumulate):
                    evaluation, found = pair(part, orderless=found)
                    fabric.backward(evaluation.loss / self.accumulate)
                total += evaluation._replace(loss=evaluation.loss.detach())
            evaluations.append(total)
        evaluation = tree_map(lambda *values: sum(values) / self.accumulate, *evaluations)
        if self.clip_norm is not None:
            # Of all that the optimiser holds, whichever module is named.
            some_pair = next(iter(self.pairs.values()))
            fabric.clip_gradients(some_pair, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        errors = {name: fabric.all_reduce(error, reduce_op="mean") for name, error in evaluation.errors.items()}
        self.objective.update(errors)
        return evaluation
