"""Structure accuracy from masks: does a scene show one stack in which every block rests on the next, and none floats?

The rule, on any map of segments: labels, or the slot with the largest mask at each pixel. A segment that makes up a
tenth or more of the left and right edges of the image is background, and *ground* if it also reaches the bottom row.
Each other segment falls into connected *blocks*, of which those below 0.5 % of the image are specks and do not count.
A stack stands when there are blocks, the lowest rests on the ground, and each next one, in order of height, rests on
the one before. To rest is to have it within a thirty-second of the image's height right below, in at least a quarter
of the columns of the narrower of the two.

It is the paper's criterion ("all blocks in the stack are touching each other", Sec. 4) with gravity added, and knows
neither colours nor sizes. `break_stacks` makes scenes that it must refuse.
"""

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from scipy.ndimage import center_of_mass, label

EDGE_SHARE = 0.1
MIN_AREA = 0.005
GAP = 1 / 32
MIN_CONTACT = 0.25
_WITH_DIAGONALS = np.ones((3, 3), int)


def stacks_stand(segments: Integer[np.ndarray, "B H W"]) -> Bool[np.ndarray, "B"]:
    """Which scenes obey the rule at the top of this file."""
    return np.array([_stack_stands(scene) for scene in segments], bool)


def object_segments(segments: Integer[np.ndarray, "H W"]) -> list[int]:
    """The segments that are no background by the rule at the top of this file."""
    return sorted(set(np.unique(segments).tolist()) - set(_background(segments)))


def break_stacks(
    images: UInt8[np.ndarray, "B H W C"], labels: UInt8[np.ndarray, "B H W"], *, num_background: int, seed: int = 0
) -> tuple[UInt8[np.ndarray, "N H W C"], UInt8[np.ndarray, "N H W"]]:
    """Broken scenes made of those real ones that show two objects or more: the upper part of the stack floats.

    A random number of objects from the top is lifted by an eighth of the image's height, or slid off sideways where
    there is room. What they hid is filled row by row from the background on both sides.
    """
    rng = np.random.default_rng(seed)
    broken = [_break(image, map_, num_background, rng) for image, map_ in zip(images, labels, strict=True)]
    broken = [scene for scene in broken if scene is not None]
    if not broken:
        return images[:0], labels[:0]
    return np.stack([image for image, _ in broken]), np.stack([map_ for _, map_ in broken])


def _background(segments: np.ndarray) -> list[int]:
    sides = np.concatenate([segments[:, 0], segments[:, -1]])
    found, counts = np.unique(sides, return_counts=True)
    return found[counts >= EDGE_SHARE * len(sides)].tolist()


def _stack_stands(segments: np.ndarray) -> bool:
    background = _background(segments)
    blocks = []
    for segment in object_segments(segments):
        pieces, num_pieces = label(segments == segment, _WITH_DIAGONALS)
        blocks += [pieces == piece for piece in range(1, num_pieces + 1)]
    blocks = [block for block in blocks if block.sum() >= MIN_AREA * segments.size]
    blocks.sort(key=lambda block: -center_of_mass(block)[0])
    ground = np.isin(segments, list(set(background) & set(segments[-1].tolist())))
    return bool(blocks) and all(_rests_on(*pair) for pair in zip(blocks, [ground, *blocks], strict=False))


def _rests_on(upper: Bool[np.ndarray, "H W"], lower: Bool[np.ndarray, "H W"]) -> bool:
    reach = 1 + round(GAP * len(upper))
    bottom = len(upper) - 1 - upper[::-1].argmax(0)  # of each column, where it has any
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
    slides = [dx for dx in (others[-1] + gap - columns[0], others[0] - gap - columns[-1])]
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
