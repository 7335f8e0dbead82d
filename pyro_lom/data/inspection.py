"""Checks and summary statistics of all scenes of a data set, in one pass."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from pyro_lom.data.hdf5 import Scenes
from pyro_lom.errors import UserError

_BLOCK_BYTES, _BLOCK_SCENES = 32 << 20, 1 << 16


class Inspection(NamedTuple):
    lowest: int
    highest: int
    mean: Float[np.ndarray, "C"]
    """Mean of each channel, with pixels in [0, 1]."""
    num_flat: int
    """Number of images of a single colour."""
    label_scenes: Int[np.ndarray, "256"]
    """Number of scenes in which each label occurs."""
    num_objects: Int[np.ndarray, "257"]
    """Number of scenes that show 0, 1, 2, ... objects; all zero without labels."""


def inspect_scenes(scenes: Scenes, progress: bool = False) -> Inspection:
    """Check all scenes and compute their statistics, in bounded memory.

    Raises:
        UserError: a pixel has the label of an object whose factor `present` is 0. The message names the scene.
    """
    lowest, highest, total, num_flat = 255, 0, 0.0, 0
    label_scenes, num_objects = np.zeros(256, int), np.zeros(257, int)
    size = max(1, min(_BLOCK_SCENES, _BLOCK_BYTES // int(np.prod(scenes.images.shape[1:]))))
    for first in tqdm(range(0, len(scenes.images), size), disable=not progress, unit="block", leave=False):
        rows = slice(first, first + size)
        images = np.asarray(scenes.images[rows])
        lowest, highest = min(lowest, images.min()), max(highest, images.max())
        total += images.sum((0, 1, 2), dtype=np.uint64)
        num_flat += int((images == images[:, :1, :1]).all((1, 2, 3)).sum())
        if scenes.labels is None:
            continue
        labels = np.asarray(scenes.labels[rows])
        occurs = np.stack([np.bincount(scene.ravel(), minlength=256) > 0 for scene in labels])  # label k in each scene
        label_scenes += occurs.sum(0)
        num_objects += np.bincount(occurs[:, scenes.num_background :].sum(1), minlength=257)
        _check_present(scenes, occurs, rows)
    count = np.prod(scenes.images.shape[:3], dtype=float)
    return Inspection(int(lowest), int(highest), total / count / 255, num_flat, label_scenes, num_objects)


def _check_present(scenes: Scenes, occurs: np.ndarray, rows: slice) -> None:
    if "present" not in scenes.factors:
        return
    present = scenes.factors["present"][rows, : 256 - scenes.num_background] > 0
    unknown = occurs.copy()
    unknown[:, : scenes.num_background] = False
    unknown[:, scenes.num_background : scenes.num_background + present.shape[1]] &= ~present
    if unknown.any():
        scene, label = np.argwhere(unknown)[0]
        raise UserError(
            f"{scenes.name}: scene {rows.start + scene} has pixels of label {label}, but factors/present knows of no "
            f"object {label - scenes.num_background} there"
        )
