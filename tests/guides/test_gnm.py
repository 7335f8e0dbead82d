"""GNM's guide: scene latents in turn from image and canvas; cells and background from the image alone."""

import pytest
import torch
from pyro import poutine
from tiny import CELLS, COMPONENT_DIM, SLOT_DIM, tiny_images, tiny_pair

from pyro_lom.elbo import TraceScene_ELBO

B, N = 4, CELLS**2
IMAGES = tiny_images(B)
SCENE = ["z_g_1", "z_g_2"]
CELL_DIMS = {"z_pres": 1, "z_where": 4, "z_depth": 1, "z_what": COMPONENT_DIM}


@pytest.fixture
def pair():
    return tiny_pair("gnm")


def run(program, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(program).get_trace(*args, **kwargs)


def test_sites_and_shapes(pair):
    model, guide = pair
    trace = run(guide, IMAGES)
    assert trace.stochastic_nodes == ["scenes", *SCENE, "z_bg", "cells", *CELL_DIMS]
    for site in SCENE:
        assert (trace.nodes[site]["fn"].batch_shape, trace.nodes[site]["fn"].event_shape) == ((B, 1), (SLOT_DIM,))
    for site, size in CELL_DIMS.items():
        assert (trace.nodes[site]["fn"].batch_shape, trace.nodes[site]["fn"].event_shape) == ((B, N), (size,))
    slots = model.join({site: trace.nodes[site]["value"] for site in model.slot_sites})
    assert torch.equal(trace.nodes["_RETURN"]["value"], slots)


def test_the_second_scene_latent_depends_on_the_first_and_the_cells_do_not(pair):
    first, second = (
        run(poutine.condition(pair.guide, {"z_g_1": value}), IMAGES) for value in torch.randn(2, B, 1, SLOT_DIM)
    )
    sites = [*SCENE, "z_bg", *CELL_DIMS]
    changed = [not torch.equal(first.nodes[site]["fn"].mean, second.nodes[site]["fn"].mean) for site in sites]
    assert changed == [site == "z_g_2" for site in sites]


def test_cells_are_read_with_the_models_net(pair):
    model, guide = pair
    raw = model.cells(guide.infer(IMAGES))
    trace = run(guide, IMAGES)
    torch.testing.assert_close(trace.nodes["z_what"]["fn"].mean, raw["z_what"][..., :COMPONENT_DIM])
    torch.testing.assert_close(trace.nodes["z_pres"]["fn"].base_dist.logits, 8.8 * raw["z_pres"].tanh())


def test_features_inferred_before_are_used(pair):
    expected = run(pair.guide, IMAGES).nodes["_RETURN"]["value"]
    inferred = pair.guide.infer(IMAGES)
    pair.guide.encoder = None
    torch.testing.assert_close(run(pair.guide, IMAGES, inferred=inferred).nodes["_RETURN"]["value"], expected)


def test_masks_are_those_of_a_rendering_of_sampled_slots(pair):
    model, guide = pair
    inferred = guide.infer(IMAGES)
    log_masks = guide.log_masks(inferred)
    assert log_masks.shape == (B, N + 1, 1, 32, 32)
    torch.testing.assert_close(log_masks.exp().sum(1), torch.ones(B, 1, 32, 32))


def test_it_borrows_its_model(pair):
    assert not set(pair.model.parameters()) & set(pair.guide.parameters())


def test_every_parameter_trains(pair):
    TraceScene_ELBO().differentiable_loss(*pair, IMAGES).backward()
    for program in pair:
        for name, parameter in program.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
