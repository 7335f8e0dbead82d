"""The encoder of a whole image: the mirror of `DeconvolutionDecoder`."""

from torch import nn

from pyro_lom.networks.unet import ConvBlock


class ConvolutionEncoder(nn.Sequential):
    """Four 5x5 convolutions, each of which halves the size of the image.

    It maps images (B, C, H, W) to features (B, num_features), with num_features = width (size / 16)^2.
    """

    def __init__(self, size: int, *, in_channels: int, width: int):
        blocks = [ConvBlock(channels, width, kernel_size=5, stride=2) for channels in (in_channels, *3 * [width])]
        super().__init__(*blocks, nn.Flatten())
        self.num_features = width * (size // 16) ** 2
