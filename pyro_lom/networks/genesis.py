"""The networks of GENESIS (Engelcke et al., 2019): gated convolutions for masks, plain ones for components."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.networks.batch_norm import BatchNorm
from pyro_lom.networks.stick_breaking import pixel_grid


def gated(convolution: nn.Module, *, normalised: bool = True) -> nn.Sequential:
    """Return a layer h sigmoid(g), in which h and g are the halves of the convolution's channels, each normalised."""
    norm = [BatchNorm(convolution.out_channels)] if normalised else []
    return nn.Sequential(convolution, *norm, nn.GLU(dim=1))


class ImageEncoder(nn.Sequential):
    """Maps images (B, C, H, W) to features (B, 8 width): five gated 5x5 convolutions, then one over all pixels."""

    def __init__(self, image_shape: tuple[int, int, int], *, width: int):
        channels, _, size = image_shape
        layers, wide = [], 2 * width
        strides = {(channels, width): 1, (width, width): 2, (width, wide): 1}
        for (before, after), stride in [*strides.items(), ((wide, wide), 2), ((wide, wide), 1)]:
            layers.append(gated(nn.Conv2d(before, 2 * after, 5, stride, padding=2)))
        over_all_pixels = nn.Conv2d(wide, 2 * 8 * width, size // 4)
        super().__init__(*layers, gated(over_all_pixels, normalised=False), nn.Flatten())
        self.out_dim = 8 * width


class MaskDecoder(nn.Module):
    """Maps mask latents to the logits of masks: one gated transposed convolution to size/4, then five of 5x5."""

    def __init__(self, mask_dim: int, size: int, *, width: int):
        super().__init__()
        self.size, wide = size, 2 * width
        self.first = nn.ConvTranspose2d(mask_dim, 2 * wide, size // 4)
        layers = []
        for before, after, stride in ((wide, wide, 1), (wide, width, 2), (width, width, 1), (width, width, 2)):
            layers.append(gated(_transposed(before, 2 * after, stride)))
        layers.append(gated(_transposed(width, 2 * width, 1)))
        self.layers = nn.Sequential(nn.GLU(dim=1), *layers, nn.Conv2d(width, 1, 1))

    def forward(self, latents: Float[Tensor, "*batch mask_dim"]) -> Float[Tensor, "*batch 1 H W"]:
        flat = latents.flatten(0, -2)
        return self.layers(self.first(flat[..., None, None])).unflatten(0, latents.shape[:-1])


def _transposed(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.ConvTranspose2d(in_channels, out_channels, 5, stride, padding=2, output_padding=stride - 1)


class ComponentEncoder(nn.Sequential):
    """Maps images with a channel for a mask (N, C+1, H, W) to raw parameters: four 3x3 convolutions, a perceptron."""

    def __init__(self, image_shape: tuple[int, int, int], out_dim: int, *, width: int):
        channels, height, size = image_shape
        layers, before = [], channels + 1
        for after in (width, width, 2 * width, 2 * width):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ELU(inplace=True)]
            before = after
        num_features = before * (height // 16) * (size // 16)
        layers += [nn.Flatten(), nn.Linear(num_features, 8 * width), nn.ELU(inplace=True)]
        super().__init__(*layers, nn.Linear(8 * width, out_dim))

    def forward(self, masked: Float[Tensor, "N C_plus_1 H W"]) -> Float[Tensor, "N out_dim"]:
        return super().forward(masked.contiguous(memory_format=torch.channels_last))


class ComponentDecoder(nn.Module):
    """Maps component latents to the logits of colours: the latent and the place of each pixel, and 3x3 convolutions.

    The four convolutions have no padding and remove four pixels at each edge, so the grid is larger than the image.
    """

    def __init__(self, component_dim: int, size: int, *, out_channels: int, width: int):
        super().__init__()
        self.register_buffer("grid", pixel_grid(size + 8, size + 8), persistent=False)
        layers, before = [], component_dim + 2
        for _ in range(4):
            layers += [nn.Conv2d(before, width, 3), nn.ELU(inplace=True)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out_channels, 1))

    def forward(self, latents: Float[Tensor, "*batch component_dim"]) -> Float[Tensor, "*batch out H W"]:
        # The first convolution is linear. Its output for the latent is equal at all pixels, and its output for the
        # place is equal for all latents.
        first, *layers = self.layers
        of_latent, of_place = first.weight.split([latents.shape[-1], 2], dim=1)
        grid = self.grid.unsqueeze(0).contiguous(memory_format=torch.channels_last)
        places = F.conv2d(grid, of_place, first.bias)
        features = F.linear(latents.flatten(0, -2), of_latent.sum((2, 3)))[..., None, None] + places
        for layer in layers:
            features = layer(features)
        return features.contiguous().unflatten(0, latents.shape[:-1])
