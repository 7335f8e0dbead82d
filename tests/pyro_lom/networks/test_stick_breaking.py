"""Instance colouring breaks a stick of length one at every pixel."""

import math

import pytest
import torch

from pyro_lom.networks.stick_breaking import InstanceColouring, pixel_grid

E, H, W = 3, 6, 5


def reference(embedding, scores, num_slots, bandwidth):
    """The docstring's loop, pixel by pixel, for one image."""
    pixels = [(y, x) for y in range(H) for x in range(W)]
    scope = {p: 1.0 for p in pixels}
    masks = []
    for _ in range(num_slots - 1):
        seed = max(pixels, key=lambda p: scores[0][p].item() * scope[p])
        mask = torch.zeros(H, W)
        for p in pixels:
            distance = (embedding[:, p[0], p[1]] - embedding[:, seed[0], seed[1]]).square().sum().item()
            alpha = min(max(math.exp(-distance / bandwidth), 0.01), 0.99)
            mask[p] = scope[p] * alpha
            scope[p] *= 1 - alpha
        masks.append(mask)
    masks.append(torch.tensor([scope[p] for p in pixels]).view(H, W))
    return torch.stack(masks).unsqueeze(1)


@pytest.mark.parametrize("num_slots", [2, 4, 7])
def test_it_is_stick_breaking_around_the_highest_scores(num_slots):
    colouring = InstanceColouring(num_slots)
    embedding, scores = 0.5 * torch.randn(3, E, H, W), torch.rand(3, 1, H, W)
    log_masks = colouring(embedding, scores)
    assert log_masks.shape == (3, num_slots, 1, H, W)
    bandwidth = colouring.log_bandwidth.exp().item()
    expected = [reference(*image, num_slots, bandwidth) for image in zip(embedding, scores, strict=True)]
    torch.testing.assert_close(log_masks.exp(), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("magnitude", [0.0, 1.0, 1e4])
def test_masks_sum_to_one_and_every_log_is_finite(batch, magnitude):
    log_masks = InstanceColouring(5)(magnitude * torch.randn(2, E, H, W), torch.rand(*batch, 2, 1, H, W))
    assert log_masks.shape == (*batch, 2, 5, 1, H, W)
    assert log_masks.isfinite().all()
    torch.testing.assert_close(log_masks.exp().sum(-4), torch.ones(*batch, 2, 1, H, W))


def test_the_seeds_are_the_only_randomness():
    colouring, embedding, scores = InstanceColouring(4), torch.randn(2, E, H, W), torch.rand(2, 1, H, W)
    assert torch.equal(colouring(embedding, scores), colouring(embedding, scores))
    assert not torch.equal(colouring(embedding, scores), colouring(embedding, 1 - scores))


def test_a_leading_axis_of_seeds_is_as_one_at_a_time():
    colouring, embedding, scores = InstanceColouring(4), torch.randn(2, E, H, W), torch.rand(3, 2, 1, H, W)
    torch.testing.assert_close(colouring(embedding, scores), torch.stack([colouring(embedding, s) for s in scores]))


def test_regions_far_apart_get_a_mask_each():
    regions = torch.arange(W).expand(1, H, W) // 2  # three stripes
    embedding = 100 * torch.nn.functional.one_hot(regions, E).movedim(-1, 1).float()
    masks = InstanceColouring(3)(embedding, torch.rand(1, 1, H, W)).argmax(1)
    for region in range(3):
        assert len(masks[:, 0][regions == region].unique()) == 1
    assert len(masks.unique()) == 3


def test_gradients_reach_embedding_and_bandwidth():
    colouring, embedding = InstanceColouring(4), torch.randn(1, E, H, W, requires_grad=True)
    log_masks = colouring(embedding, torch.rand(1, 1, H, W))
    log_masks[:, 0].sum().backward()
    assert embedding.grad.any() and colouring.log_bandwidth.grad.any()


@pytest.mark.parametrize("num_slots", [2, 7])
def test_the_bandwidth_starts_as_published(num_slots):
    bandwidth = InstanceColouring(num_slots).log_bandwidth.exp().item()
    assert bandwidth == pytest.approx(1 / (num_slots * math.log(2)))


def test_the_grid_holds_row_and_column():
    rows, columns = pixel_grid(3, 5)
    torch.testing.assert_close(rows, torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 5))
    torch.testing.assert_close(columns, torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).expand(3, 5))
