"""Structure accuracy from masks: whether a scene shows one stack in which each block rests on the block below it.

The rule applies to any map of segments, such as labels or the index of the largest mask at each pixel. A segment that
covers 10 % or more of the left and right edges is background. It is *ground* if it also reaches the bottom row. Each
other segment is split into connected *blocks*. Blocks smaller than 0.5 % of the image are ignored. A stack stands if
there is a block, the lowest block rests on the ground, and every other block rests on the next lower one. A block rests
on another if it is at most 1/32 of the image's height above it, in at least a quarter of the columns of the narrower.

This is the paper's criterion ("all blocks in the stack are touching each other", Sec. 4) with gravity added. It uses
neither colours nor sizes. `break_stacks` makes scenes that the rule must reject.
"""

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from scipy.ndimage import center_of_mass, label

EDGE_SHARE = 0.1
MIN_AREA = 0.005
GAP = 1 / 32
MIN_CONTACT = 0.25


def stacks_stand(segments: Integer[np.ndarray, "B H W"]) -> Bool[np.ndarray, "B"]:
    """Return whether each scene obeys the rule at the top of this file."""
    return np.array([_stack_stands(scene) for scene in segments], bool)


def object_segments(segments: Integer[np.ndarray, "H W"]) -> list[int]:
    """Return the segments that are not background by the rule at the top of this file."""
    return sorted(set(np.unique(segments).tolist()) - set(_background(segments)))


def break_stacks(
    images: UInt8[np.ndarray, "B H W C"], labels: UInt8[np.ndarray, "B H W"], *, num_background: int, seed: int = 0
) -> tuple[UInt8[np.ndarray, "N H W C"], UInt8[np.ndarray, "N H W"]]:
    """Make broken scenes, in which the upper part of the stack floats, from the scenes with two or more objects.

    A random number of the top objects is either lifted by an eighth of the image's height, or moved off sideways if
    there is room. The pixels that they covered are filled row by row from the background on both sides.
    """
    rng = np.random.default_rng(seed)
    scenes = [_break(image, map_, num_background, rng) for image, map_ in zip(images, labels, strict=True)]
    broken = [scene for scene in scenes if scene is not None]
    return tuple(map(np.stack, zip(*broken, strict=True))) if broken else (images[:0], labels[:0])


def _background(segments: np.ndarray) -> list[int]:
    sides = np.concatenate([segments[:, 0], segments[:, -1]])
    found, counts = np.unique(sides, return_counts=True)
    return found[counts >= EDGE_SHARE * len(sides)].tolist()


def _stack_stands(segments: np.ndarray) -> bool:
    background = _background(segments)
    blocks = []
    for segment in object_segments(segments):
        pieces, num_pieces = label(segments == segment, np.ones((3, 3)))  # diagonal neighbours are connected
        blocks += [pieces == piece for piece in range(1, num_pieces + 1)]
    blocks = [block for block in blocks if block.sum() >= MIN_AREA * segments.size]
    blocks.sort(key=lambda block: -center_of_mass(block)[0])
    ground = np.isin(segments, list(set(background) & set(segments[-1].tolist())))
    return bool(blocks) and all(_rests_on(*pair) for pair in zip(blocks, [ground, *blocks], strict=False))


def _rests_on(upper: Bool[np.ndarray, "H W"], lower: Bool[np.ndarray, "H W"]) -> bool:
    reach = 1 + round(GAP * len(upper))
    bottom = len(upper) - 1 - upper[::-1].argmax(0)  # lowest row of each column; arbitrary if the column is empty
    below = bottom + np.arange(1, reach + 1)[:, None]
    inside = below < len(upper)
    touching = (lower[np.minimum(below, len(upper) - 1), np.arange(upper.shape[1])] & inside).any(0) & upper.any(0)
    narrower = min(upper.any(0).sum(), lower.any(0).sum())
    return bool(touching.sum() >= MIN_CONTACT * narrower > 0)


def _break(image: np.ndarray, labels: np.ndarray, num_background: int, rng) -> tuple[np.ndarray, np.ndarray] | None:
    height, width = labels.shape
    objects = [o for o in np.unique(labels) if o >= num_background and (labels == o).mean() >= MIN_AREA]
    if len(objects) < 2:
        return None
    objects.sort(key=lambda o: -center_of_mass(labels == o)[0])
    cut = rng.integers(1, len(objects))
    moved, left_behind = np.isin(labels, objects[cut:]), np.isin(labels, objects[:cut])
    gap = height // 8
    columns, others = np.flatnonzero(moved.any(0)), np.flatnonzero(left_behind.any(0))
    slides = [others[-1] + gap - columns[0], others[0] - gap - columns[-1]]
    slides = [dx for dx in slides if columns[0] + dx > 0 and columns[-1] + dx < width - 1]
    down, right = (0, rng.choice(slides)) if slides and rng.random() < 0.5 else (-gap, 0)

    new_image, new_labels = image.copy(), labels.copy()
    for row in np.flatnonzero(moved.any(1)):
        hidden, known = np.flatnonzero(moved[row]), np.flatnonzero(labels[row] < num_background)
        if len(known):
            nearest = known[np.abs(hidden[:, None] - known).argmin(1)]
            new_labels[row, hidden] = labels[row, nearest]
            for channel in range(image.shape[-1]):
                new_image[row, hidden, channel] = np.interp(hidden, known, image[row, known, channel]).round()
    rows, columns = np.nonzero(moved)
    kept = rows + down >= 0
    rows, columns = rows[kept], columns[kept]
    new_image[rows + down, columns + right] = image[rows, columns]
    new_labels[rows + down, columns + right] = labels[rows, columns]
    return new_image, new_labels
