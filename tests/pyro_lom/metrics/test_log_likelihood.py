"""The importance-weighted bound: exact under the exact posterior, and tighter with more samples."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from tiny import SYSTEMS, some_slow, tiny_images, tiny_pair

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.metrics.log_likelihood import effective_sample_size, importance_weighted, log_weights


def model(images):
    """z ~ N(0, I), x ~ N(z, I): p(x) = N(0, 2 I), p(z | x) = N(x / 2, I / 2)."""
    with pyro.plate("scenes", len(images), dim=-2), pyro.plate("slots", 1, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=images.flatten(1).unsqueeze(1))


def guide(scale):
    def q(images):
        with pyro.plate("scenes", len(images), dim=-2), pyro.plate("slots", 1, dim=-1):
            pyro.sample("z", dist.Normal(images.flatten(1).unsqueeze(1) / 2, scale).to_event(1))

    return q


@pytest.fixture
def images():
    return torch.randn(4, 3, 1, 1)


def truth(images):
    return dist.Normal(0.0, 2**0.5).log_prob(images.flatten(1)).sum(1)


def test_the_exact_posterior_needs_one_sample(images):
    torch.testing.assert_close(importance_weighted(model, guide(0.5**0.5), images, 1), truth(images))


def test_it_grows_towards_the_truth(images):
    torch.manual_seed(0)
    few, many = (
        torch.stack([importance_weighted(model, guide(1.2), images, s) for _ in range(60)]).mean(0) for s in (1, 50)
    )
    assert (few < many).all() and (many < truth(images) + 0.02).all()
    torch.testing.assert_close(many, truth(images), atol=0.15, rtol=0)


def test_the_samples_of_the_bound_and_their_effective_number(images):
    """E_q[w]^2 / E_q[w^2] of two normals of variances 1/2 and v = 1.44 is sqrt(1 / v - 1 / (4 v^2)) per dimension."""
    torch.manual_seed(1)
    weights = torch.stack([log_weights(model, guide(1.2), images) for _ in range(1_000)])
    torch.manual_seed(1)
    bound = importance_weighted(model, guide(1.2), images, 1_000)
    torch.testing.assert_close(bound, weights.logsumexp(0) - math.log(1_000))
    expected = 1_000 * (1 / 1.44 - 1 / (4 * 1.44**2)) ** 1.5
    torch.testing.assert_close(effective_sample_size(weights), torch.full((4,), expected), rtol=0.1, atol=0)


@pytest.mark.parametrize("system", some_slow(SYSTEMS, ["lom-genesis-v2", "gnm", "vae"]))
def test_of_every_system(system):
    pair, images = [program.eval() for program in tiny_pair(system)], tiny_images()
    elbos = torch.stack([importance_weighted(*pair, images, 1).mean() for _ in range(50)]).mean()
    expected = -sum(TraceScene_ELBO().loss(*pair, images) for _ in range(50)) / 50
    torch.testing.assert_close(elbos.item(), expected, rtol=0.05, atol=2.0)
    bound = importance_weighted(*pair, images, 50)
    assert bound.shape == (len(images),) and bound.mean() > elbos and not bound.requires_grad
