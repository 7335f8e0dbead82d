"""Storage of scenes: reading and writing of HDF5 files, and reading of folders of images.

An HDF5 file contains `images` uint8 (N, H, W, C), `labels` uint8 (N, H, W) and `factors/<name>` (N, max_objects).
Contiguous arrays, the default, are memory-mapped: a data set larger than memory is read at the speed of the disk.
In a compact file, each image is compressed separately.
"""

import os
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from pyro_lom.data.folders import find_pictures
from pyro_lom.data.layout import (
    attribute,
    factors_in,
    images_in,
    integer_attribute,
    labels_in,
    splits_in,
    text_attribute,
)
from pyro_lom.data.pictures import fit, read_rgb, reason_of, size_notes, size_text, transparency_note
from pyro_lom.data.scenes import Scenes, fit_scenes, last_tenth_for_testing
from pyro_lom.data.self_contained import open_hdf5, reading
from pyro_lom.data.sources import check_address, check_is_hdf5, import_command
from pyro_lom.data.stored import IN_MEMORY
from pyro_lom.errors import UserError, printable
from pyro_lom.files import replacing, sync, writing

FORMAT = "pyro_lom scenes"
FORMAT_VERSION = 1


def write_scenes(path: str | Path, scenes: Scenes, *, source: str, seed: int, compression: str | None = None) -> None:
    """Write `scenes` to an HDF5 file. If this fails, no partial file is left.

    Args:
        path: the file. An existing file is replaced, and a missing folder is created.
        source: description of the scenes' origin.
        seed: seed that the scenes were made with.
        compression: compress each image separately, by "lzf" or "gzip". Files have about half the size or less; reading
            is ten times slower with lzf, and slower still with gzip.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            _write_file(temporary, scenes, source, seed, compression)
        except (OSError, RuntimeError) as error:  # h5py raises RuntimeError if closing the file fails
            raise UserError(f"cannot write {path}: {reason_of(error)}; make room or name another file") from error


def read_scenes(path: str | Path, size: tuple[int, int] | None = None, *, pad: bool = False) -> Scenes:
    """Open an HDF5 file of scenes, memory-mapped if it is not compact, or read a folder of images into memory.

    An HDF5 file must contain `images`. A file with `labels` must have the attribute `num_background`. Without split
    attributes, `last_tenth_for_testing` defines the splits. The file may come from a stranger: `self_contained.py`.

    Args:
        path: the file or folder.
        size: (height, width). Images of another size are cropped about the centre and resized to it, in memory.
        pad: keep all of an image and add black borders, instead of cropping.

    Raises:
        UserError: the file is missing or damaged, or is something else, which the message names, or its images together
            take more than 1 GiB at `size`.
    """
    check_address(path)
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, it accepts names that are too long
        return read_image_folder(path, size, pad=pad)
    if not os.path.exists(path):
        raise UserError(f"no such file or folder: {path}")
    check_is_hdf5(path)
    with reading(path), open_hdf5(path) as file:
        scenes = _scenes_in(file, path)
    return scenes if size is None else fit_scenes(scenes, size, pad=pad, place=str(path))


def read_image_folder(folder: str | Path, size: tuple[int, int] | None, *, pad: bool = False) -> Scenes:
    """Read the images of a folder and of its subfolders (`folders.py`) into memory as RGB.

    Splits are those of subfolders such as train/ and test/, or `last_tenth_for_testing`.

    Args:
        size: (height, width). Images of another size are cropped about the centre to its aspect ratio and resized
            bilinearly. With None, images are not changed and must all have the same size.
        pad: keep all of an image and add black borders, instead of cropping.

    Raises:
        UserError: there are no images, an image is unreadable, `size` is None and sizes differ, or the images together
            take more than 1 GiB.
    """
    folder = Path(folder)
    pictures = find_pictures(folder)
    first = read_rgb(pictures.images[0])[0]
    height, width = size or (first.height, first.width)
    if len(pictures.images) * height * width * 3 > IN_MEMORY:
        raise UserError(
            f"{len(pictures.images)} images of {size_text((height, width))} in {folder} take more than 1 GiB of "
            f"memory: make a file of them, {import_command(folder)} --size {height}"
        )
    images = np.empty((len(pictures.images), height, width, 3), np.uint8)
    sizes, num_transparent = Counter(), 0
    for index, path in enumerate(pictures.images):
        image, is_transparent = read_rgb(path)
        if size is None and image.size != first.size:
            raise UserError(
                f"images in {folder} differ in size: {pictures.images[0].name} is {size_text((height, width))}, "
                f"{path.name} is {size_text(image.size[::-1])} (height x width); pass the size to bring them all to, "
                "such as 64 64"
            )
        sizes[image.height, image.width] += 1
        num_transparent += is_transparent
        images[index] = np.asarray(fit(image, size, Image.Resampling.BILINEAR, pad=pad))
    offer = f"; masks are offered as labels: {import_command(folder)}" if pictures.masks else ""
    notes = [f"{folder}: {pictures.found}{offer}", *size_notes(folder, sizes, (height, width), pad)]
    if num_transparent:
        notes.append(transparency_note(folder, num_transparent))
    return Scenes(
        images,
        None,
        {},
        num_background=0,
        splits=pictures.splits or last_tenth_for_testing(len(images)),
        name=printable(folder.resolve().name),
        version=0,
        notes=tuple(notes),
    )


def _write_file(path: Path, scenes: Scenes, source: str, seed: int, compression: str | None) -> None:
    with h5py.File(path, "w", locking=False) as file:  # `replacing` has locked it
        for name, values in (("images", scenes.images), ("labels", scenes.labels)):
            if values is not None:
                layout = {"chunks": (1, *values.shape[1:]), "compression": compression} if compression else {}
                file.create_dataset(name, data=values, **layout)
        for factor, values in scenes.factors.items():
            file.create_dataset(f"factors/{factor}", data=values)
        file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, name=scenes.name, version=scenes.version)
        file.attrs.update(source=source, seed=seed, num_background=scenes.num_background)
        for split, rows in scenes.splits.items():
            file.attrs[f"split_{split}"] = [rows.start, rows.stop]
    sync(path)


def _scenes_in(file: h5py.File, path: Path) -> Scenes:
    is_ours = isinstance(format := attribute(file, "format", path), str) and format == FORMAT
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
