"""GENESIS-v2's guide: pixels are clustered into masks, masks pool features, pooled features become slots."""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.genesis_v2 import GenesisV2
from pyro_lom.distributions import diagonal_normal, positive
from pyro_lom.networks.stick_breaking import InstanceColouring, pixel_grid
from pyro_lom.networks.unet import ConvBlock, UNet
from pyro_lom.program import Program
from pyro_lom.types import OrderlessPosterior

_NUM_MOMENTS = 8


class GenesisV2Guide(Program):
    """q(o_1:K | x) = prod_k N(o_k; loc_k(x), scale_k(x))

        features = UNet(x)
        m_1:K    = instance colouring of the features, from random seeds
        o_k      ~ N(head(sum_i m_ik features_i / sum_i m_ik))

    The seeds are drawn at the auxiliary site `seed_scores` (B, 1 | 1, H, W), uniform on (0, 1), whose log density is
    zero. With `pixel_moments` (a departure for short trainings) raw colour also takes part in the clustering, and a
    slot is also told the mean colour, place, spread and area of the pixels under its mask.
    """

    def __init__(self, model: GenesisV2, *, image_shape: tuple[int, int, int], width: int, pixel_moments: bool = False):
        super().__init__()
        self.borrow("model", model)
        self.pixel_moments = pixel_moments
        channels, size, _ = image_shape
        slot_dim = model.prior_loc.shape[-1]
        self.encoder = UNet(size, in_channels=channels, width=width)
        self.segment = ConvBlock(width, width)
        self.colouring = InstanceColouring(width, num_slots=model.num_slots, pixel_colours=pixel_moments)
        self.features = nn.Sequential(ConvBlock(width, width), nn.Conv2d(width, 2 * width, 1))
        self.norm = nn.LayerNorm(2 * width)
        in_dim = 2 * width + (_NUM_MOMENTS if pixel_moments else 0)
        self.head = nn.Sequential(nn.Linear(in_dim, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * slot_dim))

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

        encoded = self.encoder(images)
        log_masks = self.colouring(self.segment(encoded), images, seed_scores)
        masks = log_masks.exp().flatten(-3)  # (*batch, K, N)
        weights = masks / (masks.sum(-1, keepdim=True) + 1e-5)

        pooled = self.norm(weights @ self.features(encoded).flatten(-2).transpose(-1, -2))
        if self.pixel_moments:
            pooled = torch.cat([pooled, self._moments(images, masks, weights)], dim=-1)
        loc, raw_scale = self.head(pooled).chunk(2, dim=-1)
        return OrderlessPosterior(loc.float(), positive(raw_scale + 0.5, floor=1e-8), log_masks)

    def _moments(
        self, images: Float[Tensor, "B C H W"], masks: Float[Tensor, "*batch K N"], weights: Float[Tensor, "*batch K N"]
    ) -> Float[Tensor, "*batch K 8"]:
        """Mean colour, mean place, spread (standard deviation of the place) and log area under each mask."""
        grid = pixel_grid(*images.shape[-2:]).to(images).expand(len(images), -1, -1, -1)
        pixels = torch.cat([images, grid, grid.square()], dim=1).flatten(-2).transpose(-1, -2)
        colour, place, square = (weights @ pixels).split([images.shape[1], 2, 2], dim=-1)
        spread = (square - place.square()).clamp_min(1e-6).sqrt()
        area = masks.mean(-1, keepdim=True)
        return torch.cat([colour, place, spread, (area + 1e-3).log()], dim=-1)
