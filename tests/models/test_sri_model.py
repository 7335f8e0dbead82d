"""SRI's model: slot after slot from a scene, decoded by a decoder of its own."""

from dataclasses import replace

import pytest
import torch
from pyro import poutine
from tiny import IMAGE_SHAPE, NETWORKS, NUM_SLOTS, SCENE_DIM, SLOT_DIM, tiny_images, tiny_pair, tiny_system

from experiments.systems import build, preset
from pyro_lom.tempering import temperature

B = 4
SYSTEM = "sri-genesis-v2"
SLOTS = [f"z_{k}" for k in range(1, NUM_SLOTS + 1)]


@pytest.fixture
def model():
    return tiny_pair(SYSTEM).model


def trace_of(model, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(model).get_trace(**kwargs)


def prior_of(trace, site):
    return trace.nodes[site]["fn"].mean, trace.nodes[site]["fn"].stddev


@pytest.mark.parametrize("networks", NETWORKS)
def test_without_images_it_draws_scenes_slot_after_slot(networks):
    trace = trace_of(tiny_pair(SYSTEM, networks).model, num_scenes=B)
    assert trace.stochastic_nodes == ["scenes", "s", *SLOTS, "x"]
    for site in ("s", *SLOTS):
        fn = trace.nodes[site]["fn"]
        assert fn.event_shape == (SCENE_DIM if site == "s" else SLOT_DIM,)
        assert trace.nodes[site]["value"].shape == (B, 1, *fn.event_shape)
    assert trace.nodes["_RETURN"]["value"].shape == (B, 1, *IMAGE_SHAPE)


def test_images_are_observed(model):
    images = tiny_images(B)
    trace = poutine.trace(model).get_trace(images)
    assert trace.nodes["x"]["is_observed"] and torch.equal(trace.nodes["x"]["value"], images.unsqueeze(1))


@pytest.mark.parametrize("moved", range(NUM_SLOTS))
def test_the_prior_of_a_slot_depends_on_those_before_it_alone(model, moved):
    given = {site: torch.randn(B, 1, SLOT_DIM) for site in SLOTS}
    other = given | {SLOTS[moved]: given[SLOTS[moved]] + 1}
    first, second = (trace_of(poutine.condition(model, data), num_scenes=B) for data in (given, other))
    for moment in (0, 1):
        changed = [not torch.equal(prior_of(first, site)[moment], prior_of(second, site)[moment]) for site in SLOTS]
        assert changed == [k > moved for k in range(NUM_SLOTS)]


@pytest.mark.parametrize("site", SLOTS)
def test_every_slot_depends_on_the_scene(model, site):
    given = {before: torch.randn(B, 1, SLOT_DIM) for before in SLOTS}
    scene = torch.randn(B, 1, SCENE_DIM)
    first, second = (trace_of(poutine.do(model, given | {"s": s}), num_scenes=B) for s in (scene, scene + 1))
    assert (prior_of(first, site)[0] != prior_of(second, site)[0]).any()


def test_temperature_narrows_every_slot_about_its_mean(model):
    given = {site: torch.randn(B, 1, SLOT_DIM) for site in SLOTS[:-1]} | {"s": torch.randn(B, 1, SCENE_DIM)}
    conditioned = poutine.condition(model, given)
    mean, stddev = prior_of(trace_of(conditioned, num_scenes=B), SLOTS[-1])
    with temperature(0.5):
        narrow_mean, narrow_stddev = prior_of(trace_of(conditioned, num_scenes=B), SLOTS[-1])
    torch.testing.assert_close(narrow_mean, mean)
    torch.testing.assert_close(narrow_stddev, 0.5 * stddev)


def test_its_decoder_is_its_own():
    system = tiny_system(SYSTEM)
    mine, theirs = (system[pair].model.decoder for pair in ("ordered", "orderless"))
    assert not {*mine.parameters()} & {*theirs.parameters()}
    model, slots = system["ordered"].model, torch.randn(B, NUM_SLOTS, SLOT_DIM)
    model.render(dict(zip(SLOTS, slots.split(1, dim=1), strict=True))).image.sum().backward()
    assert all(parameter.grad is not None for parameter in mine.parameters())
    assert all(parameter.grad is None for parameter in theirs.parameters())


@pytest.mark.parametrize("num_slots", [7, 9])
def test_it_has_the_published_number_of_parameters(num_slots):
    config = preset("sri-shapestacks")
    system = build(replace(config, model=replace(config.model, num_slots=num_slots)), (3, 64, 64))
    programs = [program for pair in system.values() for program in pair[:2]]
    assert sum(parameter.numel() for program in programs for parameter in program.parameters()) == 3_634_450
