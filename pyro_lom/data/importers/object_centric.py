"""Reader of the `*-full.hdf5` files of object-centric-library (github.com/addtt/object-centric-library).

A file contains `image` uint8 (N, H, W, 3), `mask` (N, H, W, 1) with the entity of each pixel, `visibility` (N, E[, 1])
and factors (N, E), (N, E, 1) or (N, E, D). Background entities come first. The images of CLEVR are already cropped.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import h5py
import numpy as np

from pyro_lom.data.importers.block import BLOCK_BYTES, Block, Damage, Reader, Scene, fitted, stacked
from pyro_lom.data.importers.labels import pack_objects, renumber_room
from pyro_lom.data.pictures import LARGEST, reason_of
from pyro_lom.data.self_contained import check_storage, open_hdf5, reading
from pyro_lom.data.writer import Position
from pyro_lom.errors import UserError

_NOT_FACTORS = ("image", "mask", "visibility", "num_actual_objects", "num_objects")
_MAX_BYTES = 1 << 29  # of the scenes that are read at once
_MAX_FACTORS, _MAX_NAME = 256, 200  # a name is a part of the name of a file


def is_object_centric(path: Path) -> bool:
    """Return whether an HDF5 file has the arrays of this layout."""
    with reading(path), open_hdf5(path) as file:
        return all(name in file for name in ("image", "mask", "visibility"))


class _Place(TypedDict):
    row: Position
    moved: Position


class ObjectCentric(Reader):
    """Reads one `*-full.hdf5` file, which may come from a stranger: `self_contained.py`.

    Args:
        num_background: number of background entities. 4 means Objects Room, which is read without factors.
        max_objects: scenes with more objects are left out; None keeps all scenes. Not used for Objects Room.

    Raises:
        UserError: the file is damaged, or has another layout.
    """

    place_type = _Place

    def __init__(self, path: Path, size: int, num_background: int, max_objects: int | None = None):
        self.path, self.size, self.num_background = path, size, num_background
        with reading(path), open_hdf5(path) as file:
            self._check(file)
            self.total = len(file["image"])
            self._num_entities = file["visibility"].shape[1]
            self._max_objects = max_objects or self._num_entities - num_background
            self._at_once = self._scenes_at_once(file)

    def blocks(self, place: Any, damage: Damage) -> Iterator[Block]:
        place = place or {"row": 0, "moved": 0}
        with open_hdf5(self.path) as file:
            for first in range(place["row"], self.total, self._at_once):
                rows = slice(first, min(first + self._at_once, self.total))
                place |= {"row": rows.stop}
                try:
                    with reading(self.path):
                        block = self._block(file, rows, place, damage)
                except UserError as error:
                    if not isinstance(error.__cause__, OSError | RuntimeError | MemoryError):
                        raise
                    damage(f"one of the scenes {rows.start} to {rows.stop - 1}", reason_of(error.__cause__))
                    continue
                if block is not None:
                    yield block

    def notes(self, place: Any) -> list[str]:
        return [f"in {place['moved']} scenes label 3 was an object and became 4"] if place["moved"] else []

    def _check(self, file: h5py.File) -> None:
        sets = {name: values for name, values in file.items() if isinstance(values, h5py.Dataset) and values.shape}
        if missing := [name for name in ("image", "mask", "visibility") if name not in sets]:
            held = ", ".join(map(str, file)) or "nothing"
            raise UserError(f'{self.path} has no "{missing[0]}" (it holds {held}); name a *-full.hdf5 file')
        image, mask, visibility = sets["image"], sets["mask"], sets["visibility"]
        is_image = image.dtype == np.uint8 and image.ndim == 4 and image.shape[3] == 3 and 0 not in image.shape
        if not is_image or max(image.shape[1:3]) > LARGEST:
            found = f"{image.dtype} {image.shape}"
            raise UserError(
                f"image in {self.path} is {found}; expected uint8 (N, H, W, 3), at most {LARGEST} pixels a side"
            )
        if mask.dtype.kind not in "ui" or mask.shape != (*image.shape[:3], 1):
            found, expected = f"{mask.dtype} {mask.shape}", (*image.shape[:3], 1)
            raise UserError(f"mask in {self.path} is {found}; expected integers {expected}")
        for name, values in sets.items():
            if len(values) != len(image):
                raise UserError(f"{name} in {self.path} has {len(values)} rows, image {len(image)}")
            if not name.isprintable() or len(name.encode()) > _MAX_NAME or name in (".", "..", "present"):
                raise UserError(
                    f"{name[:_MAX_NAME]} in {self.path} has a name that is too long, not printable, or that this "
                    "project gives itself: rename it"
                )
            check_storage(values, self.path)
        has_shape = visibility.ndim == 2 or (visibility.ndim == 3 and visibility.shape[2] == 1)
        is_number = visibility.dtype.kind in "buif"
        if not (has_shape and is_number and self.num_background < visibility.shape[1] <= 64):
            raise UserError(
                f"visibility in {self.path} is {visibility.dtype} {visibility.shape}; expected numbers (N, entities), "
                f"more than the {self.num_background} of the background: name the right data set"
            )

    def _scenes_at_once(self, file: h5py.File) -> int:
        """Return the number of scenes in a block, which is limited by the memory that they take."""
        read = [file[name] for name in ("image", "mask", "visibility")] + [
            values for _, values in self._factor_sets(file)
        ]
        num_bytes = sum(math.prod(values.shape[1:]) * values.dtype.itemsize for values in read)
        num_factors = sum(math.prod(values.shape[2:]) for _, values in self._factor_sets(file))
        if num_factors > _MAX_FACTORS:
            raise UserError(f"{self.path} has {num_factors} factors of an object; expected at most {_MAX_FACTORS}")
        if num_bytes > _MAX_BYTES:
            raise UserError(f"a scene of {self.path} takes {num_bytes >> 20} MiB; expected at most {_MAX_BYTES >> 20}")
        at_once = max(1, BLOCK_BYTES // max(num_bytes, 4 * self.size**2))  # before and after resizing
        chunk = file["image"].chunks[0] if file["image"].chunks else 1
        whole = max(chunk, at_once // chunk * chunk)  # each chunk is unpacked once
        return whole if whole * num_bytes <= _MAX_BYTES else at_once

    def _block(self, file: h5py.File, rows: slice, place: dict[str, int], damage: Damage) -> Block | None:
        masks, images = file["mask"][rows, ..., 0], file["image"][rows]
        visibility = file["visibility"][rows].reshape(len(images), -1)
        present = visibility[:, self.num_background :] > 0
        is_room = self.num_background == 4
        factors = {} if is_room else self._factors(file, rows)
        is_outside = (masks.reshape(len(masks), -1).max(1) >= self._num_entities) | (masks.min((1, 2)) < 0)
        wrong = {f"its mask names none of {self._num_entities} entities": is_outside}
        wrong["its visibility is NaN or infinite"] = ~np.isfinite(visibility).all(1)
        wrong |= {
            f"its {name} is NaN or infinite": (present & ~np.isfinite(values)).any(1)
            for name, values in factors.items()
        }
        for row in np.flatnonzero(np.any([*wrong.values()], 0)):
            damage(f"scene {rows.start + row}", next(reason for reason, found in wrong.items() if found[row]))
        is_right = ~np.any([*wrong.values()], 0)
        kept = np.flatnonzero(is_right & (is_room | (present.sum(1) <= self._max_objects)))
        if not len(kept):
            return None
        labels, scenes = masks.astype(np.uint8), []
        if is_room:
            labels, moved = renumber_room(labels, self._num_entities)
            place["moved"] += int(moved[kept].sum())
        for row in kept:
            packed = labels[row], {}
            if not is_room:
                of_scene = {name: values[row] for name, values in factors.items()}
                packed = pack_objects(labels[row], present[row], of_scene, self.num_background, self._max_objects)
            scenes.append(fitted(Scene(images[row], *packed), self.size))
        return Block(*stacked(scenes), dict(place), rows.stop)

    def _factors(self, file: h5py.File, rows: slice) -> dict[str, np.ndarray]:
        """Return the factors of objects, one column per object. Each component of a vector is one factor."""
        factors = {}
        for name, values in self._factor_sets(file):
            columns = np.atleast_3d(values[rows])[:, self.num_background :]
            for component in range(columns.shape[2]):
                key = name if columns.shape[2] == 1 else f"{name}_{component}"
                if key in factors:
                    raise UserError(f"{self.path} has two factors {key}: rename one")
                factors[key] = columns[..., component]
        return factors

    def _factor_sets(self, file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
        for name, values in file.items():
            is_factor = isinstance(values, h5py.Dataset) and name not in _NOT_FACTORS and values.dtype.kind in "uifb"
            if is_factor and values.ndim in (2, 3) and values.shape[1] == self._num_entities:
                yield name, values
