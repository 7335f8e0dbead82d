"""Objects Room and CLEVR6 from the TFRecords of Multi-Object Datasets.

They are published at github.com/google-deepmind/multi_object_datasets.
Each value of a pixel is a string of its own there, so that the files unpack to three bytes a value: 123 GB of Objects
Room, 323 GB of CLEVR. They are streamed.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from pyro_lom.data.importers.block import Block, Damage, Reader, genesis_splits, scenes_in_block
from pyro_lom.data.importers.labels import labels_of_masks, pack_objects, renumber_room
from pyro_lom.data.importers.tfrecord import Malformed, TFRecordFile, byte_values, float_values, parse_example
from pyro_lom.data.pictures import fit
from pyro_lom.errors import UserError

CLEVR_CROP = (slice(29, 221), slice(64, 256))  # rows and columns of 240x320 that EMORL keeps
MAX_CLEVR6_OBJECTS = 6
_CLEVR_FLOATS = ("x", "y", "z", "rotation", "visibility")
_CLEVR_CODES = ("size", "material", "shape", "color")

Scene = tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"], dict[str, Shaped[np.ndarray, "max_objects"]]]


class _TFRecordReader(Reader):
    """What both data sets have in common.

    Args:
        path: the file, as it was published.
        size: height and width of the images to be.

    Raises:
        UserError: the file cannot be opened.
    """

    num_background: int
    unit = "B"
    source_size: tuple[int, int]

    def __init__(self, path: Path, size: int, num_entities: int):
        self.path, self.size, self.num_entities = path, size, num_entities
        height, width = self.source_size
        self._max_bytes = 4 * (3 + num_entities) * height * width + (64 << 10)  # 3 bytes a value, and some to spare
        with TFRecordFile(path, self._max_bytes) as file:
            self.total = file.num_bytes

    def blocks(self, place: Any, damage: Damage) -> Iterator[Block]:
        place = place or {"record": 0, "offset": 0, "undivided": 0, "moved": 0}
        count = scenes_in_block(3 * self.size**2)
        with TFRecordFile(self.path, self._max_bytes) as file:
            scenes: list[Scene] = []
            for record in file.records(damage, place["record"], place["offset"]):
                try:
                    features = parse_example(record.body)
                    if (scene := self._scene(features, place)) is not None:
                        scenes.append(scene)
                except Malformed as malformed:
                    if record.number == 0:
                        raise UserError(
                            f"{self.path} does not hold this data set: in its first record, {malformed}; name the "
                            "right data set or file"
                        ) from malformed
                    damage(f"record {record.number}", str(malformed))
                place |= {"record": record.number + 1, "offset": record.next_offset}
                if len(scenes) == count:
                    yield self._block(scenes, place, file.tell())
                    scenes = []
            if scenes:
                yield self._block(scenes, place, self.total)

    def splits(self, num_scenes: int) -> dict[str, range]:
        return genesis_splits(num_scenes)

    def notes(self, place: Any) -> list[str]:
        if not place["undivided"]:
            return []
        return [f"{place['undivided']} scenes have pixels of no mask or of several: the first of these took them"]

    @abstractmethod
    def _scene(self, features: dict[str, memoryview], counts: dict[str, int]) -> Scene | None:
        """One scene, or None if it is not to be kept."""

    def _pixels(
        self, features: dict[str, memoryview], crop: tuple[slice, slice], counts: dict[str, int]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """Image and labels within `crop`."""
        height, width = self.source_size
        image = byte_values(features, "image", height * width * 3).reshape(height, width, 3)[crop]
        masks = byte_values(features, "mask", self.num_entities * height * width)
        labels, is_partition = labels_of_masks(masks.reshape(self.num_entities, height, width)[:, *crop])
        counts["undivided"] += not is_partition
        return image, labels

    def _resized(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = (self.size, self.size)
        resized = fit(Image.fromarray(np.ascontiguousarray(image)), size, Image.Resampling.BILINEAR)
        return np.asarray(resized), np.asarray(fit(Image.fromarray(labels), size, Image.Resampling.NEAREST))

    def _block(self, scenes: list[Scene], place: dict[str, int], done: int) -> Block:
        images, labels, factors = zip(*scenes, strict=True)
        stacked = {name: np.stack([values[name] for values in factors]) for name in factors[0]}
        return Block(np.stack(images), np.stack(labels), stacked, dict(place), done)


class ObjectsRoom(_TFRecordReader):
    """Objects Room: `num_entities` is 7, in six_objects and identical_color 10, in empty_room 4."""

    num_background = 4
    source_size = (64, 64)

    def splits(self, num_scenes: int) -> dict[str, range]:
        return genesis_splits(num_scenes) if self.num_entities == 7 else {"test": range(num_scenes)}

    def notes(self, place: Any) -> list[str]:
        moved = f"in {place['moved']} of {place['record']} scenes label 3 was an object and became 4"
        return super().notes(place) + ([moved] if place["moved"] else [])

    def _scene(self, features: dict[str, memoryview], counts: dict[str, int]) -> Scene:
        image, labels = self._pixels(features, (slice(None), slice(None)), counts)
        labels, moved = renumber_room(labels[None], self.num_entities)
        counts["moved"] += int(moved[0])
        return *self._resized(image, labels[0]), {}


class Clevr6(_TFRecordReader):
    """The scenes of CLEVR (with masks) that have 6 objects or fewer, cropped to 192x192 and resized.

    Factors are those of the file, the crop's pixels for `pixel_x` and `pixel_y`.
    """

    num_background = 1
    source_size = (240, 320)

    def __init__(self, path: Path, size: int):
        super().__init__(path, size, num_entities=11)

    def _scene(self, features: dict[str, memoryview], counts: dict[str, int]) -> Scene | None:
        factors = {name: float_values(features, name, self.num_entities)[1:] for name in _CLEVR_FLOATS}
        present = factors.pop("visibility") > 0
        if present.sum() > MAX_CLEVR6_OBJECTS:
            return None
        factors |= {name: byte_values(features, name, self.num_entities)[1:] for name in _CLEVR_CODES}
        rows, columns = CLEVR_CROP
        coords = float_values(features, "pixel_coords", 3 * self.num_entities).reshape(-1, 3)[1:]
        scale = np.float32(self.size / (rows.stop - rows.start))
        factors["pixel_x"] = (coords[:, 0] - np.float32(columns.start)) * scale
        factors["pixel_y"] = (coords[:, 1] - np.float32(rows.start)) * scale
        factors["depth"] = coords[:, 2]
        image, labels = self._pixels(features, CLEVR_CROP, counts)
        image, labels = self._resized(image, labels)
        return image, *pack_objects(labels, present, factors, self.num_background, MAX_CLEVR6_OBJECTS)
