"""k-means on colours finds flat colours, and only those."""

import torch

from pyro_lom.metrics.ari import adjusted_rand_index
from pyro_lom.metrics.kmeans import kmeans_rgb

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.2, 0.9], [0.9, 0.9, 0.1]])


def noisy_scenes(num_colours):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(num_colours, (3, 12, 10), generator=generator)
    images = COLOURS[target] + 0.02 * torch.randn(3, 12, 10, 3, generator=generator)
    return images.permute(0, 3, 1, 2), target


def test_finds_flat_colours():
    images, target = noisy_scenes(4)
    labels = kmeans_rgb(images, 4, seed=0)
    assert (labels.shape, labels.dtype) == ((3, 12, 10), torch.int64)
    torch.testing.assert_close(adjusted_rand_index(labels, target), torch.ones(3, dtype=torch.float64))


def test_same_seed_same_labels_in_any_batch():
    images, _ = noisy_scenes(4)
    labels = kmeans_rgb(images, 6, seed=3)
    assert torch.equal(labels, kmeans_rgb(images, 6, seed=3))
    assert torch.equal(labels[1:2], kmeans_rgb(images[1:2], 6, seed=3))


def test_colour_is_all_it_sees():
    images, _ = noisy_scenes(4)
    mirrored = kmeans_rgb(images.flip(-1), 4, seed=0).flip(-1)
    torch.testing.assert_close(
        adjusted_rand_index(mirrored, kmeans_rgb(images, 4, seed=0)), torch.ones(3, dtype=torch.float64)
    )


def test_fewer_colours_than_clusters(recwarn):
    target = torch.arange(3).repeat(1, 4, 4)
    labels = kmeans_rgb(COLOURS[target].permute(0, 3, 1, 2), 5, seed=0)
    assert adjusted_rand_index(labels, target).item() == 1
    assert len(labels.unique()) == 3
    assert not recwarn.list


def test_grey_images():
    images = torch.tensor([0.0, 1.0]).repeat(1, 1, 4, 4)
    labels = kmeans_rgb(images, 2, seed=0)
    assert torch.equal(labels == labels[0, 0, 0], images[:, 0] == 0)
