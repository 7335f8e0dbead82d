"""The Frechet distance meets its closed forms, and moments do not depend on how features are batched."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from pyro_lom.errors import UserError
from pyro_lom.metrics.frechet import GaussianMoments, frechet_distance, moments


def generator(seed):
    return torch.Generator().manual_seed(seed)


def moments_of(features):
    counted = GaussianMoments(features.shape[1])
    counted.update(features)
    return counted


def features_with(mean, covariance, num_features=64):
    """Feature vectors whose sample mean and covariance are exactly these."""
    noise = torch.randn(num_features, len(mean), generator=generator(0), dtype=torch.float64)
    noise -= noise.mean(dim=0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T @ noise / (num_features - 1))).T
    values, vectors = torch.linalg.eigh(covariance)
    return mean + white @ (vectors * values.clamp(min=0).sqrt()).T


def random_covariance(size, rank, seed):
    factor = torch.randn(size, rank, generator=generator(seed), dtype=torch.float64)
    return factor @ factor.T


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


class TestMoments:
    def test_equal_numpy(self):
        features = torch.randn(50, 7, generator=generator(0)) * 3 + 100
        counted = moments_of(features)
        assert counted.count == 50
        np.testing.assert_allclose(counted.mean, features.double().mean(dim=0))
        np.testing.assert_allclose(counted.covariance, np.cov(features.double().numpy().T), rtol=1e-10)

    def test_batches_do_not_matter(self):
        features = torch.randn(50, 7, generator=generator(0), dtype=torch.float64) + torch.linspace(0, 9, 50)[:, None]
        streamed = GaussianMoments(7)
        for batch in features.split([1, 0, 30, 2, 17]):
            streamed.update(batch)
        at_once = moments_of(features)
        assert streamed.count == at_once.count
        torch.testing.assert_close(streamed.mean, at_once.mean)
        torch.testing.assert_close(streamed.covariance, at_once.covariance)

    def test_far_from_the_origin(self):
        features = torch.randn(1000, 3, generator=generator(0), dtype=torch.float64)
        moved = GaussianMoments(3)
        for batch in (features + 1e6).split(100):
            moved.update(batch)
        torch.testing.assert_close(moved.covariance, moments_of(features).covariance, rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize("count", [0, 1])
    def test_too_few(self, count):
        with pytest.raises(UserError, match=f"2 or more feature vectors, not {count}"):
            _ = moments_of(torch.zeros(count, 3)).covariance

    def test_of_batches_of_images(self):
        images = torch.rand(100, 3, 4, 4, generator=generator(0))
        whole, parts = (moments(batches, lambda batch: batch.flatten(1)) for batches in ([images], images.split(7)))
        assert whole.count == parts.count == 100
        torch.testing.assert_close(whole.covariance, parts.covariance)
        torch.testing.assert_close(whole.covariance, images.flatten(1).double().T.cov())
        assert frechet_distance(whole, parts) < 1e-9


class TestDistance:
    def test_commuting_covariances(self):
        a = moments_of(features_with(double(0, 1, 2), torch.diag(double(1, 4, 9))))
        b = moments_of(features_with(double(3, 1, -2), torch.diag(double(16, 4, 1))))
        # ||(3, 0, -4)||^2 + (1 - 4)^2 + (2 - 2)^2 + (3 - 1)^2
        assert frechet_distance(a, b) == pytest.approx(25 + 9 + 0 + 4)

    def test_equals_scipy(self):
        mean_a, mean_b = double(*range(6)), double(*range(6)) / 2
        covariance_a, covariance_b = random_covariance(6, 8, seed=1), random_covariance(6, 8, seed=2)
        a, b = moments_of(features_with(mean_a, covariance_a)), moments_of(features_with(mean_b, covariance_b))
        root = sqrtm(covariance_a.numpy() @ covariance_b.numpy())
        cross = np.trace(root).real
        expected = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
        assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
        assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-9)

    def test_singular_covariances(self):
        # Rank 1 each, along directions at angle t: tr (A^1/2 B A^1/2)^1/2 = |a| |b| |cos t|.
        direction_a, direction_b = double(3, 4, 0, 0), double(0, 2, 0, 0)
        a = moments_of(features_with(torch.zeros(4).double(), torch.outer(direction_a, direction_a)))
        b = moments_of(features_with(torch.zeros(4).double(), torch.outer(direction_b, direction_b)))
        assert frechet_distance(a, b) == pytest.approx(25 + 4 - 2 * 8, abs=1e-7)

    def test_fewer_vectors_than_features(self):
        features = torch.randn(10, 200, generator=generator(0))
        assert frechet_distance(moments_of(features), moments_of(features)) == pytest.approx(0, abs=1e-9)
        moved = moments_of(features.double() + 1)
        assert frechet_distance(moments_of(features), moved) == pytest.approx(200, rel=1e-9)

    def test_constant_features(self):
        assert frechet_distance(moments_of(torch.ones(5, 3)), moments_of(torch.zeros(5, 3))) == pytest.approx(3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e200])
def test_features_that_have_no_covariance(value):
    features = torch.ones(4, 2, dtype=torch.float64)
    features[1, 1] = value
    with pytest.raises(UserError, match="features of an image are NaN, infinite or too large for a covariance"):
        moments_of(features)


def test_large_features_have_a_distance():
    features = torch.randn(8, 3, generator=generator(0), dtype=torch.float64)
    assert np.isfinite(frechet_distance(moments_of(features), moments_of(features * 1e38)))
