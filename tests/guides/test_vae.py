"""The VAE's guide: a normal around the output of the encoder."""

import pytest
import torch
from pyro import poutine
from tiny import SCENE_DIM, tiny_images, tiny_pair

from pyro_lom.networks.convolution_encoder import ConvolutionEncoder

B = 4
IMAGES = tiny_images(B)


@pytest.fixture
def guide():
    return tiny_pair("vae").guide


def test_sites_and_shapes(guide):
    trace = poutine.trace(guide).get_trace(IMAGES)
    assert trace.stochastic_nodes == ["scenes", "s"]
    assert (trace.nodes["s"]["fn"].batch_shape, trace.nodes["s"]["fn"].event_shape) == ((B, 1), (SCENE_DIM,))
    assert trace.nodes["_RETURN"]["value"] is trace.nodes["s"]["value"]


def test_its_code_is_the_mean_of_the_posterior(guide):
    code = guide.code(IMAGES)
    assert code.shape == (B, SCENE_DIM) and (code[0] != code[1]).any()
    torch.testing.assert_close(code, poutine.trace(guide).get_trace(IMAGES).nodes["s"]["fn"].mean.squeeze(-2))


def test_it_has_no_masks_and_nothing_to_pass_on(guide):
    assert guide.infer(IMAGES) is None and guide.log_masks(None) is None


def test_it_borrows_its_model(guide):
    assert not set(guide.model.parameters()) & set(guide.parameters())
    assert {name.split(".")[0] for name in guide.state_dict()} == {"encoder", "scene_posterior"}


@pytest.mark.parametrize("size", [32, 48, 128])
def test_the_encoder_mirrors_the_decoder(size):
    encoder = ConvolutionEncoder(size, in_channels=3, width=8)
    features = torch.rand(1, 3, size, size)
    for block in list(encoder)[:-1]:
        features = block(features)
    assert features.shape == (1, 8, size // 16, size // 16)
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, encoder.num_features)
