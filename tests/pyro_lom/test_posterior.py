"""Questions to a LOM: answers that follow from its densities, whatever it has learned."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from tiny import NUM_SLOTS, SCENE_DIM, SLOT_DIM, Programs, tiny_images, tiny_pair, tiny_system
from torch.utils._pytree import tree_leaves

from pyro_lom.errors import UserError
from pyro_lom.matching import permute
from pyro_lom.metrics.log_likelihood import effective_sample_size
from pyro_lom.networks.bag_of_words import BagOfWords
from pyro_lom.posterior import complete, explain, keep_slots, log_prob_of_slots
from pyro_lom.tempering import temperature

B, K = 3, NUM_SLOTS
IMAGES = tiny_images(B)
MASK = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
SLOTS = torch.full((B, K, SLOT_DIM), 7.0)


@pytest.fixture
def lom():
    return Programs(*(program.eval() for program in tiny_pair()))


class TestExplain:
    def test_it_tells_the_guides_means_and_what_the_model_draws_for_them(self, lom):
        torch.manual_seed(1)
        found = explain(*lom, IMAGES)
        torch.manual_seed(1)
        trace = poutine.trace(lom.guide).get_trace(IMAGES)
        torch.testing.assert_close(found.scene, trace.nodes["s"]["fn"].mean[:, 0])
        torch.testing.assert_close(
            found.slots, permute(trace.nodes["_RETURN"]["value"].orderless.loc, found.permutation)
        )
        torch.testing.assert_close(found.rendering.image, lom.model.render({"z": found.slots}).image)
        assert not any(part.requires_grad for part in (found.scene, found.slots, *found.rendering))

    def test_without_a_formula_the_mean_is_that_of_samples(self, lom):
        """The flow is the exponential: its mean is exp(loc + scale^2 / 2)."""
        lom.guide.scene_posterior = Flow(lom.guide.scene_posterior, transforms.ExpTransform())
        torch.manual_seed(1)
        found = explain(*lom, IMAGES)
        torch.manual_seed(1)
        base = poutine.trace(lom.guide).get_trace(IMAGES).nodes["s"]["fn"].base_dist
        exact = (base.mean + base.variance / 2).exp().squeeze(-2)
        deviation = exact * (base.variance.exp() - 1).sqrt().squeeze(-2)
        assert ((found.scene - exact).abs() < 5 * deviation / 256**0.5).all()

    def test_anything_but_a_lom_and_its_guide_is_refused(self, lom):
        orderless = tiny_system()["orderless"]
        for wrong in (
            (lom.guide, lom.model),
            orderless[:2],
            (lom.model, orderless.guide),
            (lom.model, AutoNormal(lom.model)),
        ):
            model, guide = (type(program).__name__ for program in wrong)
            with pytest.raises(
                UserError, match=f"{model} as the model and {guide} as the guide are not a LOM: pass the"
            ):
                explain(*wrong, IMAGES)
            with pytest.raises(UserError, match="are not a LOM: pass the model and the guide"):
                complete(*wrong, SLOTS, MASK)


class Flow(torch.nn.Module):
    """A transform of a head's normal, which has no formulas for its moments."""

    def __init__(self, head, transform):
        super().__init__()
        self.head, self.transform = head, transform

    def forward(self, features):
        return dist.TransformedDistribution(self.head(features), [self.transform])


