"""Decoders: every slot, alone, to the channels of an image (colours and one mask logit)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.networks.initialisation import small_xavier_
from pyro_lom.networks.norm_relu_projection import norm_relu_projection
from pyro_lom.networks.stick_breaking import pixel_grid

PLACE_SCALE = 3.0  # a slot's first two numbers start as this many times row and column, each from -1 to 1

CPU_CHUNK = 14  # slots that a CPU decodes at once, to keep the memory of a step small


class Deconvolution(nn.ConvTranspose2d):
    """A transposed 5x5 convolution that doubles the size.

    The bias is added apart: within the convolution its gradient costs the CPU as much as that of the weights.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 5, stride=2, padding=2, output_padding=1)

    def forward(self, features: Float[Tensor, "N c h w"]) -> Float[Tensor, "N out H W"]:
        doubled = F.conv_transpose2d(features, self.weight, None, self.stride, self.padding, self.output_padding)
        return doubled.add_(self.bias[:, None, None])


class DeconvolutionDecoder(nn.Module):
    """GENESIS-v2's decoder: the slot broadcast over a grid of size/16 with coordinates, then four deconvolutions."""

    def __init__(self, slot_dim: int, size: int, *, out_channels: int, width: int):
        super().__init__()
        self.register_buffer("grid", pixel_grid(size // 16, size // 16), persistent=False)
        layers = []
        for in_channels in (slot_dim + 2, width, width, width):
            layers += [
                Deconvolution(in_channels, width),
                nn.GroupNorm(8, width),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out_channels, 1))

    def forward(self, slots: Float[Tensor, "*batch Dz"]) -> Float[Tensor, "*batch out H W"]:
        flat = slots.reshape(-1, slots.shape[-1])
        at_once = CPU_CHUNK if flat.device.type == "cpu" else len(flat)
        decoded = torch.cat([self._decode(some) for some in flat.split(at_once)])
        return decoded.contiguous().unflatten(0, slots.shape[:-1])  # colours and masks are read channel by channel

    def _decode(self, slots: Float[Tensor, "N Dz"]) -> Float[Tensor, "N out H W"]:
        broadcast = slots[..., None, None].expand(-1, -1, *self.grid.shape[-2:])
        grid = self.grid.expand(len(slots), -1, -1, -1)
        *layers, norm, _, projection = self.layers
        features = torch.cat([broadcast, grid], dim=1).contiguous(memory_format=torch.channels_last)
        for layer in layers:
            features = layer(features)
        return norm_relu_projection(features, norm, projection)


class SeparableDecoder(nn.Module):
    """A decoder for small images: each channel is a sum of products of a profile of rows and a profile of columns.

        out_c(y, x) = b_c(slot) + sum_r w_cr v_r(y; slot) u_r(x; slot),    r = 1..rank

    The profiles are perceptrons with one hidden layer, of the slot and a learned embedding of the row or column. Sharp
    edges along the axes cost almost nothing; slanted or curved ones need rank (a departure from the paper's
    convolutions).
    """

    def __init__(self, slot_dim: int, size: int, *, out_channels: int, width: int, rank: int = 16):
        super().__init__()
        self.slot = nn.Linear(slot_dim, 2 * width)
        # Row or column y switches unit j on at slope_j (y - offset_j): kinks spread over the image from the start.
        slope, offset = torch.empty(2, 1, 2 * width).uniform_(-4, 4), torch.empty(1, 2 * width).uniform_(-1, 1)
        self.place = nn.Parameter(slope[0] * (torch.linspace(-1, 1, size)[:, None] - offset))
        # ... and move with the slot's own row or column, at y' = y - slot_0 / PLACE_SCALE.
        with torch.no_grad():
            self.slot.weight[:, :2] = 0
            for axis, units in zip(range(slot_dim), (slice(width), slice(width, None)), strict=False):
                self.slot.weight[units, axis] = -slope[0, 0, units] / PLACE_SCALE
        self.rows = nn.Linear(width, rank)
        self.columns = nn.Linear(width, rank)
        self.bias = nn.Sequential(nn.Linear(slot_dim, width), nn.ReLU(), nn.Linear(width, out_channels))
        # Three times the usual scale: masks are crisp from the start.
        self.weight = nn.Parameter(3 * torch.randn(out_channels, rank) / rank**0.5)

    def forward(self, slots: Float[Tensor, "*batch Dz"]) -> Float[Tensor, "*batch out H W"]:
        hidden = F.relu(self.slot(slots).unsqueeze(-2) + self.place)
        rows, columns = hidden.chunk(2, dim=-1)  # (*batch, size, width)
        rows, columns = self.rows(rows), self.columns(columns)  # (*batch, size, rank)
        weighted = rows.unsqueeze(-3) * self.weight.unsqueeze(-2)  # (*batch, out, H, rank)
        image = weighted @ columns.transpose(-1, -2).unsqueeze(-3)
        return image + self.bias(slots)[..., None, None]


def place_ramps(height: int, width: int) -> Float[Tensor, "4 H W"]:
    """Distance of every pixel from the four edges of the image, each from 0 to 1."""
    grid = pixel_grid(height, width)
    return torch.cat([1 - grid, 1 + grid]) / 2


class BroadcastDecoder(nn.Module):
    """EMORL's decoder: the slot broadcast over the image, plus a linear map of place, then 3x3 convolutions.

    Five convolutions without padding take five pixels off each edge, so the slot is broadcast over a larger grid.
    """

    MARGIN = 5

    def __init__(self, slot_dim: int, size: int, *, out_channels: int, width: int):
        super().__init__()
        wide = size + 2 * self.MARGIN
        self.register_buffer("ramps", place_ramps(wide, wide), persistent=False)
        self.place = nn.Linear(4, slot_dim)
        layers = []
        for in_channels in (slot_dim, width, width, width):
            layers += [nn.Conv2d(in_channels, width, 3), nn.ELU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out_channels, 3))
        small_xavier_(self)

    def forward(self, slots: Float[Tensor, "*batch Dz"]) -> Float[Tensor, "*batch out H W"]:
        place = self.place(self.ramps.movedim(0, -1)).movedim(-1, 0)
        broadcast = slots.reshape(-1, slots.shape[-1])[..., None, None] + place
        return self.layers(broadcast).unflatten(0, slots.shape[:-1])


DECODERS = {"deconvolution": DeconvolutionDecoder, "separable": SeparableDecoder, "broadcast": BroadcastDecoder}
