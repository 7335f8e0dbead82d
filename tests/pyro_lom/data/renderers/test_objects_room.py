"""Rooms: labels and factors agree, and each variant shows what it should."""

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb

from pyro_lom.data.renderers.objects_room import MIN_SHARE, ObjectsRoom
from pyro_lom.data.renderers.objects_room_model import SHAPES, SIZES
from pyro_lom.data.renderers.renderer import pixels_of

pytestmark = pytest.mark.usefixtures("mujoco")


def scenes_of(renderer, number, seed=0):
    render = renderer.open()
    return [render(seed, index) for index in range(number)]


@pytest.fixture(scope="module")
def rooms(mujoco):
    return scenes_of(ObjectsRoom(), 60)


def test_scenes_hold_together(rooms, hold_together):
    hold_together(ObjectsRoom(), rooms, MIN_SHARE)


def test_what_is_seen(rooms):
    counts = np.array([scene.factors["present"].sum() for scene in rooms])
    assert set(counts) == {1, 2, 3}
    labels = np.stack([scene.labels for scene in rooms])
    seen = [(labels == label).any((1, 2)).mean() for label in range(4)]
    assert seen[0] > 0.6 and seen[1] == 1 and min(seen[2:]) > 0.6
    # The sky is one flat blue, and lies above the walls, they above the floor.
    images = np.stack([scene.image for scene in rooms])
    inside = (labels == 0) & (np.roll(labels, -2, axis=1) == 0)
    inside[:, -3:] = False
    np.testing.assert_allclose(images[inside].mean(0), (153, 226, 249), atol=2)
    rows = [np.nonzero(np.isin(labels, group))[1].mean() for group in (0, (2, 3), 1)]
    assert rows == sorted(rows)


def test_colours_are_those_of_the_factors(rooms):
    close = []
    for image, labels, factors in rooms:
        for k in range(int(factors["present"].sum())):
            mean = image[labels == 4 + k].mean(0)
            dye = hsv_to_rgb((factors["hue"][k] / 360, 0.88, 0.9))
            close.append(np.corrcoef(mean, dye)[0, 1])
    assert np.median(close) > 0.95


def test_all_shapes_in_all_sizes_stand_on_the_floor(mujoco):
    """Drawn alone before the camera: large ones take more pixels, and touch the floor where the factor says."""
    room = ObjectsRoom().open().__self__
    model, data = room._model, room._data
    eye = np.array([0, -2.2, 1.0])
    model.cam_pos[0], model.cam_quat[0] = eye, room._looking(np.array([0, 0, 0.2]) - eye)
    model.geom_pos[room._objects] = (0, 0, -50)
    for shape in SHAPES:
        sizes = []
        for scale in range(len(SIZES)):
            room._put(room._objects[0], shape, scale, np.zeros(2), 30.0, np.ones(3))
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            room._view.look(data)
            labels = room._label_of[room._view.geoms()]
            sizes.append(pixels_of(labels, 4, 1)[0])
            rows, columns = np.nonzero(labels == 4)
            assert abs(columns.mean() - 31.5) < 1.5, shape
            lowest = 32 + 32 / np.tan(np.radians(25)) * np.tan(np.arctan2(1, 2.2) - np.arctan2(0.8, 2.2))
            assert lowest - 2.5 < rows.max() < lowest + 32 * SIZES[scale], shape
        assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0], shape


@pytest.mark.parametrize("options", [{"num_objects": (6, 6)}, {"num_objects": (4, 6), "one_colour": True}])
def test_shifted_rooms(options, hold_together):
    renderer = ObjectsRoom(**options)
    scenes = scenes_of(renderer, 12)
    hold_together(renderer, scenes, MIN_SHARE)
    counts = {int(scene.factors["present"].sum()) for scene in scenes}
    assert counts <= set(range(options["num_objects"][0], 7))
    for scene in scenes:
        count = int(scene.factors["present"].sum())
        assert len(np.unique(scene.factors["hue"][:count])) == (1 if "one_colour" in options else count)


def test_empty_rooms():
    for scene in scenes_of(ObjectsRoom(num_objects=(0, 0)), 5):
        assert scene.labels.max() < 4 and not scene.factors["present"].any()


def test_another_size_is_the_same_scene(rooms):
    render = ObjectsRoom(size=96).open()
    for index in range(5):
        large, small = render(0, index), rooms[index]
        assert large.image.shape == (96, 96, 3)
        for name, values in small.factors.items():
            np.testing.assert_array_equal(values, large.factors[name])


def test_engines_take_turns(rooms):
    """Two models in one process do not draw into each other."""
    first, second = ObjectsRoom().open(), ObjectsRoom(num_objects=(6, 6)).open()
    second(0, 0)
    np.testing.assert_array_equal(first(0, 3).image, rooms[3].image)
    del second
    np.testing.assert_array_equal(first(0, 4).image, rooms[4].image)


@pytest.mark.slow
def test_two_thousand_rooms(hold_together):
    hold_together(ObjectsRoom(), scenes_of(ObjectsRoom(), 2000, seed=7), MIN_SHARE)
