"""A stopwatch for the parts of a training step, forward and backward."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyro_lom.objective import Objective


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Parts:
    """Adds up the seconds of the parts of a step.

    One part runs at a time. A network's part begins where its `forward` does; backward, it begins at the mark on the
    network's outputs and ends at that on its inputs.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._part, self._since = "", 0.0

    def switch(self, part: str) -> str:
        """Begin `part`; returns what ran until now."""
        wait(self.device)
        now, before = time.perf_counter(), self._part
        if before:
            self.seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    @contextmanager
    def watched(self, objective: Objective, optimizer: Any) -> Iterator[None]:
        handles, matches = [], {}
        for name, pair in objective.pairs.items():
            for program in (pair.model, pair.guide):
                for child, network in program.named_children():
                    handles += self._watch(network, _part_of(name, child))
            if match := getattr(pair.guide, "match", None):
                matches[pair.guide] = match
                pair.guide.match = self._timed(match, "matching")
        before: list[str] = []
        handles.append(optimizer.register_step_pre_hook(lambda *_: before.append(self.switch("optimiser"))))
        handles.append(optimizer.register_step_post_hook(lambda *_: self.switch(before.pop()) and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for guide, match in matches.items():
                guide.match = match

    def _watch(self, network: nn.Module, part: str) -> list:
        before: list[str] = []

        def enter(_, inputs):
            before.append(self.switch(part))
            return tree_map_only(Tensor, lambda tensor: _Mark.apply(tensor, self, "ELBO"), inputs)

        def leave(_, __, outputs):
            self.switch(before.pop())
            return tree_map_only(Tensor, lambda tensor: _Mark.apply(tensor, self, part), outputs)

        return [network.register_forward_pre_hook(enter), network.register_forward_hook(leave)]

    def _timed(self, function: Callable, part: str) -> Callable:
        def timed(*arguments):
            with self.within(part):
                return function(*arguments)

        return timed


class _Mark(torch.autograd.Function):
    """The identity, at whose backward another part begins."""

    @staticmethod
    def forward(ctx, tensor, parts, part):
        ctx.parts, ctx.part = parts, part
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        ctx.parts.switch(ctx.part)
        return gradient, None, None


def _part_of(pair: str, child: str) -> str:
    if child in ("decoder", "likelihood"):
        return {"decoder": "decoders", "likelihood": "ELBO"}[child]
    return "encoder" if pair == "orderless" else "order networks"
