"""NVAE's model: groups of latents from the top, features that are computed once, and one image."""

import pytest
import torch
from pyro import poutine
from tiny import IMAGE_SHAPE, tiny_images, tiny_pair

from experiments.systems import build, preset
from pyro_lom.tempering import temperature

B = 4
LATENTS = {"z_1": 128, "z_2": 512, "z_3": 512}


@pytest.fixture
def pair():
    pair = tiny_pair("nvae")
    return type(pair)(pair.model.eval(), pair.guide.eval())


def trace_of(model, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(model).get_trace(*args, **kwargs)


def test_without_images_it_draws_scenes_from_the_top(pair):
    trace = trace_of(pair.model, num_scenes=B)
    assert [name for name in trace.nodes if name[:2] in ("z_", "h_")] == ["z_1", "h_2", "z_2", "h_3", "z_3"]
    for name, size in LATENTS.items():
        fn = trace.nodes[name]["fn"]
        assert (fn.batch_shape, fn.event_shape) == ((B, 1), (size,))
    top = trace.nodes["z_1"]["fn"]
    assert not top.mean.any() and torch.allclose(top.stddev, torch.tensor(1.01))
    assert trace.nodes["x"]["fn"].event_shape == IMAGE_SHAPE


def test_locs_and_log_scales_are_clamped(pair):
    with torch.no_grad():
        pair.model.prior_heads[0][1].bias.copy_(torch.tensor([1e4, -1e4, 1e4, -1e4]))
    fn = trace_of(pair.model, num_scenes=B).nodes["z_2"]["fn"]
    loc, scale = fn.mean.unflatten(-1, (2, -1)), fn.stddev.unflatten(-1, (2, -1))
    torch.testing.assert_close(loc.amax((0, 1, 3)), torch.tensor([5.0, -5.0]))
    torch.testing.assert_close(scale.amax((0, 1, 3)), torch.tensor([5.0, -5.0]).exp() + 0.01)


def test_replayed_it_takes_the_features_of_the_guide(pair):
    pair.model.train(), pair.guide.train()
    guided = trace_of(pair.guide, tiny_images(B))
    norms = [module for module in pair.model.descents.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and {module.num_batches_tracked.item() for module in norms} == {1}
    trace = trace_of(poutine.replay(pair.model, trace=guided), tiny_images(B))
    assert all(trace.nodes[name]["value"] is guided.nodes[name]["value"] for name in ("h_2", "h_3"))
    assert {module.num_batches_tracked.item() for module in norms} == {1}


def test_the_backward_pass_leaves_running_statistics_as_they_are(pair):
    model = pair.model.train()
    image = trace_of(model, num_scenes=B).nodes["x"]["fn"].mean
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image.sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.05}


def test_a_temperature_multiplies_the_scale_of_every_group(pair):
    warm = trace_of(pair.model, num_scenes=B)
    for name in LATENTS:
        given = {other: warm.nodes[other]["value"] for other in LATENTS if other < name}
        cold = trace_of(temperature(0.5)(poutine.condition(pair.model, given)), num_scenes=B)
        torch.testing.assert_close(cold.nodes[name]["fn"].stddev, 0.5 * warm.nodes[name]["fn"].stddev)


def test_given_latents_set_the_image(pair):
    latents = {name: torch.randn(B, 1, size) for name, size in LATENTS.items()}
    trace = trace_of(poutine.condition(pair.model, latents), num_scenes=B)
    rendering = pair.model.render(latents)
    torch.testing.assert_close(rendering.image, trace.nodes["x"]["fn"].mean.squeeze(1))
    assert rendering.log_masks is None and (rendering.image[0] != rendering.image[1]).any()


@pytest.mark.parametrize(("size", "num_parameters", "top"), [(64, 10_625_488, 1280), (96, 10_635_728, 2880)])
def test_the_published_size(size, num_parameters, top):
    model, guide, _, _ = build(preset("nvae-clevr6"), (3, size, size))["model"]
    assert sum(parameter.numel() for program in (model, guide) for parameter in program.parameters()) == num_parameters
    assert len(model.latent_sites) == 35 and model.first_prior.numel() == 2 * top
