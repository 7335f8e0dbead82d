"""EMORL's networks: pixel encoder, stochastic slot attention and iterative refinement (Emami et al., 2021)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from pyro_lom.distributions import RawHead, at_least_float32
from pyro_lom.networks.decoders import place_ramps
from pyro_lom.networks.initialisation import small_xavier_


class RampEncoder(nn.Module):
    """Encoder: four 5x5 convolutions at full resolution, plus a linear map of place, followed by a perceptron.

    The input is images of any size with values in [0, 1]. They are mapped to [-1, 1] here.
    """

    def __init__(self, num_channels: int, *, width: int):
        super().__init__()
        layers = []
        for in_channels in (num_channels, width, width, width):
            layers += [nn.Conv2d(in_channels, width, 5, padding=2), nn.ReLU(inplace=True)]
        self.convolutions = small_xavier_(nn.Sequential(*layers))
        self.place = nn.Linear(4, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = small_xavier_(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N width"]:
        features = self.convolutions(2 * images - 1).flatten(2).transpose(1, 2)
        ramps = place_ramps(*images.shape[-2:], device=images.device).to(images.dtype).flatten(1).T
        return self.mlp(self.norm(features + self.place(ramps)))


class Attended(NamedTuple):
    raw: Float[Tensor, "*batch K two_Dz"]  # raw parameters of the new posterior, see `distributions.normal_of`
    log_masks: Float[Tensor, "*batch K N"]  # attention: exp sums to one over K at every pixel


class StochasticSlotAttention(nn.Module):
    """One layer of slot attention, from sampled slots and the parameters of their posterior to the next posterior.

        a_k   = softmax over slots of q(o_k) k(y)^T / sqrt(width),  renormalised over pixels
        u_k   = sum_i a_ik v(y_i)
        loc, raw_variance <- GRU(u_k, loc), GRU'(u_k, raw_variance)     the published DualGRU
        loc, raw_variance <- + MLP(LN(loc)), + MLP'(LN(raw_variance))

    All layers share these weights. `initial` contains the parameters of the first posterior, equal for all slots.
    """

    def __init__(self, slot_dim: int, *, width: int):
        super().__init__()
        self.initial = nn.Parameter(torch.cat([torch.zeros(slot_dim), torch.ones(slot_dim)]))
        self.norm = nn.LayerNorm(slot_dim)
        self.query = small_xavier_(nn.Linear(slot_dim, width, bias=False))
        self.key = small_xavier_(nn.Linear(width, width, bias=False))
        self.value = small_xavier_(nn.Linear(width, width, bias=False))
        self.recurrent = nn.ModuleList(nn.GRUCell(width, slot_dim) for _ in range(2))
        for parameter in self.recurrent.parameters():
            nn.init.normal_(parameter)
        self.residual = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(slot_dim), nn.Linear(slot_dim, 2 * width), nn.ReLU(), nn.Linear(2 * width, slot_dim)
            )
            for _ in range(2)
        )
        small_xavier_(self.residual)

    def start(
        self, pixels: Float[Tensor, "B N width"], noise: Float[Tensor, "*batch K Dz"]
    ) -> Float[Tensor, "*batch K two_Dz"]:
        """Return the raw parameters of the first posterior, before any layer. Its sample has the noise `noise`."""
        return self.initial.expand(*noise.shape[:-1], -1)

    def forward(
        self,
        slots: Float[Tensor, "*batch K Dz"],
        raw: Float[Tensor, "*batch K two_Dz"],
        pixels: Float[Tensor, "B N width"],
    ) -> Attended:
        query = self.query(self.norm(slots))
        # Keys and values are linear in the pixels, so their maps are applied to K slots instead of N pixels.
        logits = (query @ self.key.weight) @ pixels.transpose(-1, -2) / query.shape[-1] ** 0.5
        log_masks = at_least_float32(logits).log_softmax(-2)
        weights = log_masks.exp() + 1e-8
        pooled = self.value((weights / weights.sum(-1, keepdim=True)) @ pixels)
        halves = []
        for recurrent, residual, half in zip(self.recurrent, self.residual, raw.chunk(2, dim=-1), strict=True):
            half = recurrent(pooled.flatten(0, -2), half.flatten(0, -2)).view_as(half)
            halves.append(half + residual(half))
        return Attended(torch.cat(halves, dim=-1), log_masks)


class Refinement(nn.Module):
    """Recurrent network that updates the parameters of a posterior from the gradient of the ELBO.

    h   <- GRU(MLP([raw, LN(d loc), LN(d raw_variance)]), h)
    raw <- raw + [Linear(h), Linear'(h)]
    """

    def __init__(self, slot_dim: int, *, width: int):
        super().__init__()
        encode = nn.Sequential(nn.Linear(4 * slot_dim, 2 * width), nn.ELU(), nn.Linear(2 * width, width))
        self.encode = small_xavier_(encode)
        self.recurrent = nn.GRUCell(width, width)
        self.move = small_xavier_(RawHead(width, slot_dim))

    def forward(
        self,
        raw: Float[Tensor, "*batch K two_Dz"],
        gradient: Float[Tensor, "*batch K two_Dz"],
        hidden: Float[Tensor, "N width"] | None,
    ) -> tuple[Float[Tensor, "*batch K two_Dz"], Float[Tensor, "N width"]]:
        """Return the new parameters and the recurrent state for the next step; `hidden` is None in the first step."""
        halves = [layer_norm(half, half.shape[-1:]) for half in gradient.chunk(2, dim=-1)]
        read = self.encode(torch.cat([raw, *halves], dim=-1))
        hidden = self.recurrent(read.flatten(0, -2), hidden)
        return raw + self.move(hidden.view_as(read)), hidden
