"""A variational autoencoder (Kingma & Welling, 2014): one latent per image, without slots."""

import pyro
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import at_least_float32
from pyro_lom.likelihoods import observed
from pyro_lom.program import Model
from pyro_lom.types import Rendering


class Vae(Model):
    """p(x, s) = p(s) p(x | s)

        s ~ p(s)                     N(0, I), or another `scene_prior`
        x ~ N(decoder(s), sigma)     or another `likelihood`

    Sites `s` (B, 1 | Ds) and `x` (B, 1 | C, H, W), in the plate `scenes` at dim -2.

    Args:
        decoder: maps latents (*batch, Ds) to the logits of images (*batch, C, H, W).
        likelihood: maps a rendering to p(x | s), as the modules of `pyro_lom/likelihoods.py` do.
        scene_prior: returns p(s), a Pyro distribution of event shape (Ds,).
    """

    scene_sites = ("s",)

    def __init__(self, decoder: nn.Module, *, likelihood: nn.Module, scene_prior: nn.Module):
        super().__init__()
        self.decoder, self.likelihood, self.scene_prior = decoder, likelihood, scene_prior

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            scene = pyro.sample("s", self.scene_prior())
            return pyro.sample("x", self.likelihood(self.render({"s": scene})), obs=observed(images))

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode the latent `s` (*batch, 1, Ds) into an image."""
        return Rendering(at_least_float32(self.decoder(latents["s"].squeeze(-2))).sigmoid())
