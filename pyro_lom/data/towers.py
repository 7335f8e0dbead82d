"""The embedded data set: small scenes with a relation worth learning, made in seconds from one seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb

from pyro_lom.data.hdf5 import Scenes, read_scenes, write_scenes
from pyro_lom.errors import UserError

VERSION = 2
SIZE = 32  # pixels a side; `make_towers` draws the same scenes at multiples of it
WALL, FLOOR = 0, 1
NUM_BACKGROUND = 2
MAX_BLOCKS = 5

_TRAIN, _VALIDATION, _TEST = 8192, 1024, 2048
_STACK_ROWS = 21  # rows that the tallest stack may take, of 32
_MAX_HUE, _HUE_STEP = 130, 40  # degrees: red to green, and between blocks of different hues


def make_towers(num_scenes: int, *, seed: int = 0, max_blocks: int = 3, size: int = SIZE) -> Scenes:
    """Draw `num_scenes` RGB scenes: one tower of 1 to `max_blocks` blocks stands on a floor before a wall.

    Lengths are told for images of 32x32 pixels, and grow with `size`. Towers of k blocks are k times as common as
    single blocks. A tower stands a little in front of the wall, 4 rows below the horizon. Its blocks are 7 rows high
    (fewer where more than 3 must fit) and 8 to 12 pixels wide, touch, and shift sideways by at most 2 pixels from one
    to the next; nothing floats.
    Colour alone does not tell blocks apart: three times out of ten a block takes the hue of the block below it, every
    block is shaded from light (top) to dark (bottom), and neither wall nor floor is of one flat colour. A hue of its
    own lies at least 40 degrees from that of the block below, within red to green.

    Labels are 0 wall, 1 floor, 2.. blocks from the lowest up. Factors, one column per block and 0 where there is
    none: `present`, `left`, `top`, `width`, `height` in pixels, and `hue` in degrees.

    Raises:
        UserError: `max_blocks` is not within 1..5, or `size` is no multiple of 32.
    """
    if not 1 <= max_blocks <= MAX_BLOCKS:
        raise UserError(f"towers can have 1 to {MAX_BLOCKS} blocks, not max_blocks={max_blocks}")
    if size < SIZE or size % SIZE:
        raise UserError(f"towers are drawn at multiples of {SIZE} pixels, not at size={size}")
    rng = np.random.default_rng((VERSION, seed))
    n, unit = num_scenes, size // SIZE

    def integers(low, high, size):  # both ends included
        return rng.integers(low, high, size, endpoint=True)

    rows, columns = np.arange(size)[:, None], np.arange(size)[None, :]

    # Background: a greyish wall that is lighter above, and a dark floor that is lighter in front.
    horizon = integers(20 * unit, 24 * unit, n)
    wall = rng.uniform(0.52, 0.85, (n, 1)) + rng.uniform(-0.08, 0.08, (n, 3))
    floor = rng.uniform(0.10, 0.30, (n, 1)) + rng.uniform(-0.05, 0.05, (n, 3))
    down = (rows / (size - 1) - 0.5)[..., None]
    wall_image = wall[:, None, None] - 0.16 * down
    floor_image = floor[:, None, None] * (1 + 1.2 * down)
    is_floor = rows >= horizon[:, None, None]
    images = np.where(is_floor[..., None], floor_image, wall_image)
    labels = np.where(is_floor, FLOOR, WALL).astype(np.uint8)

    # The tower.
    numbers = np.arange(1, max_blocks + 1)
    num_blocks = rng.choice(numbers, n, p=numbers / numbers.sum())
    height = min(7, _STACK_ROWS // max_blocks) * unit
    foot = horizon + 4 * unit  # first row below the tower
    centre = integers(12 * unit, 20 * unit, n)
    factors = {
        name: np.zeros((n, max_blocks), np.float32) for name in ("present", "left", "top", "width", "height", "hue")
    }
    hue = rng.uniform(0, _MAX_HUE, n)
    for k in range(max_blocks):
        present = k < num_blocks
        width = integers(8 * unit, 12 * unit, n)
        if k > 0:
            centre = np.clip(centre + integers(-2 * unit, 2 * unit, n), 8 * unit, size - 8 * unit)
            below = (hue - _HUE_STEP).clip(0)  # degrees that are left on either side
            above = (_MAX_HUE - hue - _HUE_STEP).clip(0)
            place = rng.uniform(0, below + above)
            another = np.where(place < below, place, hue + _HUE_STEP + place - below)
            hue = np.where(rng.random(n) < 0.3, hue, another)
        left, top = centre - width // 2, foot - (k + 1) * height
        inside_rows = (rows >= top[:, None, None]) & (rows < top[:, None, None] + height)
        inside = inside_rows & (columns >= left[:, None, None]) & (columns < (left + width)[:, None, None])
        inside &= present[:, None, None]
        shade = 1 - 0.06 / unit * (rows - top[:, None, None])
        colour = hsv_to_rgb(np.stack([hue / 360, np.full(n, 0.9), np.full(n, 0.95)], -1))
        images = np.where(inside[..., None], colour[:, None, None] * shade[..., None], images)
        labels = np.where(inside, NUM_BACKGROUND + k, labels).astype(np.uint8)
        for name, values in dict(present=1, left=left, top=top, width=width, height=height, hue=hue).items():
            factors[name][:, k] = present * values

    images = (images.clip(0, 1) * 255).round().astype(np.uint8)
    return Scenes(
        images=images,
        labels=labels,
        factors=factors,
        num_background=NUM_BACKGROUND,
        splits={"train": range(n)},
        name="towers",
        version=VERSION,
    )


def ensure_towers(path: str | Path, size: int = SIZE) -> Scenes:
    """The data set's own file, made (again) where it is missing, damaged, or of another version or size.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        scenes = read_scenes(path)
        if (scenes.name, scenes.version, scenes.image_shape) == ("towers", VERSION, (3, size, size)):
            return scenes
    except UserError:
        pass
    total = _TRAIN + _VALIDATION + _TEST
    splits = {
        "train": range(_TRAIN),
        "validation": range(_TRAIN, _TRAIN + _VALIDATION),
        "test": range(_TRAIN + _VALIDATION, total),
    }
    write_scenes(path, replace(make_towers(total, size=size), splits=splits), source="pyro_lom.data.towers", seed=0)
    return read_scenes(path)
