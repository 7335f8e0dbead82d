"""A training step as one CUDA graph, for one GPU. It helps if launching kernels takes longer than running them."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_lom.errors import UserError
from pyro_lom.objective import Evaluation

WARM_UP = 3  # steps in which libraries choose algorithms and allocate workspaces


class CudaGraphStep:
    """Calls `step(images, inferred)` in the first `WARM_UP` calls, then records it once as a CUDA graph and replays it.

    The graph contains a step's kernels at fixed addresses. Python, Pyro's handlers and autograd run only while it is
    recorded. Everything that changes from step to step is therefore a tensor on the device:

    - Images and inferred posteriors are copied to the inputs of the graph.
    - Multipliers, their numbers of updates and the programs' `step` are buffers.
    - The learning rate is a tensor, and Adam is `capturable`.
    - Noise depends on the seed and the offset of the generator, which each replay reads.

    Every batch must have the shape of the first. Each call overwrites the result of the call before. Pyro's and torch's
    validation must be off, because it reads values back.
    """

    def __init__(self, step: Callable[[Tensor, Any], Evaluation], device: torch.device):
        self._step = step
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._num_warm_up = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Float[Tensor, "B C H W"], inferred: Any = None) -> Evaluation:
        """Take a step; raises UserError if CUDA cannot record it."""
        if self._num_warm_up < WARM_UP:
            self._num_warm_up += 1
            return self._warm_up(images, inferred)
        if self._graph is None:
            self._record(images, inferred)
        for own, given in zip(tree_leaves(self._inputs), tree_leaves((images, inferred)), strict=True):
            if isinstance(own, Tensor):
                own.copy_(given)
        self._graph.replay()
        return self._evaluation

    def _warm_up(self, images: Tensor, inferred: Any) -> Evaluation:
        """Take an ordinary step on the stream that records later."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            evaluation = self._step(images, inferred)
        current.wait_stream(self._stream)
        return evaluation

    def _record(self, images: Tensor, inferred: Any) -> None:
        self._inputs = tree_map_only(Tensor, Tensor.clone, (images, inferred))
        graph = torch.cuda.CUDAGraph()
        try:
            # "thread_local" lets the thread that reads minibatches continue.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._evaluation = self._step(*self._inputs)
        except RuntimeError as error:
            first: BaseException = error  # the end of a failed recording raises another error
            while first.__context__ is not None:
                first = first.__context__
            reason = (str(first).strip() or type(first).__name__).splitlines()[0]
            raise UserError(
                f"CUDA cannot record this step as a graph ({reason}): go on without --cuda-graph"
            ) from error
        self._graph = graph
