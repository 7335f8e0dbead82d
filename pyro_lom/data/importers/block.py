"""What every reader offers and yields, and how it tells of damage."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Shaped, UInt8
from numpy import ndarray

from pyro_lom.errors import UserError

BLOCK_BYTES = 16 << 20  # of images in a block: small beside a computer's memory, large beside the cost of a write


class Block(NamedTuple):
    """Some scenes, and where the reader goes on after them."""

    images: UInt8[ndarray, "n H W C"]
    labels: UInt8[ndarray, "n H W"] | None
    factors: dict[str, Shaped[ndarray, "n max_objects"]]
    place: Any
    """What `Reader.blocks` goes on from, as JSON knows it."""
    done: int
    """How much of `Reader.total` is done."""


@dataclass
class Damage:
    """Decides what happens to a damaged record: the end, or, on request, a note of its position."""

    source: str
    skip: bool
    positions: list[str]
    """What was skipped."""

    def __call__(self, position: str, reason: str) -> None:
        """The record at `position` cannot be used, for `reason`.

        Raises:
            UserError: damaged records are not to be skipped.
        """
        if not self.skip:
            raise UserError(
                f"{self.source}: {position} is damaged: {reason}; fetch it again, or pass --skip-damaged to leave out "
                "all that is damaged"
            )
        self.positions.append(position)


class Reader(ABC):
    """One source of scenes. Opening it checks what can be checked at once."""

    num_background: int
    total: int
    """What there is to read, in `unit`s."""
    unit: str
    """"B" for bytes, or "scenes"."""

    @abstractmethod
    def blocks(self, place: Any, damage: Damage) -> Iterator[Block]:
        """The scenes from `place` on, None being the start, in bounded memory.

        Raises:
            UserError: the source is damaged, and `damage` does not skip that.
        """

    @abstractmethod
    def splits(self, num_scenes: int) -> dict[str, range]:
        """The splits, once it is known how many scenes there are."""

    def notes(self, place: Any) -> list[str]:
        """What a person should know about the scenes up to `place`, a line each."""
        return []


def scenes_in_block(scene_bytes: int) -> int:
    """How many scenes of that size a block takes."""
    return max(1, BLOCK_BYTES // scene_bytes)


def genesis_splits(num_scenes: int, views: int = 1) -> dict[str, range]:
    """The first 10,000 scenes for testing, the next for validation, the rest for training, as in GENESIS.

    Of fewer than 100,000 scenes a tenth takes the place of 10,000. `views` successive scenes, which show the same
    objects, stay in one split.
    """
    held_out = min(10_000, num_scenes // 10) // views * views
    splits = {
        "test": range(held_out),
        "validation": range(held_out, 2 * held_out),
        "train": range(2 * held_out, num_scenes),
    }
    return {name: rows for name, rows in splits.items() if rows}
