"""EfficientMORL (Emami et al., 2021): an orderless model with a hierarchy of slots. A LOM can borrow its slots."""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import RawHead, diagonal_normal, normal_of
from pyro_lom.likelihoods import compose, observed
from pyro_lom.networks.initialisation import small_xavier_
from pyro_lom.program import Model
from pyro_lom.types import Rendering


class EfficientMorl(Model):
    """p(x, o_3, o_2, o_1) = prod_k p(o_3k) p(o_2k | o_3k) p(o_1k | o_2k) p(x | o_1)

        o_3 ~ N(0, I)                          K independent slots, in no order
        o_2 ~ p(o_2 | o_3)                     one perceptron for all slots and both layers
        o_1 ~ p(o_1 | o_2)
        x   ~ N(sum_k m_k x_k, sigma)          Eq. 3, or another `likelihood`

    Sites `o_3`, `o_2`, `o_1` (B, K | Dz) and `x` (B, 1 | C, H, W). `decoder` maps a slot to C+1 channels; `likelihood`
    maps a rendering to p(x | o_1); `width` is the number of hidden units of the perceptron.
    """

    slot_sites = ("o_1",)

    def __init__(self, decoder: nn.Module, *, num_slots: int, slot_dim: int, likelihood: nn.Module, width: int = 128):
        super().__init__()
        self.num_slots, self.slot_dim = num_slots, slot_dim
        self.decoder = decoder
        self.likelihood = likelihood
        self.register_buffer("prior_loc", torch.zeros(slot_dim))
        self.register_buffer("prior_scale", torch.ones(slot_dim))
        self.below = small_xavier_(nn.Sequential(nn.Linear(slot_dim, width), nn.ELU(), RawHead(width, slot_dim)))

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            with pyro.plate("slots", self.num_slots, dim=-1):
                third = pyro.sample("o_3", self.top())
                second = pyro.sample("o_2", self.slot_prior(third))
                slots = pyro.sample("o_1", self.slot_prior(second))
            return pyro.sample("x", self.likelihood(self.render({"o_1": slots})), obs=observed(images))

    def top(self) -> dist.Distribution:
        """Return p(o_3) of a slot, N(0, I)."""
        return diagonal_normal(self.prior_loc, self.prior_scale)

    def slot_prior(self, above: Float[Tensor, "*batch K Dz"]) -> dist.Distribution:
        """Return p(o_l | o_l+1) of batch shape (*batch, K), for l = 1 and 2."""
        return normal_of(self.below(above))

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode the slots `o_1` (*batch, K, Dz) into masks and components, and compose them."""
        return compose(self.decoder(latents["o_1"]))
