"""The evidence lower bound as one term for each site and scene (Eqs. 6-8)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from pyro.util import check_model_guide_match, warn_if_nan
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_lom.errors import UserError
from pyro_lom.sites import checked_shapes

SCENES_DIM = -2  # dim of the plate `scenes` in models and guides


class Terms(NamedTuple):
    """The ELBO's terms by site, in nats per scene: ELBO = sum of `log_likelihood` - sum of `kl`.

    The term of a site in a subsampled plate has n scenes instead of B.
    """

    log_likelihood: dict[str, Float[Tensor, "n"]]
    kl: dict[str, Float[Tensor, "B"]]

    def mean_error(self) -> Float[Tensor, ""]:
        """Return the negative log-likelihood, averaged over scenes; in a LOM -L_LL (Eq. 6)."""
        return -sum(value.mean() for value in self.log_likelihood.values())

    def mean_kl(self) -> Float[Tensor, ""]:
        """Return the sum of all KLs, averaged over scenes; in a LOM -(L_slotKL + L_sceneKL) (Eqs. 7 and 8)."""
        return sum(kl.mean() for kl in self.kl.values())


class TraceScene_ELBO(Trace_ELBO):
    """A single-sample ELBO that returns a term for each site and is averaged, not summed, over scenes.

        ELBO(scene) = sum_observed log p(site) - sum_latent KL(q(site) || p(site))

    The KL of a site is analytic if its formula is registered. (On a small LOM the gradient then has 22 times less
    variance.) Otherwise it is log q - log p, averaged over `num_kl_samples` samples of that site alone, for which no
    network runs again; if q has no `rsample`, at the guide's sample. Both programs have the scenes in a plate at dim
    -2. A site that only the guide has must be auxiliary, and its term is log q.

    All gradients are those of reparameterised samples. A site of the guide whose distribution has no `rsample` can be
    evaluated, but not trained: Pyro's `TraceGraph_ELBO` and `TraceEnum_ELBO` train it.

    B times this loss equals the loss of `TraceMeanField_ELBO`, or of `Trace_ELBO` with `analytic_kl=False` and
    `num_kl_samples=1`. An analytic KL requires, as in `TraceMeanField_ELBO`, that no parent of a site in the model
    depends on that site in the guide.
    """

    def __init__(self, *, analytic_kl: bool = True, num_kl_samples: int = 32):
        super().__init__(max_plate_nesting=2)
        self.analytic_kl = analytic_kl
        self.num_kl_samples = num_kl_samples

    def terms(self, model, guide, *args, **kwargs) -> Terms:
        """Run the guide, replay the model against its trace, and return the term of each site.

        Raises:
            UserError: a site does not have the shape of its plates, or is not in the plate of the scenes; a latent site
                of the model is missing in the guide; a site of the guide has parameters to train but no `rsample`.
        """
        with TraceMessenger() as guide_tracer, checked_shapes():
            guide(*args, **kwargs)
        with TraceMessenger() as model_tracer, ReplayMessenger(trace=guide_tracer.trace), checked_shapes():
            model(*args, **kwargs)
        guide_sites, model_sites = _samples(guide_tracer.trace), _samples(model_tracer.trace)
        _refuse_unsupported(guide_sites, model_sites)
        if is_validation_enabled():
            check_model_guide_match(model_tracer.trace, guide_tracer.trace, self.max_plate_nesting)

        terms = Terms({}, {})
        for name, site in model_sites.items():
            if site["is_observed"]:  # Eq. 6 for x
                terms.log_likelihood[name] = per_scene(site["fn"].log_prob(site["value"]), site)
            else:  # Eq. 7 for z, summed over slots; Eq. 8 for s
                terms.kl[name] = per_scene(self._kl(guide_sites[name], site), guide_sites[name])
        for name, site in guide_sites.items():
            if name not in model_sites:
                terms.kl[name] = per_scene(site["fn"].log_prob(site["value"]), site)
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

    # The criterion of a pair (`system.py: Criterion`).

    def combine(self, terms: Terms) -> Float[Tensor, ""]:
        """Return the negative ELBO, in nats, averaged over scenes."""
        return terms.mean_error() + terms.mean_kl()

    def penalty(self, model, guide) -> float:
        return 0.0

    def update(self, error: Float[Tensor, ""]) -> None:
        """A plain ELBO has no state."""

    def report(self, error: float) -> dict[str, float]:
        return {}

    # The interface of Pyro's ELBOs, which `elbo(model, guide)` and `SVI` call.

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Float[Tensor, ""]:
        """Return the negative ELBO with its graph, in nats, averaged over scenes."""
        return self.combine(self.terms(model, guide, *args, **kwargs))

    def loss(self, model, guide, *args, **kwargs) -> float:
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        warn_if_nan(loss.item(), "loss")
        return loss.item()


def _samples(trace) -> dict:
    """Return the sites with a density, without plates and deterministic sites."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def _refuse_unsupported(guide_sites: dict, model_sites: dict) -> None:
    """Raise UserError for a site whose term or gradient would be wrong."""
    for name, site in (*guide_sites.items(), *model_sites.items()):
        if all(frame.dim != SCENES_DIM for frame in site["cond_indep_stack"]):
            raise UserError(
                f"site '{name}' is in no plate at dim {SCENES_DIM}, and TraceScene_ELBO has a term for each scene of "
                "that plate; move the site into it, or use Pyro's Trace_ELBO"
            )
    for name, site in model_sites.items():
        if name not in guide_sites and not site["is_observed"]:
            raise UserError(
                f"site '{name}' of the model is missing in the guide; sample it there, or if it is discrete, enumerate "
                "it with Pyro's TraceEnum_ELBO"
            )
    for name, site in guide_sites.items():
        q, is_sampled = site["fn"], not site["is_observed"] or site_is_factor(site)
        # The gradient of an expectation under such a q contains its score function, which no term has.
        if is_sampled and not q.has_rsample and q.log_prob(site["value"]).requires_grad:
            while hasattr(q, "base_dist"):
                q = q.base_dist
            enumerable = ", or TraceEnum_ELBO to enumerate it" if q.has_enumerate_support else ""
            raise UserError(
                f"site '{name}' of the guide: {type(q).__name__} has no rsample, so the gradient of TraceScene_ELBO "
                f"would be wrong; use Pyro's TraceGraph_ELBO{enumerable}"
            )


def per_scene(values: Tensor, site) -> Float[Tensor, "B"]:
    """Sum a site's values over every batch dimension except the scenes.

    A subsampled plate multiplies the scale of its sites, so that their sum estimates the sum over the full plate. Here
    terms are averaged over the sampled scenes, so this function removes that factor.
    """
    subsampling = math.prod(frame.full_size / frame.size for frame in site["cond_indep_stack"])
    values = scale_and_mask(values, site["scale"] / subsampling, site["mask"])
    values = values.expand(site["fn"].batch_shape)
    return values.movedim(SCENES_DIM, 0).flatten(1).sum(1)
