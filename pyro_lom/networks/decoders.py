"""Decoders, which map each slot independently to the channels of an image (colours and one mask logit)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_lom.networks.initialisation import small_xavier_
from pyro_lom.networks.norm_relu_projection import layout, norm_relu_projection
from pyro_lom.networks.stick_breaking import pixel_grid

PLACE_SCALE = 3.0  # initially, a slot's first two numbers are PLACE_SCALE times its row and column in [-1, 1]
EXTENT_OFFSET = 1.5  # a slot's extents are log(standard deviation of the place + 0.02) + EXTENT_OFFSET

CPU_CHUNK = 14  # number of slots that a CPU decodes at once; limits the memory of a step


class Deconvolution(nn.ConvTranspose2d):
    """Transposed 5x5 convolution that doubles the size.

    The bias is added separately, since its gradient within the convolution is as slow on CPUs as the weights' gradient.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 5, stride=2, padding=2, output_padding=1)

    def forward(self, features: Float[Tensor, "N c h w"]) -> Float[Tensor, "N out H W"]:
        doubled = F.conv_transpose2d(features, self.weight, None, self.stride, self.padding, self.output_padding)
        return doubled.add_(self.bias[:, None, None])


class DeconvolutionDecoder(nn.Module):
    """GENESIS-v2's decoder: the slot, broadcast over a grid of size/16 with coordinates, and four deconvolutions."""

    def __init__(self, slot_dim: int, size: int, *, out_channels: int, width: int):
        super().__init__()
        self.register_buffer("grid", pixel_grid(size // 16, size // 16), persistent=False)
        layers = []
        for in_channels in (slot_dim + 2, width, width, width):
            layers += [Deconvolution(in_channels, width), nn.GroupNorm(8, width), nn.ReLU(inplace=True)]
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
        features = torch.cat([broadcast, grid], dim=1).contiguous(memory_format=layout(norm.num_channels))
        for layer in layers:
            features = layer(features)
        return norm_relu_projection(features, norm, projection)


class SeparableDecoder(nn.Module):
    """Decoder for small images, in which each channel is a sum of products of a row profile and a column profile.

        out_c(y, x) = b_c(slot) + sum_r w_cr v_r(y; slot) u_r(x; slot),    r = 1..rank

    Each profile is a perceptron with one hidden layer. Its inputs are the slot and a trainable embedding of the row or
    column. Sharp edges along the axes require a small rank, slanted or curved edges a larger one (departure).
    """

    def __init__(self, slot_dim: int, size: int, *, out_channels: int, width: int, rank: int = 16):
        super().__init__()
        self.slot = nn.Linear(slot_dim, 2 * width)
        # Unit j starts as relu(slope_j (y - offset_j)) of row or column y, with kinks spread over the image.
        slope, offset = torch.empty(2, 1, 2 * width).uniform_(-4, 4), torch.empty(1, 2 * width).uniform_(-1, 1)
        self.place = nn.Parameter(slope[0] * (torch.linspace(-1, 1, size)[:, None] - offset))
        # The kinks move with the slot: y is measured from the slot's own row or column, slot_axis / PLACE_SCALE.
        with torch.no_grad():
            self.slot.weight[:, :2] = 0
            for axis, units in zip(range(slot_dim), (slice(width), slice(width, None)), strict=False):
                self.slot.weight[units, axis] = -slope[0, 0, units] / PLACE_SCALE
        self.rows = nn.Linear(width, rank)
        self.columns = nn.Linear(width, rank)
        self.bias = nn.Sequential(nn.Linear(slot_dim, width), nn.ReLU(), nn.Linear(width, out_channels))
        # Three times the usual scale gives sharp masks at the start.
        self.weight = nn.Parameter(3 * torch.randn(out_channels, rank) / rank**0.5)

    def forward(self, slots: Float[Tensor, "*batch Dz"]) -> Float[Tensor, "*batch out H W"]:
        hidden = F.relu(self.slot(slots).unsqueeze(-2) + self.place)
        rows, columns = hidden.chunk(2, dim=-1)  # (*batch, size, width)
        rows, columns = self.rows(rows), self.columns(columns)  # (*batch, size, rank)
        weighted = rows.unsqueeze(-3) * self.weight.unsqueeze(-2)  # (*batch, out, H, rank)
        image = weighted @ columns.transpose(-1, -2).unsqueeze(-3)
        return image + self.bias(slots)[..., None, None]


class FrameDecoder(nn.Module):
    """Decoder for objects of any shape (departure): a perceptron draws a small picture, which is laid on the image.

    The first four numbers of a slot are the picture's place, a row and a column, and its extents along them, as in
    `FrameReadout`. In units of half the image,

        centre            = place / PLACE_SCALE
        half of each side = 3 exp(min(extent - EXTENT_OFFSET, 3)) + 0.05

    The perceptron need not learn a shape again for each place and size. The picture has `PICTURE`^2 pixels. It is
    interpolated linearly, and continued by its border (Jaderberg et al., 2015).
    """

    PICTURE = 16
    NUM_PLACED = 4

    def __init__(self, slot_dim: int, size: int, *, out_channels: int, width: int):
        super().__init__()
        self.draw = nn.Sequential(
            nn.Linear(slot_dim, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, out_channels * self.PICTURE**2),
            nn.Unflatten(-1, (out_channels, self.PICTURE, self.PICTURE)),
        )
        self.register_buffer("axis", torch.linspace(-1, 1, size), persistent=False)
        self.register_buffer("drawn", torch.arange(float(self.PICTURE)), persistent=False)

    def forward(self, slots: Float[Tensor, "*batch Dz"]) -> Float[Tensor, "*batch out H W"]:
        flat = slots.reshape(-1, slots.shape[-1])
        centre, extent = flat[:, : self.NUM_PLACED].unflatten(-1, (2, 2)).unbind(1)
        half = 3 * (extent - EXTENT_OFFSET).clamp(max=3).exp() + 0.05
        rows, columns = self._shares(centre / PLACE_SCALE, half).unbind(1)
        image = rows.unsqueeze(1) @ self.draw(flat) @ columns.unsqueeze(1).mT
        return image.unflatten(0, slots.shape[:-1])

    def _shares(self, centre: Float[Tensor, "N 2"], half: Float[Tensor, "N 2"]) -> Float[Tensor, "N 2 size PICTURE"]:
        """Return the share of each row (column) of the picture in each row (column) of the image."""
        places = ((self.axis - centre.unsqueeze(-1)) / half.unsqueeze(-1)).clamp(-1, 1)
        places = (places + 1) / 2 * (self.PICTURE - 1)
        return F.relu(1 - (places.unsqueeze(-1) - self.drawn).abs())


def place_ramps(height: int, width: int, device: torch.device | None = None) -> Float[Tensor, "4 H W"]:
    """Return the distance of every pixel from the bottom, right, top and left edge of the image, each in [0, 1]."""
    grid = pixel_grid(height, width, device)
    return torch.cat([1 - grid, 1 + grid]) / 2


class BroadcastDecoder(nn.Module):
    """EMORL's decoder: the slot, broadcast over the image, plus a linear map of place, followed by 3x3 convolutions.

    The five convolutions have no padding and remove five pixels at each edge, so the grid is larger than the image.
    """

    def __init__(self, slot_dim: int, size: int, *, out_channels: int, width: int):
        super().__init__()
        self.register_buffer("ramps", place_ramps(size + 10, size + 10), persistent=False)
        self.place = nn.Linear(4, slot_dim)
        layers = []
        for in_channels in (slot_dim, width, width, width):
            layers += [nn.Conv2d(in_channels, width, 3), nn.ELU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out_channels, 3))
        small_xavier_(self)

    def forward(self, slots: Float[Tensor, "*batch Dz"]) -> Float[Tensor, "*batch out H W"]:
        # The first convolution is linear and has no padding. Its output for the slot is therefore equal at all pixels,
        # and its output for the place is equal for all slots.
        first = self.layers[0]
        place = self.place(self.ramps.movedim(0, -1)).movedim(-1, 0).unsqueeze(0)
        of_place = F.conv2d(place.contiguous(memory_format=torch.channels_last), first.weight, first.bias)
        of_slots = F.linear(slots.reshape(-1, slots.shape[-1]), first.weight.sum((2, 3)))[..., None, None]
        at_once = CPU_CHUNK if slots.device.type == "cpu" else len(of_slots)
        decoded = torch.cat([self._finish(some, of_place) for some in of_slots.split(at_once)])
        return decoded.contiguous().unflatten(0, slots.shape[:-1])  # colours and masks are read channel by channel

    def _finish(
        self, of_slots: Float[Tensor, "N width 1 1"], of_place: Float[Tensor, "1 width h w"]
    ) -> Float[Tensor, "N out H W"]:
        _, elu, second, *layers = self.layers

        def first_two() -> Tensor:
            return second(elu(of_slots + of_place))

        # The largest feature maps are not stored. The backward pass recomputes them, but not the second convolution.
        features = checkpoint(first_two, use_reentrant=False, preserve_rng_state=False)
        for layer in layers:
            features = layer(features)
        return features
