"""Readers of Objects Room and CLEVR6 in the TFRecord files of Multi-Object Datasets, and their base class.

The files are published at github.com/google-deepmind/multi_object_datasets.
They store each value of a pixel as a separate string, in three bytes. Objects Room has 123 GB unpacked, CLEVR 323 GB.
The readers therefore stream the files.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from pyro_lom.data.importers.block import Damage, Reader, Scene, genesis_splits
from pyro_lom.data.importers.labels import labels_of_masks, pack_objects, renumber_room
from pyro_lom.data.importers.tfrecord import (
    Malformed,
    TFRecordFile,
    WrongValue,
    byte_values,
    float_values,
    parse_example,
)
from pyro_lom.data.writer import Position
from pyro_lom.errors import UserError

MAX_CLEVR6_OBJECTS = 6
_CLEVR_FLOATS = ("x", "y", "z", "rotation")
_CLEVR_CODES = ("size", "material", "shape", "color")


class _Place(TypedDict):
    record: Position
    offset: Position
    undivided: Position
    moved: Position


class TFRecordReader(Reader, ABC):
    """Base class of the readers. The constructor raises a UserError if the published file cannot be opened."""

    unit = "B"
    place_type = _Place
    source_size: tuple[int, int]
    crop = (slice(None), slice(None))
    """Rows and columns that are kept."""
    entities_first = True
    """Whether the axis of entities comes before those of rows and columns in `mask`, or after them."""
    has_binary_masks = False
    """Whether all values of `mask` are 0 or 255."""

    def __init__(self, path: Path, size: int, num_entities: int):
        self.path, self.size, self.num_entities = path, size, num_entities
        height, width = self.source_size
        self._max_bytes = 4 * (self.num_channels + num_entities) * height * width + (
            64 << 10
        )  # 3 bytes per value, and a margin
        with TFRecordFile(path, self._max_bytes) as file:
            self.total = file.num_bytes

    def _scenes(self, place: Any, damage: Damage) -> Iterator[tuple[Scene | None, dict[str, int], int]]:
        place = place or {"record": 0, "offset": 0, "undivided": 0, "moved": 0}
        with TFRecordFile(self.path, self._max_bytes) as file:
            for record in file.records(damage, place["record"], place["offset"]):
                scene, place = None, place | {"record": record.number + 1, "offset": record.next_offset}
                try:
                    scene = self._scene(parse_example(record.body), place)
                except Malformed as malformed:
                    if record.number == 0 and not isinstance(malformed, WrongValue):
                        raise UserError(
                            f"{self.path} does not hold this data set: in its first record, {malformed}; name the "
                            "right data set or file"
                        ) from malformed
                    damage(f"record {record.number}", str(malformed))
                yield scene, place, file.tell()

    def notes(self, place: Any) -> list[str]:
        if not place["undivided"]:
            return []
        return [f"{place['undivided']} scenes have pixels of no mask or of several: the first of these took them"]

    @abstractmethod
    def _scene(self, features: dict[str, memoryview], counts: dict[str, int]) -> Scene | None:
        """Return one scene, or None if the scene is left out."""

    def _present(self, features: dict[str, memoryview]) -> Bool[np.ndarray, "objects"]:
        """Return which of the entities after the background are in the scene."""
        visibility = float_values(features, "visibility", self.num_entities)
        if not np.isfinite(visibility).all():
            raise WrongValue("its visibility is NaN or infinite")
        return visibility[1:] > 0

    def _pixels(
        self, features: dict[str, memoryview], counts: dict[str, int]
    ) -> tuple[UInt8[np.ndarray, "h w C"], UInt8[np.ndarray, "h w"]]:
        """Return the image and the labels within `crop`."""
        height, width = self.source_size
        image = byte_values(features, "image", height * width * self.num_channels)
        masks = byte_values(features, "mask", self.num_entities * height * width)
        if self.has_binary_masks and (wrong := masks[(masks > 0) & (masks < 255)]).size:
            raise WrongValue(f"its mask holds {wrong[0]} where 0 or 255 is expected")
        if self.entities_first:
            masks = masks.reshape(self.num_entities, height, width)
        else:
            masks = masks.reshape(height, width, self.num_entities).transpose(2, 0, 1)
        labels, is_partition = labels_of_masks(masks[:, *self.crop])
        counts["undivided"] += not is_partition
        return image.reshape(height, width, self.num_channels)[self.crop], labels


def check_finite(factors: dict[str, Shaped[np.ndarray, "objects"]], present: Bool[np.ndarray, "objects"]) -> None:
    """Raise WrongValue if a factor of an object that is present is NaN or infinite."""
    for name, values in factors.items():
        if not np.isfinite(values[present]).all():
            raise WrongValue(f"its {name} is NaN or infinite")


class ObjectsRoom(TFRecordReader):
    """Reader of Objects Room. `num_entities` is 7; it is 10 in six_objects and identical_color, and 4 in empty_room."""

    num_background = 4
    source_size = (64, 64)
    has_binary_masks = True

    def splits(self, num_scenes: int) -> dict[str, range]:
        return genesis_splits(num_scenes) if self.num_entities == 7 else {"test": range(num_scenes)}

    def notes(self, place: Any) -> list[str]:
        moved = f"in {place['moved']} of {place['record']} scenes label 3 was an object and became 4"
        return super().notes(place) + ([moved] if place["moved"] else [])

    def _scene(self, features: dict[str, memoryview], counts: dict[str, int]) -> Scene:
        image, labels = self._pixels(features, counts)
        labels, moved = renumber_room(labels[None], self.num_entities)
        counts["moved"] += int(moved[0])
        return Scene(image, labels[0], {})


class Clevr6(TFRecordReader):
    """Reader of the scenes in CLEVR (with masks) that have at most 6 objects, cropped to 192x192 and resized.

    Factors are taken from the file. `pixel_x` and `pixel_y` are converted to pixels of the resized crop.
    """

    num_background = 1
    source_size = (240, 320)
    crop = (slice(29, 221), slice(64, 256))  # as in EMORL

    def __init__(self, path: Path, size: int):
        super().__init__(path, size, num_entities=11)

    def _scene(self, features: dict[str, memoryview], counts: dict[str, int]) -> Scene | None:
        factors = {name: float_values(features, name, self.num_entities)[1:] for name in _CLEVR_FLOATS}
        present = self._present(features)
        if present.sum() > MAX_CLEVR6_OBJECTS:
            return None
        factors |= {name: byte_values(features, name, self.num_entities)[1:] for name in _CLEVR_CODES}
        rows, columns = self.crop
        x, y, factors["depth"] = float_values(features, "pixel_coords", 3 * self.num_entities).reshape(-1, 3)[1:].T
        scale = np.float32(self.size / (rows.stop - rows.start))
        with np.errstate(all="ignore"):  # what is infinite is refused below
            factors["pixel_x"] = (x - np.float32(columns.start)) * scale
            factors["pixel_y"] = (y - np.float32(rows.start)) * scale
        check_finite(factors, present)
        image, labels = self._pixels(features, counts)
        return Scene(image, *pack_objects(labels, present, factors, self.num_background, MAX_CLEVR6_OBJECTS))
