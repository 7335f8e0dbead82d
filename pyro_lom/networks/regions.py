"""Averages over the regions of an image, which edges enclose."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EDGE = 0.05
"""Least distance between the colours of neighbouring pixels, for colours in [0, 1], at which there is an edge."""
_ROUNDS = 6


@torch.compiler.disable  # its recursion would be unrolled into thousands of operations
def average_over_regions(
    values: Float[Tensor, "B F H W"], images: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B F H W"]:
    """Average values over the regions of images, by averages along rows and columns in turn (Gastal & Oliveira, 2011).

    The weight of a pixel in the average of another pixel of its row or column is exp(-distance). The distance is the
    sum over the steps between them of

        0.01 + max(0, ||colour difference|| / edge - 1)

    `edge` is the median distance of the image's neighbours, and at least `EDGE`, so that the edges of noise are weak.
    Several rounds carry values around corners. The cost is linear in the number of pixels.
    """
    edge = _edge(_distances(images)).squeeze(1)
    images, values = images.permute(3, 0, 1, 2), values.permute(3, 0, 1, 2)  # (W, B, ..., H)
    passed = [_passed(images, edge), _passed(images.transpose(0, -1), edge)]
    for along in _ROUNDS * passed:
        values = _average(values, along).transpose(0, -1)
    return values.permute(1, 2, 3, 0)


def edges(images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Return the share of the pairs of neighbouring pixels that have an edge between them."""
    distances = _distances(images)
    return (distances > _edge(distances)).float().mean()


def _distances(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B pairs"]:
    """Return the distances between the colours of neighbouring pixels."""
    return torch.cat([images.diff(dim=axis).square().sum(1).sqrt().flatten(1) for axis in (-2, -1)], dim=1)


def _edge(distances: Float[Tensor, "B pairs"]) -> Float[Tensor, "B 1"]:
    """Return the distance above which there is an edge in each image."""
    return distances.quantile(0.5, dim=1, keepdim=True).clamp_min(EDGE)


def _passed(images: Float[Tensor, "L B C M"], edge: Float[Tensor, "B"]) -> Float[Tensor, "L_minus_1 B 1 M"]:
    """Return exp(-distance) for neighbours along the first axis."""
    distances = images.diff(dim=0).square().sum(2, keepdim=True).sqrt()
    return torch.exp(-F.relu(distances / edge[:, None, None] - 1) - 0.01)


def _average(values: Float[Tensor, "L B F M"], passed: Float[Tensor, "L_minus_1 B 1 M"]) -> Float[Tensor, "L B F M"]:
    """Return weighted averages along the first axis, by a recursion from each end."""
    values = F.pad(values, (0, 0, 0, 1), value=1.0)  # the sum of the ones is the sum of the weights
    sums = torch.stack([values, values.flip(0)], dim=1)
    shares = torch.stack([passed, passed.flip(0)], dim=1)
    lines = sums.unbind(0)
    for share, line, following in zip(shares.unbind(0), lines[:-1], lines[1:], strict=True):
        following.addcmul_(share, line)
    before, after = sums.unbind(1)
    total = before + after.flip(0) - values
    return total[:, :, :-1] / total[:, :, -1:]
