"""Averages over the regions of an image, which edges enclose."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

EDGE = 0.05
"""Lower bound of `edge` in `average_over_regions`, for colours in [0, 1]. In `average_over_objects` the lower bound
depends on the image, and `EDGE` limits it."""
_STRONG = 5  # times the edge; noise and most shading do not reach it
_WEAK = 1.5  # times the edge; pixels with a smaller distance are in one region when enclosed regions are found
_STEEP, _SOFT = 0.7, 2  # times the highest step next to it; times the edge
_THIN, _WIDE = 1 / 16, 1 / 4  # of the image's width
_ROUNDS, _ROUNDS_OF_WIDTHS, _ROUNDS_OF_PARTS = 6, 2, 3


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
    return _average(values, _steps(images, EDGE))


@torch.compiler.disable
def average_over_objects(
    values: Float[Tensor, "B F H W"], images: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B F H W"]:
    """Average values over regions as `average_over_regions` does, with regions that match objects better.

    - Edges are found at low contrast. The lower bound of `edge` is a sixth of the 97th percentile of the image's
      distances, but not below 0.01 and not above `EDGE`. Shading may become edges if outlines are fewer than 3 % of
      the pairs of neighbours, as around one large object.
    - Edges are found in noise. A second image is smoothed with the weights (1, 2, 1) / 4, and has an `edge` of its own.
      There, a difference counts only if neither neighbour along the line is larger. The larger one of both differences,
      in edges, is used.
    - Pixels of a soft outline belong to the side whose colour is nearer. A difference below 0.7 of the one before or
      after it along the line counts as 2 edges at most.
    - Parts of an object are one region. The edges between these are dropped:

        - thin regions, as of fine stripes or checks. A region is thin if its mean width is below a 16th of the image's.
          The width at a pixel is (r^-2 + c^-2)^(-1/2), where r pixels of its row and c of its column are between steps
          with a colour difference of at least 5 edges; this is the width of a straight stripe in any direction.
        - enclosed regions and what they touch, as a face and its outline, or a window in a car. A region is enclosed if
          it touches no ground and has a square of 2x2 pixels. Grounds are the regions at the image's border, and those
          with a mean width above a quarter of the image's, such as a table.
    """
    steps = _steps_of_objects(images)
    widths = _widths(steps) / images.shape[-1]
    thin, enclosed = widths < _THIN, _enclosed(steps, widths > _WIDE)
    within = [(a[1:] & a[:-1]) | b[1:] | b[:-1] for a, b in zip(_both(thin), _both(enclosed), strict=True)]
    outlines = [_sharpened(step.masked_fill(dropped, 0)) for step, dropped in zip(steps, within, strict=True)]
    return _average(values, outlines)


def edges(images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Return the share of the pairs of neighbouring pixels that have an edge between them, at low contrast and in noise
    as well (`average_over_objects`).
    """
    return torch.cat([step.flatten() > 1 for step in _steps_of_objects(images)]).float().mean()


def smoothed(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Return averages of 3x3 pixels with binomial weights."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4


def _steps_of_objects(images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "_ B 1 _"]]:
    """Return the colour differences of neighbours along both axes, in edges, in the image or its smoothed version."""
    distances = _distances(images)
    high = distances.kthvalue(math.ceil(0.97 * distances.shape[1]), dim=1, keepdim=True).values  # faster than quantile
    least = (high / 6).clamp(0.01, EDGE)
    pairs = zip(_steps(images, least), _steps(smoothed(images), least), strict=True)
    return [torch.maximum(fine, _peaks(coarse)) for fine, coarse in pairs]


def _peaks(steps: Float[Tensor, "L B 1 M"]) -> Float[Tensor, "L B 1 M"]:
    """Return the steps that are not below those before and after them, and 0 instead of the others.

    Smoothing makes an edge wider. Without this, pixels along an outline would become a thin region of their own.
    """
    return steps * (steps >= _highest(steps))


def _sharpened(steps: Float[Tensor, "L B 1 M"]) -> Float[Tensor, "L B 1 M"]:
    """Return the steps, with a bound on those that are much smaller than the one before or after them."""
    return torch.where(steps < _STEEP * _highest(steps), steps.clamp_max(_SOFT), steps)


def _highest(steps: Float[Tensor, "L B 1 M"]) -> Float[Tensor, "L B 1 M"]:
    """Return the largest one of each step, the step before it and the step after it."""
    return F.max_pool2d(steps.movedim(0, -1), (1, 3), stride=1, padding=(0, 1)).movedim(-1, 0)


def _steps(images: Float[Tensor, "B C H W"], least: Float[Tensor, "B 1"] | float) -> list[Float[Tensor, "_ B 1 _"]]:
    """Return the colour differences of neighbours along both axes, in edges of at least `least`."""
    edge = _distances(images).median(dim=1, keepdim=True).values.clamp_min(least)[:, :, None]
    lines = images.permute(3, 0, 1, 2)  # (W, B, C, H)
    return [along.diff(dim=0).square().sum(2, keepdim=True).sqrt() / edge for along in _both(lines)]


