"""One training step: forward and backward passes, optimiser, criteria."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from pyro_lom.errors import UserError
from pyro_lom.objective import Evaluation, Objective, pair_losses
from pyro_lom.training.checkpoints import check_tensors
from pyro_lom.training.cuda_graph import CudaGraphStep

MakeOptimizer = Callable[..., torch.optim.Optimizer]
FUSED_ADAM: MakeOptimizer = partial(torch.optim.Adam, fused=True)
_NOT_NEGATIVE = {"exp_avg_sq", "square_avg", "exp_inf"}  # of Adam, RMSprop and Adamax


class TrainingStep:
    """Takes training steps of the pairs of an objective, or only of the pairs in `only`.

    The backward pass of each summand of Eq. 9 runs before the next summand is computed, so only one pair's graph is in
    memory at a time. Other pairs and frozen parameters do not change.

    Args:
        accumulate: number of equal parts of a batch that are processed one after another. Their mean gradient is the
            gradient of the batch.
        cuda_graph: record the step once and replay it (`cuda_graph.py`), on one GPU.
        make_optimizer: maps a list of parameters to their optimiser; fused Adam by default. With `cuda_graph` it
            receives the keywords `lr`, a tensor, and `capturable` as well.

    Attributes:
        trained: the parameters that train, by their names in the objective.
        optimizer: the optimiser of these parameters, in this order.
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
        make_optimizer: MakeOptimizer = FUSED_ADAM,
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
        if cuda_graph:  # which reads the learning rate from the device
            make_optimizer = partial(make_optimizer, lr=torch.zeros((), device=fabric.device), capturable=True)
        self._slots = _slots(self.trained, make_optimizer)
        self.pairs = {name: fabric.setup_module(objective.pairs[name]) for name in names}
        self.optimizer = fabric.setup_optimizers(make_optimizer([*self.trained.values()]))
        self._take = CudaGraphStep(self._evaluate_and_move, fabric.device) if cuda_graph else self._evaluate_and_move

    def __call__(
        self, images: Float[Tensor, "B C H W"], learning_rate: float, *, inferred: Mapping[str, Any] | None = None
    ) -> Evaluation:
        """Take a step on `images`; `inferred` contains posteriors that are already computed, by pair."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        return self._take(images, inferred)

    def state(self) -> dict[str, Tensor]:
        """Return the state of the optimiser: a dict from "PARAMETER/SLOT", such as "NAME/exp_avg", to a tensor.

        A parameter that never had a gradient has a state of zeros, as before the first step.
        """
        names, tensors = [*self.trained], {}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{names[index]}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        zeros = {key: torch.zeros_like(slot, device="cpu") for key, slot in self._slots.items() if key not in tensors}
        return tensors | zeros

    def load_state(self, tensors: dict[str, Tensor], source: Path, *, num_steps: int) -> None:
        """Load a state that `state` returned after at most `num_steps` steps. Optimisers themselves check nothing.

        Raises:
            UserError: a tensor of the checkpoint in `source` has another name, dtype or shape than in this optimiser,
                or a number of steps is impossible.
        """
        what, remedy = f"the optimiser in the checkpoint in {source} is of another training", "restore its config.json"
        check_tensors(tensors, self._slots, what, remedy)
        indices, saved = {name: index for index, name in enumerate(self.trained)}, defaultdict(dict)
        for key, tensor in tensors.items():
            name, slot = key.rsplit("/", 1)
            if slot == "step" and not (0 <= tensor <= num_steps and tensor == tensor.round()):
                raise UserError(f"{what}: {key!r} is {tensor:g}, but the run has {num_steps} steps; {remedy}")
            if slot in _NOT_NEGATIVE and (tensor < 0).any():
                raise UserError(f"{what}: {key!r} is an average of squares or sizes, but negative; {remedy}")
            saved[indices[name]][slot] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": saved})

    def _evaluate_and_move(self, images: Tensor, inferred: Mapping[str, Any] | None) -> Evaluation:
        """Compute the gradients and update parameters and criteria. A CUDA graph contains all of this."""
        fabric, parts = self.fabric, []
        self.optimizer.zero_grad()
        for number, part in enumerate(images.chunk(self.accumulate)):
            known = tree_map_only(Tensor, lambda tensor, n=number: tensor.chunk(self.accumulate)[n], inferred)
            total = Evaluation(0.0, {}, {})
            with ExitStack() as stack:
                for pair in self.pairs.values():  # processes average the gradients of the last part only
                    stack.enter_context(fabric.no_backward_sync(pair, enabled=number + 1 < self.accumulate))
                for evaluation in pair_losses(self.pairs, part, known):
                    fabric.backward(evaluation.loss / self.accumulate)
                    total += evaluation._replace(loss=evaluation.loss.detach())
            parts.append(total)
        evaluation = tree_map(lambda *values: sum(values) / self.accumulate, *parts)
        if self.clip_norm is not None:
            # Fabric clips all parameters of the optimiser, and ignores which module it receives.
            some_pair = next(iter(self.pairs.values()))
            fabric.clip_gradients(some_pair, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        errors = {name: fabric.all_reduce(error, reduce_op="mean") for name, error in evaluation.errors.items()}
        self.objective.update(errors)
        return evaluation


def _slots(parameters: Mapping[str, nn.Parameter], make_optimizer: MakeOptimizer) -> dict[str, Tensor]:
    """Return tensors without memory of the names, dtypes and shapes that `TrainingStep.state` returns.

    An optimiser makes its state in its first step. Parameters of one element take this step here.
    """
    probes = [nn.Parameter(parameter.detach().new_zeros(1, 1)) for parameter in parameters.values()]
    for probe in probes:
        probe.grad = torch.zeros_like(probe)
    optimizer, slots = make_optimizer(probes), {}
    optimizer.step()
    for (name, parameter), probe in zip(parameters.items(), probes, strict=True):
        for slot, value in optimizer.state[probe].items():
            value = torch.as_tensor(value)
            shape = parameter.shape if value.shape == probe.shape else value.shape
            slots[f"{name}/{slot}"] = torch.empty(shape, dtype=value.dtype, device="meta")
    return slots
