"""Signs of binding: perfect segmentations raise no complaint, each way to fail raises its own."""

import pytest
import torch

from pyro_lom.data.towers import make_towers
from pyro_lom.metrics.binding import Binding, binding, explained_variance, scattered, smooth_error
from pyro_lom.networks.stick_breaking import pixel_grid

NUM_SLOTS = 5


def log_masks(segments):
    """Log masks (B, K, 1, H, W), nearly one-hot, of a label map (B, H, W)."""
    one_hot = torch.nn.functional.one_hot(segments, NUM_SLOTS).float().permute(0, 3, 1, 2).unsqueeze(2)
    return (0.9 * one_hot + 0.1 / NUM_SLOTS).log()


def permuted(segments):
    """The same segments under other slots, scene by scene."""
    return torch.stack([torch.randperm(NUM_SLOTS)[scene] for scene in segments])


@pytest.fixture
def scenes():
    """Images and labels."""
    torch.manual_seed(0)
    towers = make_towers(64, seed=2)
    return torch.as_tensor(towers.images).permute(0, 3, 1, 2) / 255, torch.as_tensor(towers.labels).long()


def test_slots_that_bind(scenes):
    images, true = scenes
    signs = binding(log_masks(true), log_masks(permuted(true)), images)
    assert signs.complaint() is None
    assert signs.stability == pytest.approx(1)
    assert signs.explained > 0.95 and signs.explainable > 0.92
    largest = torch.stack([scene.flatten().bincount().max() for scene in true]).float() / true[0].numel()
    assert signs.largest == pytest.approx(largest.mean().item())
    assert signs.sameness == pytest.approx(binding(log_masks(permuted(true)), log_masks(true), images).sameness)


def test_images_with_noise_or_low_contrast_can_be_explained(scenes):
    images, true = scenes
    for changed in (images + 0.1 * torch.randn(images.shape), 0.5 + 0.1 * images):
        signs = binding(log_masks(true), log_masks(permuted(true)), changed)
        assert signs.complaint() is None and signs.explained > signs.explainable > 0.5
    noise = torch.rand_like(images)
    assert "slots may not bind" in binding(log_masks(true), log_masks(permuted(true)), noise).complaint()


def test_one_slot_takes_everything(scenes):
    images, true = scenes
    nothing = torch.zeros_like(true)
    signs = binding(log_masks(nothing), log_masks(permuted(nothing)), images)
    assert signs.largest == 1
    assert signs.complaint().startswith("one slot takes everything (100% of the pixels); try another --seed")


def test_the_same_stripes_in_every_scene(scenes):
    images, true = scenes
    stripes = (torch.arange(32) * NUM_SLOTS // 32).expand_as(true)
    signs = binding(log_masks(stripes), log_masks(permuted(stripes)), images)
    assert (signs.sameness, signs.stability) == pytest.approx((1, 1))
    assert signs.complaint().startswith("slots ignore objects: they cut every scene alike (ARI 1.00 between scenes)")


def test_other_stripes_in_every_scene(scenes):
    images, true = scenes
    columns = (torch.arange(32) * 4 // 32).expand_as(true)
    stripes = torch.stack(
        [scene.roll(int(by), -1) for scene, by in zip(columns, torch.randint(32, (64,)), strict=True)]
    )
    signs = binding(log_masks(stripes), log_masks(permuted(stripes)), images)
    assert signs.stability == pytest.approx(1) and signs.sameness < 0.9
    assert signs.complaint().startswith("slots seem to ignore objects")


def test_chance_cuts_the_scene(scenes):
    images, true = scenes
    first, second = torch.randint(NUM_SLOTS, (2, *true.shape))  # no two pixels belong together
    signs = binding(log_masks(first), log_masks(second), images)
    assert signs.stability == pytest.approx(0, abs=0.01)
    assert signs.complaint().startswith("slots seem to ignore objects: smooth colours in their segments explain 2% of")


def test_slots_follow_stripes(scenes):
    images, true = scenes
    stripes = true * 0 + torch.arange(32) % 4
    signs = binding(log_masks(stripes), log_masks(permuted(stripes)), images)
    assert signs.scattered == 1
    assert binding(log_masks(true), log_masks(true), images).scattered < 0.1
    signs = signs._replace(sameness=0.1, explained=0.9, explainable=0.9)
    assert signs.complaint().startswith(
        "slots seem to follow patterns on objects: 100% of their segments are scattered"
    )


def test_small_segments_may_be_scattered():
    segments = torch.zeros(1, 32, 32, dtype=torch.long)
    segments[0, 3, ::8] = 1  # 4 of 1024 pixels
    assert scattered(segments) == 0
    segments[0, 5, ::8] = 1
    assert scattered(segments) == 0.5


def test_the_worst_complaint_comes_first():
    signs = Binding(largest=0.99, stability=0.1, sameness=0.95, explained=0.3, explainable=0.9, scattered=0.1)
    for change, word in (
        ({}, "everything"),
        ({"largest": 0.5}, "alike"),
        ({"sameness": 0.1}, "explain 30% of the variance, and 90% in regions"),
        ({"explained": 0.5}, "differently each time (ARI 0.10)"),
    ):
        signs = signs._replace(**change)
        assert word in signs.complaint()
    assert signs._replace(explained=0.6).complaint() is None  # only the background differs each time
    assert "slots may not bind" in signs._replace(stability=1.0, explained=0.3, explainable=0.3).complaint()


def test_quadratic_colours_are_explained():
    row, column = pixel_grid(16, 24)
    segments = (torch.arange(24) >= 9).long().expand(1, 16, 24)
    smooth = torch.where(segments == 0, 0.2 + 0.3 * row * column + 0.1 * row**2, 0.9 - 0.4 * column**2)
    noise = 0.1 * torch.randn(1, 3, 16, 24)
    images, whole = smooth.expand(1, 3, 16, 24), torch.zeros_like(segments)
    assert smooth_error(images, segments).sqrt() < 1e-3
    assert smooth_error(images + noise, segments).item() == pytest.approx(noise.square().mean().item(), rel=0.05)
    assert explained_variance(images, segments) == pytest.approx(1, abs=1e-4)
    assert explained_variance(images, whole) == 0
    half = 1 - smooth_error(images + noise, segments) / smooth_error(images + noise, whole)
    assert explained_variance(images + noise, segments) == pytest.approx(half.item())
    assert explained_variance(noise, segments) < 0.06
    assert explained_variance(torch.full((2, 3, 16, 24), 0.3), torch.zeros(2, 16, 24).long()) > 0.999