def _distances(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B pairs"]:
    """Return the distances between the colours of neighbouring pixels."""
    return torch.cat([images.diff(dim=axis).square().sum(1).sqrt().flatten(1) for axis in (-2, -1)], dim=1)


def _both(lines: Shaped[Tensor, "W B F H"]) -> tuple[Shaped[Tensor, "W B F H"], Shaped[Tensor, "H B F W"]]:
    """Return lines along which rows run on the first axis, and lines along which columns do."""
    return lines, lines.transpose(0, -1)


def _widths(steps: list[Float[Tensor, "_ B 1 _"]]) -> Float[Tensor, "W B 1 H"]:
    """Return the mean width of each pixel's region, in pixels. `steps` are distances along both, in edges."""
    runs = [_runs(step < _STRONG) for step in steps]
    row, column = (_sums_over_runs(torch.ones_like(run, dtype=steps[0].dtype), run) for run in runs)
    return _averages((row**-2 + column.transpose(0, -1) ** -2).rsqrt(), steps, _ROUNDS_OF_WIDTHS)


def _enclosed(steps: list[Float[Tensor, "_ B 1 _"]], wide: Bool[Tensor, "W B 1 H"]) -> Bool[Tensor, "W B 1 H"]:
    """Return the pixels of enclosed regions. `steps` are distances along both, in edges."""
    links = [step < _WEAK for step in steps]
    runs = [_runs(link) for link in links]
    ground = torch.ones_like(wide, dtype=steps[0].dtype)
    ground[1:-1, ..., 1:-1] = wide[1:-1, ..., 1:-1]
    ground = _spread(ground, runs)
    around = F.max_pool2d(ground.movedim(0, 2), 3, stride=1, padding=1).movedim(2, 0)
    inside = 1 - _spread(around, runs)
    # Soft outlines between two objects are lines of one pixel. They touch no ground and would join the objects.
    rows, columns = links[0], links[1].transpose(0, -1)
    squares = rows[..., 1:] & rows[..., :-1] & columns[1:] & columns[:-1]
    squares = inside * F.pad(squares.to(inside), (1, 0, 0, 0, 0, 0, 1, 0))
    return _spread(squares, runs) * inside > 0


def _spread(pixels: Float[Tensor, "W B 1 H"], runs: list[Integer[Tensor, "_ B 1 _"]]) -> Float[Tensor, "W B 1 H"]:
    """Return 1 at all pixels that runs along rows and columns connect with `pixels`, where these are 1."""
    for run in _ROUNDS_OF_PARTS * runs:
        pixels = (_sums_over_runs(pixels, run) > 0).to(pixels).transpose(0, -1)
    return pixels


def _runs(links: Bool[Tensor, "L_minus_1 B 1 M"]) -> Integer[Tensor, "L B 1 M"]:
    """Return the number of each pixel's run of linked pixels along the first axis."""
    return F.pad((~links).cumsum(0), (0, 0, 0, 0, 0, 0, 1, 0))


def _sums_over_runs(values: Float[Tensor, "L B 1 M"], runs: Integer[Tensor, "L B 1 M"]) -> Float[Tensor, "L B 1 M"]:
    """Return the sum of the values of each pixel's run."""
    return torch.zeros_like(values).scatter_add_(0, runs, values).gather(0, runs)


def _average(values: Float[Tensor, "B F H W"], steps: list[Float[Tensor, "_ B 1 _"]]) -> Float[Tensor, "B F H W"]:
    """Average values over the regions between steps along both axes, in edges."""
    return _averages(values.permute(3, 0, 1, 2), steps, _ROUNDS).permute(1, 2, 3, 0)


def _averages(
    values: Float[Tensor, "W B F H"], steps: list[Float[Tensor, "_ B 1 _"]], rounds: int
) -> Float[Tensor, "W B F H"]:
    """Average values along rows and columns in turn. `steps` are distances along both, in edges."""
    for weights in rounds * [torch.exp(-F.relu(step - 1) - 0.01) for step in steps]:
        sums = _sums(F.pad(values, (0, 0, 0, 1), value=1.0), weights)  # the sum of the ones is the sum of the weights
        values = (sums[:, :, :-1] / sums[:, :, -1:]).transpose(0, -1)
    return values


def _sums(values: Float[Tensor, "L B F M"], weights: Float[Tensor, "L_minus_1 B 1 M"]) -> Float[Tensor, "L B F M"]:
    """Return weighted sums along the first axis, by a recursion from each end.

    The weight of a value is the product of the `weights` between it and the place of the sum.
    """
    sums = torch.stack([values, values.flip(0)], dim=1)
    weights = torch.stack([weights, weights.flip(0)], dim=1)
    lines = sums.unbind(0)
    for weight, line, following in zip(weights.unbind(0), lines[:-1], lines[1:], strict=True):
        following.addcmul_(weight, line)
    before, after = sums.unbind(1)
    return before + after.flip(0) - values
