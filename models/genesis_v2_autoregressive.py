"""GENESIS-v2 with its autoregressive slot prior, as published (Engelcke et al., 2021)."""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.genesis_v2 import GenesisV2
from pyro_lom.distributions import diagonal_normal
from pyro_lom.likelihoods import observed
from pyro_lom.types import Rendering


class AutoregressiveGenesisV2(GenesisV2):
    """p(x, o_1:K) = p(o_1) prod_k>1 p(o_k | o_1:k-1) p(x | o_1:K)

        o_1 ~ N(0, I)
        o_k ~ p(o_k | o_1:k-1)                 one slot after another, by an LSTM
        x   ~ mixture of the slots, or N(sum_k m_k x_k, sigma) (Eq. 3)

    Sites `o_1` to `o_K`, each (B, 1 | Dz), and `x` (B, 1 | C, H, W), in the plate `scenes` at dim -2.

    Args:
        slot_prior: maps a slot and the state of those before it to the prior of the next slot and its state
            (`RecurrentHead`).
        decoder, num_slots, slot_dim, likelihood: as in `GenesisV2`.
    """

    def __init__(self, decoder: nn.Module, *, slot_prior: nn.Module, num_slots: int, **options):
        super().__init__(decoder, num_slots=num_slots, **options)
        self.slot_sites = tuple(f"o_{k}" for k in range(1, num_slots + 1))
        self.slot_prior = slot_prior

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        first, *others = self.slot_sites
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            slots, state = [pyro.sample(first, diagonal_normal(self.prior_loc, self.prior_scale))], None
            for site in others:
                prior, state = self.slot_prior(slots[-1], state)
                slots.append(pyro.sample(site, prior))
            rendering = self.render(dict(zip(self.slot_sites, slots, strict=True)))
            return pyro.sample("x", self.likelihood(rendering), obs=observed(images))

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode the slots `o_1` to `o_K`, each (*batch, 1, Dz), into masks and components, and compose them."""
        return super().render({"o": torch.cat([latents[site] for site in self.slot_sites], dim=-2)})
