"""CLEVR's scenes: image, labels and factors agree, and are the same whenever they are made."""

import numpy as np
import pytest

from pyro_lom.data.renderers.clevr6 import Clevr6
from pyro_lom.data.renderers.clevr_layout import COLOURS, MIN_SHARE

pytestmark = pytest.mark.usefixtures("mitsuba")


@pytest.fixture(scope="module")
def scenes(mitsuba):
    render = Clevr6().open()
    return [render(0, index) for index in range(3)]


def test_scenes_hold_together(scenes, hold_together):
    hold_together(Clevr6(), scenes, MIN_SHARE)


def test_they_come_back_the_same(scenes):
    again = Clevr6().open()
    for index in (2, 0):
        np.testing.assert_array_equal(again(0, index).image, scenes[index].image)


def test_images_show_what_labels_and_factors_say(scenes):
    floor = np.concatenate([scene.image[scene.labels == 0] for scene in scenes]).astype(float)
    assert 90 < floor.mean() < 150 and np.ptp(floor.mean(0)) < 8  # grey
    for image, labels, factors in scenes:
        assert not (image == 0).all(-1).any()  # no lamp seen from behind
        for k in range(int(factors["present"].sum())):
            colour = COLOURS[int(factors["color"][k])]
            mean = image[labels == k + 1].mean(0)
            if np.ptp(colour) > 60:
                assert np.corrcoef(mean, colour)[0, 1] > 0.8, k
            else:
                assert np.ptp(mean) < 15, k


@pytest.mark.slow
def test_twenty_scenes(hold_together):
    render = Clevr6().open()
    hold_together(Clevr6(), [render(7, index) for index in range(20)], MIN_SHARE)
