"""Frechet distance between two sets of feature vectors, and the pixel features that need no trained network."""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from pyro_lom.errors import UserError


class GaussianMoments:
    """Mean and covariance of feature vectors that arrive in batches; float64, on the CPU."""

    def __init__(self, num_features: int):
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    def update(self, features: Float[Tensor, "N D"]) -> None:
        """Count in N more vectors (Chan, Golub and LeVeque's pairwise update)."""
        features = features.detach().cpu().double()
        if len(features) == 0:
            return
        mean = features.mean(dim=0)
        centred = features - mean
        shift = mean - self.mean
        total = self.count + len(features)
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(features) / total)
        self.mean = self.mean + shift * (len(features) / total)
        self.count = total

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """Unbiased: divided by the count less one.

        Raises:
            UserError: fewer than two vectors were counted.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs 2 or more feature vectors, not {self.count}: use more images")
        return self._scatter / (self.count - 1)


def frechet_distance(a: GaussianMoments, b: GaussianMoments) -> float:
    """||mean_a - mean_b||^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), in squared units of the features.

    Raises:
        UserError: either side counted fewer than two vectors.
    """
    root_a, root_b = _square_root(a.covariance), _square_root(b.covariance)
    # The trace of that root is the sum of the singular values of A^1/2 B^1/2. Unlike its eigenvalues these are not
    # squared and rooted again, so directions without variance add 1e-16 each rather than 1e-8.
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(distance.item(), 0.0)


class PixelPCA:
    """Projection of images on their leading principal components, a feature that is cheap and needs no download."""

    def __init__(self, pca: PCA):
        self._pca = pca

    @classmethod
    def fit(cls, images: Float[Tensor, "N C H W"], num_components: int = 64) -> "PixelPCA":
        """Find the components of held-out images.

        Raises:
            UserError: there are too few images for that many components.
        """
        if len(images) < num_components + 1:
            raise UserError(
                f"{num_components} principal components need at least {num_components + 1} images, "
                f"not {len(images)}: use more images"
            )
        # arpack finds the exact components, the same ones every time, about as fast as the randomised solver, which is
        # one percent off at the last of them.
        pca = PCA(num_components, svd_solver="arpack", random_state=0)
        return cls(pca.fit(images.flatten(1).cpu().numpy()))

    def __call__(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Coordinates of images along the components, in units of pixel intensity."""
        return torch.from_numpy(self._pca.transform(images.detach().flatten(1).cpu().numpy()))


def fd_pca(real: Float[Tensor, "N C H W"], generated: Float[Tensor, "M C H W"], pca: PixelPCA) -> float:
    """Frechet distance between the principal components of real and generated images in [0, 1].

    It is biased upwards by small sets: compare only values from equal numbers of images and the same `pca`.

    Raises:
        UserError: either set has fewer than two images.
    """
    return frechet_distance(_moments_of(pca(real)), _moments_of(pca(generated)))


def _moments_of(features: Float[Tensor, "N D"]) -> GaussianMoments:
    moments = GaussianMoments(features.shape[1])
    moments.update(features)
    return moments


def _square_root(covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    values, vectors = np.linalg.eigh(covariance.numpy())  # ten times as fast as torch's at 2048 features
    values = values.clip(min=0)  # rounding makes zero eigenvalues slightly negative
    return torch.from_numpy((vectors * np.sqrt(values)) @ vectors.T)
