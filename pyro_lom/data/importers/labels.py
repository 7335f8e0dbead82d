"""Conversion of entities in published files to labels: a fixed set of background labels, followed by the objects."""

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

_MIN_EDGE = 3  # pixels; shorter borders between two entities are ignored


def labels_of_masks(masks: UInt8[np.ndarray, "E H W"]) -> tuple[UInt8[np.ndarray, "H W"], bool]:
    """Return the first entity whose mask contains each pixel (else 0), and whether all pixels are in exactly one."""
    present = masks > 0
    return present.argmax(0).astype(np.uint8), bool((present.sum(0) == 1).all())


def renumber_room(
    labels: UInt8[np.ndarray, "n H W"], num_entities: int
) -> tuple[UInt8[np.ndarray, "n H W"], Bool[np.ndarray, "n"]]:
    """Renumber labels of Objects Room so that objects start at 4. Also return which scenes were changed.

    The published files number sky (0), floor (1), one or two halves of the wall, and then the objects, without gaps. If
    only one half of the wall (2) is visible, label 3 is an object. A wall reaches from floor to sky, so label 3 is
    taken for an object in these cases: label 1 or 2 is above it; label 0 or 2 is below it; label 0 or 1 is to its right
    and it does not reach the left border, or vice versa; label 0 or 1 is on both sides; no higher label occurs, since
    only empty rooms contain no objects. In all other cases, and also if label `num_entities - 1` occurs, label 3 is
    taken for the other half of the wall.
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
    moved = third.any((1, 2)) & (looks_like_object | (last == 3)) & (last < num_entities - 1)
    return labels + (moved[:, None, None] & (labels >= 3)).astype(np.uint8), moved


def pack_objects(
    labels: UInt8[np.ndarray, "H W"],
    present: Bool[np.ndarray, "objects"],
    factors: dict[str, Shaped[np.ndarray, "objects"]],
    num_background: int,
    max_objects: int,
) -> tuple[UInt8[np.ndarray, "H W"], dict[str, Shaped[np.ndarray, "max_objects"]]]:
    """Move the objects that are present to the first columns, renumber their labels, and fill other columns with 0.

    `factors[...][k]` and `present[k]` belong to label `num_background + k`. Pixels of an object that is not present
    get label 0. The returned factors also contain `present`.
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
