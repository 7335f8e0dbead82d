"""The UNet keeps the resolution, and its bottleneck lets every pixel see every other."""

import pytest
import torch
import torch.nn.functional as F

from pyro_lom.networks.unet import ConvBlock, UNet, convolve_upsampled

WIDTH = 8


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("size", [32, 48, 64, 80, 96, 128])
def test_features_have_the_size_of_the_stem(size, stem_stride):
    unet = UNet(size, in_channels=3, width=WIDTH, stem_stride=stem_stride)
    features = unet(torch.rand(2, 3, size, size))
    assert features.shape == (2, WIDTH, size // stem_stride, size // stem_stride)


@pytest.mark.parametrize(("size", "num_levels"), [(32, 4), (64, 5), (128, 6)])
def test_the_levels_follow_the_size(size, num_levels):
    unet = UNet(size, in_channels=3, width=WIDTH)
    assert len(unet.down) == len(unet.up) == num_levels
    out_channels = [block[0].out_channels for block in unet.down]
    assert out_channels == [WIDTH, WIDTH] + [2 * WIDTH] * (num_levels - 2)


def test_a_corner_sees_the_opposite_corner_through_the_bottleneck_alone():
    unet = UNet(32, in_channels=3, width=WIDTH)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)

    def sees():
        (gradient,) = torch.autograd.grad(unet(images)[..., 0, 0].sum(), images)
        return gradient[..., -1, -1].any().item()

    assert sees()
    for block in [*unet.down, *unet.up]:
        block[1] = torch.nn.Identity()  # normalisation looks at the whole image, too
    assert sees()
    unet.mlp = torch.nn.Identity()
    assert not sees()


def test_images_of_a_batch_do_not_mix():
    unet, images = UNet(32, in_channels=3, width=WIDTH), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(unet(images)[1:2], unet(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (5, 2)])
def test_a_block_pads_to_keep_the_grid(kernel_size, stride):
    block = ConvBlock(3, WIDTH, kernel_size=kernel_size, stride=stride)
    outputs = block(torch.rand(2, 3, 16, 16))
    assert outputs.shape == (2, WIDTH, 16 // stride, 16 // stride)
    assert (outputs >= 0).all()


def test_an_upsampled_image_is_convolved_without_being_made():
    below, skip, weight = torch.randn(2, 3, 5, 6).double(), torch.randn(2, 4, 10, 12).double(), torch.randn(7, 7, 3, 3)
    inputs = [tensor.double().requires_grad_() for tensor in (below, skip, weight)]
    whole = torch.cat([F.interpolate(inputs[0], scale_factor=2.0), inputs[1]], dim=1)
    expected, found = F.conv2d(whole, inputs[2], padding=1), convolve_upsampled(*inputs)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    for here, there in zip(*(torch.autograd.grad(out, inputs, gradient) for out in (found, expected)), strict=True):
        torch.testing.assert_close(here, there)
