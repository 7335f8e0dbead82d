"""EMORL's inference: three layers of attention, then refinement, whatever the caller does with gradients."""

from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from tiny import NETWORKS, NUM_SLOTS, SHADED, SLOT_DIM, tiny_config, tiny_images, tiny_objective, tiny_pair
from torch.distributions import kl_divergence
from torch.utils._pytree import tree_map

from experiments.systems import build, preset
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.towers import make_towers
from pyro_lom.distributions import diagonal_normal
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.objective import Objective
from pyro_lom.system import result
from pyro_lom.types import SlotMoments

B, K = 4, NUM_SLOTS
IMAGES = tiny_images(B)
close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)


@pytest.fixture(params=NETWORKS | SHADED)
def pair(request):
    """Away from its start, at which nothing depends on anything much."""
    pair = tiny_pair("emorl", request.param)
    with torch.no_grad():
        for program in pair:
            for parameter in program.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return pair


@pytest.fixture
def guide(pair):
    return pair.guide


def run(program, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(program).get_trace(*args, **kwargs)


def given_noise(guide, noise, images=IMAGES):
    return poutine.condition(guide.infer, {"noise": noise})(images)


class TestInference:
    def test_sites_and_shapes(self, guide):
        trace = run(guide, IMAGES)
        assert trace.stochastic_nodes == ["scenes", "noise", "slots", "o_3", "o_2", "o_1"]
        for name in ("o_3", "o_2", "o_1"):
            assert (trace.nodes[name]["fn"].batch_shape, trace.nodes[name]["fn"].event_shape) == ((B, K), (SLOT_DIM,))
        noise = trace.nodes["noise"]
        assert (noise["fn"].batch_shape, noise["fn"].event_shape) == ((B, 1), (K, 8, SLOT_DIM))
        assert noise["infer"]["is_auxiliary"]
        assert not noise["fn"].log_prob(noise["value"]).any()
        assert trace.nodes["_RETURN"]["value"] is trace.nodes["o_1"]["value"]

    def test_each_site_is_sampled_from_the_posterior_found_for_it(self, guide):
        trace, posterior = run(guide, IMAGES), run(guide.infer, IMAGES).nodes["_RETURN"]["value"]
        _, second, third, _ = posterior.earlier
        found = {"o_3": third, "o_2": second, "o_1": SlotMoments(posterior.loc, posterior.scale)}
        for name, (loc, scale) in found.items():
            close(trace.nodes[name]["fn"].mean, loc)
            close(trace.nodes[name]["fn"].stddev, scale)

    def test_a_posterior_inferred_before_is_the_one_sampled_from(self, guide):
        posterior = guide.infer(IMAGES)
        shifted = posterior._replace(loc=posterior.loc + 1)
        trace = run(guide, IMAGES, inferred=shifted)
        assert "noise" not in trace.nodes
        close(trace.nodes["o_1"]["fn"].mean, posterior.loc + 1)

    @pytest.mark.parametrize("pair", NETWORKS, indirect=True)  # the slots of a region attention start in turn
    def test_permuting_the_noise_of_slots_permutes_the_posterior_alike(self, guide):
        noise, order = torch.randn(B, 1, K, 8, SLOT_DIM), torch.randperm(K).roll(1)
        expected = tree_map(lambda part: part[:, order], given_noise(guide, noise))
        close(given_noise(guide, noise[:, :, order]), expected)
        assert not torch.allclose(expected.loc, given_noise(guide, noise).loc)

    def test_an_image_is_read_as_if_it_were_alone(self, guide, request):
        noise = torch.randn(B, 1, K, 8, SLOT_DIM)
        expected = tree_map(lambda part: part[1:2], given_noise(guide, noise))
        sharp = "regions" in request.node.name  # sharp masks amplify rounding
        close(given_noise(guide, noise[1:2], IMAGES[1:2]), expected, atol=1e-2 if sharp else 1e-3)

    def test_attention_masks_sum_to_one(self, guide):
        log_masks = guide.infer(IMAGES).log_masks
        assert log_masks.shape == (B, K, 1, 32, 32)
        torch.testing.assert_close(log_masks.exp().sum(1), torch.ones(B, 1, 32, 32))

    @pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
    def test_it_is_the_same_where_gradients_are_disabled(self, guide, disabled):
        expected = run(guide.infer, IMAGES).nodes["_RETURN"]["value"]
        with disabled():
            found = run(guide.infer, 1 * IMAGES).nodes["_RETURN"]["value"]
        assert not any(part.requires_grad for part in (*found[:3], *sum(found.earlier, ()), *found.samples))
        torch.testing.assert_close(found, expected.detach())

    @pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("networks", NETWORKS)
    def test_a_lom_can_read_it_there_as_well(self, networks, disabled):
        pair = tiny_pair("lom-emorl", networks)
        with disabled():
            loss = TraceScene_ELBO().differentiable_loss(*pair, 1 * IMAGES)
        assert torch.isfinite(loss) and not loss.requires_grad

    @pytest.mark.parametrize("size", [32, 48, 64])
    def test_the_same_weights_read_images_of_any_size(self, size):
        config = tiny_config("emorl")
        small, large = (result(build(config, (3, side, side))) for side in (32, size))
        for mine, others in zip(large[:2], small[:2], strict=True):
            mine.load_state_dict(others.state_dict())
        found = large.guide.infer(tiny_images(B, (3, size, size)))
        assert found.log_masks.shape == (B, K, 1, size, size)
        assert large.model.render({"o_1": found.loc}).image.shape == (B, 3, size, size)

    @pytest.mark.parametrize("networks", NETWORKS)
    def test_a_lom_that_reads_it_sends_it_no_gradient(self, networks):
        objective = tiny_objective("lom-emorl", networks)
        objective(IMAGES, only=["ordered"]).loss.backward()
        for name, parameter in objective.named_parameters():
            if name.startswith("pairs.orderless."):
                assert parameter.grad is None or not parameter.grad.any(), name
            else:
                assert parameter.grad is not None, name

    def test_it_borrows_its_model(self, guide):
        assert not set(guide.model.parameters()) & set(guide.parameters())


class TestRefinement:
    @pytest.mark.parametrize("num_refinements", [1, 3])
    def test_it_moves_as_often_as_asked(self, num_refinements):
        guide = tiny_pair("emorl", num_refinements=num_refinements).guide
        posterior = guide.infer(IMAGES)
        assert len(posterior.earlier) == 2 + num_refinements
        assert torch.isfinite(posterior.loc).all()

    @pytest.mark.parametrize(("error_weight", "of_top"), [(1.0, True), (3.0, True), (1.0, False)])
    def test_it_reads_the_gradients_of_the_losses(self, pair, error_weight, of_top):
        """Of the mean over scenes of L_0, whose KLs depend on a sample of q_3, and of L_1; or twice of L_1."""
        model, guide = pair
        guide.first_gradient_of_top = of_top
        raws, gradients = [], []

        @guide.refinement.register_forward_pre_hook
        def record(module, given):
            raws.append(given[0])
            gradients.append(given[1])

        noise = torch.randn(B, 1, K, 8, SLOT_DIM)
        with poutine.condition(data={"noise": noise}):
            posterior = guide.infer(IMAGES, error_weight=error_weight)
        _, _, _, decoded, of_third, of_second, refined, _ = noise.squeeze(1).unbind(-2)
        second = diagonal_normal(*posterior.earlier[1])
        given_second = model.slot_prior(second.mean + second.stddev * of_second)

        def normal(raw):
            loc, raw_variance = raw.chunk(2, dim=-1)
            return diagonal_normal(loc, (torch.log1p(raw_variance.exp()) + 1e-5).sqrt())

        def sample(raw, epsilon):
            return normal(raw).mean + normal(raw).stddev * epsilon

        def error(raw, epsilon):
            rendering = model.render({"o_1": sample(raw, epsilon)})
            return -error_weight * model.likelihood(rendering).log_prob(IMAGES.unsqueeze(1)).sum(1)

        def first(raw):
            standard = diagonal_normal(torch.zeros(SLOT_DIM), torch.ones(SLOT_DIM))
            given_third = model.slot_prior(sample(raw, of_third))
            kl = kl_divergence(normal(raw), standard) + kl_divergence(second, given_third)
            return (error(raw, decoded) + kl.sum(1)).mean()

        def later(raw, epsilon=refined):
            return (error(raw, epsilon) + kl_divergence(normal(raw), given_second).sum(1)).mean()

        losses = (first if of_top else partial(later, epsilon=decoded), later)
        for loss, raw, gradient in zip(losses, raws, gradients, strict=True):
            close(torch.autograd.functional.jacobian(loss, raw.detach()), gradient)

    def test_no_graph_of_the_gradient_is_kept(self, pair):
        read = []
        pair.guide.refinement.register_forward_pre_hook(lambda _, given: read.append(given[1]))
        pair.guide.infer(IMAGES)
        assert read and not any(gradient.requires_grad for gradient in read)
        assert all(parameter.grad is None for program in pair for parameter in program.parameters())

    def test_all_slots_are_decoded_in_one_call_for_each_refinement(self, pair):
        calls = []
        pair.model.decoder.register_forward_hook(lambda *_: calls.append(1))
        pair.guide.infer(IMAGES)
        assert len(calls) == pair.guide.num_refinements


class TestTraining:
    @pytest.mark.parametrize(("num_refinements", "weights"), [(1, [2, 3 / 2]), (2, [5 / 3, 4 / 3, 1])])
    def test_step_weights_are_the_published_ones(self, num_refinements, weights):
        guide = tiny_pair("emorl", num_refinements=num_refinements).guide
        steps = guide.losses(TraceScene_ELBO(), IMAGES, guide.infer(IMAGES))
        assert [weight for weight, _ in steps] == pytest.approx(weights)

    def test_the_loss_is_the_weighted_sum_of_the_published_terms(self, pair, monkeypatch):
        """Without noise: every sample is a mean."""
        monkeypatch.setattr(
            torch.distributions.Normal, "rsample", lambda self, shape=(): self.loc.expand(shape + self.loc.shape)
        )
        model, guide = pair
        posterior = given_noise(guide, torch.zeros(B, 1, K, 8, SLOT_DIM))
        first, second, third, refined = posterior.earlier
        p_1, p_2 = model.slot_prior(second.loc), model.slot_prior(third.loc)

        def error(slots):
            return -model.likelihood(model.render({"o_1": slots})).log_prob(IMAGES.unsqueeze(1)).sum(1)

        def kl(moments, prior):
            return kl_divergence(diagonal_normal(*moments), prior).sum(1)

        standard = diagonal_normal(torch.zeros(SLOT_DIM), torch.ones(SLOT_DIM))
        last = SlotMoments(posterior.loc, posterior.scale)
        expected = 5 / 3 * (error(third.loc) + kl(third, standard) + kl(second, p_2) + kl(first, p_1))
        expected += 4 / 3 * (error(refined.loc) + kl(refined, p_1)) + error(last.loc) + kl(last, p_1)
        loss = 0.0
        for weight, terms in guide.losses(TraceScene_ELBO(), IMAGES, posterior):
            loss = loss + weight * TraceScene_ELBO().combine(terms)
        torch.testing.assert_close(loss, expected.mean())

    @pytest.mark.parametrize("networks", NETWORKS)
    def test_what_is_reported_is_of_the_last_step_that_has_it(self, networks):
        objective, images = tiny_objective("emorl", networks), tiny_images()
        evaluation = objective(images)
        assert set(evaluation.terms) == {f"model/{site}" for site in ("x", "o_3", "o_2", "o_1")}
        assert evaluation.errors["model"] == evaluation.terms["model/x"]

    def test_every_weight_gets_a_gradient(self, pair):
        guide = pair.guide
        posterior = guide.infer(IMAGES)
        for weight, terms in guide.losses(TraceScene_ELBO(), IMAGES, posterior):
            (weight * TraceScene_ELBO().combine(terms)).backward(retain_graph=True)
        for program in pair:
            for name, parameter in program.named_parameters():
                assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.slow
def test_after_a_little_training_refinement_raises_the_elbo():
    scenes = make_towers(512)
    images = float_images(scenes.images)
    config = preset("emorl-towers")
    torch.manual_seed(0)
    system = build(config, scenes.image_shape)
    objective = Objective(system)
    optimizer = torch.optim.Adam(objective.parameters(), lr=4e-3)
    with pyro.validation_enabled(False):
        for step in range(150):
            optimizer.zero_grad()
            objective(images[16 * step % 448 :][:16]).loss.backward()
            optimizer.step()
    (model, guide, *_), elbo = result(system), TraceScene_ELBO()
    held_out = images[448:]
    elbos = []
    with torch.no_grad():
        posterior = guide.infer(held_out)
        for moments in (posterior.earlier[2], SlotMoments(posterior.loc, posterior.scale)):  # q_3, and q_3 refined
            torch.manual_seed(1)
            given = posterior._replace(loc=moments.loc, scale=moments.scale)
            elbos.append(-elbo.loss(model, partial(guide, inferred=given), held_out))
    assert elbos[1] > elbos[0] + 10  # nats per scene
