"""Every scene of a data set looked at once: what it holds, and whether it agrees with itself."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from pyro_lom.data.hdf5 import Scenes
from pyro_lom.errors import UserError

_BLOCK_BYTES = 32 << 20


class Inspection(NamedTuple):
    lowest: int
    highest: int
    mean: Float[np.ndarray, "C"]
    """Of pixels in [0, 1], by channel."""
    num_flat: int
    """Images of a single colour."""
    label_scenes: Int[np.ndarray, "256"]
    """In how many scenes each label occurs."""
    num_objects: Int[np.ndarray, "257"]
    """How many scenes show 0, 1, 2, ... objects; all zero without labels."""


def inspect_scenes(scenes: Scenes, progress: bool = False) -> Inspection:
    """Read all of `scenes`, in bounded memory.

    Raises:
        UserError: splits overlap, a factor is not finite, or a pixel is labelled with an object that the factor
            `present` says is not there; names the scene.
    """
    _check_factors(scenes)
    lowest, highest, total, num_flat = 255, 0, 0.0, 0
    label_scenes, num_objects = np.zeros(256, int), np.zeros(257, int)
    for rows in tqdm(_blocks(scenes), disable=not progress, unit="block", leave=False):
        images = np.asarray(scenes.images[rows])
        pixels = images.reshape(len(images), -1)
        lowest, highest = min(lowest, pixels.min()), max(highest, pixels.max())
        total += images.sum((0, 1, 2), dtype=np.uint64)
        flat = (images == images[:, :1, :1]).all((1, 2, 3))
        num_flat += int(flat.sum())
        if scenes.labels is None:
            continue
        occurs = _labels_in(np.asarray(scenes.labels[rows]))
        label_scenes += occurs.sum(0)
        num_objects += np.bincount(occurs[:, scenes.num_background :].sum(1), minlength=257)
        _check_present(scenes, occurs, rows)
    count = np.prod(scenes.images.shape[:3], dtype=float)
    return Inspection(int(lowest), int(highest), total / count / 255, num_flat, label_scenes, num_objects)


def _blocks(scenes: Scenes) -> list[slice]:
    size = max(1, _BLOCK_BYTES // int(np.prod(scenes.images.shape[1:])))
    return [slice(first, first + size) for first in range(0, len(scenes.images), size)]


def _labels_in(labels: np.ndarray) -> np.ndarray:
    """(n, 256): whether each label occurs in each scene."""
    occurs = np.zeros((len(labels), 256), bool)
    scene = np.broadcast_to(np.arange(len(labels))[:, None, None], labels.shape)
    occurs[scene, labels] = True
    return occurs


def _check_factors(scenes: Scenes) -> None:
    for name, values in scenes.factors.items():
        values = np.asarray(values)
        wrong = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        if wrong.any():
            scene, column = np.argwhere(wrong)[0]
            raise UserError(
                f"{scenes.name}: factors/{name} of scene {scene} is {values[scene, column]} in column {column}"
            )


def _check_present(scenes: Scenes, occurs: np.ndarray, rows: slice) -> None:
    if "present" not in scenes.factors:
        return
    present = np.asarray(scenes.factors["present"][rows]) > 0
    known = np.zeros_like(occurs)
    known[:, : scenes.num_background] = True
    known[:, scenes.num_background : scenes.num_background + present.shape[1]] = present
    if (occurs & ~known).any():
        scene, label = np.argwhere(occurs & ~known)[0]
        raise UserError(
            f"{scenes.name}: scene {rows.start + scene} has pixels of label {label}, but factors/present knows of no "
            f"object {label - scenes.num_background} there"
        )
