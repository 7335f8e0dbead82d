"""Slot attention for small images and short trainings, by soft k-means over pixel embeddings (departure)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyro_lom.distributions import at_least_float32
from pyro_lom.networks.decoders import PLACE_SCALE
from pyro_lom.networks.pixel_encoders import (
    EMBEDDING_DIM,
    CompactPixelEncoder,
    PixelFeatures,
    RegionEncoder,
)
from pyro_lom.networks.slot_attention import Attended


class SoftKMeans(nn.Module):
    """One layer of `StochasticSlotAttention` without a recurrent cell.

        a_k = softmax over slots of -||embedding - query(o_k)||^2 / bandwidth
        raw = the pixels under a_k, pooled, read by `readout`

    Subclasses have `start`, as `StochasticSlotAttention` has, `query`, `pool`, `readout` and `log_bandwidth`.
    """

    def forward(
        self, slots: Float[Tensor, "*batch K Dz"], raw: Float[Tensor, "*batch K two_Dz"], pixels: PixelFeatures
    ) -> Attended:
        embedding = pixels.embedding.flatten(2)  # (B, E, N)
        query = self.query(slots)
        distance = query.square().sum(-1, keepdim=True) - 2 * query @ embedding  # |embedding|^2 cancels in the softmax
        log_masks = (-at_least_float32(distance) / self.log_bandwidth.exp()).log_softmax(-2)
        return Attended(self.readout(self.pool(pixels.features, log_masks.exp())), log_masks)


class CompactSlotAttention(SoftKMeans):
    """A layer for the features of `CompactPixelEncoder`.

    At initialisation, slots are places and colours, embeddings are mostly colours, and a layer is a soft k-means step.
    The layer uses the encoder's `pool`, and does not own the encoder.
    """

    def __init__(self, slot_dim: int, encoder: CompactPixelEncoder):
        super().__init__()
        self.pool = encoder.pool
        scale = torch.full((slot_dim,), -2.4)
        scale[:2] = 2.0
        self.initial = nn.Parameter(torch.cat([torch.zeros(slot_dim), scale]))
        self.query = nn.Linear(slot_dim, EMBEDDING_DIM)
        colour_map = encoder.colour_map.detach()
        place = encoder.place_weight.detach() * torch.eye(2) / PLACE_SCALE
        with torch.no_grad():
            # Maps place and colour, as in MomentsReadout's initial slots, to CompactPixelEncoder's initial embedding.
            given = torch.block_diag(colour_map, place).roll(2, dims=1)[:, :slot_dim]
            self.query.weight.zero_()[: given.shape[0], : given.shape[1]] = given
            self.query.bias.zero_()[: encoder.num_channels] = 0.5 * colour_map.sum(1)
        self.log_bandwidth = nn.Parameter(torch.tensor(-1.5))
        self.readout = encoder.make_readout(slot_dim)
        nn.init.constant_(self.readout.layers[-1].bias[slot_dim:], -4.5)

    def start(self, pixels: PixelFeatures, noise: Float[Tensor, "*batch K Dz"]) -> Float[Tensor, "*batch K two_Dz"]:
        """Return the raw parameters of the first posterior, equal for all slots."""
        return self.initial.expand(*noise.shape[:-1], -1)


class RegionSlotAttention(SoftKMeans):
    """A layer for the features of `RegionEncoder` and its subclass: `CompactSlotAttention` with three changes.

    1. Slots start as readings of single pixels, which are chosen at random, far from each other (`spread_pixels`).
    2. The first numbers of a slot remain its place, extent and colour. The query is the embedding of a region with this
       place and this colour. If the readout could learn these numbers, or the query read others, clusters would fall
       apart.
    3. The bandwidth is smaller, because hues are nearer to each other than colours.

    The layer uses functions of the encoder, and does not own it.
    """

    def __init__(self, slot_dim: int, encoder: RegionEncoder):
        super().__init__()
        self.query, self.pool = encoder.query, encoder.pool
        self.log_bandwidth = nn.Parameter(torch.tensor(-4.0))
        self.readout = encoder.make_readout(slot_dim)
        scale = self.readout.layers[-1].bias[slot_dim:]
        nn.init.constant_(scale, -4.5)
        nn.init.constant_(scale[: 4 + encoder.num_channels], -7.0)  # place, extent and colour; queries read them

    @torch.no_grad()
    def start(self, pixels: PixelFeatures, noise: Float[Tensor, "*batch K Dz"]) -> Float[Tensor, "*batch K two_Dz"]:
        """Return the raw parameters of the first posterior; `noise` determines the pixels."""
        chosen = spread_pixels(pixels.embedding, noise)
        masks = torch.zeros(*chosen.shape, pixels.embedding[0, 0].numel(), device=chosen.device)
        # A weight of ten, since the readout takes a single pixel of weight one for no object.
        return self.readout(self.pool(pixels.features, masks.scatter(-1, chosen.unsqueeze(-1), 10.0)))


def spread_pixels(embedding: Float[Tensor, "B E H W"], noise: Float[Tensor, "*batch K Dz"]) -> Int[Tensor, "*batch K"]:
    """Choose K pixels in turn. Each has a high score and is far from the pixels before, in the space of the embedding.

        z     = embedding, standardised over the image
        pixel = argmax of sigmoid(noise_k^T z) (1 - exp(-10 d^2)),    d = distance from the nearest pixel before

    `noise` is standard normal, so each k has a score of its own. The first numbers of embedding and noise count.
    """
    embedding = at_least_float32(embedding).flatten(-2)  # (B, E, N)
    size = min(noise.shape[-1], embedding.shape[-2])
    centred = embedding - embedding.mean(-1, keepdim=True)
    standard = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    scores = (noise[..., :size] @ standard[:, :size]).sigmoid()
    embedding = embedding.expand(*scores.shape[:-2], *embedding.shape[-2:])
    chosen, remaining = [], torch.ones_like(scores[..., 0, :])
    for score in scores.unbind(-2):
        chosen.append((score * remaining).argmax(-1))
        index = chosen[-1][..., None, None].expand(*embedding.shape[:-1], 1)
        distance = (embedding - embedding.gather(-1, index)).square().sum(-2)
        remaining = remaining.minimum(1 - (-10 * distance).exp())
    return torch.stack(chosen, dim=-1)
