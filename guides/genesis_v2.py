"""GENESIS-v2's guide: it clusters pixels into masks, pools features under each mask, and maps them to slots."""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.genesis_v2 import GenesisV2
from pyro_lom.distributions import at_least_float32, diagonal_normal, positive
from pyro_lom.networks.stick_breaking import InstanceColouring
from pyro_lom.program import Guide
from pyro_lom.types import OrderlessPosterior


class GenesisV2Guide(Guide):
    """q(o_1:K | x) = prod_k N(o_k; loc_k(x), scale_k(x))

        e, y   = encoder(x)                          embedding and features of every pixel
        m_1:K  = instance colouring of e             around randomly chosen seeds
        o_k    ~ N(readout(sum_i m_ik y_i / sum_i m_ik))

    The seeds are drawn at the auxiliary site `seed_scores` (B, 1 | 1, H, W), uniform on (0, 1), whose log density is
    zero.

    Args:
        encoder: maps images to embeddings and features of pixels, and pools features (`PixelEncoder`).
        readout: maps pooled features to the loc and the raw scale of a slot (`SlotReadout`).
        fixed_clusters: number of first training steps in which masks have no gradient, so that the decoder learns from
            the initial clusters (departure).
    """

    def __init__(self, model: GenesisV2, *, encoder: nn.Module, readout: nn.Module, fixed_clusters: int = 0):
        super().__init__()
        self.fixed_clusters = fixed_clusters
        self.borrow("model", model)
        self.encoder = encoder
        self.readout = readout
        self.colouring = InstanceColouring(model.num_slots)

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: OrderlessPosterior | None = None) -> Tensor:
        """Sample orderless slots (B, K, Dz). `inferred` is the result of `infer(images)` if already computed."""
        with pyro.plate("scenes", len(images), dim=-2):
            orderless = self.infer(images) if inferred is None else inferred
            with pyro.plate("slots", self.model.num_slots, dim=-1):
                return pyro.sample("o", diagonal_normal(orderless.loc, orderless.scale))

    def infer(self, images: Float[Tensor, "B C H W"]) -> OrderlessPosterior:
        """Compute q(o | x) and its log masks. Inside a guide, call this within the plate `scenes`."""
        scores_shape = (len(images), 1, 1, *images.shape[-2:])
        uniform = dist.Uniform(images.new_zeros(scores_shape), images.new_ones(scores_shape)).to_event(3)
        seed_scores = pyro.sample("seed_scores", uniform, infer={"is_auxiliary": True}).squeeze(-4)

        embedding, features = self.encoder(images)
        log_masks = self.colouring(embedding, seed_scores)
        if self.fixed_clusters > 0:
            log_masks = torch.where(self.step < self.fixed_clusters, log_masks.detach(), log_masks)
        masks = log_masks.exp().flatten(-3)  # (*batch, K, N)
        loc, raw_scale = self.readout(self.encoder.pool(features, masks)).chunk(2, dim=-1)
        return OrderlessPosterior(at_least_float32(loc), positive(raw_scale + 0.5, floor=1e-8), log_masks)

    def pass_on(self, inferred: OrderlessPosterior) -> OrderlessPosterior:
        """Return the means and scales, which a LOM reads."""
        return inferred.moments()

    def log_masks(self, inferred: OrderlessPosterior) -> Float[Tensor, "B K 1 H W"] | None:
        """Return the log masks of the clusters."""
        return inferred.log_masks
