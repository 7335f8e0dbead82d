"""Minibatches that depend only on seed and step, so that a resumed run receives the same minibatches."""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pyro_lom.data.stored import Array
from pyro_lom.errors import UserError


class Minibatches:
    """`minibatches(step)` returns the images that one process uses in one training step.

    Each epoch is a permutation of the images, drawn from (seed, epoch). It is divided into steps of
    `batch_size * world_size` images; the remainder is dropped. In each step, all processes together use the same images
    as a single process with a batch of that size.

    Args:
        images: uint8 (N, H, W, C), in memory or on disk.
        batch_size: number of images per process and step.
        seed: seed of the permutations, not negative.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        UserError: there are fewer than `batch_size * world_size` images.
    """

    def __init__(self, images: UInt8[Array, "N H W C"], batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        step_size = batch_size * world_size
        if len(images) < step_size:
            raise UserError(
                f"{len(images)} training images are fewer than the {step_size} of one step: lower the batch size "
                f"({batch_size} on each of {world_size} devices) or add images"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = len(images) // step_size
        self._step_size = step_size
        self._first = rank * batch_size
        self._epoch = -1

    def indices(self, step: int) -> Int[np.ndarray, "B"]:
        """Return the rows of `images` that this process uses at `step`."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
            self._epoch = epoch
        start = step_in_epoch * self._step_size + self._first
        return self._permutation[start : start + self.batch_size]

    def __call__(self, step: int) -> UInt8[Tensor, "B C H W"]:
        """Return the images of `step` on the CPU. Channels stay last in memory; the device reorders them."""
        return torch.from_numpy(self.images[self.indices(step)]).permute(0, 3, 1, 2)


def to_float(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return `images` as float32 in [0, 1], on the same device."""
    return images.to(torch.float32) / 255


def float_images(images: UInt8[Array, "N H W C"]) -> Float[Tensor, "N C H W"]:
    """Return stored images in the form that models take: in memory, channels first, float32 in [0, 1].

    Raises:
        UserError: images are not uint8 (N, H, W, C) with 1 or 3 channels.
    """
    stored = np.array(images)
    if stored.dtype != np.uint8 or stored.ndim != 4 or stored.shape[-1] not in (1, 3):
        given = f"{stored.dtype} {stored.shape}"
        raise UserError(f"images are {given}: float_images takes uint8 (N, H, W, C) from 0 to 255 with 1 or 3 channels")
    return to_float(torch.from_numpy(stored)).permute(0, 3, 1, 2).contiguous()
