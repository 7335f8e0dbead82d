"""Storage of scenes: reading and writing of HDF5 files, and reading of folders of images.

An HDF5 file contains `images` uint8 (N, H, W, C), `labels` uint8 (N, H, W) and `factors/<name>` (N, max_objects).
Contiguous arrays, the default, are memory-mapped: a data set larger than memory is read at the speed of the disk.
In a compact file, each image is compressed separately.
"""

import os
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Shaped, UInt8

from pyro_lom.data.pictures import image_paths, read_rgb, reason_of, size_text
from pyro_lom.data.stored import Array, ChunkedArray, stored_array
from pyro_lom.errors import UserError

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_file(temporary, scenes, source, seed, compact)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # h5py raises RuntimeError if closing the file fails
        raise UserError(f"cannot write {path}: {reason_of(error)}; make room or name another file") from error


def read_scenes(path: str | Path, size: tuple[int, int] | None = None) -> Scenes:
    """Open an HDF5 file of scenes, memory-mapped if it is not compact, or read a folder of images into memory.

    An HDF5 file must contain `images`. A file with `labels` must have the attribute `num_background`. Without split
    attributes, `last_tenth_for_testing` defines the splits.

    Args:
        path: the file or folder.
        size: (height, width). Images of a folder are cropped and resized to it; an HDF5 file must have it.

    Raises:
        UserError: the file is missing or damaged, has another layout, or contains images of another size.
    """
    path = Path(path)
    if path.is_dir():
        return read_image_folder(path, size)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    try:
        with h5py.File(path, "r") as file:
            scenes = _scenes_in(file, path)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: permission denied; ask its owner or name another file") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py raises any of these on damage
        problem = f"not an HDF5 file, or truncated or damaged ({reason_of(error)})"
        raise UserError(f"cannot read {path}: {problem}; make or fetch it again") from error
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
        UserError: there are no images, an image is unreadable, or `size` is None and sizes differ.
    """
    folder = Path(folder)
    paths = image_paths(folder)
    height, width = size or read_rgb(paths[0]).shape[:2]
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
    return Scenes(images, None, {}, num_background=0, splits=splits, name=folder.resolve().name, version=0)


def last_tenth_for_testing(num_scenes: int) -> dict[str, range]:
    """Return default splits: the last tenth (1 to 1000 scenes) is "test", the rest "train"; one scene is "train"."""
    if num_scenes == 1:
        return {"train": range(1)}
    num_train = num_scenes - min(max(num_scenes // 10, 1), 1000)
    return {"train": range(num_train), "test": range(num_train, num_scenes)}


def _narrowed(array: Array, rows: slice) -> Array:
    return array.narrowed(rows) if isinstance(array, ChunkedArray) else array[rows]


def _write_file(path: Path, scenes: Scenes, source: str, seed: int, compact: bool) -> None:
    with h5py.File(path, "w") as file:
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
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _scenes_in(file: h5py.File, path: Path) -> Scenes:
    attributes = file.attrs
    is_ours = attributes.get("format") == FORMAT
    if is_ours and (found := attributes["format_version"]) > FORMAT_VERSION:
        raise UserError(f"{path} has format_version {found}, newer than {FORMAT_VERSION}: update pyro_lom")
    images = _images_in(file, path)
    labels, factors = _labels_in(file, path, images.shape[:3]), _factors_in(file, path, len(images))
    num_background = 0 if labels is None else _num_background_in(attributes, path)
    splits = _splits_in(attributes, path, len(images))
    name, version = (str(attributes["name"]), int(attributes["version"])) if is_ours else (path.stem, 0)
    return Scenes(images, labels, factors, num_background, splits, name, version)


def _images_in(file: h5py.File, path: Path) -> Array:
    images = file.get("images")
    if not isinstance(images, h5py.Dataset):
        held = ", ".join(map(str, file)) or "nothing"
        raise UserError(f'{path} has no data set "images" (it holds {held}); store one, uint8 (N, H, W, C)')
    if images.ndim != 4:
        raise UserError(f"images in {path} have shape {images.shape}; expected four axes (N, H, W, C)")
    if images.dtype != np.uint8:
        raise UserError(
            f"images in {path} are {images.dtype}; expected uint8, 0..255: convert them with "
            "images.clip(0, 255).round().astype('uint8'), after multiplying by 255 if they lie in [0, 1]"
        )
    if images.shape[3] not in (1, 3):
        leading = "images.transpose(0, 2, 3, 1) moves leading channels there"
        way = "images[..., :3] leaves out transparency" if images.shape[3] == 4 else leading
        raise UserError(
            f"images in {path} have {images.shape[3]} channels (shape {images.shape}); expected 1 or 3 on the last "
            f"axis: {way}"
        )
    if len(images) == 0:
        raise UserError(f"images in {path} are empty (shape {images.shape}); store at least one scene")
    return stored_array(images, path)


def _labels_in(file: h5py.File, path: Path, shape: tuple[int, int, int]) -> Array | None:
    labels = file.get("labels")
    if labels is None:
        return None
    if not isinstance(labels, h5py.Dataset) or labels.shape != shape or labels.dtype != np.uint8:
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, h5py.Dataset) else "a group"
        raise UserError(f"labels in {path} are {found}; expected uint8 {shape}, one per pixel of images")
    return stored_array(labels, path)


def _factors_in(file: h5py.File, path: Path, num_scenes: int) -> dict[str, Array]:
    factors = {}
    for name, values in file.get("factors", {}).items():
        if not isinstance(values, h5py.Dataset) or values.ndim != 2 or len(values) != num_scenes:
            found = f"shape {values.shape}" if isinstance(values, h5py.Dataset) else "a group"
            raise UserError(f"factors/{name} in {path} is {found}; expected an array ({num_scenes}, max_objects)")
        factors[name] = stored_array(values, path)
    return factors


def _num_background_in(attributes: h5py.AttributeManager, path: Path) -> int:
    # No default: it would decide silently whether ARI counts the background.
    if "num_background" not in attributes:
        raise UserError(
            f"{path} has labels but no attribute num_background: set it to how many labels, from 0 up, are background"
        )
    num_background = attributes["num_background"]
    if not isinstance(num_background, np.integer) or num_background < 0:
        raise UserError(f"num_background in {path} is {num_background!r}; expected an integer, 0 or more")
    return int(num_background)


def _splits_in(attributes: h5py.AttributeManager, path: Path, num_scenes: int) -> dict[str, range]:
    splits = {}
    names = map(str, attributes)  # h5py returns names that are not UTF-8 as bytes
    for key in (name for name in names if name.startswith("split_")):
        bounds = np.asarray(attributes[key])
        is_pair = bounds.shape == (2,) and np.issubdtype(bounds.dtype, np.integer)
        if not is_pair or not 0 <= bounds[0] <= bounds[1] <= num_scenes:
            raise UserError(f"{key} in {path} is {bounds.tolist()}; expected [start, stop] within 0..{num_scenes}")
        splits[key.removeprefix("split_")] = range(int(bounds[0]), int(bounds[1]))
    for (first, rows), (second, others) in combinations(splits.items(), 2):
        if shared := range(max(rows.start, others.start), min(rows.stop, others.stop)):
            raise UserError(
                f'scenes {shared.start} to {shared.stop - 1} of {path} are both in "{first}" and in "{second}": mend '
                "its attributes split_..."
            )
    return splits or last_tenth_for_testing(num_scenes)
