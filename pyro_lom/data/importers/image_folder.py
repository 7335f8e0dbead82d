"""A person's own images in a folder, with or without a folder of masks that have the same names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyro_lom.data.hdf5 import last_tenth_for_testing
from pyro_lom.data.importers.block import Block, Damage, Reader, scenes_in_block
from pyro_lom.data.pictures import image_paths, read_labels, read_picture, read_rgb, size_text
from pyro_lom.errors import UserError


class ImageFolder(Reader):
    """Every PNG and JPEG of a folder, in order of name, cropped about the centre to squares.

    Args:
        folder: the images; folders inside it are not searched.
        size: height and width of the images to be; None keeps those of the first image, which must be a square.
        masks: PNG files with the names of the images; their grey values, or palette indices, are the labels.
        num_background: how many labels, from 0 up, are background.

    Raises:
        UserError: there are no images, or an image has no mask.
    """

    unit = "scenes"

    def __init__(self, folder: Path, size: int | None, masks: Path | None, num_background: int):
        self._images = image_paths(folder)
        self._masks = None
        if masks is not None:
            self._masks = [masks / f"{image.stem}.png" for image in self._images]
            if missing := [mask for mask in self._masks if not mask.is_file()]:
                raise UserError(f"{len(missing)} images have no mask, the first lacking {missing[0]}: add them")
        if size is None:
            width, size = read_picture(self._images[0]).size
            if width != size:
                raise UserError(
                    f"{self._images[0]} is {size_text((size, width))}, no square: pass --size, such as --size 64"
                )
        self.size, self.num_background, self.total = size, num_background, len(self._images)

    def blocks(self, place: Any, damage: Damage) -> Iterator[Block]:
        row, size = place or 0, (self.size, self.size)
        while row < self.total:
            images, labels = [], []
            while row < self.total and len(images) < scenes_in_block(3 * self.size**2):
                try:
                    image = read_rgb(self._images[row], size)
                    if self._masks is not None:
                        labels.append(self._mask(row))
                    images.append(image)
                except UserError as error:
                    damage(f"image {row}", str(error))
                row += 1
            if images:
                yield Block(np.stack(images), np.stack(labels) if self._masks else None, {}, row, row)

    def splits(self, num_scenes: int) -> dict[str, range]:
        return last_tenth_for_testing(num_scenes)

    def _mask(self, row: int) -> np.ndarray:
        image, mask = read_picture(self._images[row]).size, read_picture(self._masks[row]).size
        if image != mask:
            raise UserError(
                f"{self._masks[row]} is {size_text(mask[::-1])}, its image {size_text(image[::-1])} (height x width)"
            )
        return read_labels(self._masks[row], (self.size, self.size))
