"""The evidence lower bound, site by site and scene by scene (Eqs. 6-8)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match, warn_if_nan
from torch import Tensor
from torch.distributions import kl_divergence

SCENES_DIM = -2  # where models and guides keep their plate `scenes`


class Terms(NamedTuple):
    """The ELBO's terms by site, in nats per scene: ELBO = sum of `log_likelihood` - sum of `kl`.

    A site in a subsampled plate has its scenes only: n of them instead of B.
    """

    log_likelihood: dict[str, Float[Tensor, "n"]]
    kl: dict[str, Float[Tensor, "B"]]

    def mean_elbo(self) -> Float[Tensor, ""]:
        """Averaged over scenes."""
        return sum(value.mean() for value in self.log_likelihood.values()) - sum(kl.mean() for kl in self.kl.values())


class TraceScene_ELBO(Trace_ELBO):
    """A single-sample ELBO that keeps its terms apart and is averaged, not summed, over scenes.

        ELBO(scene) = sum_observed log p(site) - sum_latent KL(q(site) || p(site))

    The KL of a site is analytic where one is registered (22 times less gradient variance than sampled on a small LOM).
    Elsewhere it is log q - log p, averaged over `num_kl_samples` reparameterised samples of that site alone; no network
    runs again for them. Both programs keep scenes in the plate at dim -2. A site of the guide alone must be auxiliary,
    and enters as log q.

    B times this loss is that of `TraceMeanField_ELBO`, or with `analytic_kl=False, num_kl_samples=1` of `Trace_ELBO`.
    As in `TraceMeanField_ELBO`, an analytic KL asks that no parent of a site in the model descends from it in the
    guide.
    """

    def __init__(self, *, analytic_kl: bool = True, num_kl_samples: int = 32):
        super().__init__(max_plate_nesting=2)
        self.analytic_kl = analytic_kl
        self.num_kl_samples = num_kl_samples

    def terms(self, model, guide, *args, **kwargs) -> Terms:
        """Run the guide, replay the model against it, and return every site's term."""
        with TraceMessenger() as guide_tracer:
            guide(*args, **kwargs)
        with TraceMessenger() as model_tracer, ReplayMessenger(trace=guide_tracer.trace):
            model(*args, **kwargs)
        guide_sites, model_sites = _samples(guide_tracer.trace), _samples(model_tracer.trace)
        if is_validation_enabled():
            check_model_guide_match(model_tracer.trace, guide_tracer.trace, self.max_plate_nesting)

        terms = Terms({}, {})
        for name, site in model_sites.items():
            if site["is_observed"]:
                terms.log_likelihood[name] = _per_scene(site["fn"].log_prob(site["value"]), site)
            else:
                terms.kl[name] = _per_scene(self._kl(guide_sites[name], site), guide_sites[name])
        for name, site in guide_sites.items():
            if name not in model_sites and not site["is_observed"]:
                terms.kl[name] = _per_scene(site["fn"].log_prob(site["value"]), site)
        return terms

    def _kl(self, guide_site, model_site) -> Tensor:
        q, p, value = guide_site["fn"], model_site["fn"], guide_site["value"]
        if self.analytic_kl:
            try:
                return kl_divergence(q, p)
            except NotImplementedError:
                pass
        if self.num_kl_samples == 1 or not q.has_rsample:
            return q.log_prob(value) - p.log_prob(value)
        values = q.rsample((self.num_kl_samples,))
        return (q.log_prob(values) - p.log_prob(values)).mean(0)

    # The ELBO interface: what `elbo(model, guide)`, `SVI` and friends call.

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Float[Tensor, ""]:
        """The negative ELBO, in nats, averaged over scenes."""
        return -self.terms(model, guide, *args, **kwargs).mean_elbo()

    def loss(self, model, guide, *args, **kwargs) -> float:
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        warn_if_nan(loss.item(), "loss")
        return loss.item()


def _samples(trace) -> dict:
    """The sites that carry probability: no plates, no deterministic sites."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def _per_scene(values: Tensor, site) -> Float[Tensor, "B"]:
    """Sum a site's values over every batch dimension but that of the scenes.

    A subsampled plate multiplies its sites' scale so that their sum estimates that of the full plate. Here terms are
    averaged over the scenes that they have, so that factor is taken out again.
    """
    subsampling = math.prod(frame.full_size / frame.size for frame in site["cond_indep_stack"])
    values = scale_and_mask(values, site["scale"] / subsampling, site["mask"])
    values = values.expand(site["fn"].batch_shape)
    return values.movedim(SCENES_DIM, 0).flatten(1).sum(1)
