"""Importance-weighted estimate of log p(x) (Burda et al., 2016)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lom.elbo import TraceScene_ELBO


@torch.no_grad()
def importance_weighted(model, guide, images: Float[Tensor, "B C H W"], num_samples: int = 64) -> Float[Tensor, "B"]:
    """log (1/S) sum_s p(x, z_s) / q(z_s | x) with z_s from the guide: a lower bound of log p(x), in nats per scene.

    It grows with S towards log p(x), and with S = 1 is the ELBO with sampled KLs. An auxiliary site of the guide enters
    as in the ELBO: not at all where it is uniform on (0, 1).
    """
    elbo = TraceScene_ELBO(analytic_kl=False, num_kl_samples=1)
    log_weights = []
    for _ in range(num_samples):
        terms = elbo.terms(model, guide, images)
        log_weights.append(sum(terms.log_likelihood.values()) - sum(terms.kl.values()))
    return torch.stack(log_weights).logsumexp(0) - math.log(num_samples)
