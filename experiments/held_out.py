"""A run beside its held-out scenes, read batch by batch: what is kept of 10,000 images fits in memory."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from experiments.cli import progress
from experiments.loading import load_run
from experiments.reading import Reader, sample_scenes
from experiments.systems import Pair
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.stored import Array
from pyro_lom.errors import UserError
from pyro_lom.runs import Run
from pyro_lom.types import OrderlessPosterior, Rendering

SEED = 0  # of everything random: a number does not depend on which others are asked for
BATCH = 32  # a bound on memory, of the paper's decoders above all
_MEMORY = "evaluation.json"

Values = dict[str, float | None]


class Reading(NamedTuple):
    """What the system makes of images: slots, and the slot with the largest mask at each pixel, by source of the mask.

    The sources are "encoder", where the guide has masks, and the decoders of the "orderless" and "ordered" pairs.
    """

    slots: Float[Tensor, "N K Dz"]  # means of the orderless posterior, in its order
    segments: dict[str, UInt8[np.ndarray, "N H W"]]


class HeldOut:
    """A run's system, and the first `num_images` scenes of its test split (of the training split, where it has none).

    Raises:
        UserError: the folder is no run, its last checkpoint is damaged, or its data are gone.
    """

    def __init__(self, folder: Path, *, num_images: int | None = None):
        self.run = Run.open(folder)
        self.config, self.system, self.all_scenes = load_run(folder)
        self.scenes = self.all_scenes.split("test" if self.all_scenes.splits.get("test") else "train", num_images)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for program in (*self.system.orderless, *(self.system.ordered or ())):
            program.to(self.device)
        self.reader = Reader(self.system, self.device)

    def __len__(self) -> int:
        return len(self.scenes.images)

    @property
    def pairs(self) -> dict[str, Pair]:
        named = {"orderless": self.system.orderless, "ordered": self.system.ordered}
        return {name: pair for name, pair in named.items() if pair}

    @property
    def source(self) -> dict[str, str]:
        """What was trained, and on what: whatever is kept of a run counts for these alone."""
        data = f"{self.scenes.name}, version {self.scenes.version}"
        return {"checkpoint": self.run.checkpoints()[-1].name, "data": data}

    def remember(self, name: str, protocol: dict, compute: Callable[[], Values]) -> Values:
        """What the run's `evaluation.json` has by that name and of the same protocol; else computed, and written there.

        The protocol is `protocol`, the number of images and `source`.
        """
        protocol = protocol | {"num_images": len(self)} | self.source
        known = self._memory().get(name)
        if known is None or known["protocol"] != protocol:
            known = {"protocol": protocol, "values": compute()}
            self.run.write_json(_MEMORY, self._memory() | {name: known})  # read anew: others may have written
        return known["values"]

    def check_memory(self) -> None:
        """Refuse what cannot be read, before hours are spent.

        Raises:
            UserError: the run's `evaluation.json` is damaged.
        """
        try:
            self._memory()
        except UserError as error:
            raise UserError(f"{error}; remove the file to compute its numbers again") from error

    def _memory(self) -> dict:
        return self.run.read_json(_MEMORY) if (self.run.folder / _MEMORY).exists() else {}

    def batches(self, images: UInt8[Array, "N H W C"], what: str) -> Iterator[Float[Tensor, "B C H W"]]:
        """Images as models see them, on their device."""
        for first in progress(range(0, len(images), BATCH), what):
            yield float_images(images[first : first + BATCH]).to(self.device)

    def inferred(
        self, images: UInt8[Array, "N H W C"], what: str
    ) -> Iterator[tuple[Float[Tensor, "B C H W"], OrderlessPosterior]]:
        """The same, each batch beside its orderless posterior."""
        torch.manual_seed(SEED)
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
        torch.manual_seed(SEED)
        for first in progress(range(0, num_scenes, BATCH), what):
            yield sample_scenes(pair, min(BATCH, num_scenes - first), tau)


def segment(log_masks: Float[Tensor, "B K 1 H W"]) -> UInt8[np.ndarray, "B H W"]:
    """The slot with the largest mask at each pixel."""
    return log_masks.argmax(-4).squeeze(-3).to(torch.uint8).cpu().numpy()
