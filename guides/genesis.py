"""GENESIS's guide: mask latents one after another, then the latent of each component from the image and its mask."""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.genesis import Genesis
from pyro_lom.distributions import at_least_float32, diagonal_normal, positive
from pyro_lom.program import Guide


class GenesisGuide(Guide):
    """q(zm_1:K, zc_1:K | x) = prod_k q(zm_k | x, zm_1:k-1) prod_k q(zc_k | x, m_k)

        e     = encoder(x)                          features of the image
        zm_k  ~ q(zm_k | e, zm_1:k-1)               mask latents, one after another
        m_1:K = break_stick(decoder(zm))            with the model's decoder, at the site `log_m`
        zc_k  ~ q(zc_k | x, m_k)                    component latents

    Args:
        encoder: maps images to features (B, F). `infer` returns them.
        first_mask: maps features to raw parameters of q(zm_1 | x).
        mask_posterior: maps [e, zm_k-1] and a state to q(zm_k | x, zm_1:k-1) and the next state (`RecurrentHead`).
        component_encoder: maps an image and a log mask, in C+1 channels, to raw parameters of q(zc_k | x, m_k).
    """

    def __init__(
        self,
        model: Genesis,
        *,
        encoder: nn.Module,
        first_mask: nn.Module,
        mask_posterior: nn.Module,
        component_encoder: nn.Module,
    ):
        super().__init__()
        self.borrow("model", model)
        self.encoder = encoder
        self.first_mask, self.mask_posterior = first_mask, mask_posterior
        self.component_encoder = component_encoder

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: Float[Tensor, "B F"] | None = None) -> Tensor:
        """Sample slots (B, K, Dm + Dc). `inferred` is the result of `infer(images)` if already computed."""
        with pyro.plate("scenes", len(images), dim=-2):
            latents = self._sample_mask_latents(self.infer(images) if inferred is None else inferred)
            log_masks = self.model.sample_masks(torch.cat([*latents.values()], dim=-2))
            posteriors = self._encode_components(images, log_masks).split(1, dim=-2)
            for site, raw in zip(self.model.component_sites, posteriors, strict=True):
                latents[site] = pyro.sample(site, posterior_normal(raw))
        return self.model.join(latents)

    def infer(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        """Return the features of images."""
        return at_least_float32(self.encoder(images))

    def log_masks(self, inferred: Float[Tensor, "B F"]) -> Float[Tensor, "B K 1 H W"]:
        """Return log masks, decoded from a sample of the mask latents."""
        with pyro.plate("scenes", len(inferred), dim=-2):
            return self.model.sample_masks(torch.cat([*self._sample_mask_latents(inferred).values()], dim=-2))

    def _sample_mask_latents(self, features: Float[Tensor, "B F"]) -> dict[str, Float[Tensor, "*batch 1 Dm"]]:
        features, state, latents = features.unsqueeze(-2), None, {}
        for site in self.model.mask_sites:
            if latents:
                before = [*latents.values()][-1]
                inputs = torch.cat([features.expand(*before.shape[:-1], -1), before], dim=-1)
                posterior, state = self.mask_posterior(inputs, state)
            else:
                posterior = posterior_normal(self.first_mask(features))
            latents[site] = pyro.sample(site, posterior)
        return latents

    def _encode_components(
        self, images: Float[Tensor, "B C H W"], log_masks: Float[Tensor, "*batch K 1 H W"]
    ) -> Float[Tensor, "*batch K two_Dc"]:
        batch = log_masks.shape[:-3]
        images = images.unsqueeze(-4).expand(*batch, *images.shape[-3:])
        masked = torch.cat([log_masks, images], dim=-3)
        return self.component_encoder(masked.flatten(0, -4)).unflatten(0, batch)


def posterior_normal(raw: Float[Tensor, "*batch two_D"]) -> dist.Distribution:
    """Map raw parameters to a diagonal normal whose scale is softplus(raw + 0.5) + 1e-8."""
    loc, raw_scale = at_least_float32(raw).chunk(2, dim=-1)
    return diagonal_normal(loc, positive(raw_scale + 0.5, floor=1e-8))
