"""Checks of the arrays and attributes that an HDF5 file of scenes contains. Every function raises UserErrors."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Shaped

from pyro_lom.data.pictures import LARGEST
from pyro_lom.data.self_contained import check_storage
from pyro_lom.data.sources import import_command
from pyro_lom.data.stored import Array, stored_array
from pyro_lom.errors import UserError

MAX_SCENES = 100_000_000  # the permutation of an epoch then takes 0.8 GB
_MAX_FACTORS = 256 << 20  # bytes of all factors together, which are read into memory
_MAX_SPLITS = 100
_MAX_ATTRIBUTE = 64 << 10  # bytes


def images_in(file: h5py.File, path: Path) -> Array:
    images = file.get("images")
    if not isinstance(images, h5py.Dataset):
        held = ", ".join(map(str, file)) or "nothing"
        raise UserError(
            f'{path} has no data set "images" (it holds {held}); store one, uint8 (N, H, W, C), or convert the file: '
            f"{import_command(path)}"
        )
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
    if 0 in images.shape:
        raise UserError(f"images in {path} are empty (shape {images.shape}); store at least one scene")
    if len(images) > MAX_SCENES or max(images.shape[1:3]) > LARGEST:
        raise UserError(
            f"images in {path} have shape {images.shape}; expected at most {MAX_SCENES} scenes of at most {LARGEST} "
            "pixels a side"
        )
    return stored_array(images, path)


def labels_in(file: h5py.File, path: Path, images: Array) -> Array | None:
    labels = file.get("labels")
    if labels is None:
        return None
    shape = images.shape[:3]
    if not isinstance(labels, h5py.Dataset) or labels.shape != shape or labels.dtype != np.uint8:
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, h5py.Dataset) else "a group"
        raise UserError(f"labels in {path} are {found}; expected uint8 {shape}, one per pixel of images")
    return stored_array(labels, path, beside=images)


def factors_in(file: h5py.File, path: Path, num_scenes: int) -> dict[str, Shaped[np.ndarray, "N max_objects"]]:
    """Read all factors into memory."""
    if "factors" not in file:
        return {}
    if not isinstance(file["factors"], h5py.Group):
        raise UserError(f"factors in {path} is no group; expected a group of arrays factors/NAME (N, max_objects)")
    factors, size = {}, 0
    for name, values in file["factors"].items():
        place, expected = f"factors/{name} in {path}", f"numbers ({num_scenes}, max_objects), at most 256 objects"
        if not isinstance(values, h5py.Dataset):
            raise UserError(f"{place} is a group; expected {expected}")
        is_number = values.dtype.kind in "buif" and values.dtype.itemsize <= 8
        if not is_number or values.ndim != 2 or len(values) != num_scenes or not 1 <= values.shape[1] <= 256:
            raise UserError(f"{place} is {values.dtype} of shape {values.shape}; expected {expected}")
        size += math.prod(values.shape) * values.dtype.itemsize
        if size > _MAX_FACTORS:
            raise UserError(f"the factors in {path} take more than {_MAX_FACTORS >> 20} MiB: store fewer of them")
        check_storage(values, path)
        factors[name] = values[()].astype(values.dtype.newbyteorder("="), copy=False)
        if not (finite := np.isfinite(factors[name])).all():
            scene, column = np.argwhere(~finite)[0]
            found = f"{factors[name][scene, column]} in scene {scene}, column {column}"
            raise UserError(f"{place} is {found}; expected finite numbers, 0 for absent objects")
    return factors


def attribute(file: h5py.File, name: str, path: Path) -> Any:
    """Return an attribute of a file, or None if it has no such attribute. Large ones are refused unread."""
    if name not in file.attrs:
        return None
    stored = file.attrs.get_id(name)
    if (size := stored.get_space().get_simple_extent_npoints() * stored.get_type().get_size()) > _MAX_ATTRIBUTE:
        raise UserError(
            f"the attribute {name} in {path} takes {size} bytes; expected at most {_MAX_ATTRIBUTE}: remove it"
        )
    return file.attrs[name]


def text_attribute(file: h5py.File, name: str, path: Path) -> str:
    """Return an attribute that must be a string."""
    value = attribute(file, name, path)
    if not isinstance(value, str):
        found = "missing" if value is None else " ".join(repr(value).split())[:100]
        raise UserError(f"the attribute {name} in {path} is {found}; expected a string")
    if value != value.encode(errors="replace").decode():
        raise UserError(f"the attribute {name} in {path} is {value!r}, which is not UTF-8; write it again")
    return value


def integer_attribute(file: h5py.File, name: str, path: Path, at_most: int = 2**31 - 1) -> int:
    """Return an attribute that must be an integer from 0 to `at_most`."""
    value = attribute(file, name, path)
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) is not int or not 0 <= value <= at_most:
        found = "missing" if value is None else " ".join(repr(value).split())[:100]
        raise UserError(f"the attribute {name} in {path} is {found}; expected an integer from 0 to {at_most}")
    return value


def splits_in(file: h5py.File, path: Path, num_scenes: int) -> dict[str, range]:
    """Return the rows of the splits that the attributes `split_NAME` define. They do not overlap."""
    splits = {}
    names = [name for name in map(str, file.attrs) if name.startswith("split_")]  # bytes if a name is not UTF-8
    if len(names) > _MAX_SPLITS:
        raise UserError(f"{path} has {len(names)} splits; expected at most {_MAX_SPLITS}: remove attributes split_...")
    for name in names:
        bounds = np.asarray(attribute(file, name, path))
        is_pair = bounds.shape == (2,) and np.issubdtype(bounds.dtype, np.integer)
        if not is_pair or not 0 <= bounds[0] <= bounds[1] <= num_scenes:
            found = bounds.tolist() if bounds.size <= 4 else f"of shape {bounds.shape}"
            raise UserError(f"{name} in {path} is {found}; expected [start, stop] within 0..{num_scenes}")
        splits[name.removeprefix("split_")] = range(int(bounds[0]), int(bounds[1]))
    for (first, rows), (second, others) in combinations(splits.items(), 2):
        if shared := range(max(rows.start, others.start), min(rows.stop, others.stop)):
            raise UserError(
                f'scenes {shared.start} to {shared.stop - 1} of {path} are both in "{first}" and in "{second}": mend '
                "its attributes split_..."
            )
    return splits
