"""Reader of arrays of images and masks, in an .npz or .npy file of NumPy or in an HDF5 file such as EMORL's.

Arrays may be in any form that `arrays.py` converts. In an HDF5 file they are `images` and `labels`, or have the names
below, or are in groups train, val and test, as EMORL's `train/imgs` and `train/masks`.
"""

import math
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from pyro_lom.data.arrays import image_converter, label_converter, size_of
from pyro_lom.data.folders import SPLIT_NAMES
from pyro_lom.data.importers.block import BLOCK_BYTES, RowReader, Scene
from pyro_lom.data.layout import MAX_SCENES, splits_in
from pyro_lom.data.npy import MAX_ROW, NpyArray, npz_arrays
from pyro_lom.data.pictures import size_notes, size_text
from pyro_lom.data.self_contained import open_hdf5, reading
from pyro_lom.data.sources import HDF5, NPZ, kind_of
from pyro_lom.data.stored import Array, array_on_disk
from pyro_lom.errors import UserError, printable

_IMAGES = ("images", "imgs", "image", "img", "x", "arr_0")
_LABELS = ("labels", "masks", "mask", "label")
_SAMPLE, _SAMPLE_BYTES = 16, 64 << 20  # scenes by which the range of values is judged, and their size


class _Part(NamedTuple):
    """The arrays of one split, or of all scenes."""

    images: Array | NpyArray
    labels: Array | NpyArray | None


