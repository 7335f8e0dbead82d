"""The autoregressive slot prior: slot after slot, from a scene or from none, drawn by the orderless model's decoder."""

import pytest
import torch
from pyro import poutine
from tiny import IMAGE_SHAPE, NETWORKS, NUM_SLOTS, SCENE_DIM, SLOT_DIM, tiny_images, tiny_pair, tiny_system

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.tempering import temperature

B = 4
SLOTS = [f"z_{k}" for k in range(1, NUM_SLOTS + 1)]
WITHOUT, WITH = "autoregressive-emorl", "scene-autoregressive-emorl"


@pytest.fixture(params=[WITHOUT, WITH])
def system(request):
    return tiny_system(request.param)


def trace_of(model, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(model).get_trace(**kwargs)


def prior_of(trace, site):
    return trace.nodes[site]["fn"].mean, trace.nodes[site]["fn"].stddev


@pytest.mark.parametrize(("name", "latents"), [(WITHOUT, SLOTS), (WITH, ["s", *SLOTS])])
@pytest.mark.parametrize("networks", NETWORKS)
def test_without_images_it_draws_scenes_slot_after_slot(name, networks, latents):
    trace = trace_of(tiny_pair(name, networks).model, num_scenes=B)
    assert trace.stochastic_nodes == ["scenes", *latents, "x"]
    for site in latents:
        fn = trace.nodes[site]["fn"]
        assert (fn.batch_shape, fn.event_shape) == ((B, 1), (SCENE_DIM if site == "s" else SLOT_DIM,))
    assert trace.nodes["_RETURN"]["value"].shape == (B, 1, *IMAGE_SHAPE)


def test_images_are_observed(system):
    images = tiny_images(B)
    trace = poutine.trace(system["ordered"].model).get_trace(images)
    assert trace.nodes["x"]["is_observed"] and torch.equal(trace.nodes["x"]["value"], images.unsqueeze(1))


@pytest.mark.parametrize("moved", range(NUM_SLOTS))
def test_the_prior_of_a_slot_depends_on_those_before_it_alone(system, moved):
    model = system["ordered"].model
    given = {site: torch.randn(B, 1, SLOT_DIM) for site in SLOTS}
    other = given | {SLOTS[moved]: given[SLOTS[moved]] + 1}
    first, second = (trace_of(poutine.condition(model, data), num_scenes=B) for data in (given, other))
    changed = [not torch.equal(prior_of(first, site)[0], prior_of(second, site)[0]) for site in SLOTS]
    assert changed == [k > moved for k in range(NUM_SLOTS)]
    changed = [not torch.equal(prior_of(first, site)[1], prior_of(second, site)[1]) for site in SLOTS]
    assert changed == [k > moved for k in range(NUM_SLOTS)]


def test_without_a_scene_the_first_slot_is_the_same_for_all():
    mean, stddev = prior_of(trace_of(tiny_pair(WITHOUT).model, num_scenes=B), "z_1")
    for part in (mean, stddev):
        torch.testing.assert_close(part, part[:1].expand(B, -1, -1))


def test_the_scene_sets_the_first_slot():
    model = tiny_pair(WITH).model
    scene = torch.randn(B, 1, SCENE_DIM)
    mean, _ = prior_of(trace_of(poutine.condition(model, {"s": scene}), num_scenes=B), "z_1")
    torch.testing.assert_close(mean, model.slot_prior(model.recurrence.start(scene)[0]).mean)
    assert (mean[0] != mean[1]).any()


@pytest.mark.parametrize("site", SLOTS)
def test_temperature_narrows_every_slot_about_its_mean(system, site):
    given = {before: torch.randn(B, 1, SLOT_DIM) for before in SLOTS[: SLOTS.index(site)]}
    if "s" in trace_of(system["ordered"].model).nodes:
        given["s"] = torch.randn(B, 1, SCENE_DIM)
    model = poutine.condition(system["ordered"].model, given)
    mean, stddev = prior_of(trace_of(model, num_scenes=B), site)
    with temperature(0.5):
        narrow_mean, narrow_stddev = prior_of(trace_of(model, num_scenes=B), site)
    torch.testing.assert_close(narrow_mean, mean)
    torch.testing.assert_close(narrow_stddev, 0.5 * stddev)


def test_it_draws_with_the_orderless_models_decoder_as_it_stands(system):
    model, lender = system["ordered"].model, system["orderless"].model
    slots = torch.randn(B, NUM_SLOTS, SLOT_DIM, requires_grad=True)
    rendering = model.render(dict(zip(SLOTS, slots.split(1, dim=1), strict=True)))
    torch.testing.assert_close(rendering, lender.render({"o_1": slots}))
    rendering.image.sum().backward()
    assert slots.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in lender.parameters())
    assert {name.split(".")[0] for name in model.state_dict()} <= {"recurrence", "slot_prior", "scene_prior"}


def test_training_it_moves_every_parameter_of_its_own_and_none_of_the_orderless_pair(system):
    TraceScene_ELBO().differentiable_loss(*system["ordered"][:2], tiny_images(B)).backward()
    own = [parameter for program in system["ordered"][:2] for parameter in program.parameters()]
    assert own and all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in own)
    lent = [parameter for program in system["orderless"][:2] for parameter in program.parameters()]
    assert all(parameter.grad is None for parameter in lent)


def test_the_image_says_nothing_to_its_parameters(system):
    """A.5 adds KLs alone to the orderless model's ELBO: slots are stopped, and so is the decoder."""
    terms = TraceScene_ELBO().terms(*system["ordered"][:2], tiny_images(B))
    assert not terms.log_likelihood["x"].requires_grad
    assert all(terms.kl[site].requires_grad for site in SLOTS)
