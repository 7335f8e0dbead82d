"""Encoders give every pixel an embedding and features; readouts turn pooled features into slots."""

import pytest
import torch
from tiny import NETWORKS, SLOT_DIM, tiny_pair

from pyro_lom.networks.pixel_encoders import EMBEDDING_DIM, CompactPixelEncoder, PixelEncoder
from pyro_lom.networks.stick_breaking import pixel_grid

SHAPE = (3, 32, 32)


@pytest.mark.parametrize("image_shape", [(1, 32, 32), (3, 32, 32), (3, 48, 48)], ids=str)
@pytest.mark.parametrize("kind", [PixelEncoder, CompactPixelEncoder])
def test_every_pixel_gets_an_embedding_and_features(kind, image_shape):
    embedding, features = kind(image_shape, width=8)(torch.rand(2, *image_shape))
    assert embedding.shape == (2, EMBEDDING_DIM, *image_shape[1:])
    assert (features.shape[0], features.shape[2:]) == (2, image_shape[1:])


def test_the_published_embedding_starts_as_place():
    embedding, _ = PixelEncoder(SHAPE, width=8)(torch.rand(2, *SHAPE))
    torch.testing.assert_close(embedding[:, -2:], pixel_grid(32, 32).expand(2, -1, -1, -1))
    assert not embedding[:, :-2].any()


def test_the_compact_embedding_starts_near_colour_with_hue_above_brightness():
    encoder, images = CompactPixelEncoder(SHAPE, width=8), torch.rand(2, *SHAPE)
    with torch.no_grad():
        encoder.gate.zero_()
        embedding, _ = encoder(images)
    brightness = images.mean(1, keepdim=True)
    torch.testing.assert_close(embedding[:, :3], brightness + 2 * (images - brightness))
    torch.testing.assert_close(embedding[:, 3:5], 0.15 * pixel_grid(32, 32).expand(2, -1, -1, -1))
    assert not embedding[:, 5:].any()


def make_pair(kind):
    """The encoder and the readout that belong together."""
    guide = tiny_pair("genesis-v2", kind).guide
    return guide.encoder, guide.readout


@pytest.mark.parametrize("batch", [(2,), (3, 2)], ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_readout_gives_two_numbers_per_dimension_in_any_batch(kind, batch):
    encoder, readout = make_pair(kind)
    num_features = encoder.pool(encoder(torch.rand(1, *SHAPE)).features, torch.rand(1, 4, 32 * 32)).shape[-1]
    assert readout(torch.rand(*batch, 4, num_features)).shape == (*batch, 4, 2 * SLOT_DIM)


def test_moments_of_a_rectangle_on_a_slope_of_colour():
    rows, columns = pixel_grid(32, 32)
    image = torch.stack([0.5 + 0.2 * rows, 0.4 - 0.1 * columns, torch.full((32, 32), 0.7)])
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[4:20, 10:16] = True
    (encoder, readout), seen = make_pair("compact"), []
    readout.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].squeeze()))
    readout(encoder(image.unsqueeze(0)).features[0, :, inside].mean(-1).view(1, 1, -1))

    place = [rows[inside], columns[inside]]
    variance = torch.stack([axis.var(correction=0) for axis in place])
    shrink = variance / (variance + 0.01)
    expected = torch.cat(
        [
            image[:, inside].mean(-1),
            torch.stack([axis.mean() for axis in place]),
            variance.sqrt(),
            shrink[0] * torch.tensor([0.2, 0.0, 0.0]),  # along rows
            shrink[1] * torch.tensor([0.0, -0.1, 0.0]),  # along columns
        ]
    )
    torch.testing.assert_close(seen[0][-len(expected) :], expected, rtol=1e-3, atol=1e-4)


def test_scales_of_the_moments_readout_start_small():
    _, readout = make_pair("compact")
    assert (readout.layers[-1].bias[SLOT_DIM:] == -1.5).all()


def test_slots_of_the_moments_readout_start_as_place_and_colour():
    encoder, readout = make_pair("compact")
    with torch.no_grad():
        for parameter in readout.layers[-1].parameters():
            parameter.zero_()
    image = torch.rand(1, 3, 1, 1).expand(1, *SHAPE)
    pooled = encoder(image).features[0, :, 4:20, 10:16].flatten(1).mean(-1)
    slot = readout(pooled.view(1, 1, -1)).squeeze()
    place = pixel_grid(32, 32)[:, 4:20, 10:16].mean((1, 2))
    torch.testing.assert_close(slot[:5], torch.cat([3 * place, image[0, :, 0, 0] - 0.5]))
    assert not slot[5:].any()


def test_pooling_comes_before_the_last_convolution_without_changing_its_results():
    encoder, weights = PixelEncoder((3, 32, 32), width=8), torch.rand(2, 5, 32 * 32)
    images = torch.rand(2, 3, 32, 32)
    found = encoder.pool(encoder(images).features, weights)
    every_pixel = encoder.features(encoder.unet(images)).flatten(-2)  # as published
    torch.testing.assert_close(found, weights @ every_pixel.transpose(-1, -2), rtol=1e-4, atol=1e-3)