class ArrayFile(RowReader):
    """Reads one file, which may come from a stranger: `npy.py` and `self_contained.py`.

    Args:
        size: height and width of the resulting images; None keeps the size of square images.
        num_background: number of background labels; by default, the attribute of the file, or 1.
        num: number of scenes to read, in proportion from each split; None reads all.
        pad: give images black borders instead of cropping them.

    Raises:
        UserError: the file is damaged, or has no images, or arrays have another form.
    """

    def __init__(
        self,
        path: Path,
        size: int | None,
        num_background: int | None = None,
        *,
        num: int | None = None,
        pad: bool = False,
    ):
        self.path, self.pad, self._remarks = path, pad, []
        parts, splits, stated = self._hdf5() if kind_of(path) == HDF5 else self._numpy()
        self._parts = list(parts.values())
        self._starts = list(accumulate((len(part.images) for part in self._parts), initial=0))
        if self._starts[-1] > MAX_SCENES:
            raise UserError(f"{path} has {self._starts[-1]} images; expected at most {MAX_SCENES}: split the file")
        super().__init__(splits, self._starts[-1], num)
        first = self._parts[0].images
        some = first[: min(_SAMPLE, max(1, _SAMPLE_BYTES // max(1, _row_bytes(first))))]
        self._converters = [image_converter(part.images, some, f"images in {path}") for part in self._parts]
        height, width = source_size = size_of(self._parts[0].images)
        if size is None and height != width:
            raise UserError(f"images in {path} are {size_text((height, width))}, no square: pass --size, such as 64")
        self.size = size or width
        self._label_converters = self._of_labels(parts)
        has_labels = any(self._label_converters)
        self.num_background = (stated if num_background is None else num_background) if has_labels else 0
        self._blocks: dict[int, tuple[int, np.ndarray]] = {}
        shapes = ", ".join(str(tuple(part.images.shape)) for part in self._parts)
        labels = f"labels below {self.num_background} are background" if has_labels else "no labels"
        size_line = size_notes(path, {source_size: 1}, (self.size, self.size), pad)
        self._remarks = [f"{path}: images {shapes}; {labels}", *size_line, *self._remarks]

    def remarks(self) -> list[str]:
        return self._remarks

    def _of_labels(self, parts: dict[str, _Part]) -> list:
        labelled = [part.labels for part in parts.values() if part.labels is not None]
        for name, part in parts.items():
            if labelled and part.labels is None:
                self._remarks.append(f"{name} in {self.path} has no masks: its labels are 0")
            elif labelled and len(part.labels) != len(part.images):
                found = f"{len(part.labels)} labels for {len(part.images)} images"
                raise UserError(f"{self.path} has {found}: store one for each image")
        return [
            None
            if part.labels is None
            else label_converter(part.labels, labelled[0][:1], size_of(part.images), f"labels in {self.path}")
            for part in parts.values()
        ]

    def _scene(self, row: int) -> Scene:
        number = bisect_right(self._starts, row) - 1
        part, inner = self._parts[number], row - self._starts[number]
        image = self._converters[number](self._row(part.images, inner))[0]
        if convert := self._label_converters[number]:
            labels = convert(self._row(part.labels, inner))[0]
        else:
            labels = np.zeros(image.shape[:2], np.uint8) if any(self._label_converters) else None
        return Scene(image, labels, {})

    def _row(self, array: Array | NpyArray, row: int) -> np.ndarray:
        """Return one row, with an axis of length one; rows after it are read at the same time."""
        first, rows = self._blocks.get(id(array), (0, array[:0]))
        if not first <= row < first + len(rows):
            at_once = max(1, BLOCK_BYTES // max(1, _row_bytes(array)))
            first, rows = self._blocks[id(array)] = row, np.asarray(array[row : row + at_once])
        return rows[row - first : row - first + 1]

    def _numpy(self) -> tuple[dict[str, _Part], None, int]:
        if kind_of(self.path) == NPZ:
            arrays, notes = npz_arrays(self.path)
        else:
            arrays, notes = {"images": NpyArray(self.path)}, []
        self._remarks += notes
        return {str(self.path): self._part(arrays, str(self.path))}, None, 1

    def _hdf5(self) -> tuple[dict[str, _Part], dict[str, range] | None, int]:
        with reading(self.path), open_hdf5(self.path) as file:
            stated = file.attrs.get("num_background", 1)
            stated = int(stated) if np.issubdtype(type(stated), np.integer) and 0 <= stated <= 255 else 1
            found = {
                SPLIT_NAMES[name.lower()]: group
                for name, group in file.items()
                if name.lower() in SPLIT_NAMES and isinstance(group, h5py.Group)
            }
            groups = {split: found[split] for split in SPLIT_NAMES.values() if split in found}
            parts = {
                split: self._part(dict(group), f"{split} in {self.path}")
                for split, group in (groups or {str(self.path): file}).items()
            }
            if not groups:
                [part] = parts.values()
                return parts, splits_in(file, self.path, len(part.images)), stated
            ends = np.cumsum([0, *(len(part.images) for part in parts.values())]).tolist()
            splits = {split: range(*ends[place : place + 2]) for place, split in enumerate(parts)}
            if "test" not in splits and "validation" in splits:
                splits["test"] = splits.pop("validation")
            return parts, splits if "train" in splits else None, stated

    def _part(self, arrays: dict, place: str) -> _Part:
        images = self._chosen(arrays, _IMAGES)
        if images is None:
            held = ", ".join(printable(name) for name in arrays)[:200] or "nothing"
            raise UserError(f"{place} has no images (it holds {held}): name an array of them images")
        return _Part(images, self._chosen(arrays, _LABELS))

    def _chosen(self, arrays: dict, names: tuple[str, ...]) -> Array | NpyArray | None:
        """Return the first array of one of the names that has the axes of images or masks."""
        for name in names:
            array = arrays.get(name)
            if isinstance(array, h5py.Dataset) and array.ndim >= 3 and array.dtype.kind in "buif":
                found = f"{array.name[1:]} in {self.path} has the shape {array.shape}"
                if _row_bytes(array) > MAX_ROW:
                    raise UserError(f"{found}: a scene may take {MAX_ROW >> 20} MiB at most")
                if 0 in array.shape:
                    raise UserError(f"{found}, which is empty: store one image or more")
                return array_on_disk(array, self.path)
            if isinstance(array, NpyArray) and array.ndim >= 3:
                return array
            if array is not None:
                self._remarks.append(f"{name} in {self.path} is no array of pictures, and is left out")
        return None


def _row_bytes(array: Array | NpyArray | h5py.Dataset) -> int:
    return math.prod(array.shape[1:]) * array.dtype.itemsize
