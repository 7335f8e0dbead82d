"""GNM as a generative model: scene latents in turn, then what is in each cell, then a picture of it."""

import pytest
import torch
from pyro import poutine
from tiny import CELLS, COMPONENT_DIM, IMAGE_SHAPE, SLOT_DIM, tiny_images, tiny_pair

from pyro_lom.modes import modes
from pyro_lom.networks.gnm import boxes, place
from pyro_lom.tempering import temperature

B, N = 4, CELLS**2
SCENE = ["z_g_1", "z_g_2"]
CELL_DIMS = {"z_pres": 1, "z_where": 4, "z_depth": 1, "z_what": COMPONENT_DIM}


@pytest.fixture
def model():
    model = tiny_pair("gnm").model.eval()
    model.step.fill_(1000)  # after the first steps, whose alpha is fixed
    return model


def trace_of(model, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(model).get_trace(*args, **kwargs)


def some_latents(*batch):
    latents = {site: torch.randn(*batch, N, size) for site, size in CELL_DIMS.items()}
    return latents | {"z_pres": torch.rand(*batch, N, 1), "z_bg": torch.randn(*batch, 1, COMPONENT_DIM)}


def test_without_images_it_samples_the_scene_then_the_background_and_the_cells(model):
    trace = trace_of(model, num_scenes=B)
    assert trace.stochastic_nodes == ["scenes", *SCENE, "z_bg", "cells", *CELL_DIMS, "x"]
    expected = {**dict.fromkeys(SCENE, ((B, 1), (SLOT_DIM,))), "z_bg": ((B, 1), (COMPONENT_DIM,))}
    expected |= {site: ((B, N), (size,)) for site, size in CELL_DIMS.items()} | {"x": ((B, 1), IMAGE_SHAPE)}
    shapes = {name: (trace.nodes[name]["fn"].batch_shape, trace.nodes[name]["fn"].event_shape) for name in expected}
    assert shapes == expected
    assert trace.nodes["_RETURN"]["value"].shape == (B, 1, *IMAGE_SHAPE)
    assert 0 < trace.nodes["z_pres"]["value"].min() and trace.nodes["z_pres"]["value"].max() < 1


def test_images_are_observed(model):
    trace = trace_of(model, tiny_images(B))
    assert trace.nodes["x"]["is_observed"] and torch.equal(trace.nodes["x"]["value"], tiny_images(B).unsqueeze(1))


@pytest.mark.parametrize("moved", SCENE)
def test_what_follows_a_scene_latent_depends_on_it(model, moved):
    given = {site: torch.randn(B, 1, SLOT_DIM) for site in SCENE}
    other = given | {moved: given[moved] + 1}
    first, second = (trace_of(poutine.condition(model, data), num_scenes=B) for data in (given, other))
    sites = [*SCENE, "z_bg", *CELL_DIMS]
    changed = [not torch.equal(first.nodes[site]["fn"].mean, second.nodes[site]["fn"].mean) for site in sites]
    assert changed == [moved == "z_g_1" and site == "z_g_2" or site not in SCENE for site in sites]


@pytest.mark.parametrize("handler", [poutine.condition, poutine.do], ids=["condition", "do"])
def test_given_cells_and_background_set_the_image(model, handler):
    latents = some_latents(B)
    trace = trace_of(handler(model, data=latents), num_scenes=B)
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean.squeeze(1), model.render(latents).image)


@pytest.mark.parametrize("step", [0, 1000])
def test_masks_sum_to_one_and_weigh_the_components(model, step):
    model.step.fill_(step)
    image, components, log_masks = model.render(some_latents(2, B))
    assert components.shape == (2, B, N + 1, *IMAGE_SHAPE) and log_masks.shape == (2, B, N + 1, 1, *IMAGE_SHAPE[1:])
    torch.testing.assert_close(log_masks.exp().sum(-4), torch.ones(2, B, 1, *IMAGE_SHAPE[1:]))
    torch.testing.assert_close(image, (log_masks.exp() * components).sum(-4))
    assert components.min() >= 0 and (step == 0 or components.max() <= 1)


def test_without_objects_there_is_the_background_alone(model):
    latents = some_latents(B) | {"z_pres": torch.zeros(B, N, 1)}
    rendering = model.render(latents)
    background = model.background_decoder(latents["z_bg"]).sigmoid()
    torch.testing.assert_close(rendering.image, background.squeeze(1))
    assert (rendering.log_masks.argmax(1) == N).all()


def test_a_small_depth_is_in_front(model):
    latents = some_latents(1) | {"z_pres": torch.ones(1, N, 1), "z_where": torch.zeros(1, N, 4)}
    latents["z_where"][..., 0] = 2.0  # large boxes, which overlap
    latents["z_depth"] = torch.tensor([[[-9.0], [9.0], [9.0], [9.0]]])
    layers = model.paint(latents)
    seen = layers.opacity[0, 0] > 0.1
    assert seen.sum() > 100 and (layers.importance[0, 0][seen] > 0.9).all()


