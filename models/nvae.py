"""NVAE (Vahdat & Kautz, 2020): groups of spatial latents, from a coarse scale to a fine one, without slots."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import Computed, at_least_float32, diagonal_normal
from pyro_lom.likelihoods import observed
from pyro_lom.networks.nvae import each
from pyro_lom.program import Model
from pyro_lom.types import Rendering


class Nvae(Model):
    """p(x, z_1:L) = p(z_1) prod_l p(z_l | z_1:l-1) p(x | z_1:L)

        z_1 ~ N(0, 1.01^2)                      the top group
        h_l = descent_l(h_l-1, z_l-1)           features, from trained features h_1 downwards
        z_l ~ N(loc(h_l), scale(h_l))           a map of the size of h_l
        x   ~ N(decoder(h_L, z_L), sigma)       or another `likelihood`

    Sites `z_1` to `z_L` (B, 1 | Dz h w; maps, flattened), `h_2` to `h_L` (B, 1 | c, h, w; deterministic) and `x`
    (B, 1 | C, H, W), in the plate `scenes` at dim -2.

    Replayed against the guide, the model takes the features at `h_l` from the guide, which has computed them.

    Args:
        shapes: channels, height and width of h_1 to h_L.
        latent_channels: Dz.
        descents: maps h_l-1 (*batch, c, h, w) and z_l-1 (*batch, D) to h_l, for l = 2..L.
        prior_heads: maps h_l to raw parameters of p(z_l | z_1:l-1), 2 Dz channels, for l = 2..L.
        decoder: maps h_L and z_L to twice the channels of an image. The second half is not used: it is the scale in a
            likelihood with learned scales, for which the network was published.
        likelihood: maps a rendering to p(x | z), as the modules of `pyro_lom/likelihoods.py` do.
    """

    scene_sites = ("z_1",)

    def __init__(
        self,
        *,
        shapes: Sequence[tuple[int, int, int]],
        latent_channels: int,
        descents: nn.ModuleList,
        prior_heads: nn.ModuleList,
        decoder: nn.Module,
        likelihood: nn.Module,
    ):
        super().__init__()
        self.shapes = tuple(shapes)
        self.latent_sites = tuple(f"z_{number}" for number in range(1, len(self.shapes) + 1))
        self.first_features = nn.Parameter(torch.rand(self.shapes[0]))
        _, *size = self.shapes[0]
        self.register_buffer("first_prior", torch.zeros(2 * latent_channels, *size), persistent=False)
        self.descents, self.prior_heads = descents, prior_heads
        self.decoder, self.likelihood = decoder, likelihood

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            latent, features = pyro.sample("z_1", clamped_normal(self.first_prior)), None
            for number, site in enumerate(self.latent_sites[1:], start=2):
                features = self.descend(number, features, latent)
                latent = pyro.sample(site, clamped_normal(self.raw_prior(number, features)))
            rendering = self._decode(features, latent)
            return pyro.sample("x", self.likelihood(rendering), obs=observed(images))

    def descend(
        self, number: int, features: Float[Tensor, "*batch c h w"] | None, latent: Float[Tensor, "*batch D"]
    ) -> Float[Tensor, "*batch c_next h_next w_next"]:
        """Return h_l at its site, for l = `number`; it is computed unless a handler, such as replay, provides it.

        Call this within the plate `scenes`.

        Args:
            features, latent: h_l-1 and z_l-1; None for h_1.
        """
        descent, above = self.descents[number - 2], self._or_first(features, latent)
        point = Computed(lambda: at_least_float32(descent(above, latent)), latent.shape[:-1], self.shapes[number - 1])
        return pyro.sample(f"h_{number}", point, infer={"_deterministic": True})

    def raw_prior(self, number: int, features: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch two_Dz h w"]:
        """Return the raw parameters of p(z_l | z_1:l-1) given h_l, for l = `number` from 2 on."""
        return each(self.prior_heads[number - 2], features)

    def _decode(self, features: Float[Tensor, "*batch 1 c h w"] | None, latent: Float[Tensor, "*batch 1 D"]):
        """Return the image, 1/2 + the soft clamp of the decoder's first channels / 2."""
        raw, _ = self.decoder(self._or_first(features, latent), latent).squeeze(-4).chunk(2, dim=-3)
        return Rendering((soft_clamp(at_least_float32(raw)) + 1) / 2)

    def _or_first(self, features: Tensor | None, latent: Tensor) -> Tensor:
        return self.first_features.expand(*latent.shape[:-1], -1, -1, -1) if features is None else features


def clamped_normal(raw: Float[Tensor, "*batch two_Dz h w"]) -> dist.Distribution:
    """Map raw parameters [loc, log scale] to a normal over flattened maps, with loc and log scale in [-5, 5].

    0.01 is added to the scale.
    """
    loc, log_scale = soft_clamp(at_least_float32(raw)).flatten(-3).chunk(2, dim=-1)
    return diagonal_normal(loc, log_scale.exp() + 0.01)


def soft_clamp(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 5 tanh(raw / 5)."""
    return 5 * (raw / 5).tanh()
