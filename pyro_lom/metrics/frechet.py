"""Frechet distance between the features of two sets of images."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lom.errors import UserError

_LARGEST = 1e50

Extractor = Callable[[Float[Tensor, "N C H W"]], Float[Tensor, "N D"]]
"""A function from images in [0, 1] to features."""


class GaussianMoments:
    """Running mean and covariance of feature vectors, in float64 on the CPU."""

    def __init__(self, num_features: int):
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    def update(self, features: Float[Tensor, "N D"]) -> None:
        """Add N vectors, by the pairwise update of Chan, Golub and LeVeque.

        Raises:
            UserError: a feature is NaN or infinite, or its square is too large for a covariance.
        """
        features = features.detach().cpu().double()
        if len(features) == 0:
            return
        if not (features.abs() < _LARGEST).all():
            raise UserError("features of an image are NaN, infinite or too large for a covariance: name another run")
        mean = features.mean(dim=0)
        centred = features - mean
        shift = mean - self.mean
        total = self.count + len(features)
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(features) / total)
        self.mean = self.mean + shift * (len(features) / total)
        self.count = total

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """The unbiased covariance, with the divisor count - 1.

        Raises:
            UserError: fewer than two vectors were added.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs 2 or more feature vectors, not {self.count}: use more images")
        return self._scatter / (self.count - 1)


def moments(batches: Iterable[Float[Tensor, "_ C H W"]], extractor: Extractor) -> GaussianMoments:
    """Compute the mean and covariance of the features of one or more batches; only one batch is in memory at a time."""
    result = None
    for features in map(extractor, batches):
        result = result or GaussianMoments(features.shape[1])
        result.update(features)
    return result


def frechet_distance(a: GaussianMoments, b: GaussianMoments) -> float:
    """||mean_a - mean_b||^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), in squared units of the features.

    Small sets bias it upwards. Values can be compared only for equal numbers of images and the same extractor.

    Raises:
        UserError: `a` or `b` has fewer than two vectors.
    """
    root_a, root_b = _square_root(a.covariance), _square_root(b.covariance)
    # tr((A^1/2 B A^1/2)^1/2) is the sum of the singular values of A^1/2 B^1/2. Roots of eigenvalues of A^1/2 B A^1/2
    # would turn a rounding error of 1e-16 into 1e-8 in each direction without variance.
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(distance.item(), 0.0)


def _square_root(covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    values, vectors = np.linalg.eigh(covariance.numpy())  # ten times as fast as torch.linalg.eigh at 2048 features
    values = values.clip(min=0)  # rounding makes zero eigenvalues slightly negative
    return torch.from_numpy((vectors * np.sqrt(values)) @ vectors.T)
