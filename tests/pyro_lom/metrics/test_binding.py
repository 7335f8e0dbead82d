"""Signs of binding: perfect segmentations raise no complaint, each way to fail raises its own."""

import re

import pytest
import torch

from pyro_lom.data.towers import make_towers
from pyro_lom.metrics.binding import Binding, binding

NUM_SLOTS = 5


def log_masks(segments):
    """Log masks (B, K, 1, H, W), nearly one-hot, of a label map (B, H, W)."""
    one_hot = torch.nn.functional.one_hot(segments, NUM_SLOTS).float().permute(0, 3, 1, 2).unsqueeze(2)
    return (0.9 * one_hot + 0.1 / NUM_SLOTS).log()


def permuted(segments):
    """The same segments under other slots, scene by scene."""
    return torch.stack([torch.randperm(NUM_SLOTS)[scene] for scene in segments])


@pytest.fixture
def true():
    torch.manual_seed(0)
    return torch.as_tensor(make_towers(64, seed=2).labels).long()


def test_slots_that_bind(true):
    signs = binding(log_masks(true), log_masks(permuted(true)))
    assert signs.complaint() is None
    assert signs.stability == pytest.approx(1)
    largest = torch.stack([scene.flatten().bincount().max() for scene in true]).float() / true[0].numel()
    assert signs.largest == pytest.approx(largest.mean().item())
    assert signs.sameness == pytest.approx(binding(log_masks(permuted(true)), log_masks(true)).sameness)


def test_one_slot_takes_everything(true):
    nothing = torch.zeros_like(true)
    signs = binding(log_masks(nothing), log_masks(permuted(nothing)))
    assert signs.largest == 1
    assert signs.complaint() == "one slot takes everything (100% of the pixels)"


def test_the_same_stripes_in_every_scene(true):
    stripes = (torch.arange(32) * NUM_SLOTS // 32).expand_as(true)
    signs = binding(log_masks(stripes), log_masks(permuted(stripes)))
    assert (signs.sameness, signs.stability) == pytest.approx((1, 1))
    assert signs.complaint() == "slots ignore objects: they cut every scene alike (ARI 1.00 between scenes)"


def test_chance_cuts_the_scene(true):
    first, second = torch.randint(NUM_SLOTS, (2, *true.shape))  # no two pixels belong together
    signs = binding(log_masks(first), log_masks(second))
    assert signs.stability == pytest.approx(0, abs=0.01)
    assert re.fullmatch(r"slots ignore .* cut one scene differently each time \(ARI -?0\.00\)", signs.complaint())


def test_the_worst_complaint_comes_first():
    assert "everything" in Binding(largest=0.99, stability=0.1, sameness=0.95).complaint()
    assert "alike" in Binding(largest=0.5, stability=0.1, sameness=0.95).complaint()
