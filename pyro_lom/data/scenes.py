"""Scenes: images with labels, factors and splits, and their change to another size."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from pyro_lom.data.pictures import fit_pixels, size_notes, size_text
from pyro_lom.data.sources import import_command
from pyro_lom.data.stored import IN_MEMORY, Array, ChunkedArray
from pyro_lom.errors import UserError

_TO_JUDGE_LABELS = 2048  # scenes


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images of scenes with optional labels and factors. The arrays may be memory maps."""

    images: UInt8[Array, "N H W C"]
    """Pixels in 0..255, with 1 or 3 channels."""
    labels: UInt8[Array, "N H W"] | None
    """Label of each pixel: 0..num_background-1 are background entities, higher labels are objects."""
    factors: dict[str, Shaped[Array, "N max_objects"]]
    """Properties of each object by name, 0 for absent objects. A property of the whole scene has one column."""
    num_background: int
    """Number of background labels; 0 if there are no labels."""
    splits: dict[str, range]
    """Rows of each split: "train", and optionally "validation" and "test"."""
    name: str
    version: int
    """Version of the data set called `name`; 0 if unknown."""
    notes: tuple[str, ...] = ()
    """What a person should know about how the scenes were read, one line each."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image as the models take it."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def split(self, name: str, at_most: int | None = None) -> "Scenes":
        """Return the scenes of one split, or its first `at_most` scenes, as views.

        Raises:
            UserError: there is no split of that name.
        """
        if name not in self.splits:
            raise UserError(f'{self.name} has no split "{name}"; choose one of: {", ".join(self.splits)}')
        rows = slice(self.splits[name].start, self.splits[name][:at_most].stop)
        return replace(
            self,
            images=_narrowed(self.images, rows),
            labels=None if self.labels is None else _narrowed(self.labels, rows),
            factors={factor: _narrowed(values, rows) for factor, values in self.factors.items()},
            splits={name: range(rows.stop - rows.start)},
        )


def fit_scenes(scenes: Scenes, size: tuple[int, int], *, pad: bool, place: str) -> Scenes:
    """Return the scenes with images and labels of `size`, (height, width), in memory; see `pictures.fit`.

    Rules for the pixels of a data set, such as `metrics/structure.py`, do not hold at another size, so the data set has
    another name.

    Raises:
        UserError: the images and labels take more than 1 GiB.
    """
    found = scenes.images.shape[1:3]
    if found == size:
        return scenes
    num_scenes, channels = len(scenes.images), scenes.images.shape[3]
    if num_scenes * size[0] * size[1] * (channels + (scenes.labels is not None)) > IN_MEMORY:
        raise UserError(
            f"{num_scenes} images of {size_text(found)} in {place} take more than 1 GiB of memory at "
            f"{size_text(size)}: make a file of that size, {import_command(place)} --size {size[0]}"
        )
    images = np.empty((num_scenes, *size, channels), np.uint8)
    labels = None if scenes.labels is None else np.empty((num_scenes, *size), np.uint8)
    for row in tqdm(range(num_scenes), desc="resizing", disable=None, leave=False):
        images[row] = fit_pixels(scenes.images[row], size, Image.Resampling.BILINEAR, pad=pad)
        if labels is not None:
            labels[row] = fit_pixels(scenes.labels[row], size, Image.Resampling.NEAREST, pad=pad)
    name, notes = f"{scenes.name} at {size_text(size)}", size_notes(place, {found: num_scenes}, size, pad)
    return replace(scenes, images=images, labels=labels, name=name, notes=(*scenes.notes, *notes))


def why_no_objects(scenes: Scenes) -> str | None:
    """Return why no pixel of the first scenes is labelled as an object, in one line, or None if one is."""
    if scenes.labels is None or not len(scenes.images):
        return None
    highest = int(np.asarray(scenes.labels[:_TO_JUDGE_LABELS]).max())
    if highest >= scenes.num_background:
        return None
    return (
        f"no pixel is an object: labels are 0 to {highest}, and num_background is {scenes.num_background}, so labels "
        f"below {scenes.num_background} are background; lower it"
    )


def last_tenth_for_testing(num_scenes: int) -> dict[str, range]:
    """Return default splits: the last tenth (1 to 1000 scenes) is "test", the rest "train"; one scene is "train"."""
    if num_scenes == 1:
        return {"train": range(1)}
    num_train = num_scenes - min(max(num_scenes // 10, 1), 1000)
    return {"train": range(num_train), "test": range(num_train, num_scenes)}


def _narrowed(array: Array, rows: slice) -> Array:
    return array.narrowed(rows) if isinstance(array, ChunkedArray) else array[rows]
