"""Background comes first and is the same in every image; objects keep their factors."""

import numpy as np
import pytest

from pyro_lom.data.importers.labels import labels_of_masks, pack_objects, renumber_room

SKY, FLOOR, WALL, THIRD = range(4)


def a_room(*rectangles):
    """Sky above row 20, floor below row 40, wall between, and rectangles (label, rows, columns) before them."""
    labels = np.full((64, 64), WALL, np.uint8)
    labels[:20], labels[40:] = SKY, FLOOR
    for label, rows, columns in rectangles:
        labels[slice(*rows), slice(*columns)] = label
    return labels


OBJECT = (4, (38, 48), (10, 20))


@pytest.mark.parametrize(
    ("third", "is_object"),
    [
        (((20, 40), (30, 64)), False),  # the other half of the wall, to the right border
        (((20, 40), (0, 30)), False),  # to the left one
        (((36, 50), (30, 40)), True),  # stands on the floor before the wall
        (((45, 55), (30, 40)), True),  # wholly before the floor
        (((45, 55), (56, 64)), True),  # cut by the right border
        (((45, 55), (0, 8)), True),  # cut by the left border
        (((18, 30), (30, 40)), True),  # reaches from the wall into the sky
    ],
)
def test_label_three_is_told_by_its_neighbours(third, is_object):
    labels = a_room((THIRD, *third), OBJECT)
    renumbered, moved = renumber_room(labels[None], num_entities=7)
    assert moved.tolist() == [is_object]
    expected = np.where(labels >= 3, labels + 1, labels) if is_object else labels
    np.testing.assert_array_equal(renumbered[0], expected)


def test_it_is_an_object_where_no_other_is():
    labels = a_room((THIRD, (20, 40), (30, 64)))
    assert renumber_room(labels[None], num_entities=7)[1].tolist() == [True]
    assert renumber_room(labels[None], num_entities=4)[1].tolist() == [False]  # the empty room


def test_it_is_a_wall_where_every_label_is_used():
    labels = a_room((THIRD, (45, 55), (30, 40)), OBJECT, (5, (50, 60), (20, 28)), (6, (50, 60), (44, 50)))
    assert renumber_room(labels[None], num_entities=7)[1].tolist() == [False]
    assert renumber_room(labels[None], num_entities=10)[1].tolist() == [True]


def test_a_room_without_it_stays():
    labels = a_room(OBJECT)
    renumbered, moved = renumber_room(labels[None], num_entities=7)
    np.testing.assert_array_equal(renumbered[0], labels)
    assert not moved.any()


def test_rooms_of_a_batch_do_not_meet():
    rooms = np.stack([a_room((THIRD, (45, 55), (30, 40)), OBJECT), a_room((THIRD, (20, 40), (30, 64)), OBJECT)])
    together, moved = renumber_room(rooms, num_entities=7)
    alone = [renumber_room(labels[None], num_entities=7) for labels in rooms]
    assert moved.tolist() == [True, False] == [bool(flags[0]) for _, flags in alone]
    np.testing.assert_array_equal(together, np.concatenate([labels for labels, _ in alone]))


def test_masks_become_labels():
    labels = np.random.default_rng(0).integers(0, 5, (6, 7))
    masks = ((labels == np.arange(5)[:, None, None]) * 255).astype(np.uint8)
    found, is_partition = labels_of_masks(masks)
    np.testing.assert_array_equal(found, labels)
    assert is_partition
    for value in (0, 255):
        broken = masks.copy()
        broken[:, 2, 3] = value
        found, is_partition = labels_of_masks(broken)
        assert (found[2, 3], is_partition) == (0, False)


def test_objects_are_packed():
    labels = np.array([[0, 1], [3, 4]], np.uint8)
    present, hue = np.array([False, False, True, True]), np.array([5, 6, 7, 8], np.float32)
    packed, factors = pack_objects(labels, present, {"hue": hue}, num_background=1, max_objects=3)
    np.testing.assert_array_equal(packed, [[0, 0], [1, 2]])  # what is not present is background
    assert {name: values.tolist() for name, values in factors.items()} == {"hue": [7, 8, 0], "present": [1, 1, 0]}
    assert factors["hue"].dtype == np.float32
