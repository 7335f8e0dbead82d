"""Reader of a folder of images with their masks, in the layouts that `folders.py` knows."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pyro_lom.data.folders import find_pictures
from pyro_lom.data.importers.block import RowReader, Scene, genesis_splits
from pyro_lom.data.pictures import (
    read_labels,
    read_mask,
    read_picture,
    read_rgb,
    size_notes,
    size_text,
    transparency_note,
)
from pyro_lom.errors import UserError

_CLEVRTEX_CROP = 192  # pixels of the published 240x320


class ImageFolder(RowReader):
    """Reads the images of a folder and of its subfolders, sorted by name, and their masks if all of them have some.

    If an image has one mask, its grey values or palette indices are the labels. If it has a mask for each object, the
    labels are the numbers of the masks: from 0 if the masks of the first image cover it, since the first mask is then
    the background, and otherwise from 1, with 0 for pixels of no mask.

    Args:
        folder: folder of the images.
        size: height and width of the resulting images; None uses the size of the first image, which must be square.
        masks: folder of PNG files named as the images; by default, the masks that `find_pictures` finds.
        num_background: number of background labels; labels below it are background. 0 if there are no masks.
        num: number of images to read, in proportion from each split; None reads all.
        pad: give images black borders instead of cropping them.

    Raises:
        UserError: there are no images, an image has no mask, or `size` is None and the first image is not square.
    """

    def __init__(
        self,
        folder: Path,
        size: int | None,
        masks: Path | None,
        num_background: int,
        *,
        num: int | None = None,
        pad: bool = False,
    ):
        self._folder, self._pictures, self.pad = folder, find_pictures(folder, masks), pad
        super().__init__(self._pictures.splits or None, len(self._pictures.images), num)
        self._masks, self._sizes = self._pictures.masks, Counter()
        self._is_by_object = any(len(files) > 1 for files in self._masks)
        if (most := max(map(len, self._masks), default=0)) > 255:
            raise UserError(f"an image in {folder} has {most} masks; expected at most 255, one for each object")
        for files in self._masks:
            if len(files) > 1 and not all(path.stem[-1].isdecimal() for path in files):
                names = ", ".join(path.name for path in files[:3])
                raise UserError(f"an image in {folder} has several masks, {names}: keep one, or number them by object")
        self._first_label = 0 if self._is_by_object and _cover(self._masks[0]) else 1
        if size is None:
            width, height = read_picture(self._pictures.images[0]).size
            if width != height:
                shape = size_text((height, width))
                raise UserError(f"{self._pictures.images[0]} is {shape}, no square: pass --size, such as --size 64")
            size = width
        self.size = size
        self.num_background = num_background if self._masks else 0

    def remarks(self) -> list[str]:
        found = [f"{self._folder}: {self._pictures.found}"]
        if self._masks:
            source = "the number of a mask" if self._is_by_object else "the value of the mask"
            found.append(f"{self._folder}: a label is {source}; labels below {self.num_background} are background")
        return found

    def notes(self, place: Any) -> list[str]:
        notes = size_notes(self._folder, self._sizes, (self.size, self.size), self.pad)
        return notes + ([transparency_note(self._folder, place["on_white"])] if place["on_white"] else [])

    def _scene(self, row: int) -> Scene:
        image, is_transparent = read_rgb(self._pictures.images[row])
        self.num_on_white += is_transparent
        size = image.height, image.width
        self._sizes[size] += 1
        return Scene(np.asarray(image), self._labels(row, size) if self._masks else None, {})

    def _labels(self, row: int, size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
        if self._is_by_object:
            return _numbered(self._masks[row], size, self._first_label)
        labels = read_labels(self._masks[row][0])
        _check_size(self._masks[row][0], labels.shape, size)
        return labels


def _numbered(masks: list[Path], size: tuple[int, int], first: int) -> UInt8[np.ndarray, "H W"]:
    """Return labels: the number of the first mask of each pixel, from `first` up, or 0."""
    labels = np.zeros(size, np.uint8)
    for number, path in reversed([*enumerate(masks, first)]):
        mask = read_mask(path)
        _check_size(path, mask.shape, size)
        labels[mask] = number
    return labels


def _cover(masks: list[Path]) -> bool:
    """Return whether every pixel is in a mask; if one cannot be read, the reader complains later."""
    try:
        return bool(np.any([read_mask(path) for path in masks], 0).all())
    except (UserError, ValueError):
        return False


def _check_size(path: Path, found: tuple[int, int], size: tuple[int, int]) -> None:
    if found != size:
        raise UserError(f"{path} is {size_text(found)}, its image {size_text(size)} (height x width)")


class ClevrTex(ImageFolder):
    """Reads ClevrTex in its published order, 192x192 pixels about the centre, with its published splits."""

    default_splits = staticmethod(genesis_splits)

    def __init__(self, folder: Path, size: int, num: int | None = None):
        super().__init__(folder, size, None, 1, num=num)
        images = self._pictures.images
        self._rows = sorted(range(len(images)), key=lambda row: images[row].name)[: self.total]

    def _scene(self, row: int) -> Scene:
        image, labels, factors = super()._scene(row)
        height, width = image.shape[:2]
        if min(height, width) < _CLEVRTEX_CROP:
            found = size_text((height, width))
            raise UserError(f"{self._pictures.images[row]} is {found}, but ClevrTex has images of 240x320")
        rows, columns = (slice((n - _CLEVRTEX_CROP) // 2, (n + _CLEVRTEX_CROP) // 2) for n in (height, width))
        return Scene(image[rows, columns], labels if labels is None else labels[rows, columns], factors)
