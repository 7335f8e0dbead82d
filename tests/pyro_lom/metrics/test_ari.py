"""The adjusted Rand index equals scikit-learn's, scene by scene."""

import math

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from pyro_lom.metrics.ari import adjusted_rand_index, mean_ari


def random_labels(num_labels, *, seed, num_scenes=12, side=9):
    return torch.randint(num_labels, (num_scenes, side, side), generator=torch.Generator().manual_seed(seed))


def scene(*rows):
    return torch.tensor([rows])


@pytest.mark.parametrize("num_background", [0, 1, 3])
def test_equals_scikit_learn(num_background):
    target = random_labels(6, seed=0)
    predicted = torch.where(random_labels(2, seed=1) == 0, target, random_labels(5, seed=2))
    scores = adjusted_rand_index(predicted, target, num_background=num_background)
    assert scores.dtype == torch.float64
    for score, guess, truth in zip(scores, predicted, target, strict=True):
        counted = truth >= num_background
        assert score.item() == pytest.approx(adjusted_rand_score(truth[counted], guess[counted]), abs=1e-12)


def test_many_pixels():
    target, predicted = (random_labels(3, seed=seed, num_scenes=1, side=512) for seed in (0, 1))
    target[:, :256] = predicted[:, :256]
    expected = adjusted_rand_score(target.flatten(), predicted.flatten())
    assert adjusted_rand_index(predicted, target).item() == pytest.approx(expected, abs=1e-9)


def test_names_of_labels_do_not_matter():
    target, predicted = random_labels(4, seed=0), random_labels(5, seed=1)
    expected = adjusted_rand_index(predicted, target)
    renamed = torch.tensor([40_000, -3, 7, 0, 2**40])[predicted]
    torch.testing.assert_close(adjusted_rand_index(renamed, target), expected)
    torch.testing.assert_close(adjusted_rand_index(renamed, target.to(torch.uint8)), expected)
    torch.testing.assert_close(adjusted_rand_index(target, predicted), expected)


def test_chance_is_zero_and_agreement_one():
    target, predicted = (random_labels(4, seed=seed, num_scenes=200, side=32) for seed in (0, 1))
    assert adjusted_rand_index(predicted, target).mean().item() == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(adjusted_rand_index(3 - target, target), torch.ones(200, dtype=torch.float64))


def test_background_is_not_counted():
    target = scene([0, 0, 2, 2], [1, 1, 3, 3])
    predicted = scene([5, 6, 1, 1], [5, 1, 0, 0])
    assert adjusted_rand_index(predicted, target, num_background=2).item() == 1
    assert adjusted_rand_index(predicted, target).item() < 1


def test_a_scene_does_not_depend_on_its_batch():
    target, predicted = random_labels(4, seed=0), random_labels(5, seed=1)
    one_by_one = torch.cat([adjusted_rand_index(predicted[i : i + 1], target[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(adjusted_rand_index(predicted, target), one_by_one)


class TestDegenerate:
    def test_no_foreground_is_nan(self):
        assert adjusted_rand_index(scene([0, 1]), scene([0, 0]), num_background=1).isnan().all()

    def test_one_object_in_one_slot_is_one(self):
        assert adjusted_rand_index(scene([4, 2, 2]), scene([0, 1, 1]), num_background=1).item() == 1

    def test_one_object_in_two_slots_is_zero(self):
        assert adjusted_rand_index(scene([1, 2, 2]), scene([1, 1, 1]), num_background=1).item() == 0

    def test_each_pixel_its_own_is_one(self):
        assert adjusted_rand_index(scene([0, 1, 2]), scene([2, 0, 1])).item() == 1

    def test_a_single_pixel_is_one(self):
        assert adjusted_rand_index(scene([0, 1]), scene([0, 1]), num_background=1).item() == 1


class TestMean:
    def test_leaves_out_scenes_of_few_objects(self):
        target = torch.tensor([[[0, 1, 1, 2, 2]], [[0, 0, 1, 1, 1]], [[0, 0, 0, 0, 0]], [[1, 1, 2, 2, 3]]])
        predicted = torch.tensor([[[0, 4, 4, 5, 5]], [[0, 0, 1, 2, 3]], [[0, 1, 2, 3, 4]], [[1, 1, 1, 2, 2]]])
        scores = adjusted_rand_index(predicted, target, num_background=1)
        assert mean_ari(predicted, target, num_background=1) == pytest.approx((scores[0] + scores[3]).item() / 2)
        assert mean_ari(predicted, target, num_background=1, min_objects=3) == pytest.approx(scores[3].item())
        counted = (scores[0] + scores[1] + scores[3]).item() / 3
        assert mean_ari(predicted, target, num_background=1, min_objects=1) == pytest.approx(counted)

    def test_is_nan_when_no_scene_is_left(self):
        assert math.isnan(mean_ari(scene([0, 1]), scene([0, 1]), num_background=1))
