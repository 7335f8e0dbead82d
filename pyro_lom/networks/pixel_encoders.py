"""GENESIS-v2's networks: from an image to an embedding and features of every pixel, and from masks to slots."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.networks.decoders import PLACE_SCALE
from pyro_lom.networks.stick_breaking import pixel_grid
from pyro_lom.networks.unet import ConvBlock, UNet

EMBEDDING_DIM = 8


class PixelFeatures(NamedTuple):
    embedding: Float[Tensor, "B E H W"]  # what pixels are clustered by
    features: Float[Tensor, "B F H W"]  # what masks pool


def pool(features: Float[Tensor, "B F H W"], weights: Float[Tensor, "*batch K N"]) -> Float[Tensor, "*batch K F"]:
    """Sums of the features of all N = H W pixels, under K sets of weights.

    In the weights' arithmetic, float32, under autocast as well: differences of these moments are variances.
    """
    with torch.autocast("cuda" if features.is_cuda else "cpu", enabled=False):
        return weights @ features.to(weights.dtype).flatten(-2).transpose(-1, -2)


class PixelEncoder(nn.Module):
    """The published encoder: a UNet, a semi-convolution for the embedding, a convolution for the features.

    The semi-convolution adds each pixel's row and column to two channels of a gated convolution; the gate starts at
    zero, so training starts from clusters of nearby pixels.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, width: int):
        super().__init__()
        channels, height, size = image_shape
        self.unet = UNet(size, in_channels=channels, width=width)
        self.segment = nn.Sequential(ConvBlock(width, width), nn.Conv2d(width, EMBEDDING_DIM, 1))
        self.gate = nn.Parameter(torch.zeros(()))
        self.features = nn.Sequential(ConvBlock(width, width), nn.Conv2d(width, 2 * width, 1))
        self.register_buffer("grid", pixel_grid(height, size), persistent=False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> PixelFeatures:
        encoded = self.unet(images)
        coordinates = F.pad(self.grid, (0, 0, 0, 0, EMBEDDING_DIM - 2, 0))
        return PixelFeatures(self.gate * self.segment(encoded) + coordinates, self.features[0](encoded))

    def pool(
        self, features: Float[Tensor, "B half_F H W"], weights: Float[Tensor, "*batch K N"]
    ) -> Float[Tensor, "*batch K F"]:
        """Weighted sums of `self.features`: its last convolution, of 1x1, is taken after the sum, K times a scene."""
        last = self.features[1]
        return F.linear(pool(features, weights), last.weight.flatten(1)) + weights.sum(-1, keepdim=True) * last.bias


class SlotReadout(nn.Sequential):
    """The published way from pooled features to a slot: layer normalisation and a multilayer perceptron."""

    def __init__(self, slot_dim: int, *, width: int):
        hidden = 2 * width
        super().__init__(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * slot_dim))


class CompactPixelEncoder(nn.Module):
    """An encoder for small images and short trainings (departure): a UNet at half the resolution, and short cuts.

    The embedding starts as the image itself through a learned colour map, which weighs hue above brightness, beside
    weak coordinates; to this a perceptron of context, colour and place adds what training finds.

    The features are colour, place, and their products, of which masks pool the moments, and a few learned ones of the
    closest neighbours, such as edges. None sees the whole image: a slot is described by the pixels under its mask, so a
    mask that mixes two objects describes neither.
    """

    NUM_LEARNED = 8

    def __init__(self, image_shape: tuple[int, int, int], *, width: int, hidden: int = 32):
        super().__init__()
        channels, height, size = image_shape
        self.unet = UNet(size, in_channels=channels + 2, width=width, stem_stride=2)
        self.context = nn.Conv2d(width, hidden, 1)
        self.pixel = nn.Conv2d(channels + 2, hidden, 1)
        self.embedding = nn.Conv2d(hidden, EMBEDDING_DIM, 1)
        self.gate = nn.Parameter(torch.tensor(0.03))
        # Brightness (the mean of the channels) with weight 1, deviations from it with weight 2.
        self.colour_map = nn.Parameter(2 * torch.eye(channels) - torch.ones(channels, channels) / channels)
        self.place_weight = nn.Parameter(torch.tensor(0.15))
        self.features = nn.Conv2d(width, self.NUM_LEARNED, 1)
        self.register_buffer("grid", pixel_grid(height, size), persistent=False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> PixelFeatures:
        grid = self.grid.expand(len(images), -1, -1, -1)
        pixels = torch.cat([images, grid], dim=1)
        encoded = self.unet(pixels)
        context = F.interpolate(self.context(encoded), scale_factor=2.0, mode="bilinear")
        learned = self.gate * self.embedding(F.relu(context + self.pixel(pixels)))
        colours = torch.einsum("oc,bchw->bohw", self.colour_map, images)
        given = torch.cat([colours, self.place_weight * grid], dim=1)
        embedding = learned + F.pad(given, (0, 0, 0, 0, 0, EMBEDDING_DIM - given.shape[1]))
        products = (grid.unsqueeze(2) * images.unsqueeze(1)).flatten(1, 2)
        learned_features = F.interpolate(self.features(encoded), scale_factor=2.0)
        features = [learned_features, images, grid, grid.square(), products]
        return PixelFeatures(embedding, torch.cat(features, dim=1))

    pool = staticmethod(pool)


class MomentsReadout(nn.Module):
    """Slots from the moments of the pixels under a mask (departure), for the features of `CompactPixelEncoder`.

    The moments are the mean colour, the mean place, its standard deviation, and the slopes of the colour along both
    axes. The first numbers of a slot's loc start as place and colour, to which a perceptron of all moments adds;
    `SeparableDecoder` starts to read its place there.
    """

    def __init__(self, slot_dim: int, *, num_channels: int, num_learned: int, hidden: int = 64):
        super().__init__()
        self.sizes = [num_learned, num_channels, 2, 2, 2 * num_channels]
        self.norm = nn.LayerNorm(num_learned)
        self.layers = nn.Sequential(
            nn.Linear(num_learned + 3 * num_channels + 4, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * slot_dim),
        )
        nn.init.constant_(
            self.layers[-1].bias[slot_dim:], -1.5
        )  # scales start near 0.3: slots can carry detail at once

    def forward(self, pooled: Float[Tensor, "*batch K F"]) -> Float[Tensor, "*batch K two_Dz"]:
        learned, colour, place, square, product = pooled.split(self.sizes, dim=-1)
        variance = (square - place.square()).clamp_min(1e-6)
        covariance = product.unflatten(-1, (2, -1)) - place.unsqueeze(-1) * colour.unsqueeze(-2)
        slopes = (covariance / (variance.unsqueeze(-1) + 0.01)).flatten(-2)
        read = self.layers(torch.cat([self.norm(learned), colour, place, variance.sqrt(), slopes], dim=-1))
        given = torch.cat([PLACE_SCALE * place, colour - 0.5], dim=-1)[..., : read.shape[-1] // 2]
        return read + F.pad(given, (0, read.shape[-1] - given.shape[-1]))
