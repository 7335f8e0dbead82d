"""Raw channels become a scene, and a scene a likelihood: Gaussian, or a mixture over slots."""

import math

import pytest
import torch

from pyro_lom.likelihoods import GaussianLikelihood, MixtureLikelihood, compose, observed

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


class TestMixture:
    def test_each_value_of_each_pixel_is_a_mixture_over_slots(self):
        rendering, images = compose(3 * torch.randn(2, K, C + 1, H, W)), torch.rand(2, C, H, W)
        likelihood = MixtureLikelihood(0.1)(rendering)
        assert (likelihood.batch_shape, likelihood.event_shape) == ((2, 1), (C, H, W))
        normal = torch.distributions.Normal(rendering.components.double(), 0.1)
        density = (rendering.log_masks.double().exp() * normal.log_prob(images.unsqueeze(1)).exp()).sum(1)
        expected = density.log().sum((1, 2, 3)).float()
        torch.testing.assert_close(likelihood.log_prob(observed(images))[:, 0], expected)

    def test_its_mean_is_the_image_and_samples_have_its_spread(self):
        rendering = compose(3 * torch.randn(1, K, C + 1, H, W))
        likelihood = MixtureLikelihood(0.1)(rendering)
        torch.testing.assert_close(likelihood.mean[:, 0], rendering.image)
        samples = likelihood.sample((20_000,))
        torch.testing.assert_close(samples.mean(0), likelihood.mean, rtol=0, atol=0.02)
        assert (samples.var(0) > 0.9 * 0.1**2).all()

    def test_where_one_slot_shows_each_pixel_it_is_equation_3(self):
        raw = torch.randn(2, K, C + 1, H, W)
        raw[:, :, -1] = 100 * torch.eye(K)[torch.randint(K, (2, H, W))].movedim(-1, 1)
        rendering, images = compose(raw), observed(torch.rand(2, C, H, W))
        log_probs = [kind(0.7)(rendering).log_prob(images) for kind in (GaussianLikelihood, MixtureLikelihood)]
        torch.testing.assert_close(*log_probs)

    def test_it_makes_slots_compete_for_a_pixel(self):
        """Two slots that share a grey pixel, each half of black and white: right under Eq. 3, wrong for a mixture."""
        raw = torch.full((1, 2, 2, 1, 1), 0.0)
        raw[:, :, 0] = torch.tensor([-20.0, 20.0]).reshape(1, 2, 1, 1)
        rendering, grey = compose(raw), torch.full((1, 1, 1, 1, 1), 0.5)
        gaussian, mixture = (kind(0.1)(rendering).log_prob(grey) for kind in (GaussianLikelihood, MixtureLikelihood))
        assert gaussian - mixture == pytest.approx(0.5**2 / (2 * 0.1**2), rel=1e-4)
