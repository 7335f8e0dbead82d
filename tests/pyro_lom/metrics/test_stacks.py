"""The rule on masks: towers and rounded blocks stand, what floats, hovers or is missing does not."""

import numpy as np
import pytest

from pyro_lom.data.towers import make_towers
from pyro_lom.metrics.stacks import break_stacks, object_segments, stacks_stand

SIZE = 64


def empty(ground_from=40, *, one_background=False):
    scene = np.zeros((SIZE, SIZE), np.uint8)
    if not one_background:
        scene[ground_from:] = 1
    return scene


def block(scene, label, left, top, width=14, height=10):
    scene[top : top + height, left : left + width] = label
    return scene


def ball(scene, label, centre, top, radius=6):
    rows, columns = np.ogrid[:SIZE, :SIZE]
    scene[(rows - top - radius) ** 2 + (columns - centre) ** 2 <= radius**2] = label
    return scene


def stands(scene):
    return stacks_stand(scene[None]).tolist() == [True]


@pytest.mark.parametrize("max_blocks", [1, 3, 5])
def test_towers_stand_and_broken_ones_do_not(max_blocks):
    towers = make_towers(300, seed=5, max_blocks=max_blocks)
    assert stacks_stand(towers.labels).all()
    images, labels = break_stacks(towers.images, towers.labels, num_background=2)
    assert len(images) == len(labels) == (towers.factors["present"].sum(1) > 1).sum()
    assert images.dtype == labels.dtype == np.uint8
    assert not stacks_stand(labels).any()


def test_breaking_moves_objects_and_nothing_else():
    towers = make_towers(50, seed=6)
    tall = towers.factors["present"].sum(1) > 1
    images, labels = break_stacks(towers.images, towers.labels, num_background=2)
    changed = (labels != towers.labels[tall]) & (labels < 2) & (towers.labels[tall] < 2)
    assert not changed.any()
    same = labels == towers.labels[tall]
    background = same & (labels < 2)
    assert (images[background] == towers.images[tall][background]).all()
    again = break_stacks(towers.images, towers.labels, num_background=2)
    assert (again[0] == images).all() and (again[1] == labels).all()
    other = break_stacks(towers.images, towers.labels, num_background=2, seed=1)
    assert (other[1] != labels).any()


def test_scenes_of_one_object_cannot_be_broken():
    towers = make_towers(5, max_blocks=1)
    images, labels = break_stacks(towers.images, towers.labels, num_background=2)
    assert images.shape == (0, 32, 32, 3) and labels.shape == (0, 32, 32)


@pytest.mark.parametrize("one_background", [True, False])
def test_stacks_of_blocks_and_balls(one_background):
    """As in ShapeStacks, whose wall and ground share a label: balls touch in few columns, and are touched in few."""
    scene = empty(one_background=one_background)
    assert stands(block(scene, 2, 20, 40))
    assert stands(ball(scene, 3, 27, 28))
    assert stands(block(scene, 4, 21, 18))
    assert stands(ball(scene, 5, 29, 6))


def test_the_top_of_a_block_may_show_around_a_ball():
    scene = block(empty(), 2, 20, 36, height=14)
    assert stands(ball(scene, 3, 27, 28))  # sunk into it by four rows


def test_a_soft_edge_is_no_gap():
    assert stands(block(block(empty(), 2, 20, 40), 3, 22, 28))  # two rows apart
    assert not stands(block(block(empty(), 2, 20, 40), 3, 22, 26))


@pytest.mark.parametrize(
    "scene",
    [
        empty(),
        block(empty(), 2, 20, 20),
        block(block(empty(), 2, 20, 40), 3, 36, 38),
        block(block(empty(), 2, 10, 40), 3, 34, 40),
        block(block(empty(), 2, 20, 40), 3, 33, 30),
        block(block(block(empty(), 2, 20, 40), 3, 22, 30), 4, 20, 12),
        block(block(empty(), 2, 20, 40), 2, 20, 12),
    ],
    ids=["no block", "lifted", "side by side", "two stacks", "on one column", "floating top", "same slot, apart"],
)
def test_what_does_not_stand(scene):
    assert not stands(scene)


def test_specks_do_not_count():
    scene = block(empty(), 2, 20, 40)
    scene[5, 30:40] = 3
    assert stands(scene)


def test_background_is_what_reaches_the_sides():
    scene = block(empty(), 2, 20, 40)
    assert object_segments(scene) == [2]
    assert object_segments(empty()) == []
    scene[10:20, 0] = 2  # ten of 128 pixels of the sides
    assert object_segments(scene) == [2]
    scene[10:30, 0] = 2
    assert object_segments(scene) == []


def test_names_of_labels_do_not_count():
    towers = make_towers(50, seed=7)
    rename = np.random.default_rng(0).permutation(5).astype(np.uint8)
    assert stacks_stand(rename[towers.labels]).all()
