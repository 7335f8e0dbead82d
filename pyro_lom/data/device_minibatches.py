"""Minibatches on the device of the training step, loaded before the step needs them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pyro_lom.data.minibatches import Minibatches

_SHARE = 0.25  # of a GPU's free memory that images may take
_BLOCK = 4096  # images copied to a GPU at once


class Minibatch(NamedTuple):
    images: UInt8[Tensor, "B C H W"]  # channels last in memory
    rows: Int[Tensor, "B"]  # of the data set


def on_device(batches: Minibatches, device: torch.device) -> Callable[[int], Minibatch]:
    """Return a function of the step that returns its minibatch on `device`; the CPU does not wait for the device."""
    if device.type != "cuda":
        return Loaded(batches)
    free, _ = torch.cuda.mem_get_info(device)
    fits = np.prod(batches.images.shape, dtype=float) <= _SHARE * free
    return Resident(batches, device) if fits else Prefetched(batches, device)


class Loaded:
    """Minibatches for a CPU, read when they are needed."""

    def __init__(self, batches: Minibatches):
        self.batches = batches

    def __call__(self, step: int) -> Minibatch:
        return Minibatch(self.batches(step), torch.from_numpy(self.batches.indices(step)))


class Resident:
    """Minibatches of images, uint8, that are all kept on the device."""

    def __init__(self, batches: Minibatches, device: torch.device):
        self.batches, self.device = batches, device
        self.images = torch.empty(batches.images.shape, dtype=torch.uint8, device=device)
        for first in range(0, len(self.images), _BLOCK):
            rows = slice(first, first + _BLOCK)
            self.images[rows].copy_(torch.from_numpy(np.array(batches.images[rows])))

    def __call__(self, step: int) -> Minibatch:
        rows = _sent(torch.from_numpy(self.batches.indices(step)), self.device)
        return Minibatch(self.images.index_select(0, rows).permute(0, 3, 1, 2), rows)


class Prefetched:
    """Minibatches that a thread reads into pinned memory while the device works on the previous one."""

    def __init__(self, batches: Minibatches, device: torch.device):
        self.batches, self.device = batches, device
        on_gpu = dict(initializer=torch.cuda.set_device, initargs=(device,)) if device.type == "cuda" else {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="minibatches", **on_gpu)
        self._next: tuple[int, Future] | None = None

    def __call__(self, step: int) -> Minibatch:
        expected, future = self._next or (None, None)
        if expected != step:
            future = self._reader.submit(self._read, step)
        images, rows = future.result()
        self._next = step + 1, self._reader.submit(self._read, step + 1)
        return Minibatch(_sent(images, self.device).permute(0, 3, 1, 2), _sent(rows, self.device))

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        rows = self.batches.indices(step)
        found = torch.from_numpy(self.batches.images[rows]), torch.from_numpy(rows)
        return tuple(map(_pinned, found)) if self.device.type == "cuda" else found


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device. It is made from pinned memory, so that the CPU does not wait for it."""
    return _pinned(tensor).to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
