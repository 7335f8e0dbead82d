"""Importance-weighted estimate of log p(x) (Burda et al., 2016)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lom.checks import check_images
from pyro_lom.elbo import TraceScene_ELBO


@torch.no_grad()
def importance_weighted(model, guide, images: Float[Tensor, "B C H W"], num_samples: int = 64) -> Float[Tensor, "B"]:
    """log (1/S) sum_s p(x, z_s) / q(z_s | x) with z_s from the guide: a lower bound of log p(x), in nats per scene.

    Its expectation grows with S towards log p(x). With S = 1 it is the ELBO with sampled KLs. Auxiliary sites of the
    guide enter as in the ELBO, by log q: this is 0 if the site is uniform on (0, 1) or masked. A low value marks an
    anomaly, a scene that is improbable under the model.

    The bound is loose, and varies between calls, if a few of the S samples have nearly all of the weight. On eight
    scenes of the demo, 500 samples have an effective size of 2 to 14, and bounds of 64 samples have a standard
    deviation of 1 to 3 nats over calls. This code computes the bound and the effective size of its samples:

        weights = torch.stack([log_weights(model, guide, images) for _ in range(num_samples)])  # (S, B)
        bound, size = weights.logsumexp(0) - math.log(num_samples), effective_sample_size(weights)

    Raises:
        UserError: images are wrong, or a program is in training mode (`pyro_lom/checks.py: check_images`).
    """
    check_images(images, model, guide)
    weights = torch.stack([log_weights(model, guide, images) for _ in range(num_samples)])
    return weights.logsumexp(0) - math.log(num_samples)


@torch.no_grad()
def log_weights(model, guide, *args, **kwargs) -> Float[Tensor, "B"]:
    """log p(x, z) / q(z | x) for one z from the guide per scene, in nats. The arguments go to both programs."""
    terms = TraceScene_ELBO(analytic_kl=False, num_kl_samples=1).terms(model, guide, *args, **kwargs)
    return sum(terms.log_likelihood.values()) - sum(terms.kl.values())


def effective_sample_size(log_weights: Float[Tensor, "S *batch"]) -> Float[Tensor, "*batch"]:
    """(sum_s w_s)^2 / sum_s w_s^2, between 1 and S: the equivalent number of equally weighted samples."""
    return 1 / log_weights.softmax(0).square().sum(0)
