"""Reader of the `*-full.hdf5` files of object-centric-library (github.com/addtt/object-centric-library).

A file contains `image` uint8 (N, H, W, 3), `mask` (N, H, W, 1) with the entity of each pixel, `visibility` (N, E[, 1])
and factors (N, E), (N, E, 1) or (N, E, D). Background entities come first. The images of CLEVR are already cropped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pyro_lom.data.importers.block import BLOCK_BYTES, Block, Damage, Reader, Scene, fitted, stacked
from pyro_lom.data.importers.labels import pack_objects, renumber_room
from pyro_lom.data.pictures import reason_of
from pyro_lom.errors import UserError

_NOT_FACTORS = ("image", "mask", "visibility", "num_actual_objects", "num_objects")
_MAX_CHUNK = 256 << 20  # bytes; HDF5 unpacks a whole chunk at once


class ObjectCentric(Reader):
    """Reads one `*-full.hdf5` file.

    Args:
        num_background: number of background entities. 4 means Objects Room, which is read without factors.
        max_objects: scenes with more objects are left out; None keeps all scenes. Not used for Objects Room.

    Raises:
        UserError: the file is damaged, or has another layout.
    """

    def __init__(self, path: Path, size: int, num_background: int, max_objects: int | None = None):
        self.path, self.size, self.num_background = path, size, num_background
        with self._open() as file:
            try:
                self._check(file)
            except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py raises any of these on damage
                raise UserError(f"{path} is damaged: {reason_of(error)}; fetch it again") from error
            self.total = len(file["image"])
            self._num_entities = file["visibility"].shape[1]
            self._max_objects = max_objects or self._num_entities - num_background

    def blocks(self, place: Any, damage: Damage) -> Iterator[Block]:
        place = place or {"row": 0, "moved": 0}
        with self._open() as file:
            height, width = file["image"].shape[1:3]
            at_once = max(1, BLOCK_BYTES // (3 * height * width))
            if (chunks := file["image"].chunks) is not None:  # only whole chunks, so that each is unpacked once
                at_once = max(chunks[0], at_once // chunks[0] * chunks[0])
            for first in range(place["row"], self.total, at_once):
                rows = slice(first, min(first + at_once, self.total))
                place |= {"row": rows.stop}
                try:
                    block = self._block(file, rows, place, damage)
                except (OSError, RuntimeError) as error:
                    damage(f"one of the scenes {rows.start} to {rows.stop - 1}", reason_of(error))
                    continue
                if block is not None:
                    yield block

    def notes(self, place: Any) -> list[str]:
        return [f"in {place['moved']} scenes label 3 was an object and became 4"] if place["moved"] else []

    def _open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {reason_of(error)}; fetch it again") from error

    def _check(self, file: h5py.File) -> None:
        sets = {name: values for name, values in file.items() if isinstance(values, h5py.Dataset) and values.shape}
        if missing := [name for name in ("image", "mask", "visibility") if name not in sets]:
            held = ", ".join(map(str, file)) or "nothing"
            raise UserError(f'{self.path} has no "{missing[0]}" (it holds {held}); name a *-full.hdf5 file')
        image, mask, visibility = sets["image"], sets["mask"], sets["visibility"]
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3 or not len(image):
            raise UserError(f"image in {self.path} is {image.dtype} {image.shape}; expected uint8 (N, H, W, 3)")
        if mask.dtype.kind not in "ui" or mask.shape != (*image.shape[:3], 1):
            found, expected = f"{mask.dtype} {mask.shape}", (*image.shape[:3], 1)
            raise UserError(f"mask in {self.path} is {found}; expected integers {expected}")
        for name, values in sets.items():
            if len(values) != len(image):
                raise UserError(f"{name} in {self.path} has {len(values)} rows, image {len(image)}")
            if values.chunks and np.prod(values.chunks, dtype=float) * values.dtype.itemsize > _MAX_CHUNK:
                raise UserError(f"{name} in {self.path} has chunks of {values.chunks}, too large to unpack")
        if visibility.ndim not in (2, 3) or not self.num_background <= visibility.shape[1] <= 64:
            raise UserError(
                f"visibility in {self.path} has shape {visibility.shape}; expected (N, entities), of which "
                f"{self.num_background} are background: name the right data set"
            )

    def _block(self, file: h5py.File, rows: slice, place: dict[str, int], damage: Damage) -> Block | None:
        masks, images = file["mask"][rows, ..., 0], file["image"][rows]
        present = file["visibility"][rows].reshape(len(images), -1)[:, self.num_background :] > 0
        is_room = self.num_background == 4
        factors = {} if is_room else self._factors(file, rows)
        wrong = (masks.reshape(len(masks), -1).max(1) >= self._num_entities) | (masks.min((1, 2)) < 0)
        for row in np.flatnonzero(wrong):
            damage(f"scene {rows.start + row}", f"its mask names none of {self._num_entities} entities")
        kept = np.flatnonzero(~wrong & (is_room | (present.sum(1) <= self._max_objects)))
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
        for name, values in file.items():
            is_factor = isinstance(values, h5py.Dataset) and name not in _NOT_FACTORS and values.dtype.kind in "uifb"
            if not is_factor or values.ndim not in (2, 3) or values.shape[1] != self._num_entities:
                continue
            columns = np.atleast_3d(values[rows])[:, self.num_background :]
            for component in range(columns.shape[2]):
                key = name if columns.shape[2] == 1 else f"{name}_{component}"
                factors[key] = columns[..., component]
        return factors
