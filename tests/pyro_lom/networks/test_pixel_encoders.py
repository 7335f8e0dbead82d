"""Encoders give every pixel an embedding and features; readouts turn pooled features into slots."""

import pytest
import torch
from tiny import NETWORKS, SLOT_DIM, tiny_pair

from experiments.config import Train
from experiments.systems.emorl import Emorl
from experiments.systems.genesis_v2 import GenesisV2
from pyro_lom.errors import UserError
from pyro_lom.networks.decoders import EXTENT_OFFSET, PLACE_SCALE
from pyro_lom.networks.pixel_encoders import (
    EMBEDDING_DIM,
    CompactPixelEncoder,
    PartsEncoder,
    PixelEncoder,
    RegionEncoder,
)
from pyro_lom.networks.stick_breaking import pixel_grid

SHAPE = (3, 32, 32)
HALVES = (slice(16), slice(16, None))


@pytest.mark.parametrize("image_shape", [(1, 32, 32), (3, 32, 32), (3, 48, 48)], ids=str)
@pytest.mark.parametrize("kind", [PixelEncoder, CompactPixelEncoder, RegionEncoder, PartsEncoder])
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


@pytest.mark.parametrize("slot_dim", [4, 6, 12])
def test_place_extent_and_colour_stay_in_the_slots_of_the_frame_readout(slot_dim):
    encoder = RegionEncoder(SHAPE, width=8)
    readout, images = encoder.make_readout(slot_dim), torch.rand(1, 3, 1, 1).expand(1, *SHAPE)
    mask = box(slice(4, 20), slice(10, 16))
    slot = readout(encoder.pool(encoder(images).features, mask)).squeeze()
    places = pixel_grid(32, 32)[:, 4:20, 10:16].flatten(1)
    extent = (places.std(1, correction=0) + 0.02).log() + EXTENT_OFFSET
    expected = torch.cat([PLACE_SCALE * places.mean(1), extent, images[0, :, 0, 0] - 0.5])
    torch.testing.assert_close(slot[:7][:slot_dim], expected[:slot_dim], rtol=1e-4, atol=1e-4)
    assert slot[slot_dim:].std() > 0, "scales are learned"


def test_the_colours_of_a_fine_pattern_start_in_one_place():
    stripes = (torch.arange(32) // 2 % 2 == 0).expand(1, 3, 32, 32)
    images = torch.where(
        stripes, torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1), torch.tensor([0.1, 0.2, 0.9]).view(3, 1, 1)
    )
    apart = {}
    for kind in (RegionEncoder, PartsEncoder):
        encoder = kind(SHAPE, width=8)
        given = encoder.given(images, encoder.grid.unsqueeze(0))[..., 16, 8:24]
        apart[kind] = (given[..., :2].mean(-1) - given[..., 2:4].mean(-1)).norm()
    assert apart[PartsEncoder] < 0.1 * apart[RegionEncoder]


def test_slots_of_faint_masks_have_the_loc_zero():
    encoder = RegionEncoder(SHAPE, width=8)
    readout, features = encoder.make_readout(12), encoder(torch.rand(1, *SHAPE)).features
    mask = box(slice(4, 20), slice(10, 16))
    drawn, faint = (readout(encoder.pool(features, weight * mask)) for weight in (1.0, 0.01))
    assert faint[..., :12].abs().max() < 0.01 * drawn[..., :12].abs().max()
    torch.testing.assert_close(faint[..., 12:], drawn[..., 12:])


