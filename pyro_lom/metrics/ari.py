"""Adjusted Rand index between segmentations, with or without the background."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

_SCENES_AT_ONCE = 512  # ranking labels takes 32 bytes a pixel


def adjusted_rand_index(
    predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"], *, num_background: int = 0
) -> Float[Tensor, "B"]:
    """Agreement of two segmentations beyond chance, at most 1, whatever their labels are called.

    Counted on the pixels with `target >= num_background`: ARI-FG if `num_background` is positive, ARI with the
    background if it is 0. Equals scikit-learn's `adjusted_rand_score` on those pixels.

    Returns:
        One float64 per scene: 1 where both segmentations are trivial alike, nan where no pixel counts.
    """
    return _index_of(_contingency(predicted, target, num_background))


def mean_ari(
    predicted: Integer[Tensor, "B H W"], target: Integer[Tensor, "B H W"], num_background: int, min_objects: int = 2
) -> float:
    """Mean adjusted Rand index over the scenes that show at least `min_objects` entities that count.

    ARI-FG is 1 on a scene of one object only if no slot splits it, and 0 otherwise: such scenes measure something
    else, so they are left out.

    Returns:
        nan if no scene is left.
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
    """Number of counted pixels, per scene, with each pair of a predicted and a target label."""
    counted = (target >= num_background).flatten(1)
    # Ranks instead of labels keep the tables small and allow any label.
    predicted_labels, predicted = predicted.flatten(1).unique(return_inverse=True)
    target_labels, target = target.flatten(1).unique(return_inverse=True)
    num_predicted, num_target = len(predicted_labels), len(target_labels)
    tables = torch.zeros(len(counted), num_predicted * num_target, dtype=torch.float64, device=counted.device)
    tables.scatter_add_(1, predicted * num_target + target, counted.double())
    return tables.unflatten(1, (num_predicted, num_target))


def _index_of(tables: Float[Tensor, "B P T"]) -> Float[Tensor, "B"]:
    """The index from ordered pairs of pixels: are they together in both, in one, or in neither segmentation?"""
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
