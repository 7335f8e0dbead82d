"""A training step as one CUDA graph: an option for one GPU, where a step's launches take longer than its work."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lom.errors import UserError
from pyro_lom.objective import Evaluation
from pyro_lom.types import OrderlessPosterior

WARM_UP = 3  # steps that let libraries choose their algorithms and make their workspaces


class CudaGraphStep:
    """Takes the steps that `step(images, orderless)` takes, and after `WARM_UP` of them as one CUDA graph.

    The graph holds a step's kernels at fixed addresses: Python, Pyro's handlers and autograd run while it is recorded,
    and no more. So whatever changes from step to step has to be in tensors on the device. Images and posteriors are
    copied to where the graph reads them; multipliers and their counts of updates are buffers; the learning rate has to
    be a tensor, and Adam `capturable`; noise follows the generator, whose seed and offset each replay reads.

    Every batch has the shape of the first. What a call returns is overwritten by the next call. Validation has to be
    off, Pyro's and torch's: it reads values back.
    """

    def __init__(self, step: Callable[[Tensor, OrderlessPosterior | None], Evaluation], device: torch.device):
        self._step = step
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._num_warm_up = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Float[Tensor, "B C H W"], orderless: OrderlessPosterior | None = None) -> Evaluation:
        """Take a step.

        Raises:
            UserError: CUDA cannot record it.
        """
        if self._num_warm_up < WARM_UP:
            self._num_warm_up += 1
            return self._warm_up(images, orderless)
        if self._graph is None:
            self._record(images, orderless)
        self._images.copy_(images)
        if orderless is not None:
            self._orderless.map(Tensor.copy_, orderless)
        self._graph.replay()
        return self._evaluation

    def _warm_up(self, images: Tensor, orderless: OrderlessPosterior | None) -> Evaluation:
        """A step like any other, on the stream that records later."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            evaluation = self._step(images, orderless)
        current.wait_stream(self._stream)
        return evaluation

    def _record(self, images: Tensor, orderless: OrderlessPosterior | None) -> None:
        self._images = images.clone()
        self._orderless = None if orderless is None else orderless.map(Tensor.clone)
        graph = torch.cuda.CUDAGraph()
        try:
            # A thread that reads the next minibatch may go on.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._evaluation = self._step(self._images, self._orderless)
        except RuntimeError as error:
            first: BaseException = error  # what ends a recording that failed complains as well
            while first.__context__ is not None:
                first = first.__context__
            reason = (str(first).strip() or type(first).__name__).splitlines()[0]
            raise UserError(
                f"CUDA cannot record this step as a graph ({reason}): go on without --cuda-graph"
            ) from error
        self._graph = graph
