"""The interface of readers, the blocks of scenes that they yield, and their handling of damaged records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from pyro_lom.data.pictures import fit
from pyro_lom.data.writer import Position, Scene, stacked
from pyro_lom.errors import UserError

BLOCK_BYTES = 16 << 20  # of images in a block: small relative to memory, large enough for efficient writing


class Block(NamedTuple):
    """Some scenes, and the position in the source after them."""

    images: UInt8[np.ndarray, "n H W C"]
    labels: UInt8[np.ndarray, "n H W"] | None
    factors: dict[str, Shaped[np.ndarray, "n max_objects"]]
    place: Any
    """Position from which `Reader.blocks` continues after this block; serialisable as JSON."""
    done: int
    """Part of `Reader.total` that has been read after this block."""


@dataclass
class Damage:
    """Handles a damaged record: raises a UserError or, if `skip` is set, stores the position of the record."""

    source: str
    skip: bool
    positions: list[str]
    """Positions of the skipped records."""

    def __call__(self, position: str, reason: str) -> None:
        if not self.skip:
            raise UserError(
                f"{self.source}: {position} is damaged: {reason}; fetch it again, or pass --skip-damaged to leave out "
                "all that is damaged"
            )
        self.positions.append(position)

    def unless_damaged(self, read: Callable[[int], Scene], row: int) -> Scene | None:
        """Return `read(row)`; if it raises a UserError, report image `row` and return None."""
        try:
            return read(row)
        except UserError as error:
            self(f"image {row}", str(error))


class Reader:
    """A source of scenes. The constructor makes all checks that do not require reading every scene."""

    size: int
    """Height and width of the resulting images."""
    num_background: int
    total: int
    """Size of the source, in `unit`s."""
    unit: str = "scenes"
    """"B" for bytes, or "scenes"."""
    place_type: Any = Position
    """Type of the places, by which a journal is checked."""

    def blocks(self, place: Any, damage: Damage) -> Iterator[Block]:
        """Yield the scenes from `place` on, in bounded memory. A `place` of None is the start of the source.

        Raises:
            UserError: the source is damaged, and the damage cannot be skipped or `damage.skip` is not set.
        """
        scenes: list[Scene] = []
        for scene, reached, done in self._scenes(place, damage):
            if scene is not None:
                scenes.append(fitted(scene, self.size))
            if len(scenes) == max(1, BLOCK_BYTES // (3 * self.size**2)):
                yield Block(*stacked(scenes), reached, done)
                scenes = []
        if scenes:
            yield Block(*stacked(scenes), reached, self.total)

    def _scenes(self, place: Any, damage: Damage) -> Iterator[tuple[Scene | None, Any, int]]:
        """Yield each scene from `place` on, of any size, or None if it is left out; and `place` and `done` after it.

        Subclasses implement this method, or `blocks`.
        """
        raise NotImplementedError

    def splits(self, num_scenes: int) -> dict[str, range]:
        """Return the rows of each split, given the number of scenes that were read."""
        return genesis_splits(num_scenes)

    def notes(self, place: Any) -> list[str]:
        """Return remarks for the user about the scenes up to `place`, one line each."""
        return []


def fitted(scene: Scene, size: int) -> Scene:
    """Return the scene at `size`x`size` pixels, by `pictures.fit`: image bilinearly, labels by nearest neighbours."""
    image, labels, _ = scene
    image = fit(Image.fromarray(image), (size, size), Image.Resampling.BILINEAR)
    if labels is not None:
        labels = np.asarray(fit(Image.fromarray(labels), (size, size), Image.Resampling.NEAREST))
    return scene._replace(image=np.asarray(image), labels=labels)


def genesis_splits(num_scenes: int, views: int = 1) -> dict[str, range]:
    """Return splits as in GENESIS: first 10,000 scenes for testing, then 10,000 for validation, the rest for training.

    If there are fewer than 100,000 scenes, testing and validation each use a tenth of them. `views` successive scenes
    show the same objects, and stay in one split.
    """
    first, second = (k * (min(10_000, num_scenes // 10) // views * views) for k in (1, 2))
    splits = {"test": range(first), "validation": range(first, second), "train": range(second, num_scenes)}
    return {name: rows for name, rows in splits.items() if rows}
