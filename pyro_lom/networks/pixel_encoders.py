"""GENESIS-v2's networks from images to pixel embeddings and features, and from pooled features to slots."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.networks.decoders import EXTENT_OFFSET, PLACE_SCALE
from pyro_lom.networks.regions import average_over_objects, average_over_regions
from pyro_lom.networks.stick_breaking import pixel_grid
from pyro_lom.networks.unet import ConvBlock, UNet

EMBEDDING_DIM = 8


class PixelFeatures(NamedTuple):
    embedding: Float[Tensor, "B E H W"]  # input of the clustering
    features: Float[Tensor, "B F H W"]  # pooled with the masks


def pool(features: Float[Tensor, "B F H W"], weights: Float[Tensor, "*batch K N"]) -> Float[Tensor, "*batch K F"]:
    """Return K weighted sums of the features over all N = H W pixels.

    The sums are computed in the dtype of the weights, float32, also under autocast: variances are their differences.
    """
    with _without_autocast(features):
        return weights @ features.to(weights.dtype).flatten(-2).transpose(-1, -2)


def normalised(masks: Float[Tensor, "*batch K N"]) -> Float[Tensor, "*batch K N"]:
    """Return masks whose sum over pixels is one, or less if they are nearly empty."""
    return masks / (masks.sum(-1, keepdim=True) + 1e-5)


def _without_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast("cuda" if tensor.is_cuda else "cpu", enabled=False)


def hue_and_brightness(colours: Float[Tensor, "*shape"], *, dim: int) -> Float[Tensor, "*shape_and_one_more"]:
    """Return the deviations of the channels, at `dim`, from their mean, relative to it; and the mean."""
    brightness = colours.mean(dim, keepdim=True)
    hue = (colours - brightness) / (brightness.clamp_min(0) + 0.05)  # black has no hue
    return torch.cat([hue, brightness], dim=dim)


class PixelEncoder(nn.Module):
    """GENESIS-v2's encoder: a UNet, a semi-convolution for the embedding, and a convolution for the features.

    The semi-convolution adds each pixel's row and column to two channels of a gated convolution. The gate starts at
    zero, so the first clusters are groups of nearby pixels. `bottleneck` is the number of hidden units of the UNet.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, width: int, bottleneck: int = 128):
        super().__init__()
        channels, height, size = image_shape
        self.unet = UNet(size, in_channels=channels, width=width, hidden=bottleneck)
        self.segment = nn.Sequential(ConvBlock(width, width), nn.Conv2d(width, EMBEDDING_DIM, 1))
        self.gate = nn.Parameter(torch.zeros(()))
        self.features = nn.Sequential(ConvBlock(width, width), nn.Conv2d(width, 2 * width, 1))
        self.register_buffer("grid", pixel_grid(height, size), persistent=False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> PixelFeatures:
        encoded = self.unet(images)
        coordinates = F.pad(self.grid, (0, 0, 0, 0, EMBEDDING_DIM - 2, 0))
        return PixelFeatures(self.gate * self.segment(encoded) + coordinates, self.features[0](encoded))

    def pool(
        self, features: Float[Tensor, "B half_F H W"], masks: Float[Tensor, "*batch K N"]
    ) -> Float[Tensor, "*batch K F"]:
        """Return averages of the features; the last 1x1 convolution is applied to K averages instead of all pixels."""
        last, weights = self.features[1], normalised(masks)
        return F.linear(pool(features, weights), last.weight.flatten(1)) + weights.sum(-1, keepdim=True) * last.bias


class SlotReadout(nn.Sequential):
    """GENESIS-v2's map from pooled features to a slot: layer normalisation and a multilayer perceptron."""

    def __init__(self, slot_dim: int, *, width: int):
        hidden = 2 * width
        super().__init__(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * slot_dim))


