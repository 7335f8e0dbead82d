"""The UNet that GENESIS-v2 encodes images with (Engelcke et al., 2021)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution without bias, group normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
            nn.GroupNorm(8, out_channels),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Features at full resolution, with skips and a fully connected bottleneck that sees the whole image.

    `log2(size) - 1` levels halve the resolution between them; the first two have `width` channels, the others twice
    as many. With `stem_stride` 2 all of this happens at half the size, after a 5x5 convolution of that stride.
    """

    def __init__(self, size: int, *, in_channels: int, width: int, stem_stride: int = 1):
        super().__init__()
        self.stem = nn.Identity()
        if stem_stride > 1:
            self.stem = ConvBlock(in_channels, width, kernel_size=5, stride=stem_stride)
            in_channels, size = width, size // stem_stride
        num_levels = int(math.log2(size)) - 1
        channels = [width, width] + [2 * width] * (num_levels - 2)
        self.down = nn.ModuleList(ConvBlock(i, o) for i, o in pairwise([in_channels, *channels]))
        # Each level up reads the level below beside its skip, and leaves the channels of the skip above it.
        above = [width, *channels[:-1]]
        self.up = nn.ModuleList(ConvBlock(2 * c, a) for c, a in zip(channels[::-1], above[::-1], strict=True))
        bottleneck = channels[-1] * (size // 2 ** (num_levels - 1)) ** 2
        hidden = 2 * width
        self.mlp = nn.Sequential(
            nn.Linear(bottleneck, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, bottleneck),
            nn.ReLU(),
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B width h w"]:
        features, skips = self.stem(images), []
        for level, block in enumerate(self.down):
            features = block(features if level == 0 else F.interpolate(features, scale_factor=0.5))
            skips.append(features)
        features = self.mlp(features.flatten(1)).view_as(features)
        for level, block in enumerate(self.up):
            features = features if level == 0 else F.interpolate(features, scale_factor=2.0)
            features = block(torch.cat([features, skips.pop()], dim=1))
        return features
