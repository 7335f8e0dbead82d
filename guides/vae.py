"""The guide of the variational autoencoder."""

from typing import Any

import pyro
from jaxtyping import Float
from torch import Tensor, nn

from models.vae import Vae
from pyro_lom.distributions import mean
from pyro_lom.program import Guide


class VaeGuide(Guide):
    """q(s | x) = N(s; loc(x), scale(x))

    Args:
        encoder: maps images (B, C, H, W) to features (B, F).
        scene_posterior: maps features (*batch, F) to q(s | x), a Pyro distribution of event shape (Ds,).
    """

    def __init__(self, model: Vae, *, encoder: nn.Module, scene_posterior: nn.Module):
        super().__init__()
        self.borrow("model", model)
        self.encoder, self.scene_posterior = encoder, scene_posterior

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: Any = None) -> Tensor:
        """Sample the latent `s` (B, 1, Ds)."""
        with pyro.plate("scenes", len(images), dim=-2):
            return pyro.sample("s", self.scene_posterior(self.encoder(images).unsqueeze(-2)))

    def code(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B Ds"]:
        """Return the mean of q(s | x)."""
        return mean(self.scene_posterior(self.encoder(images)))
