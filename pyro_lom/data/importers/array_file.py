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

from pyro_lom.data.arrays import channels_of, image_converter, label_converter, largest_value, size_of
from pyro_lom.data.folders import SPLIT_NAMES
from pyro_lom.data.importers.block import BLOCK_BYTES, RowReader, Scene
from pyro_lom.data.layout import MAX_SCENES, integer_attribute, splits_in
from pyro_lom.data.npy import MAX_ROW, NotNumbers, NpyArray, npz_arrays
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
        UserError: the file is damaged, or has no images, or arrays have another form, or the groups of splits differ.
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
        self.path, self.pad, self._remarks, self._given = path, pad, [], num_background
        self._refused: dict[str, UserError] = {}  # errors of arrays that cannot be read
        parts, splits, stated = self._hdf5() if kind_of(path) == HDF5 else self._numpy()
        self._parts = list(parts.values())
        self._starts = list(accumulate((len(part.images) for part in self._parts), initial=0))
        if self._starts[-1] > MAX_SCENES:
            raise UserError(f"{path} has {self._starts[-1]} images; expected at most {MAX_SCENES}: split the file")
        super().__init__(splits, self._starts[-1], num)
        self._converters, forms = [], {}
        for name, part in parts.items():
            some = part.images[: min(_SAMPLE, max(1, _SAMPLE_BYTES // max(1, _row_bytes(part.images))))]
            self._converters.append(image_converter(part.images, some, f"images in {path}"))
            forms[name] = _form(part, some)
        if len(set(forms.values())) > 1:
            found = "; ".join(f"{name} has {form}" for name, form in forms.items())
            raise UserError(f"the groups of {path} differ: {found}: store them alike")
        height, width = source_size = size_of(self._parts[0].images)
        if size is None and height != width:
            raise UserError(f"images in {path} are {size_text((height, width))}, no square: pass --size, such as 64")
        self.size, self.num_channels = size or width, channels_of(self._parts[0].images)
        self._label_converters = self._of_labels(parts)
        has_labels = bool(self._label_converters)
        self.num_background = stated if has_labels else 0
        self._blocks: dict[int, tuple[int, np.ndarray]] = {}
        shapes = ", ".join(str(tuple(part.images.shape)) for part in self._parts)
        labels = f"labels below {self.num_background} are background" if has_labels else "no labels"
        size_line = size_notes(path, {source_size: 1}, (self.size, self.size), pad)
        self._remarks = [f"{path}: images {shapes}; {labels}", *size_line, *self._remarks]

    def remarks(self) -> list[str]:
        return self._remarks

    def _of_labels(self, parts: dict[str, _Part]) -> list:
        """Return a converter for each part, None for a part without labels; an empty list if no part has labels."""
        labelled = [part.labels for part in parts.values() if part.labels is not None]
        converters, place = [], f"labels in {self.path}"
        for name, part in parts.items() if labelled else ():
            if part.labels is None:
                self._remarks.append(f"{name} in {self.path} has no masks: its labels are 0")
                converters.append(None)
                continue
            if len(part.labels) != len(part.images):
                found = f"{len(part.labels)} labels for {len(part.images)} images"
                raise UserError(f"{self.path} has {found}: store one for each image")
            converters.append(label_converter(part.labels, labelled[0][:1], size_of(part.images), place))
        return converters

    def _scene(self, row: int) -> Scene:
        number = bisect_right(self._starts, row) - 1
        part, inner = self._parts[number], row - self._starts[number]
        image, labels = self._converters[number](self._row(part.images, inner))[0], None
        if self._label_converters:
            convert = self._label_converters[number]
            labels = convert(self._row(part.labels, inner))[0] if convert else np.zeros(image.shape[:2], np.uint8)
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
            arrays, self._refused = npz_arrays(self.path)
            others = self._refused.keys() - {*_IMAGES, *_LABELS}
            self._remarks += [f"left out: {reason}" for name, reason in self._refused.items() if name in others]
        else:
            arrays = {"images": NpyArray(self.path)}
        stated = 1 if self._given is None else self._given
        return {str(self.path): self._part(arrays, str(self.path))}, None, stated

    def _hdf5(self) -> tuple[dict[str, _Part], dict[str, range] | None, int]:
        with reading(self.path), open_hdf5(self.path) as file:
            groups = self._groups(file)
            parts = {
                split: self._part(dict(group), f"{split} in {self.path}" if groups else str(self.path))
                for split, group in (groups or {str(self.path): file}).items()
            }
            stated = 1 if self._given is None else self._given
            has_labels = any(part.labels is not None for part in parts.values())
            if self._given is None and has_labels and "num_background" in file.attrs:
                stated = integer_attribute(file, "num_background", self.path, at_most=255)
            if not groups:
                [part] = parts.values()
                return parts, splits_in(file, self.path, len(part.images)), stated
            if "train" not in parts:
                self._remarks.append(
                    f"{self.path} has no group train: the images of {' and '.join(parts)} are taken together, and the "
                    "last tenth is for testing"
                )
                return parts, None, stated
            ends = np.cumsum([0, *(len(part.images) for part in parts.values())]).tolist()
            splits = {split: range(*ends[place : place + 2]) for place, split in enumerate(parts)}
            if "test" not in splits and "validation" in splits:
                splits["test"] = splits.pop("validation")
            return parts, splits, stated

    def _groups(self, file: h5py.File) -> dict[str, h5py.Group]:
        """Return the groups of the splits by split, in the order train, validation, test."""
        found: dict[str, h5py.Group] = {}
        for name, group in file.items():
            split = SPLIT_NAMES.get(name.lower())
            if split and isinstance(group, h5py.Group):
                if split in found:
                    raise UserError(f"{self.path} has groups {found[split].name[1:]} and {name}: rename or remove one")
                found[split] = group
        return {split: found[split] for split in dict.fromkeys(SPLIT_NAMES.values()) if split in found}

    def _part(self, arrays: dict, place: str) -> _Part:
        images = self._chosen(arrays, _IMAGES, place)
        if images is None:
            held = ", ".join(printable(name) for name in arrays)[:200] or "nothing"
            raise UserError(f"{place} has no images (it holds {held}): name an array of them images")
        return _Part(images, self._chosen(arrays, _LABELS, place))

    def _chosen(self, arrays: dict, names: tuple[str, ...], where: str) -> Array | NpyArray | None:
        """Return the first array of one of the names with the type and the axes of pictures, or None.

        Raises:
            UserError: an array of one of the names is damaged, or all arrays of the names of images are unsuitable.
        """
        chosen, unsuitable = "", []
        for name in names:
            if (error := self._refused.get(name)) and not isinstance(error, NotNumbers):
                raise error
            if error or name in arrays:
                why = str(error) if error else self._why_no_pictures(arrays[name], name)
                if not (chosen or why):
                    chosen = name
                else:
                    unsuitable.append(why or f"{name} in {where}, beside {chosen}")
        if unsuitable and not chosen and names is _IMAGES:
            raise UserError(unsuitable[0])
        self._remarks += [f"left out: {why}" for why in unsuitable]
        array = arrays.get(chosen)
        return array_on_disk(array, self.path) if isinstance(array, h5py.Dataset) else array

    def _why_no_pictures(self, array, name: str) -> str | None:
        """Return why an array can contain neither images nor masks, or None; raises UserError if it is too large."""
        if not isinstance(array, h5py.Dataset | NpyArray):
            return f"{name} in {self.path} is no array: rename it, or store an array"
        place = f"{name if isinstance(array, NpyArray) else array.name[1:]} in {self.path}"
        if array.dtype.kind not in "buif":
            return f"{place} is {str(array.dtype)[:200]}; expected an array of numbers: convert or rename it"
        found = f"{place} has the shape {array.shape}"
        if array.ndim < 3:
            return f"{found}; expected three axes or more: rename it if it contains no pictures"
        if isinstance(array, h5py.Dataset) and _row_bytes(array) > MAX_ROW:
            raise UserError(f"{found}: a scene may take {MAX_ROW >> 20} MiB at most")
        if isinstance(array, h5py.Dataset) and 0 in array.shape:
            raise UserError(f"{found}, which is empty: store one image or more")
        return None


def _form(part: _Part, some: np.ndarray) -> str:
    """Return in words what all parts of a file must have in common, given some of the images."""
    channels = {1: "grey", 3: "RGB"}[channels_of(part.images)]
    return f"{channels} images of {size_text(size_of(part.images))} from 0 to {largest_value(some)}"


def _row_bytes(array: Array | NpyArray | h5py.Dataset) -> int:
    return math.prod(array.shape[1:]) * array.dtype.itemsize
