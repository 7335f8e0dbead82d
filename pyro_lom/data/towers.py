"""The built-in data set "towers": small scenes whose objects are related, generated in seconds from one seed."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb

from pyro_lom.data.hdf5 import Scenes, read_scenes, write_scenes
from pyro_lom.data.pictures import size_text
from pyro_lom.errors import UserError

VERSION = 2
SIZE = 32  # pixels per side; `make_towers` also supports multiples of it
WALL, FLOOR = 0, 1
NUM_BACKGROUND = 2
MAX_BLOCKS = 5

_TRAIN, _VALIDATION, _TEST = 8192, 1024, 2048
_STACK_ROWS = 21  # maximum height of a tower in 32 rows
_FACTORS = ("present", "left", "top", "width", "height", "hue")
_MAX_HUE, _HUE_STEP = 130, 40  # degrees: hues from red to green; minimum difference of unequal hues


def make_towers(num_scenes: int, *, seed: int = 0, max_blocks: int = 3, size: int = SIZE) -> Scenes:
    """Draw `num_scenes` RGB scenes. Each scene contains one tower that stands on a floor in front of a wall.

    A tower has 1 to `max_blocks` blocks. The probability of k blocks is proportional to k. The following lengths are
    for images of 32x32 pixels and scale with `size`. The tower's foot is 4 rows below the horizon. Blocks are 8 to 12
    pixels wide and 7 rows high (5 if `max_blocks` is 4, and 4 if it is 5). They touch. The centre of a block is shifted
    sideways from the centre of the block below by at most 2 pixels.
    Blocks cannot be separated by colour alone. With probability 0.3, a block has the hue of the block below. Otherwise
    its hue differs by at least 40 degrees. Hues lie between red and green. Every block is shaded from light (top) to
    dark (bottom). The brightness of wall and floor also varies with the row.

    Label 0 is the wall and 1 the floor; the blocks have labels from 2, starting with the lowest. Factors have one
    column per block, and 0 for absent blocks: `present`, `left`, `top`, `width`, `height` in pixels, `hue` in degrees.

    Raises:
        UserError: `max_blocks` is not within 1..5, or `size` is not a multiple of 32.
    """
    if not 1 <= max_blocks <= MAX_BLOCKS:
        raise UserError(f"towers can have 1 to {MAX_BLOCKS} blocks, not max_blocks={max_blocks}")
    if size < SIZE or size % SIZE:
        raise UserError(f"towers are drawn at multiples of {SIZE} pixels, not at size={size}")
    rng = np.random.default_rng((VERSION, seed))
    n, unit = num_scenes, size // SIZE

    def integers(low, high):  # includes both ends; one value per scene, to be broadcast over its pixels
        return rng.integers(low, high, (n, 1, 1), endpoint=True)

    rows, columns = np.arange(size)[:, None], np.arange(size)[None, :]

    # The background is a greyish wall, lighter at the top, and a dark floor, lighter at the bottom.
    horizon = integers(20 * unit, 24 * unit)
    wall = rng.uniform(0.52, 0.85, (n, 1, 1, 1)) + rng.uniform(-0.08, 0.08, (n, 1, 1, 3))
    floor = rng.uniform(0.10, 0.30, (n, 1, 1, 1)) + rng.uniform(-0.05, 0.05, (n, 1, 1, 3))
    down = (rows / (size - 1) - 0.5)[..., None]
    is_floor = rows >= horizon
    images = np.where(is_floor[..., None], floor * (1 + 1.2 * down), wall - 0.16 * down)
    labels = np.where(is_floor, FLOOR, WALL).astype(np.uint8)

    # The tower.
    numbers = np.arange(1, max_blocks + 1)
    num_blocks = rng.choice(numbers, (n, 1, 1), p=numbers / numbers.sum())
    height = min(7, _STACK_ROWS // max_blocks) * unit
    foot = horizon + 4 * unit  # first row below the tower
    centre = integers(12 * unit, 20 * unit)
    factors = {name: np.zeros((n, max_blocks), np.float32) for name in _FACTORS}
    hue = rng.uniform(0, _MAX_HUE, (n, 1, 1))
    for k in range(max_blocks):
        present = k < num_blocks
        width = integers(8 * unit, 12 * unit)
        if k > 0:
            centre = np.clip(centre + integers(-2 * unit, 2 * unit), 8 * unit, size - 8 * unit)
            below = (hue - _HUE_STEP).clip(0)  # length of the range of allowed hues on each side
            above = (_MAX_HUE - hue - _HUE_STEP).clip(0)
            place = rng.uniform(0, below + above)
            another = np.where(place < below, place, hue + _HUE_STEP + place - below)
            hue = np.where(rng.random((n, 1, 1)) < 0.3, hue, another)
        left, top = centre - width // 2, foot - (k + 1) * height
        inside = present & (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        shade = 1 - 0.06 / unit * (rows - top)
        colour = hsv_to_rgb(np.stack([hue / 360, np.full_like(hue, 0.9), np.full_like(hue, 0.95)], -1))
        images = np.where(inside[..., None], colour * shade[..., None], images)
        labels = np.where(inside, NUM_BACKGROUND + k, labels).astype(np.uint8)
        for name, values in zip(_FACTORS, (1, left, top, width, height, hue), strict=True):
            factors[name][:, k] = (present * values)[:, 0, 0]

    images = (images.clip(0, 1) * 255).round().astype(np.uint8)
    return Scenes(images, labels, factors, NUM_BACKGROUND, {"train": range(n)}, name="towers", version=VERSION)


def ensure_towers(path: str | Path, size: int = SIZE) -> Scenes:
    """Read the scenes in `path`. The file is generated if there is none; a file that exists is never replaced.

    Raises:
        UserError: the file is damaged, holds other scenes or towers of another version or size, or cannot be written.
    """
    path, remedy = Path(path), "rename or remove it, and towers are rendered"
    if os.path.lexists(path):
        try:
            scenes = read_scenes(path)
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from error
        if (scenes.name, scenes.version, scenes.image_shape) != ("towers", VERSION, (3, size, size)):
            found = f"{scenes.name}, version {scenes.version}, {size_text(scenes.image_shape[1:])}"
            raise UserError(f"{path} holds {found}; expected towers, version {VERSION}, {size}x{size}: {remedy}")
        return scenes
    held_out, total = _TRAIN + _VALIDATION, _TRAIN + _VALIDATION + _TEST
    splits = {"train": range(_TRAIN), "validation": range(_TRAIN, held_out), "test": range(held_out, total)}
    write_scenes(path, replace(make_towers(total, size=size), splits=splits), source="pyro_lom.data.towers", seed=0)
    return read_scenes(path)
