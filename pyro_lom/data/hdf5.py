"""Storage of scenes: reading and writing of HDF5 files, and reading of folders of images.

An HDF5 file contains `images` uint8 (N, H, W, C), `labels` uint8 (N, H, W) and `factors/<name>` (N, max_objects).
Contiguous arrays, the default, are memory-mapped: a data set larger than memory is read at the speed of the disk.
In a compact file, each image is compressed separately.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Shaped, UInt8

from pyro_lom.data.layout import factors_in, images_in, integer_attribute, labels_in, splits_in, text_attribute
from pyro_lom.data.pictures import image_paths, read_rgb, reason_of, size_text
from pyro_lom.data.self_contained import open_hdf5, reading
from pyro_lom.data.stored import IN_MEMORY, Array, ChunkedArray
from pyro_lom.errors import UserError, printable
from pyro_lom.files import replacing, sync, writing

FORMAT = "pyro_lom scenes"
FORMAT_VERSION = 1


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


def write_scenes(path: str | Path, scenes: Scenes, *, source: str, seed: int, compact: bool = False) -> None:
    """Write `scenes` to an HDF5 file. If this fails, no partial file is left.

    Args:
        path: the file. An existing file is replaced, and a missing folder is created.
        source: description of the scenes' origin.
        seed: seed that the scenes were made with.
        compact: compress each image separately (lzf). The file has about half the size; reading is ten times slower.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            _write_file(temporary, scenes, source, seed, compact)
        except (OSError, RuntimeError) as error:  # h5py raises RuntimeError if closing the file fails
            raise UserError(f"cannot write {path}: {reason_of(error)}; make room or name another file") from error


def read_scenes(path: str | Path, size: tuple[int, int] | None = None) -> Scenes:
    """Open an HDF5 file of scenes, memory-mapped if it is not compact, or read a folder of images into memory.

    An HDF5 file must contain `images`. A file with `labels` must have the attribute `num_background`. Without split
    attributes, `last_tenth_for_testing` defines the splits. The file may come from a stranger: `self_contained.py`.

    Args:
        path: the file or folder.
        size: (height, width). Images of a folder are cropped and resized to it; an HDF5 file must have it.

    Raises:
        UserError: the file is missing or damaged, has another layout, or contains images of another size.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, it accepts names that are too long
        return read_image_folder(path, size)
    if not os.path.exists(path):
        raise UserError(f"no such file or folder: {path}")
    with reading(path), open_hdf5(path) as file:
        scenes = _scenes_in(file, path)
    if size is not None and size != scenes.images.shape[1:3]:
        raise UserError(
            f"images in {path} are {size_text(scenes.images.shape[1:3])}, not {size_text(size)} (height x width): "
            "an HDF5 file is not resized; pass a folder of images or a file of that size"
        )
    return scenes


def read_image_folder(folder: str | Path, size: tuple[int, int] | None) -> Scenes:
    """Read all PNG and JPEG files of a folder, without its subfolders, into memory as RGB, sorted by file name.

    Args:
        size: (height, width). Images are cropped about the centre to its aspect ratio and resized
            bilinearly. With None, images are not changed and must all have the same size.

    Raises:
        UserError: there are no images, an image is unreadable, `size` is None and sizes differ, or the images together
            take more than 1 GiB.
    """
    folder = Path(folder)
    paths = image_paths(folder)
    height, width = size or read_rgb(paths[0]).shape[:2]
    if len(paths) * height * width * 3 > IN_MEMORY:
        raise UserError(
            f"{len(paths)} images of {size_text((height, width))} in {folder} take more than 1 GiB of memory: make a "
            f"file of them, python experiments/data.py import images {folder} FILE.h5 --size {height}"
        )
    images = np.empty((len(paths), height, width, 3), np.uint8)
    for index, path in enumerate(paths):
        image = read_rgb(path, size)
        if image.shape != images.shape[1:]:
            raise UserError(
                f"images in {folder} differ in size: {paths[0].name} is {size_text((height, width))}, {path.name} is "
                f"{size_text(image.shape[:2])} (height x width); pass the size to bring them all to, such as 64 64"
            )
        images[index] = image
    splits = last_tenth_for_testing(len(images))
    return Scenes(images, None, {}, num_background=0, splits=splits, name=printable(folder.resolve().name), version=0)


def last_tenth_for_testing(num_scenes: int) -> dict[str, range]:
    """Return default splits: the last tenth (1 to 1000 scenes) is "test", the rest "train"; one scene is "train"."""
    if num_scenes == 1:
        return {"train": range(1)}
    num_train = num_scenes - min(max(num_scenes // 10, 1), 1000)
    return {"train": range(num_train), "test": range(num_train, num_scenes)}


def _narrowed(array: Array, rows: slice) -> Array:
    return array.narrowed(rows) if isinstance(array, ChunkedArray) else array[rows]


def _write_file(path: Path, scenes: Scenes, source: str, seed: int, compact: bool) -> None:
    with h5py.File(path, "w", locking=False) as file:  # `replacing` has locked it
        for name, values in (("images", scenes.images), ("labels", scenes.labels)):
            if values is not None:
                layout = {"chunks": (1, *values.shape[1:]), "compression": "lzf"} if compact else {}
                file.create_dataset(name, data=values, **layout)
        for factor, values in scenes.factors.items():
            file.create_dataset(f"factors/{factor}", data=values)
        file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, name=scenes.name, version=scenes.version)
        file.attrs.update(source=source, seed=seed, num_background=scenes.num_background)
        for split, rows in scenes.splits.items():
            file.attrs[f"split_{split}"] = [rows.start, rows.stop]
    sync(path)


def _scenes_in(file: h5py.File, path: Path) -> Scenes:
    is_ours = isinstance(format := file.attrs.get("format"), str) and format == FORMAT
    if is_ours and (found := integer_attribute(file, "format_version", path)) > FORMAT_VERSION:
        raise UserError(f"{path} has format_version {found}, newer than {FORMAT_VERSION}: update pyro_lom")
    images = images_in(file, path)
    labels = labels_in(file, path, images)
    # No default: it would decide silently whether ARI counts the background.
    num_background = 0 if labels is None else integer_attribute(file, "num_background", path, at_most=255)
    return Scenes(
        images,
        labels,
        factors_in(file, path, len(images)),
        num_background,
        splits_in(file, path, len(images)) or last_tenth_for_testing(len(images)),
        name=text_attribute(file, "name", path) if is_ours else printable(path.stem),
        version=integer_attribute(file, "version", path) if is_ours else 0,
    )
