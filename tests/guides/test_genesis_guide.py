"""GENESIS's guide: mask latents in turn from the image, components from the image and its masks."""

import pytest
import torch
from pyro import poutine
from tiny import COMPONENT_DIM, NUM_SLOTS, SLOT_DIM, tiny_images, tiny_pair

from pyro_lom.elbo import TraceScene_ELBO

B = 4
IMAGES = tiny_images(B)
MASKS = [f"z_mask_{k}" for k in range(1, NUM_SLOTS + 1)]
COMPONENTS = [f"z_component_{k}" for k in range(1, NUM_SLOTS + 1)]


@pytest.fixture
def pair():
    model, guide = tiny_pair("genesis")
    return model.eval(), guide.eval()


def run(program, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(program).get_trace(*args, **kwargs)


def test_sites_and_shapes(pair):
    trace = run(pair[1], IMAGES)
    assert trace.stochastic_nodes == ["scenes", *MASKS, "log_m", *COMPONENTS]
    for sites, size in ((MASKS, SLOT_DIM), (COMPONENTS, COMPONENT_DIM)):
        for site in sites:
            fn = trace.nodes[site]["fn"]
            assert (fn.batch_shape, fn.event_shape) == ((B, 1), (size,))
    assert trace.nodes["_RETURN"]["value"].shape == (B, NUM_SLOTS, SLOT_DIM + COMPONENT_DIM)


@pytest.mark.parametrize("moved", range(NUM_SLOTS))
def test_a_mask_latent_depends_on_those_before_it(pair, moved):
    given = {site: torch.randn(B, 1, SLOT_DIM) for site in MASKS}
    other = given | {MASKS[moved]: given[MASKS[moved]] + 1}
    first, second = (run(poutine.condition(pair[1], data), IMAGES) for data in (given, other))
    changed = [not torch.equal(first.nodes[site]["fn"].mean, second.nodes[site]["fn"].mean) for site in MASKS]
    assert changed == [k > moved for k in range(NUM_SLOTS)]


@pytest.mark.parametrize("moved", range(NUM_SLOTS))
def test_a_component_depends_on_its_own_mask(pair, moved):
    log_masks = torch.randn(B, 1, NUM_SLOTS, 1, 32, 32).log_softmax(2)
    other = log_masks.clone()
    other[:, :, moved] += 1
    first, second = (run(poutine.condition(pair[1], {"log_m": value}), IMAGES) for value in (log_masks, other))
    changed = [not torch.equal(first.nodes[site]["fn"].mean, second.nodes[site]["fn"].mean) for site in COMPONENTS]
    assert changed == [k == moved for k in range(NUM_SLOTS)]


def test_features_inferred_before_are_used(pair):
    _, guide = pair
    trace = run(guide, IMAGES, inferred=guide.infer(IMAGES))
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], run(guide, IMAGES).nodes["_RETURN"]["value"])
    guide.encoder = None
    guide(IMAGES, inferred=torch.zeros(B, 64))


def test_masks_of_the_features_sum_to_one(pair):
    _, guide = pair
    log_masks = guide.log_masks(guide.infer(IMAGES))
    torch.testing.assert_close(log_masks.exp().sum(1), torch.ones(B, 1, 32, 32))
    torch.manual_seed(2)
    expected = run(guide, IMAGES).nodes["log_m"]["value"].squeeze(1)
    torch.manual_seed(2)
    torch.testing.assert_close(guide.log_masks(guide.infer(IMAGES)), expected)


def test_it_borrows_its_model(pair):
    model, guide = pair
    assert not set(model.parameters()) & set(guide.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_one_pass_decodes_the_masks_once_and_trains_every_parameter(training):
    model, guide = (program.train(training) for program in tiny_pair("genesis"))
    calls = []
    model.mask_decoder.register_forward_hook(lambda *_: calls.append(1))
    TraceScene_ELBO().differentiable_loss(model, guide, IMAGES).backward()
    assert len(calls) == 1
    for program in (model, guide):
        for name, parameter in program.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_in_training_a_scene_depends_on_the_others_and_in_evaluation_it_does_not(pair):
    _, guide = pair
    alone, together = guide.infer(IMAGES[:2]), guide.infer(IMAGES)[:2]
    torch.testing.assert_close(alone, together)
    guide.train()
    assert (guide.infer(IMAGES[:2]) - guide.infer(IMAGES)[:2]).abs().max() > 1e-3