class TestKeepSlots:
    def test_kept_slots_are_observed_and_the_others_drawn(self, lom):
        trace = poutine.trace(keep_slots(SLOTS, MASK)(lom.model)).get_trace(num_scenes=B)
        slots = trace.nodes["z"]["value"]
        assert (slots[MASK] == 7).all() and (slots[~MASK] != 7).all()
        torch.testing.assert_close(trace.nodes["x"]["fn"].mean[:, 0], lom.model.render({"z": slots}).image)

    def test_imagined_slots_come_from_the_prior(self, lom):
        scene = torch.randn(B, 1, SCENE_DIM)
        given = poutine.condition(lom.model, {"s": scene})
        torch.manual_seed(2)
        free = poutine.trace(given).get_trace(num_scenes=B).nodes["z"]["value"]
        torch.manual_seed(2)
        kept = poutine.trace(keep_slots(SLOTS, MASK)(given)).get_trace(num_scenes=B).nodes["z"]["value"]
        assert torch.equal(kept, torch.where(MASK[..., None], SLOTS, free))

    def test_the_log_density_is_of_the_kept_slots(self, lom):
        trace = poutine.trace(keep_slots(SLOTS, MASK)(lom.model)).get_trace(num_scenes=B)
        trace.compute_log_prob()
        expected = log_prob_of_slots(lom.model, trace.nodes["s"]["value"][:, 0], SLOTS)
        torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected * MASK)

    def test_replay_and_condition_decide_the_imagined_ones_alone(self, lom):
        earlier = poutine.trace(lom.model).get_trace(num_scenes=B)
        expected = torch.where(MASK[..., None], SLOTS, earlier.nodes["z"]["value"])
        inner = keep_slots(SLOTS, MASK)(poutine.replay(lom.model, trace=earlier))
        assert torch.equal(poutine.trace(inner).get_trace(num_scenes=B).nodes["z"]["value"], expected)

    def test_a_temperature_within_narrows_what_is_imagined(self, lom):
        scene = torch.randn(B, 1, SCENE_DIM)
        with (
            keep_slots(SLOTS, MASK),
            temperature(1e-6),
            poutine.trace() as tracer,
            poutine.condition(data={"s": scene}),
        ):
            lom.model(num_scenes=B)
        prior = lom.model.slot_prior(lom.model.order_net(scene[:, 0])).mean
        slots = tracer.trace.nodes["z"]["value"]
        torch.testing.assert_close(slots, torch.where(MASK[..., None], SLOTS, prior), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("parallel", [False, True])
    def test_in_predictive(self, lom, parallel):
        program = keep_slots(SLOTS, MASK)(lom.model)
        slots = Predictive(program, num_samples=4, parallel=parallel)(num_scenes=B)["z"]
        assert slots.shape == (4, B, K, SLOT_DIM)
        assert (slots[:, MASK] == 7).all()
        assert not torch.equal(slots[0], slots[1])


class TestComplete:
    def test_with_every_slot_kept_the_scene_is_recovered(self, lom):
        found = explain(*lom, IMAGES)
        everything = torch.ones(B, K, dtype=torch.bool)
        scenes = []
        for _ in range(10):
            completion = complete(*lom, found.slots, everything, num_steps=0, num_samples=1, num_completions=2)
            assert torch.equal(completion.slots, found.slots.expand(2, -1, -1, -1))
            torch.testing.assert_close(completion.rendering.image[1], found.rendering.image)
            scenes.append(completion.scene[0])
        deviation = lom.guide.infer_scene(found.slots).stddev.max().item()
        torch.testing.assert_close(torch.stack(scenes).mean(0), found.scene, rtol=0, atol=4 * deviation / 10**0.5)

    def test_refining_raises_the_bound_and_changes_no_parameter(self, lom):
        found = explain(*lom, IMAGES)
        before = [parameter.clone() for program in lom for parameter in program.parameters()]
        completion = complete(*lom, found.slots, MASK, num_steps=60, num_samples=50)
        assert (completion.elbo_after > completion.elbo_before).all()
        assert (completion.log_evidence > completion.elbo_after).all()
        assert ((completion.effective_sample_size >= 1) & (completion.effective_sample_size <= 50)).all()
        parameters = [parameter for program in lom for parameter in program.parameters()]
        assert all(map(torch.equal, before, parameters))
        assert all(parameter.grad is None for parameter in parameters)

    def test_kept_slots_are_kept_and_completions_differ(self, lom):
        completion = complete(*lom, SLOTS, MASK, num_steps=2, num_samples=5, num_completions=3)
        assert (completion.slots[:, MASK] == 7).all()
        assert not torch.equal(completion.slots[0][~MASK], completion.slots[1][~MASK])
        torch.testing.assert_close(completion.rendering.image, lom.model.render({"z": completion.slots}).image)

    def test_with_nothing_kept_nothing_is_learned(self, lom):
        """The bound is that of an empty observation: log 1."""
        nothing = torch.zeros(B, K, dtype=torch.bool)
        completion = complete(*lom, SLOTS, nothing, num_steps=500, learning_rate=0.1, num_samples=100)
        torch.testing.assert_close(completion.log_evidence, torch.zeros(B), rtol=0, atol=0.1)
        assert (completion.effective_sample_size > 80).all()

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_gradients_that_the_caller_disabled_change_nothing(self, lom, mode):
        options = dict(num_steps=3, num_samples=5)
        torch.manual_seed(1)
        expected = complete(*lom, explain(*lom, IMAGES).slots, MASK, **options)
        torch.manual_seed(1)
        with mode():
            completion = complete(*lom, explain(*lom, IMAGES).slots, MASK, **options)
        for found, wanted in zip(tree_leaves(completion), tree_leaves(expected), strict=True):
            assert torch.equal(found, wanted)
            assert not found.requires_grad and not found.is_inference()
        assert (completion.elbo_after > completion.elbo_before).any()

    def test_a_model_that_was_made_in_inference_mode_is_refused(self):
        with torch.inference_mode():
            made = [program.eval() for program in tiny_pair()]
        with pytest.raises(
            UserError, match=r"made or loaded in torch\.inference_mode, without gradients: load it outside"
        ):
            complete(*made, SLOTS, MASK)

    def test_a_posterior_without_formulas_starts_the_search_as_well(self, lom):
        lom.guide.scene_posterior = Flow(lom.guide.scene_posterior, transforms.TanhTransform())
        slots = lom.model(num_scenes=B, with_image=False).detach()
        completion = complete(*lom, slots, MASK, num_steps=60, num_samples=50)
        assert (completion.elbo_after[[0, 2]] > completion.elbo_before[[0, 2]]).all()
        assert (completion.slots[:, MASK] == slots[MASK]).all()

    def test_the_evidence_of_a_linear_model_is_exact(self, lom):
        """With z_k = head(s) + noise, kept slots are jointly normal."""
        head, scale = 0.1 * torch.randn(SLOT_DIM, SCENE_DIM), 0.5
        lom.model.order_net, lom.model.slot_prior = BagOfWords(K), LinearSlots(head, scale)
        slots, mask = torch.randn(2, K, SLOT_DIM), torch.tensor([[True, False, True], [False, True, False]])
        completion = complete(*lom, slots, mask, num_steps=200, learning_rate=0.1, num_samples=400)
        for evidence, some, where in zip(completion.log_evidence, slots, mask, strict=True):
            kept, loadings = some[where].flatten(), head.repeat(int(where.sum()), 1)
            covariance = loadings @ loadings.T + scale**2 * torch.eye(len(kept))
            truth = dist.MultivariateNormal(torch.zeros(len(kept)), covariance).log_prob(kept)
            assert evidence.item() == pytest.approx(truth.item(), abs=0.2)


class LinearSlots(torch.nn.Module):
    def __init__(self, head, scale):
        super().__init__()
        self.head, self.scale = head, scale

    def forward(self, scene):
        return dist.Normal(scene @ self.head.T, self.scale).to_event(1)


class TestInterventions:
    def test_do_sets_a_slot_and_leaves_the_scene_alone(self, lom):
        found = explain(*lom, IMAGES)
        edited = found.slots.clone()
        edited[:, 1] = found.slots[:, 1].roll(1, dims=0)
        torch.manual_seed(3)
        plain = poutine.trace(lom.model).get_trace(num_scenes=B)
        torch.manual_seed(3)
        done = poutine.trace(poutine.do(lom.model, {"z": edited})).get_trace(num_scenes=B)
        assert torch.equal(done.nodes["s"]["value"], plain.nodes["s"]["value"])
        torch.testing.assert_close(done.nodes["x"]["fn"].mean[:, 0], lom.model.render({"z": edited}).image)

    def test_the_prior_scores_each_slot_by_itself(self, lom):
        found = explain(*lom, IMAGES)
        edited = found.slots.clone()
        edited[:, 1] += 1
        change = log_prob_of_slots(lom.model, found.scene, edited) - log_prob_of_slots(
            lom.model, found.scene, found.slots
        )
        assert (change[:, 1] != 0).all() and not change[:, [0, 2]].any()


def test_effective_sample_size():
    assert effective_sample_size(torch.zeros(5)).item() == pytest.approx(5)
    assert effective_sample_size(torch.tensor([0.0, -1e3, -1e3])).item() == pytest.approx(1)
    assert effective_sample_size(torch.tensor([3.0, 3.0, -1e3])).item() == pytest.approx(2)
