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


def channels_of(unet):
    down, up = ([block[0].out_channels // WIDTH for block in blocks] for blocks in (unet.down, unet.up))
    return down, up


@pytest.mark.parametrize(
    ("sizes", "down"),
    [
        ((32, 48, 63), [1, 2, 2, 2]),
        ((64, 96, 127), [1, 1, 2, 2, 2]),
        ((128, 192, 255), [1, 1, 1, 2, 2, 2]),
        ((256,), [1, 1, 1, 1, 2, 2, 2]),
    ],
)
def test_the_last_three_levels_have_twice_the_width(sizes, down):
    """The published rule."""
    for size in sizes:
        assert channels_of(UNet(size, in_channels=3, width=WIDTH)) == (down, [1, *down[:-1]][::-1]), size


def test_the_number_of_narrow_levels_is_an_argument():
    assert channels_of(UNet(64, in_channels=3, width=WIDTH, num_narrow=2, stem_stride=2))[0] == [1, 1, 2, 2]
    assert channels_of(UNet(32, in_channels=3, width=WIDTH, num_narrow=4))[0] == [1, 1, 1, 1]


@pytest.mark.parametrize("width", [8, 16, 64])
def test_the_bottleneck_has_128_hidden_units_at_every_width(width):
    [first, second, third] = UNet(32, in_channels=3, width=width).mlp[::2]
    assert (first.out_features, second.out_features, third.in_features) == (128, 128, 128)
    assert UNet(32, in_channels=3, width=width, hidden=24).mlp[0].out_features == 24


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
