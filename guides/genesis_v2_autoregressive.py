"""The guide of GENESIS-v2 with its autoregressive slot prior: GENESIS-v2's, with one site for each slot."""

import pyro
from jaxtyping import Float
from torch import Tensor

from guides.autoregressive import sample_one_by_one
from guides.genesis_v2 import GenesisV2Guide
from pyro_lom.types import OrderlessPosterior


class AutoregressiveGenesisV2Guide(GenesisV2Guide):
    """q(o_1:K | x) = prod_k N(o_k; loc_k(x), scale_k(x)), as in `GenesisV2Guide`, at the sites `o_1` to `o_K`.

    The model is an `AutoregressiveGenesisV2`. The slots have the order in which the instance colouring finds them.
    """

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: OrderlessPosterior | None = None) -> Tensor:
        """Sample slots (B, K, Dz). `inferred` is the result of `infer(images)` if already computed."""
        with pyro.plate("scenes", len(images), dim=-2):
            return sample_one_by_one(self.model.slot_sites, self.infer(images) if inferred is None else inferred)
