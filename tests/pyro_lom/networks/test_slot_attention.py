"""EMORL's networks: places, attention that competes over slots, and moves along a gradient."""

import math

import pytest
import torch
from torch import nn

from pyro_lom.networks.compact_slot_attention import CompactSlotAttention, RegionSlotAttention, spread_pixels
from pyro_lom.networks.decoders import PLACE_SCALE, BroadcastDecoder, place_ramps
from pyro_lom.networks.initialisation import small_xavier_
from pyro_lom.networks.pixel_encoders import CompactPixelEncoder, PartsEncoder, RegionEncoder
from pyro_lom.networks.slot_attention import RampEncoder, Refinement, StochasticSlotAttention

B, K, DZ, WIDTH = 2, 4, 8, 8


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def stirred(module):
    """Away from its start, at which nothing depends on anything much."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


SMALL = {
    "compact": (CompactPixelEncoder, CompactSlotAttention),
    "regions": (RegionEncoder, RegionSlotAttention),
    "parts": (PartsEncoder, RegionSlotAttention),
}


def small_networks(kind, image_shape, slot_dim=DZ):
    """An encoder, and the layer that reads its features."""
    make_encoder, make_layer = SMALL[kind]
    encoder = make_encoder(image_shape, width=WIDTH)
    return encoder, make_layer(slot_dim, encoder)


@pytest.fixture(params=["published", *SMALL])
def attention(request):
    """A layer, and features of pixels that it reads."""
    images = torch.rand(B, 3, 16, 16)
    if request.param == "published":
        return stirred(StochasticSlotAttention(DZ, width=WIDTH)), stirred(RampEncoder(3, width=WIDTH))(images)
    encoder, layer = small_networks(request.param, images.shape[1:])
    return layer, encoder(images)


class TestPublishedSizes:
    def test_encoder(self):
        assert size_of(RampEncoder(3, width=64)) == 312_256 + 320 + 8_448

    def test_attention(self):
        assert size_of(StochasticSlotAttention(64, width=64)) == 128 + 12_288 + 49_920 + 2 * 16_576 + 3 * 128

    def test_refinement(self):
        assert size_of(Refinement(64, width=64)) == 74_432

    def test_decoder(self):
        assert size_of(BroadcastDecoder(64, 64, out_channels=4, width=64)) == 150_340


def test_ramps_rise_from_each_edge():
    ramps = place_ramps(3, 5)
    assert ramps.shape == (4, 3, 5)
    torch.testing.assert_close(ramps[[2, 0], :, 0].T, torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]))
    torch.testing.assert_close(ramps[[3, 1], 0].T, torch.stack([torch.linspace(0, 1, 5), torch.linspace(1, 0, 5)]).T)


class TestRampEncoder:
    def test_it_maps_images_to_the_range_from_minus_one_to_one(self):
        encoder, seen = RampEncoder(3, width=WIDTH), []
        encoder.convolutions[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        images = torch.rand(B, 3, 16, 16)
        encoder(images)
        torch.testing.assert_close(seen[0], 2 * images - 1)

    @pytest.mark.parametrize("size", [(16, 16), (8, 24)])
    def test_it_takes_images_of_any_size(self, size):
        assert RampEncoder(3, width=WIDTH)(torch.rand(B, 3, *size)).shape == (B, size[0] * size[1], WIDTH)

    def test_equal_pixels_differ_by_their_place(self):
        encoder = stirred(RampEncoder(3, width=WIDTH))
        features = encoder(torch.full((1, 3, 16, 16), 0.5))[0].unflatten(0, (16, 16))[4:-4, 4:-4]
        assert features.std((0, 1)).gt(0).all()


class TestAttention:
    def test_every_pixel_is_shared_out_among_slots(self, attention):
        layer, pixels = attention
        raw = torch.zeros(B, K, 2 * DZ)
        found, log_masks = layer(torch.randn(B, K, DZ), raw, pixels)
        assert found.shape == raw.shape
        torch.testing.assert_close(log_masks.exp().sum(-2), torch.ones(B, 16 * 16))

    def test_permuted_slots_give_permuted_posteriors(self, attention):
        layer, pixels = attention
        slots, raw, order = torch.randn(B, K, DZ), torch.randn(B, K, 2 * DZ), torch.randperm(K)
        for first, second in zip(layer(slots, raw, pixels), layer(slots[:, order], raw[:, order], pixels), strict=True):
            torch.testing.assert_close(second, first[:, order], rtol=1e-4, atol=1e-4)

    def test_leading_dimensions_are_as_one_at_a_time(self, attention):
        layer, pixels = attention
        slots, raw = torch.randn(3, B, K, DZ), torch.randn(3, B, K, 2 * DZ)
        together = layer(slots, raw, pixels)
        for number in range(3):
            for part, alone in zip(together, layer(slots[number], raw[number], pixels), strict=True):
                torch.testing.assert_close(part[number], alone, rtol=1e-4, atol=1e-4)

    def test_both_halves_of_the_posterior_are_updated_alike_and_apart(self):
        layer, pixels = stirred(StochasticSlotAttention(DZ, width=WIDTH)), torch.randn(B, 9, WIDTH)
        slots, raw = torch.randn(B, K, DZ), torch.randn(B, K, 2 * DZ)
        loc, raw_variance = layer(slots, raw, pixels).raw.chunk(2, dim=-1)
        changed = torch.cat([raw[..., :DZ], torch.randn(B, K, DZ)], dim=-1)
        same_loc, other_variance = layer(slots, changed, pixels).raw.chunk(2, dim=-1)
        torch.testing.assert_close(same_loc, loc)
        assert (other_variance != raw_variance).any(-1).all()

    @pytest.mark.parametrize("kind", SMALL)
    def test_a_small_layer_starts_by_finding_pixels_of_a_slots_colour(self, kind):
        """Slots that start as place and colour, as `MomentsReadout` does, take the pixels of that colour."""
        images = torch.zeros(1, 3, 16, 16)
        images[:, 0, :8], images[:, 1, 8:] = 1.0, 1.0  # red above green
        encoder, layer = small_networks(kind, (3, 16, 16))
        slots = torch.zeros(1, 2, DZ)
        first = {"compact": 2, "regions": 4, "parts": 4}[kind]
        slots[0, :, first : first + 3] = torch.tensor([[0.5, -0.5, -0.5], [-0.5, 0.5, -0.5]])
        slots[0, :, 0] = PLACE_SCALE * torch.tensor([-0.5, 0.5])
        with torch.no_grad():
            encoder.gate.zero_()
        raw, log_masks = layer(slots, torch.zeros(1, 2, 2 * DZ), encoder(images))
        expected = torch.tensor([1.0] * 128 + [0.0] * 128)
        torch.testing.assert_close(log_masks[0].exp(), torch.stack([expected, 1 - expected]), atol=0.01, rtol=0)

    @pytest.mark.parametrize("slot_dim", [2, 3, 16])
    @pytest.mark.parametrize(("kind", "num_channels"), [("compact", 1), ("compact", 3), ("regions", 1), ("regions", 3)])
    def test_a_small_layer_takes_slots_of_any_size(self, kind, slot_dim, num_channels):
        encoder, layer = small_networks(kind, (num_channels, 16, 16), slot_dim)
        pixels = encoder(torch.rand(B, num_channels, 16, 16))
        slots = torch.randn(B, K, slot_dim)
        assert torch.isfinite(layer(slots, layer.start(pixels, slots), pixels).raw).all()

    def test_a_layer_uses_its_encoder_without_owning_it(self):
        encoder, layer = small_networks("regions", (3, 16, 16))
        assert not set(encoder.parameters()) & set(layer.parameters())
        assert {name.split(".")[0] for name in layer.state_dict()} == {"log_bandwidth", "readout"}
        layer(torch.randn(1, K, DZ), torch.zeros(1, K, 2 * DZ), encoder(torch.rand(1, 3, 16, 16))).raw.sum().backward()
        assert layer.readout.layers[0].weight.grad[:, -layer.readout.sizes[-1] :].any(), "glimpses are read"


class TestStart:
    @pytest.mark.parametrize("kind", SMALL)
    def test_several_samples_at_once_start_as_each_alone(self, kind):
        encoder, layer = small_networks(kind, (3, 16, 16))
        pixels, noise = encoder(torch.rand(B, 3, 16, 16)), torch.randn(3, B, K, DZ)
        together = layer.start(pixels, noise)
        assert together.shape == (3, B, K, 2 * DZ)
        for part, alone in zip(together, noise, strict=True):
            torch.testing.assert_close(part, layer.start(pixels, alone))

    def test_each_colour_has_a_pixel_however_small_its_area_is(self):
        colours = torch.eye(4)[:, :3]
        labels = torch.zeros(16, 16, dtype=torch.long)
        labels[3:6, 3:6], labels[12, 4:6], labels[2:4, 12] = 1, 2, 3
        chosen = spread_pixels(colours[labels].movedim(-1, 0).unsqueeze(0), torch.randn(50, 1, 4, DZ))
        assert (labels.flatten()[chosen].sort(-1).values == torch.arange(4)).all()

    def test_noise_determines_the_pixels_and_their_order(self):
        embedding, noise = torch.randn(1, 8, 16, 16), torch.randn(1, K, DZ)
        chosen = spread_pixels(embedding, noise)
        assert (spread_pixels(embedding, noise) == chosen).all()
        assert (spread_pixels(embedding, noise.flip(1)) != chosen).any()

    def test_a_plain_image_has_pixels_to_start_from(self):
        assert spread_pixels(torch.zeros(1, 8, 4, 4), torch.randn(1, K, 3)).shape == (1, K)

    def test_slots_of_a_region_layer_start_as_place_and_colour_of_their_pixels(self):
        encoder, layer = small_networks("regions", (3, 16, 16))
        images, noise = torch.rand(B, 3, 16, 16), torch.randn(B, K, DZ)
        pixels = encoder(images)
        chosen = spread_pixels(pixels.embedding, noise)
        colours = images.flatten(2).gather(2, chosen.unsqueeze(1).expand(-1, 3, -1)).mT
        raw = layer.start(pixels, noise)
        torch.testing.assert_close(raw[..., :2], PLACE_SCALE * encoder.grid.flatten(1).T[chosen])
        torch.testing.assert_close(raw[..., 4:7], colours - 0.5)
        assert not raw.requires_grad


class TestRefinement:
    def test_the_scale_of_a_gradient_does_not_matter(self):
        network, raw, gradient = (
            stirred(Refinement(DZ, width=WIDTH)),
            torch.randn(B, K, 2 * DZ),
            torch.randn(B, K, 2 * DZ),
        )
        moved, _ = network(raw, gradient, None)
        torch.testing.assert_close(network(raw, 1000 * gradient, None)[0], moved, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(network(raw, gradient.flip(-1), None)[0], moved)

    def test_it_remembers(self):
        network, raw, gradient = (
            stirred(Refinement(DZ, width=WIDTH)),
            torch.randn(B, K, 2 * DZ),
            torch.randn(B, K, 2 * DZ),
        )
        moved, hidden = network(raw, gradient, None)
        assert hidden.shape == (B * K, WIDTH)
        assert not torch.allclose(network(raw, gradient, hidden)[0], moved)


class TestInitialisation:
    def test_weights_are_xavier_normal_of_a_small_gain_and_biases_zero(self):
        linear, convolution = small_xavier_(nn.Sequential(nn.Linear(300, 500), nn.Conv2d(40, 60, 3)))
        assert linear.weight.std().item() == pytest.approx(0.02 * math.sqrt(2 / 800), rel=0.02)
        assert convolution.weight.std().item() == pytest.approx(0.02 * math.sqrt(2 / 900), rel=0.02)
        assert not linear.bias.any() and not convolution.bias.any()

    def test_the_recurrent_cells_of_attention_start_standard_normal_biases_included(self):
        cells = StochasticSlotAttention(64, width=64).recurrent
        for parameter in cells.parameters():
            assert parameter.std().item() == pytest.approx(1.0, rel=0.2)
