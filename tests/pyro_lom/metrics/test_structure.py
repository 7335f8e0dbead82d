"""Structure accuracy accepts towers that stand, and only those."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pyro_lom.data.towers import make_towers
from pyro_lom.metrics.structure import cut_and_paste, flood_fill, structure_accuracy, towers_stand

RED, GREEN, BLUE = (0.9, 0.15, 0.1), (0.1, 0.8, 0.2), (0.15, 0.2, 0.9)
WALL, FLOOR = (0.75, 0.75, 0.8), (0.3, 0.3, 0.25)


def draw(*blocks, horizon=22):
    """An image (3, 32, 32) of blocks (left, top, width, height, colour)."""
    image = np.empty((3, 32, 32))
    image[:, :horizon] = np.array(WALL)[:, None, None]
    image[:, horizon:] = np.array(FLOOR)[:, None, None]
    for left, top, width, height, colour in blocks:
        image[:, top : top + height, left : left + width] = np.array(colour)[:, None, None]
    return image


LOW, MIDDLE, HIGH = (10, 20, 10, 7, RED), (12, 13, 9, 7, GREEN), (11, 6, 10, 7, BLUE)

STANDING = {
    "one block": draw(LOW),
    "two blocks": draw(LOW, MIDDLE),
    "three blocks": draw(LOW, MIDDLE, HIGH),
    "a gap of one row": draw(LOW, (12, 12, 9, 7, GREEN)),
    "half on the lower block": draw(LOW, (15, 13, 10, 7, GREEN)),
}
BROKEN = {
    "an empty room": draw(),
    "a block that floats above the floor": draw((10, 8, 10, 7, RED)),
    "a block that ends at the horizon": draw((10, 15, 10, 7, RED)),
    "a block below the floor's edge": draw((10, 25, 10, 7, RED), horizon=12),
    "an upper block that floats": draw(LOW, (12, 9, 9, 7, GREEN)),
    "an upper block beside the tower": draw(LOW, (21, 13, 9, 7, GREEN)),
    "an upper block that barely touches": draw(LOW, (17, 13, 9, 7, GREEN)),
    "two towers": draw((2, 20, 10, 7, RED), (20, 20, 10, 7, GREEN)),
    "four blocks": draw((10, 22, 10, 6, RED), (10, 16, 10, 6, GREEN), (10, 10, 10, 6, BLUE), (10, 4, 10, 6, RED)),
    "a block too wide": draw((6, 20, 20, 7, RED)),
    "a block too tall": draw((10, 12, 10, 15, RED)),
    "a block that is too small": draw((14, 22, 4, 4, RED)),
    "a block with a notch": draw(LOW, (14, 20, 6, 5, WALL)),
    "walls alone": draw(LOW, horizon=32),
    "one colour": np.full((3, 32, 32), 0.5),
    "noise": np.random.default_rng(0).random((3, 32, 32)),
}


@pytest.fixture(scope="module")
def real():
    return make_towers(300, seed=5).images.transpose(0, 3, 1, 2) / 255.0


@pytest.mark.parametrize("image", STANDING.values(), ids=STANDING)
def test_a_tower_stands(image):
    assert structure_accuracy(image[None]) == 1


@pytest.mark.parametrize("image", BROKEN.values(), ids=BROKEN)
def test_it_does_not_stand(image):
    assert structure_accuracy(image[None]) == 0


def test_real_towers_stand(real):
    assert structure_accuracy(real) >= 0.97


@pytest.mark.parametrize("max_blocks", [2, 4])
def test_real_towers_of_other_heights_stand(max_blocks):
    scenes = make_towers(100, seed=5, max_blocks=max_blocks)
    assert structure_accuracy(scenes.images.transpose(0, 3, 1, 2) / 255.0, max_blocks) >= 0.97


def test_halves_of_different_scenes_do_not(real):
    assert structure_accuracy(cut_and_paste(real)) <= 0.3


@pytest.mark.parametrize("image", [*STANDING.values(), *BROKEN.values()], ids=[*STANDING, *BROKEN])
def test_the_rule_grows_with_the_image(image):
    assert structure_accuracy(image.repeat(2, axis=1).repeat(2, axis=2)[None]) == structure_accuracy(image[None])


def test_larger_real_towers_stand():
    large = make_towers(200, seed=5, size=64).images.transpose(0, 3, 1, 2) / 255.0
    assert structure_accuracy(large) >= 0.97
    assert structure_accuracy(cut_and_paste(large)) <= 0.3


@pytest.mark.parametrize(("blur", "lowest", "highest"), [(0.4, 0.97, 1.0), (1.0, 0.0, 0.2), (1.5, 0.0, 0.0)])
def test_soft_edges_are_forgiven_and_smeared_ones_are_not(real, blur, lowest, highest):
    assert lowest <= structure_accuracy(gaussian_filter(real, (0, 0, blur, blur))) <= highest


def test_a_few_steps_of_colour_do_not_matter(real):
    noise = np.random.default_rng(0).normal(0, 0.005, real.shape)
    assert structure_accuracy(real + noise) >= 0.95


def test_mirrored_towers_stand(real):
    np.testing.assert_array_equal(
        towers_stand(real, flood_fill(real)), towers_stand(real[..., ::-1], flood_fill(real[..., ::-1]))
    )


def test_scenes_are_judged_one_by_one(real):
    images = np.concatenate([real[:5], cut_and_paste(real)[:5]])
    together = towers_stand(images, flood_fill(images))
    assert (together.shape, together.dtype) == ((10,), bool)
    assert together.tolist() == [structure_accuracy(image[None]) == 1 for image in images]


def test_fewer_blocks_can_be_asked_for():
    images = np.stack([draw(LOW), draw(LOW, MIDDLE), draw(LOW, MIDDLE, HIGH)])
    for max_blocks in (1, 2, 3):
        stands = towers_stand(images, flood_fill(images), max_blocks)
        assert stands.tolist() == [1 <= max_blocks, 2 <= max_blocks, 3 <= max_blocks]


def test_any_map_of_segments_will_do():
    scenes = make_towers(100, seed=5)
    images = scenes.images.transpose(0, 3, 1, 2) / 255.0
    assert towers_stand(images, scenes.labels.astype(int)).mean() >= 0.97
    renamed = 9 - scenes.labels.astype(int)
    np.testing.assert_array_equal(towers_stand(images, renamed), towers_stand(images, scenes.labels.astype(int)))


class TestFloodFill:
    def test_segments_are_the_connected_regions_of_equal_colour(self):
        image = draw((2, 4, 5, 5, RED), (20, 4, 5, 5, RED), (8, 25, 6, 4, BLUE))
        segments = flood_fill(image[None])[0]
        assert segments.max() == 4  # the two red blocks are apart
        for colour_region in (image[0] == RED[0], image[2] == BLUE[2]):
            outside = set(segments[~colour_region])
            assert not outside & set(segments[colour_region])
        assert segments[5, 3] != segments[5, 21]

    def test_a_gentle_slope_is_one_segment_and_a_steep_step_is_not(self):
        slope = np.tile(np.linspace(0, 1, 32), (1, 1, 32, 1))
        assert flood_fill(slope).max() == 0
        assert flood_fill(np.round(4 * slope) / 4).max() == 4

    def test_labels_start_anew_in_every_image(self):
        images = np.stack([draw(), draw(LOW), draw(LOW, MIDDLE)])
        segments = flood_fill(images)
        assert [set(np.unique(s)) for s in segments] == [{0, 1}, {0, 1, 2}, {0, 1, 2, 3}]
        np.testing.assert_array_equal(segments[1:2], flood_fill(images[1:2]))


def test_cut_and_paste_joins_a_scenes_left_half_to_the_nexts_right_half(real):
    pasted = cut_and_paste(real[:3])
    np.testing.assert_array_equal(pasted[1, ..., :16], real[1, ..., :16])
    np.testing.assert_array_equal(pasted[1, ..., 16:], real[2, ..., 16:])
    np.testing.assert_array_equal(pasted[2, ..., 16:], real[0, ..., 16:])
