"""Every scene is counted, and whatever contradicts itself is told by its place."""

from dataclasses import replace

import numpy as np
import pytest

from pyro_lom.data import inspection
from pyro_lom.data.hdf5 import Scenes
from pyro_lom.data.inspection import inspect_scenes
from pyro_lom.data.towers import make_towers
from pyro_lom.errors import UserError


@pytest.fixture
def towers():
    return make_towers(50, seed=1)


@pytest.mark.parametrize("block_bytes", [1, 40_000, 1 << 25])
def test_counts(towers, block_bytes, monkeypatch):
    monkeypatch.setattr(inspection, "_BLOCK_BYTES", block_bytes)
    found = inspect_scenes(towers)
    assert (found.lowest, found.highest) == (towers.images.min(), towers.images.max())
    np.testing.assert_allclose(found.mean, towers.images.mean((0, 1, 2)) / 255)
    for label in range(256):
        assert found.label_scenes[label] == (towers.labels == label).any((1, 2)).sum()
    present = towers.factors["present"].sum(1).astype(int)
    np.testing.assert_array_equal(found.num_objects, np.bincount(present, minlength=257))
    assert found.num_flat == 0


def test_images_alone():
    images = np.zeros((7, 4, 4, 1), np.uint8)
    images[2, 1, 1] = 9
    found = inspect_scenes(Scenes(images, None, {}, 0, {"train": range(7)}, "toy", 0))
    assert (found.num_flat, found.num_objects.sum(), found.highest) == (6, 0, 9)


def test_more_columns_than_labels(towers):
    scenes = replace(towers, labels=towers.labels + 250, num_background=252, factors={"present": np.ones((50, 9))})
    assert inspect_scenes(scenes).num_objects[0] == 0


def test_objects_that_are_not_there(towers):
    labels = towers.labels.copy()
    labels[31, 0, 0] = 9
    with pytest.raises(UserError, match="^towers: scene 31 has pixels of label 9, but factors/present knows of no obj"):
        inspect_scenes(replace(towers, labels=labels))
    present = towers.factors["present"].copy()
    present[4] = 0
    with pytest.raises(
        UserError, match="^towers: scene 4 has pixels of label 2, but factors/present .* object 0 there"
    ):
        inspect_scenes(replace(towers, factors={"present": present}))
