"""Reader of a folder of images, with an optional folder of masks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro_lom.data.hdf5 import last_tenth_for_testing
from pyro_lom.data.importers.block import Damage, Reader, Scene
from pyro_lom.data.pictures import image_paths, read_labels, read_picture, read_rgb, size_text
from pyro_lom.errors import UserError


class ImageFolder(Reader):
    """Reads all PNG and JPEG files of a folder, sorted by name and cropped about the centre to squares.

    Args:
        folder: folder of the images; subfolders are not searched.
        size: height and width of the resulting images; None uses the size of the first image, which must be square.
        masks: folder of PNG files named as the images. Their grey values or palette indices are the labels.
        num_background: number of background labels; labels below it are background.

    Raises:
        UserError: there are no images, an image has no mask, or `size` is None and the first image is not square.
    """

    def __init__(self, folder: Path, size: int | None, masks: Path | None, num_background: int):
        self._images = image_paths(folder)
        self._masks = masks and [masks / f"{image.stem}.png" for image in self._images]
        if missing := [mask for mask in self._masks or () if not mask.is_file()]:
            raise UserError(f"{len(missing)} images have no mask, the first lacking {missing[0]}: add them")
        width, height = read_picture(self._images[0]).size if size is None else (size, size)
        if width != height:
            shape = size_text((height, width))
            raise UserError(f"{self._images[0]} is {shape}, no square: pass --size, such as --size 64")
        self.size, self.num_background, self.total = width, num_background, len(self._images)

    def _scenes(self, place: Any, damage: Damage) -> Iterator[tuple[Scene | None, int, int]]:
        for row in range(place or 0, self.total):
            yield damage.unless_damaged(self._scene, row), row + 1, row + 1

    def splits(self, num_scenes: int) -> dict[str, range]:
        return last_tenth_for_testing(num_scenes)

    def _scene(self, row: int) -> Scene:
        path, size = self._images[row], (self.size, self.size)
        image = read_rgb(path, size)
        if self._masks is None:
            return Scene(image, None, {})
        mask = self._masks[row]
        found, expected = (read_picture(file).size[::-1] for file in (mask, path))
        if found != expected:
            raise UserError(f"{mask} is {size_text(found)}, its image {size_text(expected)} (height x width)")
        return Scene(image, read_labels(mask, size), {})
