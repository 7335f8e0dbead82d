"""NVAE's guide: posteriors relative to the priors, and a code."""

import pytest
import torch
from pyro import poutine
from tiny import tiny_images, tiny_pair

B = 4
IMAGES = tiny_images(B)


@pytest.fixture
def guide():
    pair = tiny_pair("nvae")
    pair.model.eval()
    return pair.guide.eval()


def test_sites_and_shapes(guide):
    trace = poutine.trace(guide).get_trace(IMAGES)
    assert [name for name in trace.nodes if name[:2] in ("z_", "h_")] == ["z_1", "h_2", "z_2", "h_3", "z_3"]
    assert trace.nodes["_RETURN"]["value"] is trace.nodes["z_3"]["value"]
    assert [maps.shape for maps in guide.infer(IMAGES)] == [(B, 8, 8, 8), (B, 4, 16, 16), (B, 4, 16, 16)]


def test_without_a_residual_the_posterior_is_the_prior(guide):
    with torch.no_grad():
        for head in guide.heads[1:]:
            head.log_norm.fill_(-100.0)
            head.bias.zero_()
    guided = poutine.trace(guide).get_trace(IMAGES)
    model = poutine.trace(poutine.replay(guide.model, trace=guided)).get_trace(IMAGES)
    for name in ("z_2", "z_3"):
        torch.testing.assert_close(guided.nodes[name]["fn"].mean, model.nodes[name]["fn"].mean)
        torch.testing.assert_close(guided.nodes[name]["fn"].stddev, model.nodes[name]["fn"].stddev)


def test_features_that_were_inferred_before_are_used(guide):
    torch.manual_seed(0)
    first = guide(IMAGES)
    torch.manual_seed(0)
    assert torch.equal(first, guide(IMAGES, inferred=guide.infer(IMAGES)))


def test_its_code_is_the_mean_of_the_top_group(guide):
    code = guide.code(IMAGES)
    assert code.shape == (B, 128) and (code[0] != code[1]).any()
    torch.testing.assert_close(code, poutine.trace(guide).get_trace(IMAGES).nodes["z_1"]["fn"].mean.squeeze(-2))


def test_it_borrows_its_model(guide):
    assert not set(guide.model.parameters()) & set(guide.parameters())
    assert {name.split(".")[0] for name in guide.state_dict()} == {"encoder", "combiners", "heads"}
