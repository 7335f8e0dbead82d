"""Intersection over union between segmentations: the mean over matched entities, and how well objects are covered."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class Covering(NamedTuple):
    """Segmentation covering of each scene, in [0, 1]; nan where a scene has no object."""

    by_area: Float[Tensor, "B"]  # SC: objects weigh as many pixels as they have
    by_object: Float[Tensor, "B"]  # mSC: objects weigh the same


def pairwise_iou(predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"]) -> Float[Tensor, "B P T"]:
    """Intersection over union of every predicted segment with every entity, in float64; labels count from 0.

    0 where either is not in the scene.
    """
    shared = _shared_pixels(predicted, target)
    union = shared.sum(1, keepdim=True) + shared.sum(2, keepdim=True) - shared
    return shared / union.clamp(min=1)


def mean_iou(predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"]) -> Float[Tensor, "B"]:
    """Mean IoU over a scene's entities, background included, each matched to a segment of its own; in [0, 1].

    The matching is the one-to-one assignment of the largest sum; an entity that is left without a segment counts as 0.
    """
    iou = pairwise_iou(predicted, target)
    num_entities = (iou > 0).any(1).sum(-1)
    matched = [table[linear_sum_assignment(table, maximize=True)].sum() for table in iou.cpu().numpy()]
    return torch.as_tensor(matched, device=iou.device) / num_entities


def segmentation_covering(
    predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"], *, num_background: int
) -> Covering:
    """The best IoU that any segment reaches with each object, averaged over the objects of a scene.

    Objects are the labels from `num_background` up; several may be covered by the same segment. Unions count every
    pixel of a segment, also those on the background, as Engelcke et al. (2021) do.
    """
    sizes = _shared_pixels(predicted, target).sum(1)[:, num_background:]
    best = pairwise_iou(predicted, target).amax(1)[:, num_background:]
    return Covering((best * sizes).sum(-1) / sizes.sum(-1), best.sum(-1) / (sizes > 0).sum(-1))


def _shared_pixels(predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"]) -> Float[Tensor, "B P T"]:
    predicted, target = predicted.flatten(1).long(), target.flatten(1).long()
    num_predicted, num_target = int(predicted.max()) + 1, int(target.max()) + 1
    tables = torch.zeros(len(predicted), num_predicted * num_target, dtype=torch.float64, device=predicted.device)
    ones = torch.ones_like(predicted, dtype=torch.float64)
    tables.scatter_add_(1, predicted * num_target + target, ones)
    return tables.unflatten(1, (num_predicted, num_target))
