"""The UNet of GENESIS-v2's image encoder (Engelcke et al., 2021)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.networks.norm_relu_projection import layout


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
    """Return the 3x3 convolution of [upsampled `below`, `skip`], without storing the upsampled or joined tensor.

    Nearest-neighbour upsampling and a 3x3 convolution equal one transposed 4x4 convolution of stride 2, which takes 16
    products per pixel instead of 36. Its kernel is the flipped 3x3 kernel, summed over windows of 2x2.
    """
    of_below, of_skip = weight.split([below.shape[1], skip.shape[1]], dim=1)
    kernel = F.avg_pool2d(of_below.transpose(0, 1).flip(-2, -1), 2, stride=1, padding=1, divisor_override=1)
    return F.conv_transpose2d(below, kernel, stride=2, padding=1).add_(F.conv2d(skip, of_skip, padding=1))


class UNet(nn.Module):
    """UNet with features at full resolution and a fully connected bottleneck over the whole image.

    It has `log2(size) - 1` levels, each with half the resolution of the level above.

    Args:
        num_narrow: number of the first levels, which have `width` channels; the others have twice as many. By default
            all levels but the last three are narrow, as published.
        hidden: number of hidden units of the bottleneck.
        stem_stride: if it is 2, a 5x5 convolution first halves the size of the images.
    """

    def __init__(
        self,
        size: int,
        *,
        in_channels: int,
        width: int,
        num_narrow: int | None = None,
        hidden: int = 128,
        stem_stride: int = 1,
    ):
        super().__init__()
        self.layout = layout(width)
        self.stem = nn.Identity()
        if stem_stride > 1:
            self.stem = ConvBlock(in_channels, width, kernel_size=5, stride=stem_stride)
            in_channels, size = width, size // stem_stride
        num_levels = int(math.log2(size)) - 1
        num_narrow = max(num_levels - 3, 0) if num_narrow is None else num_narrow
        channels = [width if level < num_narrow else 2 * width for level in range(num_levels)]
        self.down = nn.ModuleList(ConvBlock(i, o) for i, o in pairwise([in_channels, *channels]))
        # The input of each block is the level below and a skip. Its output has the channels of the level above.
        above = [width, *channels[:-1]]
        self.up = nn.ModuleList(ConvBlock(2 * c, a) for c, a in zip(channels[::-1], above[::-1], strict=True))
        bottleneck = channels[-1] * (size // 2 ** (num_levels - 1)) ** 2
        sizes = pairwise([bottleneck, hidden, hidden, bottleneck])
        self.mlp = nn.Sequential(*(layer for i, o in sizes for layer in (nn.Linear(i, o), nn.ReLU())))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B width h w"]:
        features, skips = self.stem(images.contiguous(memory_format=self.layout)), []
        for level, block in enumerate(self.down):
            features = block(features if level == 0 else F.interpolate(features, scale_factor=0.5))
            skips.append(features)
        deepest = self.mlp(features.flatten(1)).view(features.shape).contiguous(memory_format=self.layout)
        features = self.up[0](torch.cat([deepest, skips.pop()], dim=1))
        for convolution, *norm_and_relu in self.up[1:]:
            features = convolve_upsampled(features, skips.pop(), convolution.weight)
            for layer in norm_and_relu:
                features = layer(features)
        return features
