"""Slot attention for small images and short trainings, by soft k-means over pixel embeddings (departure)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import at_least_float32
from pyro_lom.networks.decoders import PLACE_SCALE
from pyro_lom.networks.pixel_encoders import EMBEDDING_DIM, MomentsReadout, PixelFeatures
from pyro_lom.networks.slot_attention import Attended


class CompactSlotAttention(nn.Module):
    """One layer of `StochasticSlotAttention`, for the features of `CompactPixelEncoder` or `GlimpseEncoder`.

        a_k = softmax over slots of -||embedding - query(o_k)||^2 / bandwidth
        raw = the pixels under a_k, pooled by the encoder and read by `MomentsReadout`

    At initialisation, slots are places and colours, embeddings are mostly colours, or hues, and a layer is a soft
    k-means step.

    Args:
        query: maps slots to embeddings (`ColourQuery`, or `query` of `GlimpseEncoder`).
        readout: maps pooled features to raw parameters.
        pool: pools features with weights (`pool` of the encoder).
        log_bandwidth: initial logarithm of the bandwidth, which is a squared distance of embeddings.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        query: Callable[..., Tensor],
        readout: MomentsReadout,
        pool: Callable[..., Tensor],
        log_bandwidth: float,
    ):
        super().__init__()
        scale = torch.full((slot_dim,), -2.4)
        scale[:2] = 2.0
        self.initial = nn.Parameter(torch.cat([torch.zeros(slot_dim), scale]))
        self.query = query
        self.log_bandwidth = nn.Parameter(torch.tensor(log_bandwidth))
        self.readout = readout
        nn.init.constant_(self.readout.layers[-1].bias[slot_dim:], -4.5)
        self.pool = pool

    def forward(
        self, slots: Float[Tensor, "*batch K Dz"], raw: Float[Tensor, "*batch K two_Dz"], pixels: PixelFeatures
    ) -> Attended:
        embedding = pixels.embedding.flatten(2)  # (B, E, N)
        query = self.query(slots)
        distance = query.square().sum(-1, keepdim=True) - 2 * query @ embedding  # |embedding|^2 cancels in the softmax
        log_masks = (-at_least_float32(distance) / self.log_bandwidth.exp()).log_softmax(-2)
        masks = log_masks.exp()
        weights = masks / (masks.sum(-1, keepdim=True) + 1e-5)
        return Attended(self.readout(self.pool(pixels.features, weights)), log_masks)


class ColourQuery(nn.Linear):
    """Map from slots to queries. It starts as the map from place and colour to `CompactPixelEncoder`'s embedding."""

    def __init__(self, slot_dim: int, *, num_channels: int):
        super().__init__(slot_dim, EMBEDDING_DIM)
        colour_map = 2 * torch.eye(num_channels) - torch.ones(num_channels, num_channels) / num_channels
        place = 0.15 * torch.eye(2) / PLACE_SCALE
        with torch.no_grad():
            # Place and colour are the first numbers of a slot, as in MomentsReadout's initial slots.
            given = torch.block_diag(colour_map, place).roll(2, dims=1)[:, :slot_dim]
            self.weight.zero_()[: given.shape[0], : given.shape[1]] = given
            self.bias.zero_()[:num_channels] = 0.5 * colour_map.sum(1)
