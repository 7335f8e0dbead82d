"""NVAE's guide: an encoder from fine to coarse scales, and posteriors relative to the priors of the model."""

import pyro
from jaxtyping import Float
from torch import Tensor, nn

from models.nvae import Nvae, clamped_normal
from pyro_lom.distributions import mean
from pyro_lom.networks.nvae import each
from pyro_lom.program import Guide

Maps = tuple[Float[Tensor, "B _ _ _"], ...]


class NvaeGuide(Guide):
    """q(z_1:L | x) = q(z_1 | x) prod_l q(z_l | x, z_1:l-1)

        e_L, ..., e_1 = encoder(x)                                     features, from fine to coarse
        raw_1 = head_1(e_1)
        h_l   = descent_l(h_l-1, z_l-1)                                with the model's network, at the site `h_l`
        raw_l = raw parameters of p(z_l | z_1:l-1) + head_l(e_l + combine_l(h_l))
        z_l   ~ N(loc(raw_l), scale(raw_l))                            residual normals

    Args:
        encoder: maps images to the features e_1 to e_L. `infer` returns them.
        combiners: maps h_l to what is added to e_l, for l = 2..L.
        heads: maps features to 2 Dz channels, for l = 1..L.
    """

    def __init__(self, model: Nvae, *, encoder: nn.Module, combiners: nn.ModuleList, heads: nn.ModuleList):
        super().__init__()
        self.borrow("model", model)
        self.encoder, self.combiners, self.heads = encoder, combiners, heads

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: Maps | None = None) -> Tensor:
        """Sample all latents, and return `z_L` (B, 1, D). `inferred` is `infer(images)` if already computed."""
        top, *encoded = self.infer(images) if inferred is None else inferred
        with pyro.plate("scenes", len(images), dim=-2):
            latent, features = pyro.sample("z_1", self._top_posterior(top)), None
            layers = zip(self.model.latent_sites[1:], encoded, self.combiners, self.heads[1:], strict=True)
            for number, (site, found, combine, head) in enumerate(layers, start=2):
                features = self.model.descend(number, features, latent)
                residual = each(head, found.unsqueeze(-4) + each(combine, features))
                latent = pyro.sample(site, clamped_normal(self.model.raw_prior(number, features) + residual))
        return latent

    def infer(self, images: Float[Tensor, "B C H W"]) -> Maps:
        """Return the features e_1 to e_L."""
        return self.encoder(images)

    def code(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Return the mean of q(z_1 | x), a map of the coarsest scale, flattened."""
        return mean(self._top_posterior(self.infer(images)[0])).squeeze(-2)

    def _top_posterior(self, top: Float[Tensor, "B c h w"]):
        return clamped_normal(self.heads[0](top).unsqueeze(-4))
