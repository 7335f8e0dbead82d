"""The networks of NVAE (Vahdat & Kautz, 2020): residual cells, a bottom-up encoder, and a top-down network.

Channels double with each halving of a map. Every convolution with a `log_norm` is weight-normalised.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_lom.networks.batch_norm import BatchNorm

_MOMENTUM = 0.05  # of running statistics
_EXPANSION, _LAST_EXPANSION = 6, 3  # hidden channels of a mobile cell per channel: in groups, and after the last group


class WeightNormConv(nn.Conv2d):
    """A convolution whose kernel is exp(log_norm) weight / (norm of weight + 1e-5), filter by filter."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=bias)
        self.log_norm = nn.Parameter((self._norm().detach() + 0.01).log())

    def kernel(self) -> Float[Tensor, "out in_ k k"]:
        return self.weight * (self.log_norm.exp() / (self._norm() + 1e-5))

    def forward(self, features: Float[Tensor, "N in_ h w"]) -> Float[Tensor, "N out h_out w_out"]:
        return self._conv_forward(features, self.kernel(), self.bias)

    def _norm(self) -> Float[Tensor, "out 1 1 1"]:
        return self.weight.flatten(1).norm(dim=1)[:, None, None, None]


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a gate that depends on the means of all channels (Hu et al., 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 16, 4)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, features: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        return features * self.gate(features.mean((2, 3)))[:, :, None, None]


