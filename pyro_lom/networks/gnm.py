"""The networks of GNM (Jiang & Ahn, 2020): StructDRAW, the cells, and the spatial transformer.

Layers are activated by CELU and then normalised over all features of a scene or cell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import at_least_float32

EPSILON = 1e-15


class Perceptron(nn.Sequential):
    """Linear layers of the widths `dims`, each with an activation and a normalisation, without them after the last.

    Args:
        is_open: the last layer is a linear layer alone.
    """

    def __init__(self, *dims: int, is_open: bool = True):
        layers = []
        for before, after in zip(dims, dims[1:], strict=False):
            layers += [nn.Linear(before, after), nn.CELU(inplace=True), nn.LayerNorm(after)]
        super().__init__(*(layers[:-2] if is_open else layers))


class ConvolutionStack(nn.Sequential):
    """Maps images (N, C, H, W) to maps: convolutions, each with an activation and a normalisation.

    Args:
        layers: number of filters, size of the kernel and stride of each convolution.
    """

    def __init__(self, in_channels: int, layers: Sequence[tuple[int, int, int]]):
        stack, before = [], in_channels
        for filters, kernel, stride in layers:
            stack.append(nn.Conv2d(before, filters, kernel, stride, padding=(kernel - 1) // 2))
            stack += [nn.CELU(inplace=True), nn.GroupNorm(1, filters)]
            before = filters
        super().__init__(*stack)


class SubPixelDecoder(nn.Module):
    """Maps latents to maps: convolutions whose channels become finer pixels (Shi et al., 2016).

    Args:
        stages: number of filters, size of the kernel and factor on height and width of each stage. The last stage has
            neither activation nor normalisation.
    """

    def __init__(self, in_dim: int, stages: Sequence[tuple[int, int, int]]):
        super().__init__()
        layers, before = [], in_dim
        for filters, kernel, factor in stages:
            layers += [nn.Conv2d(before, filters * factor**2, kernel, padding=(kernel - 1) // 2)]
            layers += [nn.PixelShuffle(factor), nn.CELU(inplace=True), nn.GroupNorm(1, filters)]
            before = filters
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self, latents: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out H W"]:
        return self.layers(latents.flatten(0, -2)[..., None, None]).unflatten(0, latents.shape[:-1])


class Memory(NamedTuple):
    """The state of a convolutional LSTM."""

    hidden: Float[Tensor, "*batch C rows columns"]
    cell: Float[Tensor, "*batch C rows columns"]


class ConvolutionalLSTM(nn.Module):
    """An LSTM at each cell (Shi et al., 2015), whose first state is trained.

    Args:
        in_channels, channels: of the input maps together, and of the state.
        num_cells: cells in a row and in a column.
    """

    def __init__(self, in_channels: int, channels: int, num_cells: int, *, kernel: int = 1):
        super().__init__()
        self.first = nn.ParameterList(torch.zeros(1, channels, num_cells, num_cells) for _ in Memory._fields)
        self.gates = nn.Conv2d(in_channels + channels, 4 * channels, kernel, padding=(kernel - 1) // 2)

    def start(self) -> Memory:
        return Memory(*self.first)

    def forward(self, memory: Memory, *inputs: Float[Tensor, "*_ _ rows columns"]) -> Memory:
        batch = torch.broadcast_shapes(*(one.shape[:-3] for one in (*inputs, memory.hidden)))
        joined = torch.cat([one.expand(*batch, *one.shape[-3:]) for one in (*inputs, memory.hidden)], dim=-3)
        gates = at_least_float32(self.gates(joined.flatten(0, -4))).unflatten(0, batch)
        enter, forget, leave, candidate = gates.chunk(4, dim=-3)
        cell = forget.sigmoid() * memory.cell + enter.sigmoid() * candidate.tanh()
        return Memory(leave.sigmoid() * cell.tanh(), cell)


class Drawing(NamedTuple):
    """What StructDRAW has drawn after some steps."""

    canvas: Float[Tensor, "*batch C rows columns"]
    memory: Memory


class StructDraw(nn.Module):
    """One step of StructDRAW: a latent of the scene changes a memory, and the memory adds to a canvas.

    Args:
        decoder: maps latents to C rows columns numbers.
        recurrence: a `ConvolutionalLSTM` that reads the decoded latent and the canvas.
        update: maps the memory to what is added to the canvas.
    """

    def __init__(self, decoder: nn.Module, recurrence: ConvolutionalLSTM, update: nn.Module):
        super().__init__()
        self.decoder, self.recurrence, self.update = decoder, recurrence, update

    def start(self) -> Drawing:
        memory = self.recurrence.start()
        return Drawing(torch.zeros_like(memory.hidden), memory)

    def forward(self, drawing: Drawing, latent: Float[Tensor, "*batch G"]) -> Drawing:
        decoded = self.decoder(latent).unflatten(-1, drawing.canvas.shape[-3:])
        memory = self.recurrence(drawing.memory, decoded, drawing.canvas)
        added = self.update(memory.hidden.flatten(0, -4)).unflatten(0, memory.hidden.shape[:-3])
        return Drawing(drawing.canvas + added, memory)


class CellNet(nn.Module):
    """Maps features of all cells to raw parameters of each cell's latents, by name: row after row, (*batch, N, D).

    The scale in z_where starts small, and with a standard deviation of softplus(0).
    """

    def __init__(self, channels: int, out_dims: dict[str, int]):
        super().__init__()
        self.features = ConvolutionStack(channels, [(channels, 1, 1), (channels, 1, 1)])
        self.heads = nn.ModuleDict({name: nn.Conv2d(channels, size, 1) for name, size in out_dims.items()})
        nn.init.uniform_(self.heads["z_where"].weight, -0.01, 0.01)
        nn.init.zeros_(self.heads["z_where"].bias)
        self.heads["z_where"].bias.data[0] = -1.0

    def forward(self, maps: Float[Tensor, "*batch C rows columns"]) -> dict[str, Float[Tensor, "*batch N _"]]:
        features, batch = self.features(maps.flatten(0, -4)), maps.shape[:-3]
        return {
            name: at_least_float32(head(features)).flatten(-2).mT.unflatten(0, batch)
            for name, head in self.heads.items()
        }


def by_cell(maps: Float[Tensor, "*batch C rows columns"]) -> Float[Tensor, "*batch features"]:
    """Flatten maps, row after row, with the channels of a cell together."""
    return maps.movedim(-3, -1).flatten(-3)


def boxes(where: Float[Tensor, "*batch N 4"], num_cells: int) -> Float[Tensor, "*batch N 4"]:
    """Map z_where to boxes: width, height, and the x and y of the centre, in units in which images are [-1, 1] squares.

    z_where has a scale s, whose sigmoid is the share of the image's side, the logarithm of height by width, and a
    shift of the centre from the middle of its cell, by at most a whole cell.
    """
    scale, ratio, x, y = where.unbind(-1)
    scale, root = scale.sigmoid(), (ratio / 2).exp()
    cell = torch.arange(num_cells**2, device=where.device)
    column, row = ((part + 0.5).to(where) for part in (cell % num_cells, cell // num_cells))
    centre = (2 / num_cells * (middle + shift.tanh()) - 1 for middle, shift in ((column, x), (row, y)))
    return torch.stack([scale / root, scale * root, *centre], dim=-1)


def place(
    glimpses: Float[Tensor, "*batch C h w"], placed: Float[Tensor, "*batch 4"], size: int
) -> Float[Tensor, "*batch C H W"]:
    """Draw each glimpse into its box on an empty image, by a spatial transformer (Jaderberg et al., 2015).

    Coordinates are computed in float64, because autocast would give them half precision otherwise.
    """
    width, height, x, y = placed.flatten(0, -2).unbind(-1)
    width, height, zero = width + EPSILON, height + EPSILON, torch.zeros_like(x)
    inverse = torch.stack([1 / width, zero, -x / width, zero, 1 / height, -y / height], dim=-1).unflatten(-1, (2, 3))
    flat = glimpses.flatten(0, -4)
    grid = F.affine_grid(inverse.double(), [len(flat), 1, size, size], align_corners=False).to(inverse.dtype)
    return F.grid_sample(flat, grid, align_corners=False).unflatten(0, glimpses.shape[:-3])
