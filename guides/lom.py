"""The guide q of the Latent Object Model, in the paper's five steps (Sec. 3.2, Fig. 2)."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from models.lom import LatentObjectModel
from pyro_lom.distributions import GaussianHead, bounded, diagonal_normal, mean, positive
from pyro_lom.matching import greedy_matching, permute
from pyro_lom.networks.transformers import PosteriorOrder, SceneEncoder, xavier_
from pyro_lom.program import Guide
from pyro_lom.types import LomInference, OrderlessPosterior


class LatentObjectGuide(Guide):
    """q(s | g(o_1:K)) prod_k q(z_pi(k) | h'_pi(k), x)                              (Eqs. 4-5)

        s      ~ N(g(o_1:K))                        the scene, independent of the order of its slots
        pi     = match(means of p(z | f(s)), o)     the orderless slot at each place
        h'_k   = f'(o_pi(1):pi(k-1), s)
        z_k    ~ N(o_pi(k), w(h'_k))                borrowed means, order-aware scales

    Args:
        model: the LOM. The guide reads only its prior, for the matching.
        orderless_guide: a guide whose `infer` returns an `OrderlessPosterior`. It is borrowed. Its own ELBO trains its
            parameters; this pair's ELBO has no gradient to them.
        scene_encoder: g, maps orderless means to features of the scene; the paper's Transformer by default.
        scene_posterior: maps these features to q(s), a distribution of event shape (Ds,); two linear layers by default.
        matching: maps the prior's means and the orderless means to a permutation, as Algorithm 1 does.
        order_net: f', maps a scene and aligned means to h'_1:K; the paper's Transformer by default.
        scale_head: w, maps h'_k to raw scales; a linear layer by default.
        largest_scale: a bound of these scales (`bounded`, a departure); by default they have none, as published.

    With `guide.order_net = None`, slots keep the scales of the orderless posterior (A.5, Model 5).
    """

    def __init__(
        self,
        model: LatentObjectModel,
        orderless_guide: nn.Module | None = None,
        *,
        scene_encoder: nn.Module | None = None,
        scene_posterior: nn.Module | None = None,
        matching: Callable[[Tensor, Tensor], Tensor] = greedy_matching,
        order_net: nn.Module | None = None,
        scale_head: nn.Module | None = None,
        largest_scale: float | None = None,
    ):
        super().__init__()
        self.borrow("model", model)
        self.borrow("orderless_guide", orderless_guide)
        scene_dim, slot_dim = model.scene_dim, model.slot_dim
        self.scene_encoder = scene_encoder or SceneEncoder(slot_dim, scene_dim, width=slot_dim)
        self.scene_posterior = scene_posterior or xavier_(GaussianHead(scene_dim, scene_dim))
        self.match = matching
        self.order_net = order_net or PosteriorOrder(scene_dim, slot_dim, width=slot_dim)
        self.scale_head = scale_head or xavier_(nn.Linear(slot_dim, slot_dim))
        self.largest_scale = largest_scale

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: OrderlessPosterior | None = None) -> LomInference:
        """Sample scenes and ordered slots. `inferred` is the orderless posterior of `images` if already computed."""
        with pyro.plate("scenes", len(images), dim=-2):
            # 1. Estimate the orderless slot posterior, and stop its gradient (Sec. 3.3).
            orderless = (self.infer(images) if inferred is None else inferred).detach()
            # 2. Estimate the scene posterior (Eq. 4).
            scene = pyro.sample("s", self.infer_scene(orderless.loc.unsqueeze(-3)))
            # 3. Estimate the scene-conditioned ordered slot prior (Eq. 2).
            prior = self.model.slot_prior(self.model.order_net(scene.squeeze(-2)))
            # 4. Align the orderless slot posterior to it (Algorithm 1).
            permutation = self.match(mean(prior), orderless.loc)
            aligned = permute(orderless.loc, permutation)
            # 5. Estimate the ordered slot posterior: the aligned means, with order-aware scales (Eq. 5).
            if self.order_net is None:
                scale = permute(orderless.scale, permutation)
            else:
                posterior_order = self.order_net(scene.squeeze(-2), aligned)
                scale = positive(self.scale_head(posterior_order))
                if self.largest_scale is not None:
                    scale = bounded(scale, self.largest_scale)
            with pyro.plate("slots", self.model.num_slots, dim=-1):
                slots = pyro.sample("z", diagonal_normal(aligned, scale))
        return LomInference(scene, slots, permutation, orderless)

    def infer(self, images: Float[Tensor, "B C H W"]) -> OrderlessPosterior:
        """Return the orderless posterior of the borrowed guide."""
        return self.orderless_guide.infer(images)

    def log_masks(self, inferred: OrderlessPosterior) -> Float[Tensor, "B K 1 H W"] | None:
        """Return the log masks of the borrowed guide, or None if `inferred` has none."""
        return inferred.log_masks

    def infer_scene(self, slots: Float[Tensor, "*batch K Dz"]) -> dist.Distribution:
        """Return q(s | g(slots)) of batch shape (*batch), which is invariant to the order of the slots (Eq. 4)."""
        return self.scene_posterior(self.scene_encoder(slots))
