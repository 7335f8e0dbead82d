"""The interface of readers, the blocks of scenes that they yield, and their handling of damaged records."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from pyro_lom.data.pictures import fit_pixels
from pyro_lom.data.scenes import last_tenth_for_testing
from pyro_lom.data.writer import Position, Scene, stacked
from pyro_lom.errors import UserError

BLOCK_BYTES = 16 << 20  # of images in a block: small relative to memory, large enough for efficient writing

_MAX_DAMAGED = 10_000  # records that are skipped; their positions are written to the journal with each block


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
    """Handles a damaged record: raises a UserError or, if `skip` is set, stores the position of the record.

    More than 10,000 damaged records raise a UserError in any case.
    """

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
        if len(self.positions) == _MAX_DAMAGED:
            raise UserError(f"{self.source}: more than {_MAX_DAMAGED} records or images are damaged: fetch it again")
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
    pad: bool = False
    """Whether images that are not square get black borders, instead of being cropped."""
    num_channels: int = 3
    """Number of channels of the resulting images."""
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
                scenes.append(fitted(scene, self.size, pad=self.pad))
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

    def remarks(self) -> list[str]:
        """Return what the source contains, one line each, before it is read."""
        return []

    def notes(self, place: Any) -> list[str]:
        """Return remarks for the user about the scenes up to `place`, one line each."""
        return []


class RowPlace(TypedDict):
    row: Position
    damaged: list[Position]
    on_white: Position


class _Joined(Sequence):
    """The rows of several ranges, one after another. `ends` are the positions of their ends, after a 0."""

    def __init__(self, ranges: list[range], ends: list[int]):
        self._ranges, self._ends = ranges, ends

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> int:
        if not 0 <= number < len(self):
            raise IndexError(number)
        place = bisect_right(self._ends, number) - 1
        return self._ranges[place][number - self._ends[place]]


class RowReader(Reader):
    """A reader whose source has numbered scenes, perhaps in splits. A subclass reads one scene by `_scene(row)`.

    Args:
        splits: rows of the source by split; None means that the source has no splits.
        num_rows: number of scenes in the source.
        num: number of scenes to read, in proportion from each split; None reads all.
    """

    place_type = RowPlace
    default_splits: Callable[[int], dict[str, range]] = staticmethod(last_tenth_for_testing)

    def __init__(self, splits: dict[str, range] | None, num_rows: int, num: int | None = None):
        self._has_splits = bool(splits)
        splits = splits or {"all": range(num_rows)}
        num_rows = sum(map(len, splits.values()))
        self._names, ends = list(splits), list(accumulate(map(len, splits.values()), initial=0))
        if num is not None and num < num_rows:
            ends = [end * num // num_rows for end in ends]
        shares = zip(splits.values(), pairwise(ends), strict=True)
        self._rows: Sequence[int] = _Joined([rows[: last - first] for rows, (first, last) in shares], ends)
        self._ends, self.total = ends, ends[-1]
        self._damaged: list[int] = []
        self.num_on_white = 0  # scenes whose transparent pixels were laid on white

    def _scene(self, row: int) -> Scene:
        """Read the scene in one row of the source; raises UserError if it is damaged. Subclasses implement this."""
        raise NotImplementedError

    def _scenes(self, place: Any, damage: Damage) -> Iterator[tuple[Scene | None, dict[str, Any], int]]:
        place = place or {"row": 0, "damaged": [], "on_white": 0}
        self._damaged, self.num_on_white = list(place["damaged"]), place["on_white"]
        if self._damaged != sorted({row for row in self._damaged if row < place["row"]}):
            raise UserError("the damaged rows in the unfinished file are damaged themselves: remove it and repeat")
        for number in range(place["row"], self.total):
            scene = damage.unless_damaged(lambda number: self._scene(self._rows[number]), number)
            if scene is None:
                self._damaged.append(number)
            place = {"row": number + 1, "damaged": list(self._damaged), "on_white": self.num_on_white}
            yield scene, place, number + 1

    def splits(self, num_scenes: int) -> dict[str, range]:
        if not self._has_splits:
            return self.default_splits(num_scenes)
        ends = [end - sum(number < end for number in self._damaged) for end in self._ends]
        splits = {split: range(*bounds) for split, bounds in zip(self._names, pairwise(ends), strict=True)}
        return {split: rows for split, rows in splits.items() if rows}


def fitted(scene: Scene, size: int, *, pad: bool = False) -> Scene:
    """Return the scene at `size`x`size` pixels, by `pictures.fit`: image bilinearly, labels by nearest neighbours."""
    image = fit_pixels(scene.image, (size, size), Image.Resampling.BILINEAR, pad=pad)
    labels = scene.labels
    if labels is not None:
        labels = fit_pixels(labels, (size, size), Image.Resampling.NEAREST, pad=pad)
    return scene._replace(image=image, labels=labels)


def genesis_splits(num_scenes: int, views: int = 1) -> dict[str, range]:
    """Return splits as in GENESIS: first 10,000 scenes for testing, then 10,000 for validation, the rest for training.

    If there are fewer than 100,000 scenes, testing and validation each use a tenth of them. `views` successive scenes
    show the same objects, and stay in one split.
    """
    first, second = (k * (min(10_000, num_scenes // 10) // views * views) for k in (1, 2))
    splits = {"test": range(first), "validation": range(first, second), "train": range(second, num_scenes)}
    return {name: rows for name, rows in splits.items() if rows}