class ResidualCell(nn.Module):
    """x + branch(x) / 10: twice a norm, swish and a 3x3 convolution, then squeeze and excitation."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(*_convolve(channels, channels), *_convolve(channels, channels))
        self.excite = SqueezeExcitation(channels)

    def forward(self, features: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        return features + 0.1 * self.excite(self.branch(features))


class DownCell(nn.Module):
    """A residual cell that halves the map and doubles the channels.

    Each of the four convolutions of the shortcut reads one pixel of every 2x2 block.
    """

    def __init__(self, channels: int):
        super().__init__()
        wide = 2 * channels
        self.branch = nn.Sequential(*_convolve(channels, wide, stride=2), *_convolve(wide, wide))
        self.excite = SqueezeExcitation(wide)
        self.shortcut = nn.ModuleList(WeightNormConv(channels, wide // 4, 1) for _ in range(4))

    def forward(self, features: Float[Tensor, "N c h w"]) -> Float[Tensor, "N two_c half_h half_w"]:
        active = F.silu(features)
        pixels = (active[..., row::2, column::2] for row, column in ((0, 0), (1, 1), (0, 1), (1, 0)))
        # Copies: in the backward pass of strided maps, PyTorch 2.13 writes to memory that is not its own.
        pixels = (part.contiguous(memory_format=torch.channels_last) for part in pixels)
        shortcut = torch.cat([layer(part) for layer, part in zip(self.shortcut, pixels, strict=True)], dim=1)
        return shortcut + 0.1 * self.excite(self.branch(features))


class MobileCell(nn.Module):
    """x + branch(x) / 10: a 1x1 convolution to `expansion` times the channels, a depthwise 5x5, and a 1x1 back."""

    def __init__(self, channels: int, *, expansion: int = _EXPANSION):
        super().__init__()
        self.branch = nn.Sequential(*_mobile(channels, channels, expansion * channels))
        self.excite = SqueezeExcitation(channels)

    def forward(self, features: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        return features + 0.1 * self.excite(_recomputed(self.branch, features))


class UpCell(nn.Module):
    """A mobile cell that doubles the map and halves the channels."""

    def __init__(self, channels: int, *, expansion: int = _EXPANSION):
        super().__init__()
        layers = _mobile(channels, channels // 2, expansion * channels)
        self.branch = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *layers)
        self.excite = SqueezeExcitation(channels // 2)
        self.shortcut = WeightNormConv(channels, channels // 2, 1, bias=False)

    def forward(self, features: Float[Tensor, "N c h w"]) -> Float[Tensor, "N half_c two_h two_w"]:
        smooth = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
        return self.shortcut(smooth) + 0.1 * self.excite(_recomputed(self.branch, features))


def _convolve(before: int, after: int, *, stride: int = 1) -> list[nn.Module]:
    return [_norm(before), nn.SiLU(), WeightNormConv(before, after, 3, stride=stride)]


def _mobile(before: int, after: int, hidden: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden, bias=False)
    return [
        *(_norm(before), nn.Conv2d(before, hidden, 1, bias=False)),
        *(_norm(hidden), nn.SiLU(), depthwise),
        *(_norm(hidden), nn.SiLU(), nn.Conv2d(hidden, after, 1, bias=False)),
        _norm(after),
    ]


def _norm(channels: int) -> BatchNorm:
    return BatchNorm(channels, momentum=_MOMENTUM)


def _recomputed(branch: nn.Module, features: Float[Tensor, "N c h w"]) -> Float[Tensor, "N _ _ _"]:
    """Return branch(features). The backward pass runs the branch again, so that its wide maps are not kept."""
    contexts = partial(_contexts, branch)
    return checkpoint(branch, features, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _contexts(branch: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _frozen_statistics(branch)


@contextmanager
def _frozen_statistics(branch: nn.Module) -> Iterator[None]:
    """Let a forward pass leave running statistics as they are."""
    norms = [module for module in branch.modules() if isinstance(module, BatchNorm) and module.training]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm in norms:
            norm.momentum = _MOMENTUM
            norm.num_batches_tracked.sub_(1)


class BottomUp(nn.Module):
    """Maps images (B, C, H, W) in [0, 1] to one map of features for each group of latents, from the top.

    Args:
        width: channels at full resolution.
        groups: number of groups of latents at each scale, from the top. The finest scale has half the image's size.
        num_cells: residual cells of each group.
    """

    def __init__(self, in_channels: int, *, width: int, groups: Sequence[int], num_cells: int):
        super().__init__()
        self.stem = WeightNormConv(in_channels, width, 3)
        self.preprocessing = nn.Sequential(*(ResidualCell(width) for _ in range(num_cells - 1)), DownCell(width))
        self.layers, channels = nn.ModuleList(), 2 * width
        for scale, num_groups in enumerate(reversed(groups)):
            for group in range(num_groups):
                cells = []
                if group == 0 and scale > 0:
                    cells, channels = [DownCell(channels)], 2 * channels
                self.layers.append(nn.Sequential(*cells, *(ResidualCell(channels) for _ in range(num_cells))))
        self.top = nn.Sequential(nn.ELU(), WeightNormConv(channels, channels, 1), nn.ELU())

    def forward(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        images = images.contiguous(memory_format=torch.channels_last)
        features, found = self.preprocessing(self.stem(2 * images - 1)), []
        for layer in self.layers:
            features = layer(features)
            found.append(features)
        return self.top(found.pop()), *reversed(found)


class Descent(nn.Module):
    """Joins features with the latent of their group, by a 1x1 convolution, and applies cells.

    Args:
        channels: of the features. The latent is a map of `latent_channels` of the same size, flattened.
    """

    def __init__(self, channels: int, latent_channels: int, cells: Sequence[nn.Module]):
        super().__init__()
        self.combine = WeightNormConv(channels + latent_channels, channels, 1)
        self.cells = nn.Sequential(*cells)

    def forward(
        self, features: Float[Tensor, "*batch c h w"], latent: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch c_out h_out w_out"]:
        joined = torch.cat([features, latent.unflatten(-1, (-1, *features.shape[-2:]))], dim=-3).flatten(0, -4)
        joined = joined.contiguous(memory_format=torch.channels_last)
        return self.cells(self.combine(joined)).unflatten(0, latent.shape[:-1])


def each(network: nn.Module, maps: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c_out h_out w_out"]:
    """Apply a network of maps (N, c, h, w) to maps of any batch shape."""
    return network(maps.flatten(0, -4)).unflatten(0, maps.shape[:-3])


def map_shapes(size: int, *, width: int, groups: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return channels, height and width of the features of each group, from the top; arguments as in `BottomUp`."""
    scales = [2 ** (len(groups) - scale) for scale in range(len(groups))]
    return [
        (width * shrink, size // shrink, size // shrink)
        for shrink, num_groups in zip(scales, groups, strict=True)
        for _ in range(num_groups)
    ]


def descents(shapes: Sequence[tuple[int, int, int]], latent_channels: int, *, num_cells: int) -> nn.ModuleList:
    """Return the network from each group to the next. An `UpCell` comes first where the scale changes."""
    layers = []
    for (before, *_), (after, *_) in pairwise(shapes):
        cells = [UpCell(before)] if after < before else []
        cells += [MobileCell(after) for _ in range(num_cells)]
        layers.append(Descent(before, latent_channels, cells))
    return nn.ModuleList(layers)


def image_decoder(channels: int, latent_channels: int, out_channels: int, *, num_cells: int) -> Descent:
    """Return the network from the last group, of half the image's size, to `out_channels` of the image's size."""
    width = channels // 2
    cells = [MobileCell(width, expansion=_LAST_EXPANSION) for _ in range(num_cells - 1)]
    cells = [UpCell(channels, expansion=_LAST_EXPANSION), *cells]
    return Descent(channels, latent_channels, [*cells, nn.ELU(), WeightNormConv(width, out_channels, 3)])
