"""The VAE's model: one latent, one image."""

import pytest
import torch
from pyro import poutine
from tiny import IMAGE_SHAPE, SCENE_DIM, tiny_images, tiny_pair

B = 4


@pytest.fixture
def model():
    return tiny_pair("vae").model


def trace_of(model, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(model).get_trace(*args, **kwargs)


def test_without_images_it_draws_scenes(model):
    trace = trace_of(model, num_scenes=B)
    assert trace.stochastic_nodes == ["scenes", "s", "x"]
    shapes = {name: (trace.nodes[name]["fn"].batch_shape, trace.nodes[name]["fn"].event_shape) for name in "sx"}
    assert shapes == {"s": ((B, 1), (SCENE_DIM,)), "x": ((B, 1), IMAGE_SHAPE)}
    prior = trace.nodes["s"]["fn"]
    assert not prior.mean.any() and (prior.stddev == 1).all()
    assert trace.nodes["_RETURN"]["value"] is trace.nodes["x"]["value"]


def test_images_are_observed(model):
    images = tiny_images(B)
    trace = trace_of(model, images)
    assert trace.nodes["x"]["is_observed"] and torch.equal(trace.nodes["x"]["value"], images.unsqueeze(1))


@pytest.mark.parametrize("handler", [poutine.condition, poutine.do], ids=["condition", "do"])
def test_a_given_latent_sets_the_image(model, handler):
    scene = torch.randn(B, 1, SCENE_DIM)
    likelihood = trace_of(handler(model, data={"s": scene}), num_scenes=B).nodes["x"]["fn"]
    rendering = model.render({"s": scene})
    torch.testing.assert_close(likelihood.mean[:, 0], rendering.image)
    assert (likelihood.stddev == torch.tensor(0.7)).all()
    assert rendering.components is None and rendering.log_masks is None
    assert 0 < rendering.image.min() and rendering.image.max() < 1 and (rendering.image[0] != rendering.image[1]).any()


def test_latents_of_any_batch_are_rendered(model):
    scenes = torch.randn(2, B, 1, SCENE_DIM)
    together = model.render({"s": scenes}).image
    assert together.shape == (2, B, *IMAGE_SHAPE)
    torch.testing.assert_close(together[1], model.render({"s": scenes[1]}).image)
