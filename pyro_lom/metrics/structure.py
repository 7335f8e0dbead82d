"""Structure accuracy: whether a scene shows one tower of touching blocks that stands on the floor.

Lengths and areas below are for images of 32x32 pixels and scale with the size. *Chroma* is the largest minus the
smallest channel. A *block* is a segment of at least 16 pixels with a mean chroma above 0.3. All other segments that
reach the top row are *wall*, and all that reach the bottom row are *floor*. A scene obeys the rule if:

- it has 1 to `max_blocks` blocks, each 6 to 15 pixels wide, 4 to 10 high, and filling 85 % of its bounding box or more;
- each block ends within one row of the top of the next lower block and overlaps half of the narrower of the two;
- a horizontal line separates wall and floor: 92 % or more of the pixels outside of blocks are wall above it or floor
  below it, and the lowest block ends 1 to 9 rows below it;
- at most 12 % of the pixels with chroma above 0.3 are more than one pixel, a soft edge, away from every block;
- at most 6 % of all pixels are in segments below 16 pixels, the pieces of smeared edges.

`flood_fill` computes segments from the pixels alone, so the same rule applies to real, generated and broken scenes.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import binary_dilation, find_objects
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

MIN_PIXELS = 16  # at 32x32
MIN_CHROMA = 0.3
EDGE = 0.1


def flood_fill(images: Float[np.ndarray, "B C H W"]) -> Int[np.ndarray, "B H W"]:
    """Segments of connected pixels. Neighbours are connected if all their channels differ by less than 0.1.

    The labels of each image count from 0, in the order in which the segments first appear.
    """
    b, _, h, w = images.shape
    index = np.arange(b * h * w).reshape(b, h, w)
    right = np.abs(np.diff(images, axis=3)).max(1) < EDGE
    down = np.abs(np.diff(images, axis=2)).max(1) < EDGE
    starts = np.concatenate([index[:, :, :-1][right], index[:, :-1][down]])
    ends = np.concatenate([index[:, :, 1:][right], index[:, 1:][down]])
    graph = coo_matrix((np.ones(len(starts), bool), (starts, ends)), shape=(b * h * w,) * 2)
    components = connected_components(graph, directed=False)[1].reshape(b, h, w)
    first = components.reshape(b, -1).min(1)  # components are numbered image after image
    return components - first[:, None, None]


def towers_stand(
    images: Float[np.ndarray, "B C H W"], segments: Int[np.ndarray, "B H W"], max_blocks: int = 3
) -> Bool[np.ndarray, "B"]:
    """Return whether each scene obeys the rule at the top of this file; images are in [0, 1]."""
    return np.array([_tower_stands(i, s, max_blocks) for i, s in zip(images, segments, strict=True)], bool)


def structure_accuracy(images: Float[np.ndarray, "B C H W"], max_blocks: int = 3) -> float:
    """Share of scenes, in [0, 1], that obey the rule with the segments of `flood_fill`."""
    return float(towers_stand(images, flood_fill(images), max_blocks).mean())


def cut_and_paste(images: Float[np.ndarray, "B C H W"]) -> Float[np.ndarray, "B C H W"]:
    """Make broken scenes by joining the left half of each image with the right half of the next image."""
    half = images.shape[-1] // 2
    return np.concatenate([images[..., :half], np.roll(images, -1, axis=0)[..., half:]], axis=-1)


def _tower_stands(image: np.ndarray, segments: np.ndarray, max_blocks: int) -> bool:
    height, width = segments.shape
    unit = width / 32  # lengths below are in pixels of an image of this width
    chroma = image.max(0) - image.min(0)
    sizes = np.bincount(segments.ravel())
    mean_chroma = np.bincount(segments.ravel(), chroma.ravel()) / sizes.clip(1)
    is_block = (sizes >= MIN_PIXELS * unit**2) & (mean_chroma > MIN_CHROMA)
    boxes = zip(sizes, is_block, find_objects(segments + 1), strict=True)
    blocks = [(box[0].stop, box[0].start, box[1].start, box[1].stop, size) for size, block, box in boxes if block]
    if not 1 <= len(blocks) <= max_blocks:
        return False
    bottom, top, left, right, size = np.array(sorted(blocks, reverse=True)).T  # the lowest block first
    tall, wide = bottom - top, right - left
    fits = (4 * unit <= tall) & (tall <= 10 * unit) & (6 * unit <= wide) & (wide <= 15 * unit)
    overlap = np.minimum(right[1:], right[:-1]) - np.maximum(left[1:], left[:-1])
    touches = (abs(top[:-1] - bottom[1:]) <= unit) & (overlap >= np.minimum(wide[1:], wide[:-1]) / 2)
    if not (fits & (size >= 0.85 * tall * wide)).all() or not touches.all():
        return False

    in_block = is_block[segments]
    background = ~in_block
    wall = background & np.isin(segments, segments[0])
    floor = background & np.isin(segments, segments[-1])
    agree = np.array([(wall[:r] & ~floor[:r]).sum() + (floor[r:] & ~wall[r:]).sum() for r in range(height + 1)])
    horizon = int(agree.argmax())
    if agree[horizon] < 0.92 * background.sum() or not unit <= bottom[0] - horizon <= 9 * unit:
        return False

    saturated = chroma > MIN_CHROMA
    stray = saturated & ~binary_dilation(in_block, np.ones((3, 3)), iterations=round(unit))
    smeared = (sizes < MIN_PIXELS * unit**2)[segments]
    return bool(stray.sum() <= 0.12 * saturated.sum() and smeared.mean() <= 0.06)
