"""Stacks: physics agrees with the rules they were piled by, and broken ones are seen to be broken."""

import numpy as np
import pytest

from pyro_lom.data.renderers.blocks import (
    COLOURS,
    LYING_CYLINDER,
    MASS,
    SPHERE,
    SURFACE,
    corners,
    heading,
    let_go,
    lift,
    pile,
    set_apart,
    topple,
)
from pyro_lom.data.renderers.shapestacks import MIN_SHARE, ShapeStacks
from pyro_lom.metrics.stacks import stacks_stand


def scenes_of(renderer, number, seed=0):
    render = renderer.open()
    return [render(seed, index) for index in range(number)]


@pytest.fixture(scope="module")
def stacks(mujoco):
    return scenes_of(ShapeStacks(), 48)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("num_blocks", range(1, 7))
def test_piles_rest_on_each_other(rng, num_blocks):
    stack = pile(rng, num_blocks)
    assert stack.half.min() >= 0.25 and stack.half.max() <= 0.5
    assert not {LYING_CYLINDER, SPHERE} & set(stack.shape[:-1].tolist())
    top, bottom = stack.position[:, 2] + stack.half[:, 2], stack.position[:, 2] - stack.half[:, 2]
    np.testing.assert_allclose(bottom, [0, *top[:-1]], atol=1e-12)
    assert np.abs(stack.position[:, :2].mean(0)).max() <= 2


@pytest.mark.parametrize("rule", [MASS, SURFACE])
def test_physics_agrees_with_the_rules(mujoco, rng, rule):
    assert np.mean([let_go(mujoco, pile(rng, 1 + k % 6)) for k in range(30)]) > 0.9
    assert np.mean([let_go(mujoco, pile(rng, 2 + k % 5, rule)) for k in range(30)]) < 0.1


def test_broken_piles(mujoco, rng):
    stack = pile(rng, 5)
    rise = lift(rng, stack).position - stack.position
    assert (rise[:, :2] == 0).all() and rise[0, 2] == 0 and rise[-1, 2] >= 0.6
    assert len(np.unique(rise[:, 2])) == 2
    apart = set_apart(rng, stack)
    np.testing.assert_array_equal(apart.position[:, 2], stack.half[:, 2])
    while (fallen := topple(mujoco, pile(rng, 5, MASS))) is None:
        pass
    assert (fallen.position[:, 2] < 2.2).all() and (fallen.position[:, 2] > 0.2).all()
    assert topple(mujoco, pile(rng, 1)) is None  # stands on its own


def test_heading_is_the_yaw_of_upright_and_of_tipped_blocks():
    yaw = np.radians([0, 30, 200])
    upright = np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], 1)
    tipped = np.sqrt(0.5) * np.stack([np.cos(yaw / 2), np.cos(yaw / 2), np.sin(yaw / 2), np.sin(yaw / 2)], 1)
    for quaternion in (upright, tipped):
        np.testing.assert_allclose(heading(quaternion), [0, 30, 200], atol=1e-9)


def test_scenes_hold_together(stacks, hold_together):
    hold_together(ShapeStacks(), stacks, MIN_SHARE)


def test_four_views_of_each_stack(stacks):
    for first in range(0, len(stacks), 4):
        views = stacks[first : first + 4]
        assert len({int(view.factors["camera"][0]) for view in views}) == 4
        for name in set(views[0].factors) - {"camera"}:
            assert all((view.factors[name] == views[0].factors[name]).all() for view in views), name


def test_factors_say_what_is_seen(stacks):
    stands = np.array([scene.factors["stands"][0] for scene in stacks])
    assert 0.2 < stands.mean() < 0.9
    for image, labels, factors in stacks:
        count = int(factors["num_blocks"][0])
        assert factors["present"].sum() == count and 1 <= factors["camera"][0] <= 16
        assert factors["order"][:count].tolist() == list(range(1, count + 1))
        for k in range(count):
            lit = image[labels == k + 1].max(0) > 60
            assert (lit | (COLOURS[int(factors["colour"][k])] == 0)).all()
        rows = [np.argwhere(labels == k + 1)[:, 0].mean() for k in range(count)]
        assert rows == sorted(rows, reverse=True)


def test_a_scene_does_not_depend_on_the_one_before(stacks):
    render = ShapeStacks().open()
    for index in (14, 3, 2, 40):
        np.testing.assert_array_equal(render(0, index).image, stacks[index].image)


@pytest.mark.usefixtures("mujoco")
@pytest.mark.parametrize("broken", ["floating", "apart", "toppled"])
def test_broken_stacks(broken, hold_together):
    renderer = ShapeStacks(broken=broken)
    scenes = scenes_of(renderer, 24)
    hold_together(renderer, scenes, MIN_SHARE)
    assert not any(scene.factors["stands"].any() for scene in scenes)
    assert min(scene.factors["num_blocks"][0] for scene in scenes) >= 2
    seen_as_standing = stacks_stand(np.stack([scene.labels for scene in scenes])).mean()
    assert seen_as_standing <= (0.35 if broken == "toppled" else 0.0)


def test_whole_stacks_are_seen_as_standing(stacks):
    assert stacks_stand(np.stack([scene.labels for scene in stacks])).mean() > 0.95


@pytest.mark.slow
@pytest.mark.usefixtures("mujoco")
def test_five_hundred_stacks(hold_together):
    hold_together(ShapeStacks(), scenes_of(ShapeStacks(), 500, seed=7), MIN_SHARE)


def test_corners_are_those_of_a_box_around_each_block(rng):
    shapes = set()
    while len(shapes) < 4:
        stack = pile(rng, 4)
        shapes |= set(stack.shape.tolist())
        boxes = corners(stack)
        np.testing.assert_allclose(boxes.mean(1), stack.position, atol=1e-12)
        np.testing.assert_allclose(np.ptp(boxes[..., 2], axis=1), 2 * stack.half[:, 2], atol=1e-12)
        reach = np.linalg.norm(boxes[..., :2] - stack.position[:, None, :2], axis=-1)
        np.testing.assert_allclose(reach, np.linalg.norm(stack.half[:, None, :2], axis=-1).repeat(8, 1), atol=1e-12)


@pytest.mark.usefixtures("mujoco")
@pytest.mark.parametrize("broken", [None, "floating", "apart", "toppled"])
def test_stacks_seen_from_near(broken, hold_together):
    renderer = ShapeStacks(near=True, broken=broken)
    scenes = scenes_of(renderer, 24)
    hold_together(renderer, scenes, MIN_SHARE)
    for _, labels, factors in scenes:
        count = int(factors["num_blocks"][0])
        assert 1 <= count <= 4
        for block in range(1, count + 1):
            seen = np.argwhere(labels == block)
            assert np.ptp(seen, axis=0).min() + 1 >= 8  # pixels of 64
            assert seen.min() > 0 and seen.max() < 63, "a block is cut off"
        middle = (np.argwhere(labels > 0).min(0) + np.argwhere(labels > 0).max(0)) / 2
        assert np.abs(middle - 31.5).max() < 8


@pytest.mark.usefixtures("mujoco")
def test_a_near_scene_does_not_depend_on_the_one_before():
    first, second = ShapeStacks(near=True).open(), ShapeStacks(near=True).open()
    scenes = [first(0, index) for index in range(12)]
    for index in (9, 2, 1):
        np.testing.assert_array_equal(second(0, index).image, scenes[index].image)
