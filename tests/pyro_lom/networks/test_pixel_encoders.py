"""Encoders give every pixel an embedding and features; readouts turn pooled features into slots."""

import pytest
import torch

from pyro_lom.networks.pixel_encoders import (
    EMBEDDING_DIM,
    CompactPixelEncoder,
    MomentsReadout,
    PixelEncoder,
    SlotReadout,
)
from pyro_lom.networks.stick_breaking import pixel_grid

SHAPE = (3, 32, 32)


@pytest.mark.parametrize("image_shape", [(1, 32, 32), (3, 32, 32), (3, 48, 48)], ids=str)
@pytest.mark.parametrize(("kind", "num_features"), [(PixelEncoder, 16), (CompactPixelEncoder, 8)])
def test_every_pixel_gets_an_embedding_and_features(kind, num_features, image_shape):
    embedding, features = kind(image_shape, width=8)(torch.rand(2, *image_shape))
    assert embedding.shape == (2, EMBEDDING_DIM, *image_shape[1:])
    assert features.shape == (2, num_features, *image_shape[1:])


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


def weights_of(masks):
    return masks / masks.sum(-1, keepdim=True)


@pytest.mark.parametrize("batch", [(2,), (3, 2)], ids=str)
@pytest.mark.parametrize(
    "readout",
    [SlotReadout(6, width=8), MomentsReadout(6, num_channels=3, num_features=16)],
    ids=["SlotReadout", "MomentsReadout"],
)
def test_a_readout_gives_two_numbers_per_dimension_in_any_batch(readout, batch):
    images, masks = torch.rand(2, *SHAPE), torch.rand(*batch, 4, 1024)
    outputs = readout(torch.randn(*batch, 4, 16), images, masks, weights_of(masks))
    assert outputs.shape == (*batch, 4, 12)


def test_moments_of_a_rectangle_on_a_slope_of_colour():
    readout = MomentsReadout(6, num_channels=3, num_features=8)
    rows, columns = pixel_grid(32, 32)
    images = torch.stack([0.5 + 0.2 * rows, 0.4 - 0.1 * columns, torch.full((32, 32), 0.7)]).unsqueeze(0)
    mask = torch.zeros(32, 32)
    mask[4:20, 10:16] = 1
    inside = mask.bool()
    masks = mask.flatten().view(1, 1, -1)
    seen = {}
    readout.layers.register_forward_pre_hook(lambda _, inputs: seen.update(moments=inputs[0][0, 0, 8:]))
    readout(torch.randn(1, 1, 8), images, masks, weights_of(masks))

    place = [rows[inside], columns[inside]]
    variance = torch.stack([axis.var(correction=0) for axis in place])
    shrink = variance / (variance + 0.01)
    expected = [
        images[0, :, inside].mean(-1),
        torch.stack([axis.mean() for axis in place]),
        variance.sqrt(),
        (mask.mean() + 1e-3).log().view(1),
        shrink[0] * torch.tensor([0.2, 0.0, 0.0]),  # along rows
        shrink[1] * torch.tensor([0.0, -0.1, 0.0]),  # along columns
    ]
    torch.testing.assert_close(seen["moments"], torch.cat(expected), rtol=1e-3, atol=1e-4)


def test_scales_of_the_moments_readout_start_small():
    raw_scale = MomentsReadout(6, num_channels=3, num_features=8).layers[-1].bias[6:]
    assert (raw_scale == -1.5).all()