def test_pooling_comes_before_the_last_convolution_without_changing_its_results():
    encoder, masks = PixelEncoder((3, 32, 32), width=8), torch.rand(2, 5, 32 * 32)
    images = torch.rand(2, 3, 32, 32)
    found = encoder.pool(encoder(images).features, masks)
    every_pixel = encoder.features(encoder.unet(images)).flatten(-2)  # as published
    weights = masks / (masks.sum(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(found, weights @ every_pixel.transpose(-1, -2), rtol=1e-4, atol=1e-3)


def test_the_colours_of_the_region_encoder_start_as_hues_that_shading_hardly_changes():
    encoder = RegionEncoder(SHAPE, width=8)
    colours = torch.tensor([[0.9, 0.2, 0.2], [0.1, 0.6, 0.3]]).view(2, 3, 1, 1)
    lit, shaded, other = (encoder.colours(images) for images in (colours, 0.5 * colours, colours.flip(0)))
    near, far = (shaded - lit).norm(dim=1), (other - lit).norm(dim=1)
    assert (near < 0.3 * far).all()
    torch.testing.assert_close(lit[:, 3:], 0.5 * colours.mean(1, keepdim=True))
    assert not encoder.colours(torch.full((1, 3, 2, 2), 0.4))[:, :3].any(), "grey has no hue"
    with torch.no_grad():
        encoder.gate.zero_()
        embedding, _ = encoder(colours.expand(2, *SHAPE))
    torch.testing.assert_close(embedding[:, :4], lit.expand(2, 4, 32, 32))


def test_the_embedding_of_the_region_encoder_is_one_for_each_object():
    """Two discs of one hue, each shaded from left to right."""
    grid = pixel_grid(32, 32)
    discs = [(grid[0].square() + (grid[1] - middle).square()) < 0.3**2 for middle in (-0.5, 0.5)]
    light = 0.7 + 0.1 * grid[1]
    image = torch.where(discs[0] | discs[1], light * torch.tensor([0.9, 0.3, 0.1])[:, None, None], 0.9 * light)
    encoder = RegionEncoder(SHAPE, width=8)
    with torch.no_grad():
        encoder.gate.zero_()
        embedding = encoder(image.unsqueeze(0))[0][0]
    within = max((embedding[:, disc] - embedding[:, disc].mean(-1, keepdim=True)).norm(dim=0).max() for disc in discs)
    between = (embedding[:, discs[0]].mean(-1) - embedding[:, discs[1]].mean(-1)).norm()
    assert within < 0.2 * between


@pytest.mark.parametrize("system", [GenesisV2, Emorl])
def test_the_region_encoder_takes_grey_images(system):
    pair = system(encoder="regions", encoder_width=8, decoder="frame").build((1, 32, 32), Train())["model"]
    assert pair.guide(torch.rand(2, 1, 32, 32)).isfinite().all()


def test_slots_without_room_for_place_and_extent_are_refused():
    with pytest.raises(UserError, match="--model.slot-dim is 3"):
        GenesisV2(encoder="regions", decoder="frame", slot_dim=3).build(SHAPE, Train())


@pytest.mark.parametrize("slot_dim", [7, 9])
def test_the_query_of_a_slot_is_the_embedding_of_a_region_of_its_place_and_colour(slot_dim):
    encoder, colours = RegionEncoder(SHAPE, width=8), torch.tensor([[0.9, 0.2, 0.2], [0.1, 0.6, 0.3]])
    image = colours.repeat_interleave(16, 0).T.unsqueeze(1).expand(1, 3, 32, 32).mT  # the upper and the lower half
    with torch.no_grad():
        encoder.gate.zero_()
        encoder.colour_map.mul_(1.3)  # as after training
        embedding, _ = encoder(image)
    slots = torch.randn(1, 2, slot_dim)
    slots[0, :, :2] = PLACE_SCALE * torch.stack([pixel_grid(32, 32)[:, h].mean((1, 2)) for h in HALVES])
    slots[0, :, 4:7] = colours - 0.5
    found = torch.stack([embedding[0, :, h].mean((1, 2)) for h in HALVES])
    torch.testing.assert_close(encoder.query(slots)[0], found, atol=0.01, rtol=0.01)


def test_colours_below_black_have_finite_queries():
    assert RegionEncoder(SHAPE, width=8).query(torch.full((1, 8), -0.55)).abs().max() < 1


def glimpses_of(encoder, images, masks):
    """The glimpses (B, K, 4, side, side): mask, red, green and blue."""
    features = encoder(images).features
    pooled = encoder.pool(features, masks / masks.sum(-1, keepdim=True))
    return pooled[..., features.shape[1] : -1].unflatten(-1, (4, encoder.GLIMPSE, encoder.GLIMPSE))


def box(rows, columns):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., rows, columns] = 1
    return mask.flatten(-2)


def test_a_glimpse_frames_the_mask_wherever_and_however_large_it_is():
    encoder, image = RegionEncoder(SHAPE, width=8), torch.full((1, *SHAPE), 0.5)
    image[:, 0, 4:24, 8:28] = 0.9
    seen = glimpses_of(encoder, image, box(slice(4, 24), slice(8, 28))).squeeze()
    # A uniform box reaches 1.73 standard deviations from its mean, and the glimpse 2.
    inside = seen[:, 1:-1, 1:-1]
    torch.testing.assert_close(inside[0], torch.ones(6, 6), atol=0.1, rtol=0)
    assert seen[0, [0, -1]].max() < 0.5 and seen[0, :, [0, -1]].max() < 0.5
    torch.testing.assert_close(inside[1:].mean((1, 2)), torch.tensor([0.9, 0.5, 0.5]), atol=0.05, rtol=0)

    moved = torch.full((1, *SHAPE), 0.5)
    moved[:, 0, 10:30, 2:22] = 0.9
    again = glimpses_of(encoder, moved, box(slice(10, 30), slice(2, 22))).squeeze()
    torch.testing.assert_close(again, seen, atol=1e-4, rtol=0)


def test_faint_parts_of_a_mask_hardly_count():
    encoder = RegionEncoder(SHAPE, width=8)
    image = torch.full((1, *SHAPE), 0.2)
    image[..., 4:10, 8:14] = 0.8
    object_alone, with_wall = box(slice(4, 10), slice(8, 14)), box(slice(4, 10), slice(8, 14)).clamp_min(0.05)
    features = encoder(image).features
    for mask, expected in ((object_alone, 0.8), (with_wall, 0.8)):
        pooled = encoder.pool(features, mask / mask.sum(-1, keepdim=True))
        torch.testing.assert_close(pooled[0, 0, encoder.NUM_LEARNED], torch.tensor(expected), atol=0.04, rtol=0)
    assert with_wall.sum() > 2 * object_alone.sum(), "the wall weighs more than the object if masks are not squared"


def test_glimpses_of_several_samples_are_those_of_each():
    encoder, images = RegionEncoder(SHAPE, width=8), torch.rand(2, *SHAPE)
    features, weights = encoder(images).features, torch.rand(3, 2, 4, 32 * 32)
    together = encoder.pool(features, weights)
    for sample, expected in zip(weights, together, strict=True):
        torch.testing.assert_close(encoder.pool(features, sample), expected, atol=1e-5, rtol=1e-4)


def test_masks_learn_from_glimpses():
    encoder, mask = RegionEncoder(SHAPE, width=8), box(slice(4, 10), slice(8, 14)).clamp_min(0.05).requires_grad_()
    glimpses_of(encoder, torch.rand(1, *SHAPE), mask)[:, :, 1:].sum().backward()
    assert mask.grad.isfinite().all() and mask.grad.abs().sum() > 0


def test_glimpses_have_full_precision_under_autocast():
    encoder, image = RegionEncoder((3, 64, 64), width=8), torch.rand(1, 3, 64, 64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 2:6, 58:62] = 1
    features, weights = encoder(image).features, mask.flatten(-2) / 16
    expected = encoder.pool(features, weights)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.pool(features, weights), expected)
