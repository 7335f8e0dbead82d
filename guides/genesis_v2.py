"""GENESIS-v2's guide: pixels are clustered into masks, masks pool features, pooled features become slots."""

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor

from models.genesis_v2 import GenesisV2
from pyro_lom.distributions import diagonal_normal, positive
from pyro_lom.networks.pixel_encoders import CompactPixelEncoder, MomentsReadout, PixelEncoder, SlotReadout
from pyro_lom.networks.stick_breaking import InstanceColouring
from pyro_lom.program import Program
from pyro_lom.types import OrderlessPosterior


class GenesisV2Guide(Program):
    """q(o_1:K | x) = prod_k N(o_k; loc_k(x), scale_k(x))

        e, y   = encoder(x)                          embedding and features of every pixel
        m_1:K  = instance colouring of e             around randomly chosen seeds
        o_k    ~ N(readout(sum_i m_ik y_i / sum_i m_ik))

    The seeds are drawn at the auxiliary site `seed_scores` (B, 1 | 1, H, W), uniform on (0, 1), whose log density is
    zero. `compact` chooses small networks with short cuts, for small images and short trainings, over the published.
    """

    def __init__(self, model: GenesisV2, *, image_shape: tuple[int, int, int], width: int, compact: bool = False):
        super().__init__()
        self.borrow("model", model)
        if compact:
            self.encoder = CompactPixelEncoder(image_shape, width=width)
            num_learned = CompactPixelEncoder.NUM_LEARNED
            self.readout = MomentsReadout(model.slot_dim, num_channels=image_shape[0], num_learned=num_learned)
        else:
            self.encoder = PixelEncoder(image_shape, width=width)
            self.readout = SlotReadout(model.slot_dim, width=width)
        self.colouring = InstanceColouring(model.num_slots)

    def forward(self, images: Float[Tensor, "B C H W"], *, orderless: OrderlessPosterior | None = None) -> Tensor:
        """Orderless slots (B, K, Dz); `orderless` hands over what `infer` found before."""
        with pyro.plate("scenes", len(images), dim=-2):
            orderless = self.infer(images) if orderless is None else orderless
            with pyro.plate("slots", self.model.num_slots, dim=-1):
                return pyro.sample("o", diagonal_normal(orderless.loc, orderless.scale))

    def infer(self, images: Float[Tensor, "B C H W"]) -> OrderlessPosterior:
        """Cluster, pool, and read off q(o | x). A guide calls this within its plate `scenes`."""
        scores_shape = (len(images), 1, 1, *images.shape[-2:])
        uniform = dist.Uniform(images.new_zeros(scores_shape), images.new_ones(scores_shape)).to_event(3)
        seed_scores = pyro.sample("seed_scores", uniform, infer={"is_auxiliary": True}).squeeze(-4)

        embedding, features = self.encoder(images)
        log_masks = self.colouring(embedding, seed_scores)
        masks = log_masks.exp().flatten(-3)  # (*batch, K, N)
        weights = masks / (masks.sum(-1, keepdim=True) + 1e-5)
        loc, raw_scale = self.readout(self.encoder.pool(features, weights)).chunk(2, dim=-1)
        return OrderlessPosterior(loc.float(), positive(raw_scale + 0.5, floor=1e-8), log_masks)
