"""A stopwatch for the parts of a training step, forward and backward."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyro_lom.objective import Objective

_NETWORKS = {"decoder": "decoders", "likelihood": "ELBO"}  # other networks' parts depend on their pair


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Parts:
    """Adds up the seconds of each part of the steps that `optimizer` takes on `objective`.

    One part runs at a time. A network's part begins with its `forward`. In the backward pass it begins at a mark on the
    network's outputs and ends at a mark on its inputs. The hooks on `objective` and `optimizer` are not removed.
    """

    def __init__(self, objective: Objective, optimizer: Any, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._part, self._since = "", 0.0
        for pair in objective.pairs.values():
            for program in (pair.model, pair.guide):
                for child, network in program.named_children():
                    self._watch(network, _NETWORKS.get(child, "order networks" if pair.reads else "encoder"))
            if match := getattr(pair.guide, "match", None):
                pair.guide.match = self.within("matching")(match)
        optimizer.step = self.within("optimiser")(optimizer.step)

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, part: str) -> str:
        """Begin `part`, and return the part that ran before."""
        wait(self._device)
        now, before = time.perf_counter(), self._part
        if before:
            self.seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    def _watch(self, network: nn.Module, part: str) -> None:
        before: list[str] = []

        def enter(_, inputs):
            before.append(self.switch(part))
            return tree_map_only(Tensor, lambda tensor: _Mark.apply(tensor, self, "ELBO"), inputs)

        def leave(_, __, outputs):
            self.switch(before.pop())
            return tree_map_only(Tensor, lambda tensor: _Mark.apply(tensor, self, part), outputs)

        network.register_forward_pre_hook(enter)
        network.register_forward_hook(leave)


class _Mark(torch.autograd.Function):
    """The identity. Its backward pass begins another part."""

    @staticmethod
    def forward(ctx, tensor, parts, part):
        ctx.parts, ctx.part = parts, part
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        ctx.parts.switch(ctx.part)
        return gradient, None, None
