"""Structure accuracy: does a scene show one tower whose blocks touch and that stands on the floor?

The rule, on an image of 32x32 pixels and a map of its segments; at other sizes lengths and areas grow with it. A
*block* is a segment of at least 16 pixels whose mean chroma (largest minus smallest channel) exceeds 0.3. A scene
counts when all of this holds: it has 1 to `max_blocks` blocks; each fills at least 85 % of its bounding box, which is 6
to 15 pixels wide and 4 to 10 high; from the lowest block up, each next one begins within one row of where the last one
ends, and they overlap by at least half of the narrower one; one horizontal line leaves 92 % of the remaining pixels on
the right side, wall (segments that reach the top row) above and floor (segments that reach the bottom row) below it,
and the lowest block ends 1 to 9 rows under it; at most 12 % of all pixels with chroma above 0.3 lie further than one
pixel from every block, where a soft edge would be; and at most 6 % of all pixels lie in segments smaller than 16
pixels, which is what smeared edges break into.

Any map of segments will do. `flood_fill` reads one from the pixels alone, so real, generated and broken scenes are
judged from the same source, and a model's own masks cannot flatter it.
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
    """Segments of connected pixels: neighbours belong together when no channel differs by 0.1 or more.

    Returns labels 0.. within each image, in the order in which the segments first appear.
    """
    b, _, h, w = images.shape
    index = np.arange(b * h * w).reshape(b, h, w)
    right = np.abs(np.diff(images, axis=3)).max(1) < EDGE
    down = np.abs(np.diff(images, axis=2)).max(1) < EDGE
    starts = np.concatenate([index[:, :, :-1][right], index[:, :-1][down]])
    ends = np.concatenate([index[:, :, 1:][right], index[:, 1:][down]])
    graph = coo_matrix((np.ones(len(starts), bool), (starts, ends)), shape=(b * h * w,) * 2)
    components = connected_components(graph, directed=False)[1].reshape(b, h, w)
    first = components.reshape(b, -1).min(1)  # labels grow from image to image
    return components - first[:, None, None]


def towers_stand(
    images: Float[np.ndarray, "B C H W"], segments: Int[np.ndarray, "B H W"], max_blocks: int = 3
) -> Bool[np.ndarray, "B"]:
    """Which scenes obey the rule at the top of this file; images in [0, 1]."""
    return np.array([_tower_stands(i, s, max_blocks) for i, s in zip(images, segments, strict=True)], bool)


def structure_accuracy(images: Float[np.ndarray, "B C H W"], max_blocks: int = 3) -> float:
    """Share of scenes that obey the rule, with the segments of `flood_fill`; in [0, 1]."""
    return float(towers_stand(images, flood_fill(images), max_blocks).mean())


def cut_and_paste(images: Float[np.ndarray, "B C H W"]) -> Float[np.ndarray, "B C H W"]:
    """Broken scenes made of real ones: the left half of each beside the right half of the next."""
    half = images.shape[-1] // 2
    return np.concatenate([images[..., :half], np.roll(images, -1, axis=0)[..., half:]], axis=-1)


def _tower_stands(image: np.ndarray, segments: np.ndarray, max_blocks: int) -> bool:
    height, width = segments.shape
    unit = width / 32  # lengths below are in pixels of an image of this width
    chroma = image.max(0) - image.min(0)
    sizes = np.bincount(segments.ravel())
    mean_chroma = np.bincount(segments.ravel(), chroma.ravel()) / sizes.clip(1)
    is_block = (sizes >= MIN_PIXELS * unit**2) & (mean_chroma > MIN_CHROMA)
    blocks = [
        (box, size) for box, size, block in zip(find_objects(segments + 1), sizes, is_block, strict=True) if block
    ]
    if not 1 <= len(blocks) <= max_blocks:
        return False
    blocks.sort(key=lambda block: -block[0][0].stop)

    for (rows, columns), size in blocks:
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        fits = 4 * unit <= tall <= 10 * unit and 6 * unit <= wide <= 15 * unit
        if not (fits and size >= 0.85 * tall * wide):
            return False
    for ((low_rows, low_columns), _), ((rows, columns), _) in zip(blocks, blocks[1:], strict=False):
        overlap = min(low_columns.stop, columns.stop) - max(low_columns.start, columns.start)
        narrower = min(low_columns.stop - low_columns.start, columns.stop - columns.start)
        if abs(low_rows.start - rows.stop) > unit or overlap < narrower / 2:
            return False

    in_block = is_block[segments]
    background = ~in_block
    wall = background & np.isin(segments, segments[0])
    floor = background & np.isin(segments, segments[-1])
    right = np.array([(wall[:r] & ~floor[:r]).sum() + (floor[r:] & ~wall[r:]).sum() for r in range(height + 1)])
    horizon = int(right.argmax())
    if right[horizon] < 0.92 * background.sum() or not unit <= blocks[0][0][0].stop - horizon <= 9 * unit:
        return False

    saturated = chroma > MIN_CHROMA
    stray = saturated & ~binary_dilation(in_block, np.ones((3, 3)), iterations=round(unit))
    smeared = (sizes < MIN_PIXELS * unit**2)[segments]
    return bool(stray.sum() <= 0.12 * saturated.sum() and smeared.mean() <= 0.06)
