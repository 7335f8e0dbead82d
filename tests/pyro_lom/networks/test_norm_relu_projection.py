"""One step in the place of three layers: their values and gradients, with less kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_lom.networks.norm_relu_projection import norm_relu_projection


@pytest.fixture
def layers(request):
    channels = getattr(request, "param", 16)
    norm, projection = nn.GroupNorm(4, channels).double(), nn.Conv2d(channels, 3, 1).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, projection


def three_layers(features, norm, projection):
    return projection(F.relu(norm(features)))


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layers", [16, 32], indirect=True)
def test_values_and_gradients_are_those_of_the_layers(layers, num, layout):
    features = torch.randn(num, layers[0].num_channels, 6, 5).double().contiguous(memory_format=layout).requires_grad_()
    inputs = [features, *(parameter for layer in layers for parameter in layer.parameters())]
    results = [way(features, *layers) for way in (norm_relu_projection, three_layers)]
    torch.testing.assert_close(*results)
    weight = torch.randn_like(results[0])
    for here, there in zip(*(torch.autograd.grad(out, inputs, weight) for out in results), strict=True):
        torch.testing.assert_close(here, there)


def test_nothing_as_large_as_its_input_is_kept_beside_it(layers):
    features, kept = torch.randn(4, 16, 8, 8).double(), []
    features.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        norm_relu_projection(features, *layers)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() >= features.numel()] == [features.data_ptr()]


def test_under_autocast_it_is_the_layers_themselves(layers):
    norm, projection = (layer.float() for layer in layers)
    features = torch.randn(3, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (way(features.clone(), norm, projection) for way in (norm_relu_projection, three_layers))
    assert torch.equal(found, expected) and found.dtype == torch.bfloat16


def test_a_second_derivative_is_refused(layers):
    features = torch.randn(2, 16, 4, 4).double().requires_grad_()
    out = norm_relu_projection(features, *layers).square().sum()
    (gradient,) = torch.autograd.grad(out, features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