class CompactPixelEncoder(nn.Module):
    """Encoder for small images and short trainings (departure): a UNet at half the resolution with shortcuts.

    The embedding is the sum of two parts. The first part contains the colours, through a trainable map that weighs hue
    above brightness, and weak coordinates. The second part is a perceptron of context, colour and place.

    The features are colour, place, the squares of place, the products of place and colour, and a few learned features.
    Masks pool them to moments. All but the learned ones depend on one pixel only, so a slot describes the pixels under
    its mask. A mask that covers two objects describes neither. `bottleneck` is the number of hidden units of the UNet,
    by default 2 `width`.
    """

    NUM_LEARNED = 8

    def __init__(
        self, image_shape: tuple[int, int, int], *, width: int, hidden: int = 32, bottleneck: int | None = None
    ):
        super().__init__()
        channels, height, size = image_shape
        self.num_channels = channels
        self.unet = UNet(
            size,
            in_channels=channels + 2,
            width=width,
            num_narrow=2,
            hidden=bottleneck or 2 * width,
            stem_stride=2,
        )
        self.context = nn.Conv2d(width, hidden, 1)
        self.pixel = nn.Conv2d(channels + 2, hidden, 1)
        self.embedding = nn.Conv2d(hidden, EMBEDDING_DIM, 1)
        self.gate = nn.Parameter(torch.tensor(0.03))
        # The map starts with weight 1 for brightness (the mean of the channels) and weight 2 for deviations from it.
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
        given = self.given(images, grid)
        embedding = learned + F.pad(given, (0, 0, 0, 0, 0, EMBEDDING_DIM - given.shape[1]))
        products = (grid.unsqueeze(2) * images.unsqueeze(1)).flatten(1, 2)
        learned_features = F.interpolate(self.features(encoded), scale_factor=2.0)
        features = [learned_features, images, grid, grid.square(), products]
        return PixelFeatures(embedding, torch.cat(features, dim=1))

    def given(self, images: Float[Tensor, "B C H W"], grid: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B E H W"]:
        """Return the part of the embedding without context: colours and places."""
        return torch.cat([self.colours(images), self.place_weight * grid], dim=1)

    def colours(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B out H W"]:
        """Return the colours in the embedding."""
        return torch.einsum("oc,bchw->bohw", self.colour_map, images)

    def pool(
        self, features: Float[Tensor, "B F H W"], masks: Float[Tensor, "*batch K N"]
    ) -> Float[Tensor, "*batch K F"]:
        """Return averages of the features."""
        return pool(features, normalised(masks))

    def make_readout(self, slot_dim: int) -> "MomentsReadout":
        """Build a map from features that are pooled here to slots."""
        return MomentsReadout(slot_dim, num_channels=self.num_channels, num_learned=self.NUM_LEARNED)


class RegionEncoder(CompactPixelEncoder):
    """Encoder for objects of any shape with visible outlines (departure): `CompactPixelEncoder` with three changes.

    1. The embedding starts with the hue, the brightness and the place of each pixel's region, which edges enclose
       (`average_over_regions`). Shading hardly changes the hue, and all pixels of an object have nearly the same
       embedding, although the object is shaded or large. Two objects of one hue differ in their places.
    2. Masks are squared before they pool features. Their faint parts lie on other objects, and cover much of the image.
    3. The pooled features contain a glimpse, because moments do not describe shapes. A glimpse contains the mask and
       the colours under it at `GLIMPSE` x `GLIMPSE` places around the mask's mean place, four standard deviations wide.
       They end with the mask's size.
    """

    GLIMPSE = 8
    PLACE_WEIGHT = 0.85
    average = staticmethod(average_over_regions)

    def __init__(self, image_shape: tuple[int, int, int], *, width: int, bottleneck: int | None = None):
        channels = image_shape[0]
        super().__init__(image_shape, width=width, bottleneck=bottleneck)
        self.colour_map = nn.Parameter(self.initial_weights(channels))
        self.place_weight = nn.Parameter(torch.tensor(self.PLACE_WEIGHT))
        self.colour_channels = slice(self.NUM_LEARNED, self.NUM_LEARNED + channels)
        axis = torch.linspace(-1, 1, self.GLIMPSE)
        self.register_buffer("frame", torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1), persistent=False)

    @staticmethod
    def initial_weights(num_channels: int) -> Float[Tensor, "C_and_1"]:
        """Return the initial weights of the hue, one for each channel, and of the brightness."""
        return torch.tensor([0.8] * num_channels + [0.5])

    def given(self, images: Float[Tensor, "B C H W"], grid: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B E H W"]:
        """Return the hues and places of regions."""
        return super().given(*colours_and_places_of_regions(images, self.average))

    def colours(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B out H W"]:
        """Return the weighted deviations of the channels from their mean, relative to it, and the weighted mean."""
        return self.colour_map[:, None, None] * hue_and_brightness(images, dim=1)

    def query(self, slots: Float[Tensor, "*batch K Dz"]) -> Float[Tensor, "*batch K E"]:
        """Return the embedding, without its second part, of a region with the mean place and colour of a slot.

        They are among the first numbers of a slot, as in `FrameReadout`. They are 0 if a slot is shorter.
        """
        sizes = [2, 2, self.num_channels]
        places, _, colours, _ = F.pad(slots, (0, sum(sizes))).split([*sizes, slots.shape[-1]], dim=-1)
        colours = self.colour_map * hue_and_brightness(colours + 0.5, dim=-1)
        given = torch.cat([colours, self.place_weight * places / PLACE_SCALE], dim=-1)
        return F.pad(given, (0, EMBEDDING_DIM - given.shape[-1]))

    def pool(
        self, features: Float[Tensor, "B F H W"], masks: Float[Tensor, "*batch K N"]
    ) -> Float[Tensor, "*batch K F_and_glimpsed_and_1"]:
        """Return averages of the features under squared masks, the glimpses, and the sums of the squared masks."""
        with _without_autocast(features):
            squares = masks.square()
            size = squares.sum(-1, keepdim=True)
            weights = squares / size.clamp_min(1e-12)  # a faint mask is as strong as any other
            glimpses = self._glimpses(features[:, self.colour_channels].to(weights.dtype), weights)
            return torch.cat([pool(features, weights), glimpses.flatten(-3), size], dim=-1)

    def make_readout(self, slot_dim: int) -> "FrameReadout":
        """Build a map from features, glimpses and sizes that are pooled here to slots."""
        return FrameReadout(
            slot_dim,
            num_channels=self.num_channels,
            num_learned=self.NUM_LEARNED,
            num_glimpsed=(1 + self.num_channels) * self.GLIMPSE**2,
            hidden=128,
        )

    def _glimpses(
        self, images: Float[Tensor, "B C H W"], weights: Float[Tensor, "*batch K N"]
    ) -> Float[Tensor, "*batch K C_and_mask side side"]:
        places = self.grid.flatten(1).flip(0).T  # column and row of each pixel, the order of `grid_sample`
        mean = weights @ places
        scale = (weights @ places.square() - mean.square()).clamp_min(1e-6).sqrt()
        # The constant gives a mask of one pixel a width.
        points = mean[..., None, None, :] + (2 * scale + 0.05)[..., None, None, :] * self.frame

        masks = (weights / weights.amax(-1, keepdim=True).clamp_min(1e-12)).unflatten(-1, images.shape[-2:])
        masks = F.grid_sample(masks.flatten(0, -3).unsqueeze(1), points.flatten(0, -4), align_corners=True)
        images = images.expand(*weights.shape[:-2], *images.shape[1:]).flatten(0, -4)
        colours = F.grid_sample(images, points.flatten(-4, -3).flatten(0, -4), align_corners=True)
        colours = colours.unflatten(-2, (-1, self.GLIMPSE)).transpose(1, 2).flatten(0, 1)  # as the masks: one per slot
        return torch.cat([masks, masks * colours], dim=1).unflatten(0, weights.shape[:-1])


class PartsEncoder(RegionEncoder):
    """Encoder for objects of several colours (departure): `RegionEncoder` with `average_over_objects`.

    Regions are found at low contrast and in noise as well. Thin regions that touch are one region, so that the colours
    of a fine pattern are in one cluster. A region that is enclosed by others, as a face in an outline, is one region
    with them.
    """

    average = staticmethod(average_over_objects)


def colours_and_places_of_regions(
    images: Float[Tensor, "B C H W"], average: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 2 H W"]]:
    """Return the mean colour and the mean place of each pixel's region, by one of the functions of `regions.py`."""
    grid = pixel_grid(*images.shape[-2:], device=images.device).expand(len(images), -1, -1, -1)
    return average(torch.cat([images, grid], dim=1), images).split([images.shape[1], 2], dim=1)


class Moments(NamedTuple):
    """What the pixels under a mask have in common."""

    place: Float[Tensor, "*batch K 2"]
    deviation: Float[Tensor, "*batch K 2"]  # standard deviation of the place
    colour: Float[Tensor, "*batch K C"]


class MomentsReadout(nn.Module):
    """Map from the moments of the pixels under a mask, and its glimpse if there is one, to a slot (departure).

    The moments are the mean colour, the mean place, the standard deviation of the place, and the slopes of the colour
    along both axes. A slot's loc is the output of a perceptron of all moments, plus the place and the colour in its
    first numbers. At initialisation, `SeparableDecoder` reads the place from these numbers.
    """

    def __init__(self, slot_dim: int, *, num_channels: int, num_learned: int, num_glimpsed: int = 0, hidden: int = 64):
        super().__init__()
        self.sizes = [num_learned, num_channels, 2, 2, 2 * num_channels, num_glimpsed]
        self.norm = nn.LayerNorm(num_learned)
        sizes = pairwise([sum(self.sizes), hidden, hidden, 2 * slot_dim])
        self.layers = nn.Sequential(*(layer for i, o in sizes for layer in (nn.Linear(i, o), nn.ReLU())))[:-1]
        # Scales start near 0.3, so that slots carry detail from the start.
        nn.init.constant_(self.layers[-1].bias[slot_dim:], -1.5)

    def forward(self, pooled: Float[Tensor, "*batch K F"]) -> Float[Tensor, "*batch K two_Dz"]:
        learned, colour, place, square, product, glimpse = pooled.split(self.sizes, dim=-1)
        variance = (square - place.square()).clamp_min(1e-6)
        covariance = product.unflatten(-1, (2, -1)) - place.unsqueeze(-1) * colour.unsqueeze(-2)
        slopes = (covariance / (variance.unsqueeze(-1) + 0.01)).flatten(-2)
        read = self.layers(torch.cat([self.norm(learned), colour, place, variance.sqrt(), slopes, glimpse], dim=-1))
        return self.with_given(read, Moments(place, variance.sqrt(), colour))

    def with_given(self, read: Float[Tensor, "*batch K two_Dz"], moments: Moments) -> Float[Tensor, "*batch K two_Dz"]:
        """Return what the perceptron reads, plus the place and the colour in the first numbers."""
        given = torch.cat([PLACE_SCALE * moments.place, moments.colour - 0.5], dim=-1)[..., : read.shape[-1] // 2]
        return read + F.pad(given, (0, read.shape[-1] - given.shape[-1]))


class FrameReadout(MomentsReadout):
    """Map from pooled features to slots for `FrameDecoder`: the first numbers are place, extent and colour.

    The extent is log(standard deviation of the place + 0.02) + EXTENT_OFFSET, for rows and columns. The perceptron only
    determines the other numbers and the scales. A slot without pixels has the loc 0. Otherwise its loc would depend on
    faint masks, which can resemble those of a wall, and the LOM would confuse it with the slot of the wall.
    """

    def forward(self, pooled: Float[Tensor, "*batch K F_and_1"]) -> Float[Tensor, "*batch K two_Dz"]:
        moments, size = pooled.split([pooled.shape[-1] - 1, 1], dim=-1)
        loc, raw_scale = super().forward(moments).chunk(2, dim=-1)
        present = 1 - (-size / 2).exp()  # near 1 from ten pixels on
        return torch.cat([present * loc, raw_scale], dim=-1)

    def with_given(self, read: Float[Tensor, "*batch K two_Dz"], moments: Moments) -> Float[Tensor, "*batch K two_Dz"]:
        """Return place, extent and colour, and behind them what the perceptron reads."""
        extent = (moments.deviation + 0.02).log() + EXTENT_OFFSET
        given = torch.cat([PLACE_SCALE * moments.place, extent, moments.colour - 0.5], dim=-1)
        given = given[..., : read.shape[-1] // 2]
        return torch.cat([given, read[..., given.shape[-1] :]], dim=-1)