def test_in_the_first_steps_alpha_is_fixed_and_has_no_gradient(model):
    latents = {site: value.requires_grad_() for site, value in some_latents(B).items()}
    for step, is_early in ((0, True), (498, True), (499, False)):  # published steps 1, 499 and 500
        model.step.fill_(step)
        alpha = model.paint(latents).alpha
        assert bool((alpha == 0.9).all()) == is_early
        (gradient,) = torch.autograd.grad(alpha.sum(), latents["z_pres"], allow_unused=True)
        assert bool(gradient.any()) != is_early


def test_alpha_is_clamped_and_its_gradient_is_not(model):
    latents = some_latents(1) | {"z_pres": torch.full((1, N, 1), 50.0).requires_grad_()}
    alpha = model.paint(latents).alpha
    assert alpha.max() == 1
    (gradient,) = torch.autograd.grad(alpha.sum(), latents["z_pres"])
    torch.testing.assert_close(gradient.squeeze(-1), model.paint(latents).opacity.sum((2, 3, 4)) / 50)


def test_a_cell_is_present_or_not_more_clearly_in_later_steps(model):
    relaxations = []
    for step in (0, 1000, 10_500, 20_000, 30_000):
        model.step.fill_(step)
        relaxations.append(trace_of(model).nodes["z_pres"]["fn"].base_dist.relaxation.item())
    assert relaxations == [1.0, 1.0, 0.75, 0.5, 0.5]


def test_by_modes_everything_follows_from_the_scene(model):
    given = {site: torch.randn(B, 1, SLOT_DIM) for site in SCENE}
    with modes(*model.mode_sites):
        traces = [poutine.trace(poutine.condition(model, given)).get_trace(num_scenes=B) for _ in range(2)]
    first, second = (trace.nodes for trace in traces)
    for site in model.mode_sites:
        assert torch.equal(first[site]["value"], second[site]["value"])
        if site != "z_pres":
            assert torch.equal(first[site]["value"], first[site]["fn"].mean)
    assert torch.equal(first["z_pres"]["value"], (first["z_pres"]["fn"].mean > 0.5).float())
    assert set(model.mode_sites).isdisjoint(model.scene_sites)


@pytest.mark.parametrize("site", [*SCENE, "z_bg", "z_where", "z_depth", "z_what"])
def test_temperature_narrows_every_normal_about_its_mean(model, site):
    given = poutine.condition(model, {name: torch.randn(B, 1, SLOT_DIM) for name in SCENE if name != site})
    fn = trace_of(given, num_scenes=B).nodes[site]["fn"]
    with temperature(0.5):
        narrow = trace_of(given, num_scenes=B).nodes[site]["fn"]
    if site != "z_g_2":
        torch.testing.assert_close(narrow.mean, fn.mean)
        torch.testing.assert_close(narrow.stddev, 0.5 * fn.stddev)


def test_slots_are_the_cells_and_the_background(model):
    latents = some_latents(2, B)
    slots = model.join(latents)
    assert slots.shape == (2, B, model.num_slots, model.slot_dim) and model.num_slots == N + 1
    split = model.split(slots)
    assert tuple(split) == model.slot_sites
    assert all(torch.equal(split[site], latents[site]) for site in split)
    assert not slots[..., :-1, -COMPONENT_DIM:].any() and not slots[..., -1, :-COMPONENT_DIM].any()


def test_boxes():
    where = torch.zeros(1, 16, 4)
    where[0, 5] = torch.tensor([0.0, 2 * torch.tensor(2.0).log(), 20.0, -20.0])
    width, height, x, y = boxes(where, 4)[0].unbind(-1)
    assert (width[0], height[0], x[0], y[0]) == (0.5, 0.5, -0.75, -0.75)  # the first cell, half as wide as the image
    assert (x[1], y[4]) == (-0.25, -0.25)
    torch.testing.assert_close(height[5] / width[5], torch.tensor(4.0))
    assert (x[5], y[5]) == (0.25, -0.75)  # the sixth cell, moved by a whole cell


def test_a_glimpse_is_drawn_into_its_box():
    glimpse = torch.ones(1, 1, 8, 8)
    image = place(glimpse, torch.tensor([[0.5, 0.25, -0.5, 0.25]]), 16)[0, 0]
    inside = torch.zeros(16, 16)
    inside[8:12, 0:8] = 1  # the middle half of the left side; a quarter below the middle
    assert torch.equal(image > 0.5, inside.bool())
    assert not image[:7].any() and not image[13:].any() and not image[:, 9:].any()


def test_under_autocast_boxes_stay_where_they_are():
    glimpses, placed = torch.rand(3, 4, 16, 16), torch.tensor([[0.3, 0.4, 0.1, -0.2]]).expand(3, -1)
    with torch.autocast("cpu", torch.bfloat16):
        found = place(glimpses, placed, 32)
    torch.testing.assert_close(found, place(glimpses, placed, 32))
