"""Decoders draw every slot alone, at any size and in any batch."""

import math

import pytest
import torch
from torch import nn

from pyro_lom.networks.decoders import (
    EXTENT_OFFSET,
    PLACE_SCALE,
    BroadcastDecoder,
    DeconvolutionDecoder,
    FrameDecoder,
    SeparableDecoder,
)

every_decoder = pytest.mark.parametrize(
    "decoder_class", [DeconvolutionDecoder, BroadcastDecoder, SeparableDecoder, FrameDecoder]
)


@every_decoder
@pytest.mark.parametrize("out_channels", [2, 4])
@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("batch", [(3,), (2, 3), (2, 1, 3)], ids=str)
def test_the_output_has_the_asked_size(decoder_class, size, out_channels, batch):
    decoder = decoder_class(6, size, out_channels=out_channels, width=8)
    assert decoder(torch.randn(*batch, 6)).shape == (*batch, out_channels, size, size)


@every_decoder
def test_a_slot_is_drawn_as_if_it_were_alone(decoder_class):
    decoder, slots = decoder_class(6, 32, out_channels=4, width=8), torch.randn(2, 3, 6)
    images = decoder(slots)
    for b in range(2):
        for k in range(3):
            torch.testing.assert_close(images[b, k], decoder(slots[b, k : k + 1])[0], rtol=1e-4, atol=1e-4)


@every_decoder
def test_no_two_pixels_are_bound_to_be_alike(decoder_class):
    decoder = decoder_class(6, 32, out_channels=4, width=8)
    image = decoder(torch.randn(8, 6)).detach()
    assert image.std(-1).gt(0).all() and image.std(-2).gt(0).all()


@every_decoder
def test_every_weight_is_used(decoder_class):
    decoder = decoder_class(6, 32, out_channels=4, width=8)
    decoder(torch.randn(16, 6)).square().mean().backward()
    assert all(parameter.grad.any() for parameter in decoder.parameters())


@every_decoder
def test_a_checkpoint_holds_nothing_but_weights(decoder_class):
    decoder = decoder_class(6, 32, out_channels=4, width=8)
    assert set(decoder.state_dict()) == {name for name, _ in decoder.named_parameters()}


@pytest.mark.parametrize("axis", [0, 1], ids=["row", "column"])
def test_the_separable_decoder_starts_by_moving_with_a_slots_place(axis):
    decoder, slots = SeparableDecoder(6, 32, out_channels=4, width=8), torch.randn(4, 6)
    moved = slots.clone()
    moved[:, axis] += PLACE_SCALE * 3 * 2 / 31  # three pixels of a grid from -1 to 1
    first, second = (decoder(s) - decoder.bias(s)[..., None, None] for s in (slots, moved))
    torch.testing.assert_close(second.narrow(-2 + axis, 3, 29), first.narrow(-2 + axis, 0, 29), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1], ids=["row", "column"])
def test_the_picture_of_the_frame_decoder_moves_with_a_slots_place(axis):
    decoder, slots = FrameDecoder(6, 32, out_channels=4, width=8), torch.randn(4, 6)
    pictures = decoder.draw(slots)
    decoder.draw.forward = lambda _: pictures
    moved = slots.clone()
    moved[:, axis] += PLACE_SCALE * 3 * 2 / 31  # three pixels of a grid from -1 to 1
    first, second = decoder(slots), decoder(moved)
    torch.testing.assert_close(second.narrow(-2 + axis, 3, 29), first.narrow(-2 + axis, 0, 29), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stretched", [0, 1], ids=["height", "width"])
def test_the_picture_of_the_frame_decoder_covers_three_deviations_and_is_continued(stretched):
    decoder, size = FrameDecoder(6, 31, out_channels=1, width=8), 31
    ramp = torch.linspace(-1, 1, FrameDecoder.PICTURE).expand(1, 1, FrameDecoder.PICTURE, -1)
    decoder.draw.forward = lambda _: ramp.mT if stretched == 0 else ramp
    slots = torch.zeros(1, 6)
    slots[0, 2 + stretched] = math.log(0.15) + EXTENT_OFFSET  # a standard deviation of .15: half the picture is .5
    expected = (torch.linspace(-1, 1, size) / 0.5).clamp(-1, 1)
    found = decoder(slots)[0, 0]
    torch.testing.assert_close(found.mean(1 - stretched), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extent", [-1e4, 1e4])
def test_gradients_of_the_frame_decoder_are_finite_for_any_extent(extent):
    decoder, slots = FrameDecoder(6, 31, out_channels=4, width=8), torch.zeros(2, 6)
    slots[:, 2:4] = extent
    slots.requires_grad_()
    decoder(slots).square().sum().backward()
    assert slots.grad.isfinite().all()


def assert_same_outputs_and_gradients(found, expected, here, there, slots):
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((out * weight).sum(), [slots, *module.parameters()])
        for out, module in ((found, here), (expected, there))
    ]
    for mine, stock in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, stock)


def test_broadcast_convolutions_are_torchs_own():
    decoder = BroadcastDecoder(6, 32, out_channels=4, width=8).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    slots = torch.randn(5, 6, 6, dtype=torch.float64, requires_grad=True)  # 30 of them: chunks, and a rest
    place = decoder.place(decoder.ramps.double().movedim(0, -1)).movedim(-1, 0)
    expected = decoder.layers(slots.flatten(0, 1)[..., None, None] + place).unflatten(0, (5, 6))
    assert_same_outputs_and_gradients(decoder(slots), expected, decoder, decoder, slots)


def test_the_largest_maps_of_the_broadcast_decoder_are_not_kept():
    decoder, kept = BroadcastDecoder(6, 32, out_channels=4, width=8), []
    slots = torch.randn(3, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        decoder(slots).sum().backward()
    assert (3, 8, 38, 38) in kept  # what the third convolution reads
    assert (3, 8, 40, 40) not in kept


def test_deconvolutions_are_torchs_own():
    decoder = DeconvolutionDecoder(6, 32, out_channels=4, width=8).double()
    slots = torch.randn(30, 6, dtype=torch.float64, requires_grad=True)
    stock = nn.Sequential(*decoder.layers)
    for index, layer in enumerate(stock):
        if isinstance(layer, nn.ConvTranspose2d):
            stock[index] = nn.ConvTranspose2d(
                layer.in_channels, layer.out_channels, 5, stride=2, padding=2, output_padding=1
            ).double()
            stock[index].load_state_dict(layer.state_dict())
    broadcast = slots[..., None, None].expand(-1, -1, 2, 2)
    grid = decoder.grid.double().expand(30, -1, -1, -1)
    expected, found = stock(torch.cat([broadcast, grid], dim=1)), decoder(slots)
    assert_same_outputs_and_gradients(found, expected, decoder, stock, slots)
