"""A run beside its held-out scenes, read batch by batch: what is kept of 10,000 images fits in memory."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from experiments.loading import load_run
from experiments.summary import Reader, sample_scenes
from experiments.systems import Pair
from pyro_lom.data.hdf5 import Scenes
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.stored import Array
from pyro_lom.runs import Run
from pyro_lom.types import OrderlessPosterior, Rendering

BATCH = 128


class Reading(NamedTuple):
    """What the system makes of images: slots, and the slot with the largest mask at each pixel, by source of the mask.

    The sources are "encoder", where the guide has masks, and the decoders of the "orderless" and "ordered" pairs.
    """

    slots: Float[Tensor, "N K Dz"]  # means of the orderless posterior, in its order
    segments: dict[str, UInt8[np.ndarray, "N H W"]]


class HeldOut:
    """A run's system, and the first `num_images` scenes of its test split (of all its scenes, where it has none).

    Everything random starts from `seed` anew, so that no number depends on which others are asked for.

    Raises:
        UserError: the folder is no run, its last checkpoint is damaged, or its data are gone.
    """

    def __init__(self, folder: Path, *, num_images: int | None = None, seed: int = 0):
        self.run = Run.open(folder)
        self.config, self.system, scenes = load_run(folder)
        self.all_scenes = scenes
        self.scenes = _first(scenes.split("test") if scenes.splits.get("test") else scenes, num_images)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for program in (*self.system.orderless, *(self.system.ordered or ())):
            program.to(self.device)
        self.reader = Reader(self.system, self.device)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.scenes.images)

    @property
    def pairs(self) -> dict[str, Pair]:
        named = {"orderless": self.system.orderless, "ordered": self.system.ordered}
        return {name: pair for name, pair in named.items() if pair}

    @property
    def labels(self) -> UInt8[np.ndarray, "N H W"]:
        return np.asarray(self.scenes.labels)

    def batches(self, images: UInt8[Array, "N H W C"], what: str) -> Iterator[Float[Tensor, "B C H W"]]:
        """Images as models see them, on their device."""
        for first in progress(range(0, len(images), BATCH), what):
            yield float_images(images[first : first + BATCH]).to(self.device)

    def inferred(
        self, images: UInt8[Array, "N H W C"], what: str
    ) -> Iterator[tuple[Float[Tensor, "B C H W"], OrderlessPosterior]]:
        """The same, each batch beside its orderless posterior."""
        torch.manual_seed(self.seed)
        for batch in self.batches(images, what):
            yield batch, self.reader.infer(batch)

    def read(self, images: UInt8[Array, "N H W C"], what: str) -> Reading:
        slots, segments = [], {}
        for batch, orderless in self.inferred(images, what):
            slots.append(orderless.loc.cpu())
            masks = {"encoder": orderless.log_masks}
            for name, pair in self.pairs.items():
                masks[name] = self.reader.reconstruct(pair, batch, orderless).log_masks
            for source, log_masks in masks.items():
                if log_masks is not None:
                    segments.setdefault(source, []).append(segment(log_masks))
        return Reading(torch.cat(slots), {source: np.concatenate(parts) for source, parts in segments.items()})

    @cached_property
    def reading(self) -> Reading:
        """Of the held-out scenes."""
        return self.read(self.scenes.images, "segmenting")

    def samples(self, pair: Pair, num_scenes: int, tau: float, what: str) -> Iterator[Rendering]:
        """Unconditional scenes, in batches."""
        torch.manual_seed(self.seed)
        for first in progress(range(0, num_scenes, BATCH), what):
            yield sample_scenes(pair, min(BATCH, num_scenes - first), tau)


def segment(log_masks: Float[Tensor, "B K 1 H W"]) -> UInt8[np.ndarray, "B H W"]:
    """The slot with the largest mask at each pixel."""
    return log_masks.argmax(-4).squeeze(-3).to(torch.uint8).cpu().numpy()


def progress(steps: range, what: str) -> tqdm:
    """A bar with the time left, gone when done."""
    return tqdm(steps, desc=what, leave=False, unit="batch", dynamic_ncols=True)


def _first(scenes: Scenes, num: int | None) -> Scenes:
    rows = range(min(num or len(scenes.images), len(scenes.images)))
    return replace(scenes, splits={"held out": rows}).split("held out")
