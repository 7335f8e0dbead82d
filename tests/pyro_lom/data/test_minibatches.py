"""Minibatches depend on seed and step alone, cover an epoch once, and are dealt out between processes."""

import jaxtyping
import numpy as np
import pytest
import torch

from pyro_lom.data.minibatches import Minibatches, float_images, to_float
from pyro_lom.errors import UserError


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), dtype=np.uint8)


def epoch_of(minibatches, epoch):
    first = epoch * minibatches.steps_per_epoch
    return np.concatenate([minibatches.indices(first + step) for step in range(minibatches.steps_per_epoch)])


def test_an_epoch_shows_no_image_twice_and_drops_the_rest(images):
    minibatches = Minibatches(images, batch_size=4, seed=1)
    assert minibatches.steps_per_epoch == 5
    for epoch in range(3):
        assert len(set(epoch_of(minibatches, epoch))) == 20
    assert set(np.concatenate([epoch_of(minibatches, epoch) for epoch in range(20)])) == set(range(23))


def test_any_step_can_be_asked_for_alone(images):
    in_order = Minibatches(images, batch_size=4, seed=1)
    expected = [in_order.indices(step).tolist() for step in range(17)]
    for step in (16, 3, 9, 0, 4, 5):
        assert Minibatches(images, batch_size=4, seed=1).indices(step).tolist() == expected[step]
        assert in_order.indices(step).tolist() == expected[step]


def test_seeds_and_epochs_differ(images):
    minibatches = Minibatches(images, batch_size=4, seed=1)
    assert epoch_of(minibatches, 0).tolist() != epoch_of(minibatches, 1).tolist()
    assert epoch_of(minibatches, 0).tolist() != epoch_of(Minibatches(images, batch_size=4, seed=2), 0).tolist()


def test_processes_share_the_batch_of_one(images):
    alone = Minibatches(images, batch_size=6, seed=1)
    ranks = [Minibatches(images, batch_size=3, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for step in range(7):
        shares = np.concatenate([minibatches.indices(step) for minibatches in ranks])
        np.testing.assert_array_equal(shares, alone.indices(step))
        assert all(minibatches.steps_per_epoch == alone.steps_per_epoch for minibatches in ranks)


def test_gathers_images_channels_first(images):
    minibatches = Minibatches(images, batch_size=4, seed=1)
    batch = minibatches(7)
    assert (batch.shape, batch.dtype) == ((4, 3, 4, 5), torch.uint8)
    assert batch.permute(0, 2, 3, 1).is_contiguous()  # not reordered yet
    np.testing.assert_array_equal(batch.numpy().transpose(0, 2, 3, 1), images[minibatches.indices(7)])


def test_gathers_from_a_read_only_memory_map(tmp_path, images):
    images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, mode="r", shape=images.shape)
    batch = Minibatches(mapped, batch_size=4, seed=1)(7)
    torch.testing.assert_close(batch, Minibatches(images, batch_size=4, seed=1)(7))
    batch.zero_()  # a copy: the file is not touched
    np.testing.assert_array_equal(mapped, images)


def test_too_few_images(images):
    assert Minibatches(images, batch_size=23, seed=1).steps_per_epoch == 1
    with pytest.raises(UserError, match="23 training images are fewer than the 24 .*12 on each of 2 devices"):
        Minibatches(images, batch_size=12, seed=1, world_size=2)


def test_to_float_spans_zero_to_one():
    floats = to_float(torch.arange(256, dtype=torch.uint8).view(4, 64))
    assert floats.dtype == torch.float32
    assert (floats.min(), floats.max()) == (0, 1)
    torch.testing.assert_close((floats * 255).round().to(torch.uint8).flatten(), torch.arange(256, dtype=torch.uint8))


def test_float_images_have_channels_first(images):
    floats = float_images(images)
    assert floats.dtype == torch.float32 and floats.is_contiguous()
    np.testing.assert_allclose(floats.numpy(), images.transpose(0, 3, 1, 2) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda images: images.transpose(0, 3, 1, 2), r"uint8 \(23, 3, 4, 5\)"),
        (lambda images: images / 255, r"float64 \(23, 4, 5, 3\)"),
        (lambda images: images[0], r"uint8 \(4, 5, 3\)"),
        (lambda images: images[..., [0, 1, 2, 0]], r"uint8 \(23, 4, 5, 4\)"),
    ],
    ids=["channels first", "floats", "one image", "RGBA"],
)
def test_float_images_of_anything_else(images, change, given, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests
    with pytest.raises(UserError, match=f"images are {given}: float_images takes uint8 .* with 1 or 3 channels"):
        float_images(change(images))
