"""The guide of an autoregressive slot prior: the orderless posterior as it is, in no order (A.5, Models 7 and 8)."""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.autoregressive import AutoregressiveModel
from pyro_lom.distributions import GaussianHead, diagonal_normal
from pyro_lom.networks.transformers import SceneEncoder, xavier_
from pyro_lom.program import Program
from pyro_lom.types import OrderlessPosterior


class AutoregressiveGuide(Program):
    """q(s | g(o_1:K)) prod_k q(z_k | x), with q(z_k | x) = q(o_k | x)                (A.5)

        s    ~ N(g(o_1:K))               Model 8: whatever the order of slots (Eq. 4)
        z_k  ~ N(o_k)                    the orderless posterior, stopped, in the order in which it came

    With the model, its ELBO has the terms KL(q(s) || p(s)) and KL(q(o_k) || p(z_k | z_1:k-1, s)), which A.5 adds to the
    orderless model's ELBO. There is no matching, and without a scene latent there is nothing to learn here.

    Args:
        orderless_guide: a guide with `infer(images) -> OrderlessPosterior`. It is borrowed: its parameters belong to
            its own ELBO, and no gradient reaches them from here.
        num_encoder_blocks, width, mlp_ratio, scene_pooling: of g, as in the LOM's guide.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        orderless_guide: nn.Module | None = None,
        *,
        num_encoder_blocks: int = 3,
        width: int | None = None,
        mlp_ratio: int = 1,
        scene_pooling: str = "sum",
    ):
        super().__init__()
        self.borrow("model", model)
        self.borrow("orderless_guide", orderless_guide)
        self.scene_encoder = self.scene_posterior = None
        if model.scene_prior is not None:
            self.scene_encoder = SceneEncoder(
                model.slot_dim,
                model.scene_dim,
                width=width or model.slot_dim,
                num_blocks=num_encoder_blocks,
                mlp_ratio=mlp_ratio,
                pooling=scene_pooling,
            )
            self.scene_posterior = xavier_(GaussianHead(model.scene_dim, model.scene_dim))

    def forward(self, images: Float[Tensor, "B C H W"], *, orderless: OrderlessPosterior | None = None) -> Tensor:
        """Slots (B, K, Dz); `orderless` hands over what the orderless guide found before."""
        with pyro.plate("scenes", len(images), dim=-2):
            orderless = (self.orderless_guide.infer(images) if orderless is None else orderless).detach()
            if self.scene_encoder is not None:
                pyro.sample("s", self.scene_posterior(self.scene_encoder(orderless.loc.unsqueeze(-3))))
            slots = []
            for site, loc, scale in zip(
                self.model.slot_sites,
                orderless.loc.split(1, dim=-2),
                orderless.scale.split(1, dim=-2),
                strict=True,
            ):
                slots.append(pyro.sample(site, diagonal_normal(loc, scale)))
            return torch.cat(slots, dim=-2)
