"""Raw channels become a scene, and a scene a likelihood: Gaussian, or a mixture over slots."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from tiny import IMAGE_SHAPE, NUM_SLOTS, SLOT_DIM, SYSTEMS, tiny_images, tiny_pair
from torch import nn

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.errors import UserError
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


class Likelihood(nn.Module):
    """A likelihood that a user wrote."""

    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self, rendering):
        return self.distribution(rendering.image)


class TestWhereModelsSampleTheImage:
    WRONG = {
        "no axis of slots": (lambda image: dist.Normal(image, 0.1).to_event(3), r"batch shape \(4, 4\).*\(4, 1\)"),
        "channels are no event": (
            lambda image: dist.Normal(image.unsqueeze(-4), 0.1).to_event(2),
            r"batch shape \(4, 4, 3\).*\(4, 1\).*\.to_event\(\)",
        ),
    }
    ONE_CHANNEL = Likelihood(lambda image: dist.Normal(image.unsqueeze(-4).mean(-3, keepdim=True), 0.1).to_event(3))

    @pytest.mark.parametrize(("distribution", "message"), WRONG.values(), ids=WRONG)
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_a_likelihood_of_other_shapes_is_refused(self, system, distribution, message):
        model = tiny_pair(system).model
        model.likelihood = Likelihood(distribution)
        for call in ((tiny_images(4),), ()):
            with pytest.raises(UserError, match=f"^site 'x': its distribution .*{message}"):
                poutine.trace(model).get_trace(*call, num_scenes=4)

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_a_likelihood_without_an_event_is_refused(self, system):
        """By this project's check, or by Pyro where no plate of slots is open."""
        model = tiny_pair(system).model
        model.likelihood = Likelihood(lambda image: dist.Normal(image.unsqueeze(-4), 0.1))
        with pytest.raises((UserError, ValueError), match="to_event|Shape mismatch inside plate.* at site x"):
            poutine.trace(model).get_trace(tiny_images(4))

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_images_with_other_channels_are_refused(self, system):
        model = tiny_pair(system).model
        model.likelihood = self.ONE_CHANNEL
        with pytest.raises(UserError, match=r"^site 'x': .* event shape \(1, 32, 32\).* \(4, 1, 3, 32, 32\)"):
            poutine.trace(model).get_trace(tiny_images(4))

    def test_a_conditioned_image_without_the_slots_axis_is_refused(self):
        model = poutine.condition(tiny_pair().model, {"x": tiny_images(4)})
        with pytest.raises(UserError, match=r"^site 'x': its value has batch shape \(4,\).*unsqueeze\(-4\)"):
            poutine.trace(model).get_trace(num_scenes=4)

    @pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceScene_ELBO])
    def test_stock_elbos_and_predictive_are_protected(self, elbo):
        pair = tiny_pair()
        pair.model.likelihood = Likelihood(self.WRONG["no axis of slots"][0])
        with pytest.raises(UserError, match="^site 'x'"):
            elbo().loss(*pair, tiny_images(4))
        with pytest.raises(UserError, match="^site 'x'"):
            Predictive(pair.model, num_samples=2)(num_scenes=4)

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_particles_in_a_plate_of_their_own_pass(self, system):
        pair, images = tiny_pair(system), tiny_images(2)
        predictive = Predictive(poutine.uncondition(pair.model), guide=pair.guide, num_samples=3, parallel=True)
        assert predictive(images)["x"].shape == (3, 2, 1, *IMAGE_SHAPE)
        elbo = RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2)
        assert math.isfinite(elbo.loss(*pair, images))

    def test_enumerated_dims_left_of_the_scenes_pass(self):
        def guide(images):
            with pyro.plate("scenes", len(images), dim=-2):
                c = pyro.sample("c", dist.Categorical(torch.ones(5)), infer={"enumerate": "parallel"})
                with pyro.plate("slots", NUM_SLOTS, dim=-1):
                    pyro.sample("o", dist.Normal(c.unsqueeze(-1) * torch.ones(SLOT_DIM), 1.0).to_event(1))

        model, images = tiny_pair("genesis-v2").model, tiny_images(2)
        classes = poutine.trace(poutine.enum(guide, first_available_dim=-3)).get_trace(images)
        trace = poutine.trace(poutine.replay(model, trace=classes)).get_trace(images)
        assert trace.nodes["x"]["fn"].batch_shape == (5, 2, 1)
