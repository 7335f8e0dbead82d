"""Intersection over union (IoU) between segmentations: pairwise IoU, mean IoU and segmentation covering."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor


class Covering(NamedTuple):
    """Segmentation covering of each scene, in [0, 1]; nan for a scene without objects."""

    by_area: Float[Tensor, "B"]  # SC: the weight of an object is its number of pixels
    by_object: Float[Tensor, "B"]  # mSC: all objects have equal weight


def pairwise_iou(predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"]) -> Float[Tensor, "B P T"]:
    """Intersection over union of every predicted segment with every entity, in float64.

    Labels count from 0. The IoU is 0 if a segment or an entity does not occur in the scene.
    """
    shared = shared_pixels(predicted, target)
    union = shared.sum(1, keepdim=True) + shared.sum(2, keepdim=True) - shared
    return shared / union.clamp(min=1)


def mean_iou(predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"]) -> Float[Tensor, "B"]:
    """Mean IoU, in [0, 1], over the entities of each scene, including the background.

    Entities are matched one-to-one with segments so that the sum of IoUs is largest. An unmatched entity counts as 0.
    """
    from scipy.optimize import linear_sum_assignment  # 30 MB that training does without

    iou = pairwise_iou(predicted, target)
    num_entities = (iou > 0).any(1).sum(-1)
    matched = [table[linear_sum_assignment(table, maximize=True)].sum() for table in iou.cpu().numpy()]
    return torch.as_tensor(matched, device=iou.device) / num_entities


def segmentation_covering(
    predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"], *, num_background: int
) -> Covering:
    """The largest IoU of each object with any segment, averaged over the objects of each scene.

    Objects are the labels from `num_background` up. One segment may be the best for several objects. A union counts
    all pixels of the segment, including pixels on the background, as in Engelcke et al. (2021).
    """
    sizes = shared_pixels(predicted, target).sum(1)[:, num_background:]
    best = pairwise_iou(predicted, target).amax(1)[:, num_background:]
    return Covering((best * sizes).sum(-1) / sizes.sum(-1), best.sum(-1) / (sizes > 0).sum(-1))


def shared_pixels(
    predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"], counted: Bool[Tensor, "B H W"] | None = None
) -> Float[Tensor, "B P T"]:
    """Number of pixels of each pair of a predicted and a target label, of all pixels or of those in `counted`."""
    num_predicted, num_target = int(predicted.max()) + 1, int(target.max()) + 1
    pairs = (predicted.long() * num_target + target).flatten(1)
    weights = torch.ones_like(pairs, dtype=torch.float64) if counted is None else counted.flatten(1).double()
    tables = weights.new_zeros(len(pairs), num_predicted * num_target)
    return tables.scatter_add_(1, pairs, weights).unflatten(1, (num_predicted, num_target))
