"""GENESIS as a generative model: mask latents in turn, component latents given them, masks by stick breaking."""

import pytest
import torch
from pyro import poutine
from tiny import COMPONENT_DIM, IMAGE_SHAPE, NUM_SLOTS, SLOT_DIM, tiny_images, tiny_pair

from pyro_lom.tempering import temperature

B = 4
MASKS = [f"z_mask_{k}" for k in range(1, NUM_SLOTS + 1)]
COMPONENTS = [f"z_component_{k}" for k in range(1, NUM_SLOTS + 1)]


@pytest.fixture
def model():
    return tiny_pair("genesis").model.eval()


def trace_of(model, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(model).get_trace(*args, **kwargs)


def some_latents():
    values = {site: torch.randn(B, 1, SLOT_DIM) for site in MASKS}
    return values | {site: torch.randn(B, 1, COMPONENT_DIM) for site in COMPONENTS}


def test_without_images_it_samples_masks_then_components(model):
    trace = trace_of(model, num_scenes=B)
    assert trace.stochastic_nodes == ["scenes", *MASKS, "log_m", *COMPONENTS, "x"]
    for sites, size in ((MASKS, SLOT_DIM), (COMPONENTS, COMPONENT_DIM)):
        for site in sites:
            fn = trace.nodes[site]["fn"]
            assert (fn.batch_shape, fn.event_shape) == ((B, 1), (size,))
    assert trace.nodes["_RETURN"]["value"].shape == (B, 1, *IMAGE_SHAPE)


def test_images_are_observed(model):
    trace = trace_of(model, tiny_images(B))
    assert trace.nodes["x"]["is_observed"] and torch.equal(trace.nodes["x"]["value"], tiny_images(B).unsqueeze(1))


def test_the_first_mask_latent_is_standard_normal_and_the_others_are_bounded(model):
    trace = trace_of(model, num_scenes=B)
    first, *others = (trace.nodes[site]["fn"] for site in MASKS)
    assert not first.mean.any() and (first.stddev == 1).all()
    for prior in (*others, *(trace.nodes[site]["fn"] for site in COMPONENTS)):
        assert prior.mean.abs().max() < 1 and 0 < prior.stddev.min() and prior.stddev.max() < 1 + 2e-4


@pytest.mark.parametrize("moved", range(NUM_SLOTS))
def test_a_mask_latent_depends_on_those_before_and_a_component_on_its_mask(model, moved):
    given = some_latents()
    other = given | {MASKS[moved]: given[MASKS[moved]] + 1}
    first, second = (trace_of(poutine.condition(model, data), num_scenes=B) for data in (given, other))

    def changed(sites):
        return [not torch.equal(first.nodes[site]["fn"].mean, second.nodes[site]["fn"].mean) for site in sites]

    assert changed(MASKS) == [k > moved for k in range(NUM_SLOTS)]
    assert changed(COMPONENTS) == [k == moved for k in range(NUM_SLOTS)]


def test_masks_are_broken_off_in_turn(model):
    latents = some_latents()
    masks = model.render(latents).log_masks.exp()
    logits = model.mask_decoder(torch.cat([latents[site] for site in MASKS], dim=1))
    first = logits[:, 0].sigmoid()
    second = (1 - first) * logits[:, 1].sigmoid()
    torch.testing.assert_close(masks, torch.stack([first, second, 1 - first - second], dim=1))
    torch.testing.assert_close(model.render(latents).image, (masks * model.render(latents).components).sum(1))


@pytest.mark.parametrize("handler", [poutine.condition, poutine.do], ids=["condition", "do"])
def test_given_masks_set_the_image(model, handler):
    latents = some_latents()
    log_masks = torch.randn(B, 1, NUM_SLOTS, 1, *IMAGE_SHAPE[1:]).log_softmax(2)
    trace = trace_of(handler(poutine.condition(model, latents), data={"log_m": log_masks}), num_scenes=B)
    components = model.render(latents).components
    expected = (log_masks.squeeze(1).exp() * components).sum(1)
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean.squeeze(1), expected)


def test_observed_masks_are_not_decoded(model):
    log_masks = torch.randn(B, 1, NUM_SLOTS, 1, *IMAGE_SHAPE[1:]).log_softmax(2)
    model.mask_decoder.register_forward_hook(lambda *_: pytest.fail("it was called"))
    trace_of(poutine.condition(model, {"log_m": log_masks}), num_scenes=B)


def test_the_masks_have_no_density(model):
    trace = trace_of(model, num_scenes=B)
    trace.compute_log_prob()
    assert trace.nodes["log_m"]["log_prob"].shape == (B, 1) and not trace.nodes["log_m"]["log_prob"].any()


@pytest.mark.parametrize("site", [*MASKS, *COMPONENTS])
def test_temperature_narrows_every_latent_about_its_mean(model, site):
    given = poutine.condition(model, {name: value for name, value in some_latents().items() if name != site})
    fn = trace_of(given, num_scenes=B).nodes[site]["fn"]
    with temperature(0.5):
        narrow = trace_of(given, num_scenes=B).nodes[site]["fn"]
    torch.testing.assert_close(narrow.mean, fn.mean)
    torch.testing.assert_close(narrow.stddev, 0.5 * fn.stddev)
