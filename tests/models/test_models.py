"""The generative stories: what they sample, in which shapes, and what follows from what."""

import pytest
import torch
from pyro import poutine
from tiny import IMAGE_SHAPE, NETWORKS, NUM_SLOTS, SCENE_DIM, SLOT_DIM, WITH_SLOTS, tiny_images, tiny_pair

B, K = 4, NUM_SLOTS


@pytest.fixture(params=NETWORKS)
def lom(request):
    return tiny_pair(networks=request.param).model


@pytest.fixture(params=NETWORKS)
def genesis_v2(request):
    return tiny_pair("genesis-v2", request.param).model


def trace_of(model, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(model).get_trace(*args, **kwargs)


def shapes_of(trace):
    """Batch shape and event shape of every site that carries probability."""
    functions = {name: trace.nodes[name]["fn"] for name in ("s", "o", "z", "x") if name in trace.nodes}
    return {name: (fn.batch_shape, fn.event_shape) for name, fn in functions.items()}


class TestLatentObjectModel:
    def test_without_images_it_draws_scenes(self, lom):
        trace = trace_of(lom, num_scenes=B)
        assert shapes_of(trace) == {
            "s": ((B, 1), (SCENE_DIM,)),
            "z": ((B, K), (SLOT_DIM,)),
            "x": ((B, 1), IMAGE_SHAPE),
        }
        assert trace.nodes["h"]["value"].shape == (B, K, SLOT_DIM)
        assert trace.nodes["h"]["infer"]["_deterministic"]
        assert not trace.nodes["x"]["is_observed"]
        assert trace.nodes["_RETURN"]["value"] is trace.nodes["x"]["value"]

    def test_one_scene_is_the_default(self, lom):
        assert trace_of(lom).nodes["_RETURN"]["value"].shape == (1, 1, *IMAGE_SHAPE)

    def test_images_are_observed(self, lom):
        images = tiny_images(B)
        trace = trace_of(lom, images)
        assert trace.nodes["x"]["is_observed"]
        assert torch.equal(trace.nodes["x"]["value"], images.unsqueeze(1))
        assert shapes_of(trace)["x"] == ((B, 1), IMAGE_SHAPE)

    @pytest.mark.parametrize("handler", [poutine.condition, poutine.do], ids=["condition", "do"])
    def test_a_given_scene_sets_h_and_the_slot_prior(self, lom, handler):
        scene = torch.randn(B, 1, SCENE_DIM)
        trace = trace_of(handler(lom, data={"s": scene}), num_scenes=B)
        prior_order = lom.order_net(scene[:, 0])
        torch.testing.assert_close(trace.nodes["h"]["value"], prior_order)
        torch.testing.assert_close(trace.nodes["z"]["fn"].mean, lom.slot_prior(prior_order).mean)

    @pytest.mark.parametrize("handler", [poutine.condition, poutine.do], ids=["condition", "do"])
    def test_given_slots_set_the_image_and_not_the_scene(self, lom, handler):
        slots = torch.randn(B, K, SLOT_DIM)
        trace = trace_of(handler(lom, data={"z": slots}), num_scenes=B)
        torch.testing.assert_close(trace.nodes["x"]["fn"].mean[:, 0], lom.render({"z": slots}).image)
        assert torch.equal(trace.nodes["s"]["value"], trace_of(lom, num_scenes=B).nodes["s"]["value"])

    def test_the_prior_of_a_slot_depends_on_the_scene_and_its_place_alone(self, lom):
        scene = torch.randn(1, 1, SCENE_DIM).expand(B, -1, -1)
        prior = trace_of(poutine.condition(lom, data={"s": scene}), num_scenes=B).nodes["z"]["fn"]
        torch.testing.assert_close(prior.mean, prior.mean[:1].expand(B, -1, -1))
        assert (prior.mean[0, 0] != prior.mean[0, 1]).any()

    def test_part_of_a_batch_is_rendered_in_training_alone(self, lom):
        lom.num_rendered, images = 2, tiny_images(B)
        training = trace_of(lom, images)
        assert training.nodes["x"]["value"].shape == (2, 1, *IMAGE_SHAPE)
        assert training.nodes["z"]["value"].shape == (B, K, SLOT_DIM)
        chosen = training.nodes["rendered"]["value"]
        torch.testing.assert_close(training.nodes["x"]["value"][:, 0], images[chosen])
        slots = training.nodes["z"]["value"][chosen]
        torch.testing.assert_close(training.nodes["x"]["fn"].mean[:, 0], lom.render({"z": slots}).image)
        assert trace_of(lom, num_scenes=B).nodes["x"]["value"].shape == (B, 1, *IMAGE_SHAPE)
        assert trace_of(lom.eval(), images).nodes["x"]["value"].shape == (B, 1, *IMAGE_SHAPE)

    def test_the_scene_prior_is_standard_normal(self, lom):
        prior = trace_of(lom, num_scenes=B).nodes["s"]["fn"]
        assert not prior.mean.any()
        assert (prior.stddev == 1).all()


class TestGenesisV2:
    def test_without_images_it_draws_scenes(self, genesis_v2):
        trace = trace_of(genesis_v2, num_scenes=B)
        assert shapes_of(trace) == {"o": ((B, K), (SLOT_DIM,)), "x": ((B, 1), IMAGE_SHAPE)}
        assert not trace.nodes["x"]["is_observed"]

    def test_slots_are_independent_and_standard_normal(self, genesis_v2):
        prior = trace_of(genesis_v2, num_scenes=B).nodes["o"]["fn"]
        assert not prior.mean.any()
        assert (prior.stddev == 1).all()

    def test_given_slots_set_the_image(self, genesis_v2):
        slots = torch.randn(B, K, SLOT_DIM)
        trace = trace_of(poutine.condition(genesis_v2, data={"o": slots}), num_scenes=B)
        torch.testing.assert_close(trace.nodes["x"]["fn"].mean[:, 0], genesis_v2.render({"o": slots}).image)


class TestEfficientMorl:
    @pytest.fixture(params=NETWORKS)
    def emorl(self, request):
        return tiny_pair("emorl", request.param).model

    def test_without_images_it_draws_scenes_from_the_top_down(self, emorl):
        trace = trace_of(emorl, num_scenes=B)
        assert trace.stochastic_nodes == ["scenes", "slots", "o_3", "o_2", "o_1", "x"]
        for name in ("o_3", "o_2", "o_1"):
            assert (trace.nodes[name]["fn"].batch_shape, trace.nodes[name]["fn"].event_shape) == ((B, K), (SLOT_DIM,))
        assert (trace.nodes["x"]["fn"].batch_shape, trace.nodes["x"]["fn"].event_shape) == ((B, 1), IMAGE_SHAPE)

    def test_the_highest_slots_are_independent_and_standard_normal(self, emorl):
        prior = trace_of(emorl, num_scenes=B).nodes["o_3"]["fn"]
        assert not prior.mean.any()
        assert (prior.stddev == 1).all()

    @pytest.mark.parametrize(("above", "below"), [("o_3", "o_2"), ("o_2", "o_1")])
    def test_a_slot_depends_on_the_one_above_it_and_on_no_other(self, emorl, above, below):
        slots = torch.randn(B, K, SLOT_DIM)
        moved = slots.clone()
        moved[:, 1] += 1.0
        first, second = (
            trace_of(poutine.condition(emorl, {above: value}), num_scenes=B).nodes[below]["fn"]
            for value in (slots, moved)
        )
        assert (first.mean != second.mean).any(-1).all(0).tolist() == [False, True, False]
        assert (first.stddev != second.stddev).any(-1).all(0).tolist() == [False, True, False]

    def test_one_network_serves_both_lower_layers(self, emorl):
        slots = torch.randn(B, K, SLOT_DIM)
        trace = trace_of(poutine.condition(emorl, {"o_3": slots, "o_2": slots}), num_scenes=B)
        assert torch.equal(trace.nodes["o_2"]["fn"].mean, trace.nodes["o_1"]["fn"].mean)

    def test_the_image_shows_the_lowest_layer(self, emorl):
        trace = trace_of(emorl, num_scenes=B)
        expected = emorl.render({"o_1": trace.nodes["o_1"]["value"]}).image
        torch.testing.assert_close(trace.nodes["x"]["fn"].mean[:, 0], expected)


@pytest.fixture(params=[(system, networks) for system in WITH_SLOTS for networks in NETWORKS], ids=" ".join)
def model(request):
    return tiny_pair(*request.param).model


def draw(model, slots):
    """The rendering of slots (*batch, K, Dz), which a model has in one site or in several."""
    return model.render(model.split(slots))


class TestRendering:
    def test_masks_sum_to_one_and_weigh_the_components(self, model):
        image, components, log_masks = draw(model, torch.randn(2, B, K, model.slot_dim))
        assert image.shape == (2, B, *IMAGE_SHAPE)
        assert components.shape == (2, B, K, *IMAGE_SHAPE)
        assert log_masks.shape == (2, B, K, 1, *IMAGE_SHAPE[1:])
        torch.testing.assert_close(log_masks.exp().sum(-4), torch.ones(2, B, 1, *IMAGE_SHAPE[1:]))
        torch.testing.assert_close(image, (log_masks.exp() * components).sum(-4))
        assert 0 <= components.min() and components.max() <= 1

    def test_joined_sites_are_split_into_the_same_sites(self, model):
        slots = torch.randn(2, B, K, model.slot_dim)
        sites = model.split(slots)
        assert tuple(sites) == model.slot_sites
        assert torch.equal(model.join(sites), slots)
        trace = trace_of(model, num_scenes=B)
        assert all(sites[name][0].shape == trace.nodes[name]["value"].shape for name in sites)

    def test_the_order_of_the_slots_does_not_matter_to_the_image(self, model):
        if hasattr(model, "mask_sites"):
            pytest.skip("its masks take their shares one after another")
        slots, order = torch.randn(B, K, SLOT_DIM), torch.randperm(K)
        rendering, permuted = draw(model, slots), draw(model, slots[:, order])
        torch.testing.assert_close(permuted.image, rendering.image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(permuted.components, rendering.components[:, order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(permuted.log_masks, rendering.log_masks[:, order], rtol=1e-4, atol=1e-4)

    def test_the_image_is_normal_around_what_the_slots_show(self, model):
        trace = trace_of(model, num_scenes=B)
        latents = {name: trace.nodes[name]["value"] for name in (*model.scene_sites, *model.slot_sites)}
        torch.testing.assert_close(trace.nodes["x"]["fn"].mean[:, 0], model.render(latents).image)
        assert (trace.nodes["x"]["fn"].stddev == torch.tensor(0.7)).all()
