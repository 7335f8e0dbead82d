"""Raw channels become a scene, and a scene a Gaussian likelihood."""

import math

import pytest
import torch

from pyro_lom.likelihoods import GaussianLikelihood, compose, observed

K, C, H, W = 3, 2, 4, 5


@pytest.mark.parametrize("batch", [(), (2,), (3, 2)], ids=str)
def test_colours_are_sigmoids_and_masks_a_softmax_over_slots(batch):
    raw = 3 * torch.randn(*batch, K, C + 1, H, W)
    rendering = compose(raw)
    torch.testing.assert_close(rendering.components, raw[..., :-1, :, :].sigmoid())
    torch.testing.assert_close(rendering.log_masks.exp(), raw[..., -1:, :, :].softmax(-4))
    torch.testing.assert_close(rendering.image, (rendering.log_masks.exp() * rendering.components).sum(-4))


def test_a_common_shift_of_all_mask_logits_changes_nothing():
    raw = torch.randn(2, K, C + 1, H, W)
    shifted = raw.clone()
    shifted[..., -1, :, :] += 7
    torch.testing.assert_close(compose(shifted), compose(raw))


def test_half_precision_is_raised_before_it_is_squashed():
    raw = torch.randn(2, K, C + 1, H, W)
    assert {part.dtype for part in compose(raw.bfloat16())} == {torch.float32}


@pytest.mark.parametrize("image_scale", [0.1, 0.7])
def test_the_likelihood_is_equation_3(image_scale):
    rendering, images = compose(torch.randn(2, K, C + 1, H, W)), torch.rand(2, C, H, W)
    likelihood = GaussianLikelihood(image_scale)(rendering)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((2, 1), (C, H, W))
    squares = (images - rendering.image).square().sum((1, 2, 3)) / (2 * image_scale**2)
    constant = C * H * W * (math.log(image_scale) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(likelihood.log_prob(observed(images))[:, 0], -squares - constant)


def test_no_images_are_no_observations():
    assert observed(None) is None
