"""IoU and covering by hand, against loops over sets of pixels, and on what is degenerate."""

from itertools import permutations

import pytest
import torch

from pyro_lom.metrics.iou import mean_iou, pairwise_iou, segmentation_covering


def maps(*rows):
    return torch.tensor(rows).unsqueeze(1)


@pytest.fixture
def random_maps():
    return torch.randint(4, (5, 6, 7)), torch.randint(3, (5, 6, 7))


def iou_of_sets(predicted, target, p, t):
    predicted, target = (
        {i for i, v in enumerate(m.flatten().tolist()) if v == label} for m, label in ((predicted, p), (target, t))
    )
    return len(predicted & target) / len(predicted | target) if predicted | target else 0.0


def test_pairs_are_those_of_sets(random_maps):
    predicted, target = random_maps
    table = pairwise_iou(predicted, target)
    assert table.shape == (5, 4, 3) and table.dtype == torch.float64
    for scene in range(5):
        for p in range(4):
            for t in range(3):
                assert table[scene, p, t] == pytest.approx(iou_of_sets(predicted[scene], target[scene], p, t))


def test_the_mean_is_over_the_best_assignment(random_maps):
    predicted, target = random_maps
    table = pairwise_iou(predicted, target)
    best = [
        max(sum(scene[p, t] for t, p in enumerate(order)) for order in permutations(range(4), 3)) for scene in table
    ]
    torch.testing.assert_close(mean_iou(predicted, target), torch.stack(best) / 3)


def test_names_of_labels_do_not_count(random_maps):
    predicted, target = random_maps
    renamed = torch.tensor([2, 0, 3, 1])[predicted]
    torch.testing.assert_close(mean_iou(predicted, target), mean_iou(renamed, target))
    for one, other in zip(
        segmentation_covering(predicted, target, num_background=1),
        segmentation_covering(renamed, target, num_background=1),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_perfect_segmentation_is_one(random_maps):
    _, target = random_maps
    assert (mean_iou(target, target) == 1).all()
    assert all((part == 1).all() for part in segmentation_covering(target, target, num_background=1))


def test_by_hand():
    # background 0; object 1 of four pixels, object 2 of two. One segment covers object 1 and a pixel beside it.
    target, predicted = maps([0, 0, 1, 1, 1, 1, 2, 2]), maps([0, 1, 1, 1, 1, 1, 2, 3])
    assert mean_iou(predicted, target).tolist() == pytest.approx([(1 / 2 + 4 / 5 + 1 / 2) / 3])
    covering = segmentation_covering(predicted, target, num_background=1)
    assert covering.by_object.tolist() == pytest.approx([(4 / 5 + 1 / 2) / 2])
    assert covering.by_area.tolist() == pytest.approx([(4 * 4 / 5 + 2 * 1 / 2) / 6])


def test_entities_without_a_segment_count_as_nothing():
    everything = maps([0, 0, 0, 0])
    assert mean_iou(everything, maps([0, 1, 2, 3])).tolist() == pytest.approx([1 / 4 / 4])
    # covering lets one segment serve them all
    assert segmentation_covering(everything, maps([0, 1, 2, 3]), num_background=0).by_object.tolist() == [1 / 4]


def test_without_objects_covering_is_unknown():
    scenes = torch.zeros(2, 3, 3, dtype=torch.long)
    scenes[1, 0, 0] = 1
    covering = segmentation_covering(scenes, scenes, num_background=1)
    assert covering.by_area.isnan().tolist() == covering.by_object.isnan().tolist() == [True, False]
    assert mean_iou(scenes, scenes).tolist() == [1, 1]
