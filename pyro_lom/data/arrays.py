"""Conversion of arrays, in the forms in which people keep images and masks, to the form of `Scenes`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image

from pyro_lom.data.layout import MAX_SCENES
from pyro_lom.data.pictures import LARGEST, on_white, size_text
from pyro_lom.data.scenes import Scenes, last_tenth_for_testing
from pyro_lom.errors import UserError

_AT_ONCE = 1024  # scenes that are converted at once
_VALUES_AT_ONCE = 1 << 20  # numbers that are in float64 at once
MAX_LABELS = 256


def scenes_of(images: Any, labels: Any = None, *, num_background: int = 1) -> Scenes:
    """Return arrays of images, and perhaps of labels, as scenes, the last tenth of which is for testing.

    Args:
        images: NumPy array or tensor (N, H, W, C), (N, C, H, W) or (N, H, W) of 1, 3 or 4 channels: integers from 0 to
            255, or floats from 0 to 1. A fourth channel is the opacity, and the image is laid on white. `Scenes` are
            returned as they are.
        labels: integers (N, H, W), or one mask for each entity, as `label_converter` takes them.
        num_background: number of background labels; labels below it are background.

    Raises:
        UserError: images or labels have another form or other values, or are not equally many.
    """
    if isinstance(images, Scenes):
        found, of_pixels = images.images, images.labels
        is_right = found.dtype == np.uint8 and found.ndim == 4 and found.shape[-1] in (1, 3)
        if not is_right or (
            of_pixels is not None and (of_pixels.dtype, of_pixels.shape) != (np.uint8, found.shape[:3])
        ):
            raise UserError("these Scenes are not of bytes (N, H, W, C): make them by scenes_of(images, labels)")
        return images
    found = _converted(images, image_converter, "images in scenes")
    if labels is not None:
        size = found.shape[1:3]
        labels = _converted(labels, lambda *given: label_converter(*given[:2], size, given[2]), "labels in scenes")
        if len(labels) != len(found):
            raise UserError(f"there are {len(labels)} labels for {len(found)} images: pass one for each")
    splits = last_tenth_for_testing(len(found))
    return Scenes(found, labels, {}, num_background * (labels is not None), splits, name="arrays", version=0)


def _converted(array: Any, converter: Callable, place: str) -> UInt8[np.ndarray, "N ..."]:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    array = np.asarray(array)
    convert = converter(array, array, place)
    return np.concatenate([convert(array[first : first + _AT_ONCE]) for first in range(0, len(array), _AT_ONCE)])


def image_converter(images: Any, some: np.ndarray, place: str) -> Callable[[np.ndarray], UInt8[np.ndarray, "n H W C"]]:
    """Return a function that converts rows of `images` to uint8 (n, H, W, C), with 1 or 3 channels.

    Args:
        images: an array on disk or in memory, of which only shape and dtype are used.
        some: some of its rows. If they are floats up to 1, all values are multiplied by 255.
        place: name of the array for messages.

    Raises:
        UserError: shape or dtype is wrong. The function raises it if values are not from 0 to 255.
    """
    shape, dtype = tuple(images.shape), images.dtype
    axis = _channel_axis(shape)
    if len(shape) not in (3, 4) or (len(shape) == 4 and axis is None):
        raise UserError(f"{place} has the shape {shape}; expected (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels")
    if 0 in shape:
        raise UserError(f"{place} is empty (shape {shape}); pass one image or more")
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise UserError(f"{place} is {dtype}; expected integers from 0 to 255, or floats from 0 to 1")
    if shape[0] > MAX_SCENES or max(size_of(images)) > LARGEST:
        raise UserError(f"{place} has the shape {shape}; expected at most {MAX_SCENES} of {LARGEST} pixels a side")
    most = largest_value(some)

    def convert(rows: np.ndarray) -> UInt8[np.ndarray, "n H W C"]:
        rows = rows[..., None] if axis is None else np.moveaxis(rows, axis, -1)
        if dtype != np.uint8:
            low, high = float(rows.min()), float(rows.max())
            if not (-1e-3 <= low and high <= most + 1e-3):  # also if they are NaN
                raise UserError(f"{place} has values from {low:.4g} to {high:.4g}; expected 0 to {most}: rescale them")
            rows = _rounded(rows, 255 // most)
        if rows.shape[-1] == 4:
            rows = np.stack([np.asarray(on_white(Image.fromarray(row))) for row in np.ascontiguousarray(rows)])
        return np.ascontiguousarray(rows)

    return convert


def _rounded(rows: Shaped[np.ndarray, "n H W C"], factor: int) -> UInt8[np.ndarray, "n H W C"]:
    """Return `factor` times the rows, rounded to bytes, line by line in little memory."""
    found = np.empty(rows.shape, np.uint8)
    at_once = max(1, _VALUES_AT_ONCE // (rows.shape[2] * rows.shape[3]))
    lines, of_found = rows.reshape(-1, *rows.shape[2:]), found.reshape(-1, *rows.shape[2:])
    for first in range(0, len(lines), at_once):
        some = lines[first : first + at_once].astype(np.float64) * factor
        of_found[first : first + at_once] = some.round().clip(0, 255)
    return found


def size_of(images: Any) -> tuple[int, int]:
    """Return (height, width) of an array in one of the forms that `image_converter` takes."""
    return tuple(images.shape[2:4] if _channel_axis(images.shape) == 1 else images.shape[1:3])


def channels_of(images: Any) -> int:
    """Return the number of channels of an array of images after its conversion: 1 or 3."""
    axis = _channel_axis(images.shape)
    return 1 if axis is None else min(images.shape[axis], 3)


def largest_value(some: np.ndarray) -> int:
    """Return 1 if images are from 0 to 1, or 255 if they are from 0 to 255, by some of them."""
    is_of_one = some.dtype.kind == "b" or (some.dtype.kind == "f" and float(np.fmax.reduce(some, axis=None)) <= 1)
    return 1 if is_of_one else 255


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return -1 or 1, or None if images have no axis of channels."""
    return next((axis for axis in (-1, 1) if len(shape) == 4 and shape[axis] in (1, 3, 4)), None)


