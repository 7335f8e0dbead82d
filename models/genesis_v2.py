"""GENESIS-v2 with independent slots (Engelcke et al., 2021): an orderless model. A LOM can borrow its slots."""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import diagonal_normal
from pyro_lom.likelihoods import compose, observed
from pyro_lom.program import Model
from pyro_lom.types import Rendering


class GenesisV2(Model):
    """p(x, o_1:K) = prod_k p(o_k) p(x | o_1:K)

        o_k ~ N(0, I)                          K independent slots, in no order
        x   ~ N(sum_k m_k x_k, sigma)          Eq. 3, or another `likelihood`

    Sites `o` (B, K | Dz) and `x` (B, 1 | C, H, W). `decoder` maps a slot to C+1 channels; `likelihood` maps a rendering
    to p(x | o), as the modules of `pyro_lom/likelihoods.py` do.
    """

    slot_sites = ("o",)

    def __init__(self, decoder: nn.Module, *, num_slots: int, slot_dim: int, likelihood: nn.Module):
        super().__init__()
        self.num_slots, self.slot_dim = num_slots, slot_dim
        self.decoder = decoder
        self.likelihood = likelihood
        self.register_buffer("prior_loc", torch.zeros(slot_dim))
        self.register_buffer("prior_scale", torch.ones(slot_dim))

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            with pyro.plate("slots", self.num_slots, dim=-1):
                slots = pyro.sample("o", diagonal_normal(self.prior_loc, self.prior_scale))
            return pyro.sample("x", self.likelihood(self.render({"o": slots})), obs=observed(images))

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode the slots `o` (*batch, K, Dz) into masks and components, and compose them."""
        return compose(self.decoder(latents["o"]))
