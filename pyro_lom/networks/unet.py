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


def convolve_upsampled(
    below: Float[Tensor, "B c h w"], skip: Float[Tensor, "B d H W"], weight: Float[Tensor, "out c_plus_d 3 3"]
) -> Float[Tensor, "B out H W"]:
    """A 3x3 convolution of [below at twice its size, skip], without making either.

    Repeating pixels and then convolving is one transposed 4x4 convolution of stride 2, of 16 products in place of 36;
    its kernel is the flipped 3x3 kernel, summed over windows of 2x2.
    """
    of_below, of_skip = weight.split([below.shape[1], skip.shape[1]], dim=1)
    kernel = F.avg_pool2d(of_below.transpose(0, 1).flip(-2, -1), 2, stride=1, padding=1, divisor_override=1)
    return F.conv_transpose2d(below, kernel, stride=2, padding=1).add_(F.conv2d(skip, of_skip, padding=1))


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
        features, skips = self.stem(images.contiguous(memory_format=torch.channels_last)), []
        for level, block in enumerate(self.down):
            features = block(features if level == 0 else F.interpolate(features, scale_factor=0.5))
            skips.append(features)
        deepest = self.mlp(features.flatten(1)).view(features.shape).contiguous(memory_format=torch.channels_last)
        features = self.up[0](torch.cat([deepest, skips.pop()], dim=1))
        for convolution, *norm_and_relu in self.up[1:]:
            features = convolve_upsampled(features, skips.pop(), convolution.weight)
            for layer in norm_and_relu:
                features = layer(features)
        return features
