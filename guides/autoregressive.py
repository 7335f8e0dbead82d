"""The guide of the model with an autoregressive slot prior: the orderless posterior, without matching (A.5)."""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.autoregressive import AutoregressiveModel
from pyro_lom.distributions import diagonal_normal
from pyro_lom.program import Guide
from pyro_lom.types import OrderlessPosterior


def sample_one_by_one(sites: tuple[str, ...], orderless: OrderlessPosterior) -> Float[Tensor, "*batch K Dz"]:
    """Sample slot k of the posterior at the k-th of `sites`, each (*batch, 1 | Dz), and return all slots."""
    each = zip(sites, orderless.loc.split(1, dim=-2), orderless.scale.split(1, dim=-2), strict=True)
    return torch.cat([pyro.sample(site, diagonal_normal(loc, scale)) for site, loc, scale in each], dim=-2)


class AutoregressiveGuide(Guide):
    """q(s | g(o_1:K)) prod_k q(z_k | x), with q(z_k | x) = q(o_k | x)                (A.5)

        s    ~ N(g(o_1:K))               Model 8: invariant to the order of slots (Eq. 4)
        z_k  ~ N(o_k)                    the orderless posterior with a stopped gradient, in its own order

    With the model, its ELBO has the terms KL(q(s) || p(s)) and KL(q(o_k) || p(z_k | z_1:k-1, s)), which A.5 adds to the
    orderless model's ELBO. Slots are not matched. Without a scene latent, the guide has no parameters.

    Args:
        orderless_guide: a guide whose `infer` returns an `OrderlessPosterior`. It is borrowed. Its own ELBO trains its
            parameters; this pair's ELBO has no gradient to them.
        scene_encoder, scene_posterior: as in the LOM's guide; None without a scene latent.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        orderless_guide: nn.Module | None = None,
        *,
        scene_encoder: nn.Module | None = None,
        scene_posterior: nn.Module | None = None,
    ):
        super().__init__()
        self.borrow("model", model)
        self.borrow("orderless_guide", orderless_guide)
        self.scene_encoder, self.scene_posterior = scene_encoder, scene_posterior

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: OrderlessPosterior | None = None) -> Tensor:
        """Sample slots (B, K, Dz). `inferred` is the orderless posterior of `images` if it is already computed."""
        with pyro.plate("scenes", len(images), dim=-2):
            orderless = (self.infer(images) if inferred is None else inferred).detach()
            if self.scene_encoder is not None:
                pyro.sample("s", self.scene_posterior(self.scene_encoder(orderless.loc.unsqueeze(-3))))
            return sample_one_by_one(self.model.slot_sites, orderless)

    def infer(self, images: Float[Tensor, "B C H W"]) -> OrderlessPosterior:
        """Return the orderless posterior of the borrowed guide."""
        return self.orderless_guide.infer(images)

    def log_masks(self, inferred: OrderlessPosterior) -> Float[Tensor, "B K 1 H W"] | None:
        """Return the log masks of the borrowed guide, or None if `inferred` has none."""
        return inferred.log_masks
