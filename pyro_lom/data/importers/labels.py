"""From the entities of published files to labels: background first and the same in every image, then the objects."""

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

_ROOM_BACKGROUND = 4  # sky, floor and two halves of the wall
_MIN_EDGE = 3  # pixels along which two entities must touch for it to count


def labels_of_masks(masks: UInt8[np.ndarray, "E H W"]) -> tuple[UInt8[np.ndarray, "H W"], bool]:
    """The entity of each pixel, and whether every pixel has exactly one; of several the first counts."""
    present = masks > 0
    return present.argmax(0).astype(np.uint8), bool((present.sum(0) == 1).all())


def renumber_room(
    labels: UInt8[np.ndarray, "n H W"], num_entities: int
) -> tuple[UInt8[np.ndarray, "n H W"], Bool[np.ndarray, "n"]]:
    """Labels of Objects Room with objects from 4 up, and which scenes were changed for it.

    The published files number sky, floor, one or two halves of the wall, then the objects without a gap: where only
    one half of the wall is in view, label 3 is an object. That shows in its neighbours, a wall being as high as the
    room and as wide as it is seen: label 3 is an object where floor (1) or the other wall (2) lie above it, or sky (0)
    or the other wall below it; where floor or sky lie to its right and it does not come from the left border, or the
    other way round; where they lie on both sides; and where no other object is left, since only empty rooms have none.
    It is a wall where all labels are used.
    """
    third, floor_or_sky = labels == 3, labels < 2
    never_above, never_below = (labels == 1) | (labels == 2), (labels == 0) | (labels == 2)
    above = (never_above[:, :-1] & third[:, 1:]).any(1).sum(1) >= _MIN_EDGE
    below = (never_below[:, 1:] & third[:, :-1]).any(1).sum(1) >= _MIN_EDGE
    right = (third[:, :, :-1] & floor_or_sky[:, :, 1:]).any(2).sum(1) >= _MIN_EDGE
    left = (third[:, :, 1:] & floor_or_sky[:, :, :-1]).any(2).sum(1) >= _MIN_EDGE
    from_left, from_right = third[:, :, 0].any(1), third[:, :, -1].any(1)
    looks_like_object = above | below | (right & ~from_left) | (left & ~from_right) | (right & left)
    last = labels.max((1, 2))
    alone = last == 3
    moved = third.any((1, 2)) & (looks_like_object | alone) & (last < num_entities - 1)
    return labels + (moved[:, None, None] & (labels >= 3)).astype(np.uint8), moved


def pack_objects(
    labels: UInt8[np.ndarray, "H W"],
    present: Bool[np.ndarray, "objects"],
    factors: dict[str, Shaped[np.ndarray, "objects"]],
    num_background: int,
    max_objects: int,
) -> tuple[UInt8[np.ndarray, "H W"], dict[str, Shaped[np.ndarray, "max_objects"]]]:
    """Put the objects that are present into the first columns, and their labels to match; 0 where there is none.

    `factors[...][k]` and `present[k]` belong to label `num_background + k`. Pixels of an object that is not present
    become label 0. Adds the factor `present`.
    """
    columns = np.flatnonzero(present)
    new_labels = np.zeros(256, np.uint8)
    new_labels[:num_background] = np.arange(num_background)
    new_labels[num_background + columns] = num_background + np.arange(len(columns))
    packed = {}
    for name, values in (factors | {"present": present.astype(np.uint8)}).items():
        packed[name] = np.zeros(max_objects, values.dtype)
        packed[name][: len(columns)] = values[columns]
    return new_labels[labels], packed
