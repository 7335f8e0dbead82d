"""Adjusted Rand index (ARI) between segmentations, with or without the background."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from pyro_lom.metrics.iou import shared_pixels

_SCENES_AT_ONCE = 512  # limits memory: ranking labels takes 32 bytes per pixel


def adjusted_rand_index(
    predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"], *, num_background: int = 0
) -> Float[Tensor, "B"]:
    """Agreement of two segmentations beyond chance, at most 1. Renaming the labels does not change it.

    Only pixels with `target >= num_background` are counted. The result is ARI-FG if `num_background` is positive, and
    ARI with the background if it is 0. It equals scikit-learn's `adjusted_rand_score` on those pixels.

    Returns:
        One float64 per scene: 1 if both segmentations group the counted pixels alike, nan if no pixel is counted.
    """
    return _index_of(_contingency(predicted, target, num_background))


def mean_ari(
    predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"], num_background: int, min_objects: int = 2
) -> float:
    """Mean adjusted Rand index over the scenes with at least `min_objects` entities in the counted pixels.

    On a scene of one object, ARI-FG is 1 if one slot covers the object and 0 if several do. It does not measure how
    well objects are separated, so such scenes are left out.

    Returns:
        The mean, or nan if no scene is left.
    """
    indices = []
    for part in zip(predicted.split(_SCENES_AT_ONCE), target.split(_SCENES_AT_ONCE), strict=True):
        tables = _contingency(*part, num_background)
        num_objects = (tables.sum(dim=1) > 0).sum(dim=-1)
        indices.append(_index_of(tables)[num_objects >= min_objects])
    return torch.cat(indices).mean().item()


def _contingency(
    predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"], num_background: int
) -> Float[Tensor, "B P T"]:
    # Ranks instead of labels keep the tables small and allow any label.
    ranks = [labels.unique(return_inverse=True)[1] for labels in (predicted, target)]
    return shared_pixels(*ranks, target >= num_background)


def _index_of(tables: Float[Tensor, "B P T"]) -> Float[Tensor, "B"]:
    """Compute the index from the pairs of pixels that share a segment in both, in one or in neither segmentation."""
    num_pixels = tables.sum(dim=(1, 2))
    squares = tables.square().sum(dim=(1, 2))
    target_only = tables.sum(dim=1).square().sum(dim=-1) - squares
    predicted_only = tables.sum(dim=2).square().sum(dim=-1) - squares
    both = squares - num_pixels
    neither = num_pixels.square() - squares - target_only - predicted_only
    expected = (both + target_only) * (target_only + neither) + (both + predicted_only) * (predicted_only + neither)
    index = 2 * (both * neither - target_only * predicted_only) / expected
    index = torch.where((target_only == 0) & (predicted_only == 0), 1.0, index)
    return torch.where(num_pixels == 0, torch.nan, index)
