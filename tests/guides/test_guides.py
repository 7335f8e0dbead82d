"""Inference: what guides read off an image, what they borrow, and what the order of slots changes."""

import pytest
import torch
from pyro import poutine
from tiny import NETWORKS, NUM_SLOTS, SCENE_DIM, SLOT_DIM, tiny_images, tiny_pair
from torch.utils._pytree import tree_map_only

from pyro_lom.distributions import positive
from pyro_lom.matching import permute
from pyro_lom.types import OrderlessPosterior

B, K = 4, NUM_SLOTS
IMAGES = tiny_images(B)


def run(program, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(program).get_trace(*args, **kwargs)


def some_posterior():
    return OrderlessPosterior(torch.randn(B, K, SLOT_DIM), torch.rand(B, K, SLOT_DIM))


class TestGenesisV2Guide:
    @pytest.fixture(params=NETWORKS)
    def guide(self, request):
        return tiny_pair("genesis-v2", request.param).guide

    def test_sites_and_shapes(self, guide):
        trace = run(guide, IMAGES)
        assert trace.stochastic_nodes == ["scenes", "seed_scores", "slots", "o"]
        fn, seeds = trace.nodes["o"]["fn"], trace.nodes["seed_scores"]
        assert (fn.batch_shape, fn.event_shape) == ((B, K), (SLOT_DIM,))
        assert (seeds["fn"].batch_shape, seeds["fn"].event_shape) == ((B, 1), (1, 32, 32))
        assert seeds["infer"]["is_auxiliary"]
        assert not seeds["fn"].log_prob(seeds["value"]).any()

    def test_masks_sum_to_one(self, guide):
        log_masks = guide.infer(IMAGES).log_masks
        assert log_masks.shape == (B, K, 1, 32, 32)
        torch.testing.assert_close(log_masks.exp().sum(1), torch.ones(B, 1, 32, 32))

    def test_replayed_seeds_give_the_same_masks_and_new_ones_others(self, guide):
        trace = run(guide.infer, IMAGES)
        first, again = trace.nodes["_RETURN"]["value"], poutine.replay(guide.infer, trace=trace)(IMAGES)
        torch.testing.assert_close(first, again)
        assert not torch.allclose(guide.infer(IMAGES).log_masks, first.log_masks)

    def test_an_image_is_read_as_if_it_were_alone(self, guide):
        trace = run(guide.infer, IMAGES)
        seeds = trace.nodes["seed_scores"]["value"]
        alone = poutine.condition(guide.infer, {"seed_scores": seeds[1:2]})(IMAGES[1:2])
        expected = tree_map_only(torch.Tensor, lambda part: part[1:2], trace.nodes["_RETURN"]["value"])
        torch.testing.assert_close(alone, expected, rtol=1e-3, atol=1e-4)

    def test_a_posterior_inferred_before_is_the_one_sampled_from(self, guide):
        posterior = some_posterior()
        trace = run(guide, IMAGES, inferred=posterior)
        assert "seed_scores" not in trace.nodes
        torch.testing.assert_close(trace.nodes["o"]["fn"].mean, posterior.loc)
        torch.testing.assert_close(trace.nodes["o"]["fn"].stddev, posterior.scale)

    def test_it_samples_from_what_it_infers(self, guide):
        trace = run(guide, IMAGES)
        posterior = run(guide.infer, IMAGES).nodes["_RETURN"]["value"]
        torch.testing.assert_close(trace.nodes["o"]["fn"].mean, posterior.loc)
        torch.testing.assert_close(trace.nodes["o"]["fn"].stddev, posterior.scale)

    def test_clusters_do_not_learn_while_they_are_fixed(self):
        guide = tiny_pair("genesis-v2", "compact", fixed_clusters=3).guide
        for step, fixed in ((0, True), (2, True), (3, False)):
            guide.step.fill_(step)
            guide.zero_grad()
            posterior = run(guide.infer, IMAGES).nodes["_RETURN"]["value"]
            posterior.loc.square().sum().backward()
            learned = [guide.colouring.log_bandwidth.grad, guide.encoder.colour_map.grad]
            assert all(grad is None or not grad.any() for grad in learned) == fixed
            assert guide.readout.layers[0].weight.grad.any()

    def test_it_borrows_its_model(self, guide):
        assert not set(guide.model.parameters()) & set(guide.parameters())


class TestLatentObjectGuide:
    @pytest.fixture(params=["greedy", "hungarian"])
    def pair(self, request):
        return tiny_pair(matching=request.param)

    def test_sites_and_shapes(self, pair):
        trace = run(pair.guide, IMAGES)
        assert trace.stochastic_nodes == ["scenes", "seed_scores", "s", "slots", "z"]
        for name, batch, event in (("s", (B, 1), (SCENE_DIM,)), ("z", (B, K), (SLOT_DIM,))):
            assert (trace.nodes[name]["fn"].batch_shape, trace.nodes[name]["fn"].event_shape) == (batch, event)
        inferred = trace.nodes["_RETURN"]["value"]
        assert inferred.scene is trace.nodes["s"]["value"]
        assert inferred.slots is trace.nodes["z"]["value"]

    def test_it_infers_what_the_objective_could_have_handed_over(self, pair):
        torch.manual_seed(2)
        orderless = pair.guide.orderless_guide.infer(IMAGES)
        handed = pair.guide(IMAGES, inferred=orderless)
        alone = run(pair.guide, IMAGES).nodes["_RETURN"]["value"]
        torch.testing.assert_close(handed, alone)

    def test_slots_are_matched_to_the_prior_under_the_sampled_scene(self, pair):
        posterior = some_posterior()
        found = pair.guide(IMAGES, inferred=posterior)
        prior = pair.model.slot_prior(pair.model.order_net(found.scene[:, 0]))
        assert torch.equal(found.permutation, pair.guide.match(prior.mean, posterior.loc))

    def test_posterior_means_are_the_permuted_orderless_means(self, pair):
        posterior = some_posterior()
        trace = run(pair.guide, IMAGES, inferred=posterior)
        permutation = trace.nodes["_RETURN"]["value"].permutation
        torch.testing.assert_close(trace.nodes["z"]["fn"].mean, permute(posterior.loc, permutation))

    def test_the_order_of_the_orderless_slots_does_not_matter(self, pair):
        posterior, shuffle = some_posterior(), torch.rand(B, K).argsort(-1)
        shuffled = OrderlessPosterior(permute(posterior.loc, shuffle), permute(posterior.scale, shuffle))
        first, second = (run(pair.guide, IMAGES, inferred=p) for p in (posterior, shuffled))
        for name in ("s", "z"):
            torch.testing.assert_close(second.nodes[name]["fn"].mean, first.nodes[name]["fn"].mean)
            torch.testing.assert_close(second.nodes[name]["fn"].stddev, first.nodes[name]["fn"].stddev)
        places = second.nodes["_RETURN"]["value"].permutation
        assert torch.equal(shuffle.gather(-1, places), first.nodes["_RETURN"]["value"].permutation)

    def test_the_scale_of_place_k_depends_on_the_slots_placed_before_it(self, pair):
        posterior = some_posterior()
        scene = torch.randn(B, 1, SCENE_DIM)
        guide = poutine.condition(pair.guide, {"s": scene})
        found = run(guide, IMAGES, inferred=posterior)
        places = found.nodes["_RETURN"]["value"].permutation
        for k in range(K):
            index = places[:, k, None, None].expand(-1, 1, SLOT_DIM)
            moved = posterior.loc + 1e-3 * torch.zeros_like(posterior.loc).scatter(1, index, 1.0)
            after = run(guide, IMAGES, inferred=OrderlessPosterior(moved, posterior.scale))
            assert torch.equal(after.nodes["_RETURN"]["value"].permutation, places)
            changed = (after.nodes["z"]["fn"].stddev != found.nodes["z"]["fn"].stddev).any(-1)
            assert torch.equal(changed, (torch.arange(K) > k).expand(B, K))

    def test_a_bound_of_the_scales(self):
        guide, posterior = tiny_pair().guide, some_posterior()
        assert guide.largest_scale is None and tiny_pair(largest_scale=1.0).guide.largest_scale == 1
        with torch.no_grad():
            guide.scale_head.bias.copy_(torch.linspace(-6, 30, SLOT_DIM))
        free = run(guide, IMAGES, inferred=posterior).nodes["z"]["fn"].stddev
        guide.largest_scale = 1.0
        bounded = run(guide, IMAGES, inferred=posterior).nodes["z"]["fn"].stddev
        assert free.max() > 10 and bounded.max() < 1
        torch.testing.assert_close(bounded[free < 0.05], free[free < 0.05], rtol=0.002, atol=0)
        torch.testing.assert_close(bounded, (1 + free**-2).rsqrt())

    def test_without_order_aware_scales_those_of_the_orderless_posterior_come_along(self):
        pair, posterior = tiny_pair(order_aware_scales=False), some_posterior()
        trace = run(pair.guide, IMAGES, inferred=posterior)
        permutation = trace.nodes["_RETURN"]["value"].permutation
        assert torch.equal(trace.nodes["z"]["fn"].stddev, permute(posterior.scale, permutation))
        assert {name.split(".")[0] for name in pair.guide.state_dict()} == {"scene_encoder", "scene_posterior"}

    def test_shared_order_nets_are_one(self):
        pair, posterior = tiny_pair(shared_order_nets=True), some_posterior()
        trace = run(pair.guide, IMAGES, inferred=posterior)
        found = trace.nodes["_RETURN"]["value"]
        aligned = permute(posterior.loc, found.permutation)
        hidden = pair.model.order_net.run(found.scene[:, 0], aligned[:, :-1], K)
        expected = positive(pair.guide.scale_head(hidden))
        torch.testing.assert_close(trace.nodes["z"]["fn"].stddev, expected)
        prefixes = {name.split(".")[0] for name in pair.guide.state_dict()}
        assert prefixes == {"scene_encoder", "scene_posterior", "scale_head"}
        trace.nodes["z"]["fn"].stddev.sum().backward()
        assert all(parameter.grad is not None for parameter in pair.model.order_net.blocks.parameters())

    def test_orderless_scales_are_not_read(self, pair):
        posterior = some_posterior()
        widened = OrderlessPosterior(posterior.loc, 3 * posterior.scale)
        first, second = (run(pair.guide, IMAGES, inferred=p) for p in (posterior, widened))
        for name in ("s", "z"):
            assert torch.equal(first.nodes[name]["value"], second.nodes[name]["value"])

    def test_no_gradient_reaches_the_orderless_guide(self, pair):
        found = pair.guide(IMAGES)
        assert not any(part.requires_grad for part in found.orderless[:3])
        (found.scene.sum() + found.slots.sum()).backward()
        assert all(parameter.grad is None for parameter in pair.guide.orderless_guide.parameters())

    def test_it_borrows_its_model_and_the_orderless_guide(self, pair):
        lent = {*pair.model.parameters(), *pair.guide.orderless_guide.parameters()}
        assert not lent & set(pair.guide.parameters())
        prefixes = {name.split(".")[0] for name in pair.guide.state_dict()}
        assert prefixes == {"scene_encoder", "scene_posterior", "order_net", "scale_head"}