def label_converter(
    labels: Any, some: np.ndarray, size: tuple[int, int], place: str
) -> Callable[[np.ndarray], UInt8[np.ndarray, "n H W"]]:
    """Return a function that converts rows of `labels` to uint8 (n, H, W), for images of `size`, (height, width).

    `labels` are integers (N, H, W) or (N, H, W, 1), or masks of K entities, 0 where an entity is not: (N, K, H, W),
    (N, K, H, W, C), (N, H, W, K) or (N, H, W, K, 1). If the masks of the first scene cover the image, an entity's label
    is its number from 0. If not, it is its number from 1, and pixels of no mask have label 0.

    Raises:
        UserError: shape or dtype is wrong. The function raises it if a label is not from 0 to 255, or if masks have
            other values than 0 and 1, or than 0 and 255, or channels that differ.
    """
    shape, kind = tuple(labels.shape), labels.dtype.kind
    inner = shape[1:]
    while len(inner) > 2 and inner[-1] == 1:
        inner = inner[:-1]
    if inner[:1] == (1,) and inner[1:3] == size:  # (N, 1, H, W)
        inner = inner[1:]
    expected = f"integers or bool, (N, H, W) or one mask an entity (N, K, H, W), of size {size_text(size)}"
    if 0 in shape:
        raise UserError(f"{place} is empty (shape {shape}); expected {expected}")
    if inner == size and kind in "bui":

        def convert(rows: np.ndarray) -> UInt8[np.ndarray, "n H W"]:
            rows = rows.reshape(len(rows), *size)
            if not (0 <= rows.min() and rows.max() < MAX_LABELS):
                raise UserError(
                    f"{place} has labels from {rows.min()} to {rows.max()}; expected 0 to 255: renumber them"
                )
            return rows.astype(np.uint8)

        return convert
    if len(inner) == 4 and inner[1:3] == size:  # (N, K, H, W, C): all channels are equal
        axis = 1
    elif len(inner) == 3 and size in (inner[:2], inner[1:]):
        axis = 1 if inner[1:] == size else 3
    else:
        axis = None
    if axis is None or kind not in "buif" or (num_entities := shape[axis]) >= MAX_LABELS:
        raise UserError(f"{place} is {labels.dtype} {shape}; expected {expected}")

    def numbered(rows: np.ndarray) -> UInt8[np.ndarray, "n H W"]:
        """Return the number of the first mask at each pixel, from 1, or 0."""
        one = 1 if rows.max() <= 1 else 255
        labels = np.zeros((len(rows), *size), np.uint8)
        for number in reversed(range(num_entities)):
            mask = rows.take(number, axis).reshape(len(rows), *size, -1)
            if (wrong := mask[(mask != 0) & (mask != one)]).size:
                raise UserError(f"{place} has the value {wrong[0]}; expected masks of 0 and 1, or of 0 and 255")
            if (mask != mask[..., :1]).any():
                raise UserError(f"{place} has masks whose channels differ; expected equal ones: store one of them")
            labels[mask[..., 0] != 0] = number + 1
        return labels

    first = int((numbered(some[:1]) == 0).any())

    def convert(rows: np.ndarray) -> UInt8[np.ndarray, "n H W"]:
        labels = numbered(rows)
        return labels if first else labels - (labels > 0)

    return convert
