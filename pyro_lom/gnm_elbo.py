"""GNM's criterion: an annealed ELBO with auxiliary KLs to fixed priors."""

from typing import NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_lom.distributions import RelaxedBernoulli, diagonal_normal
from pyro_lom.elbo import Terms, TraceScene_ELBO, per_scene
from pyro_lom.program import Model
from pyro_lom.schedules import Ramp

SMALLEST_PRESENCE = 1e-5


class Annealing(NamedTuple):
    """The schedules of the loss, by training step."""

    global_weight: Ramp = Ramp(0.0, 1.0, end=100_000)  # of the KLs of scene latents
    presence: Ramp = Ramp(0.1, 0.001, end=4000)  # probability of an object in a cell under the fixed prior
    where_weight: Ramp = Ramp(10.0, 1.0, end=500)  # of aux_where
    background_weight: Ramp = Ramp(50.0, 1.0, end=50_000)  # of aux_bg


PUBLISHED = Annealing()


class GnmELBO(TraceScene_ELBO, nn.Module):
    """An ELBO in which the KLs of scene latents are annealed, plus auxiliary KLs of the other latents to fixed priors.

        loss = error + global_weight sum_t KL(q(z_g_t) || p(z_g_t)) + sum_other KL(q || p)
               + aux_pres + where_weight aux_where + aux_depth + aux_what + background_weight aux_bg

        aux_pres             KL(q(z_pres) || Bernoulli(presence))
        aux_where            KL(q(z_where) || N(-1.5, 0.1) N(0, 0.3) N(0, I)), for scale, ratio and place
        aux_depth, aux_what  KL(q || N(0, I))
        aux_bg               KL(q(z_bg) || N(0, I))

    In each cell, aux_where, aux_depth and aux_what are multiplied by the sample of z_pres, through which a gradient
    passes. `terms` returns all KLs without the weights of the schedules.

    Args:
        model: the model of the pair, whose `step` the schedules read.
    """

    def __init__(self, model: Model, annealing: Annealing = PUBLISHED):
        nn.Module.__init__(self)
        TraceScene_ELBO.__init__(self)
        object.__setattr__(self, "model", model)  # not registered: the pair moves and saves it
        self.annealing = annealing
        self.register_buffer("where_loc", torch.tensor([-1.5, 0.0, 0.0, 0.0]), persistent=False)
        self.register_buffer("where_scale", torch.tensor([0.1, 0.3, 1.0, 1.0]), persistent=False)

    def terms(self, model, guide, *args, **kwargs) -> Terms:
        """Return the terms of the ELBO, and the auxiliary KLs.

        Raises:
            UserError: as in `TraceScene_ELBO.terms`.
        """
        guide = poutine.trace(guide)
        terms = super().terms(model, guide, *args, **kwargs)
        sites, priors = guide.trace.nodes, self._fixed_priors()
        present = sites["z_pres"]["value"].squeeze(-1).clamp_min(SMALLEST_PRESENCE)
        for name, prior in priors.items():
            site = sites[f"z_{name}"]
            kl = kl_divergence(site["fn"], prior)
            terms.kl[f"aux_{name}"] = per_scene(kl if name in ("pres", "bg") else kl * present, site)
        return terms

    def combine(self, terms: Terms) -> Float[Tensor, ""]:
        step, annealing = self.model.step, self.annealing
        weights = dict.fromkeys(self.model.scene_sites, annealing.global_weight.at(step))
        weights |= {"aux_where": annealing.where_weight.at(step), "aux_bg": annealing.background_weight.at(step)}
        return terms.mean_error() + sum(weights.get(name, 1.0) * kl.mean() for name, kl in terms.kl.items())

    def _fixed_priors(self) -> dict[str, dist.Distribution]:
        probability = self.annealing.presence.at(self.model.step + 1)  # published steps count from 1
        standard = diagonal_normal(torch.zeros_like(self.where_loc[:1]), torch.ones_like(self.where_loc[:1]))
        return {
            "pres": RelaxedBernoulli(probability.logit().expand(1), relaxation=1.0).to_event(1),
            "where": diagonal_normal(self.where_loc, self.where_scale),
            "depth": standard,
            "what": standard,
            "bg": standard,
        }
