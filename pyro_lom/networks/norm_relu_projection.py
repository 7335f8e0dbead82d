"""Group normalisation, ReLU and a 1x1 convolution in one step that keeps nothing but its input.

The last feature maps of a decoder are by far its largest. On a CPU they outgrow the caches: to store activations and
fetch them again costs as much as to compute them twice, a few images at a time. Written in torch's own kernels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BLOCK = 4  # images at once: their activations, and gradients of these, fit a cache


def layout(channels: int) -> torch.memory_format:
    """Return the memory format for feature maps with this number of channels.

    Channels last is faster. But torch's group normalisation on a CPU then sums the pixels of a channel one after
    another: with one or two channels in a group, float32 loses up to two digits.
    """
    return torch.channels_last if channels >= 24 else torch.contiguous_format


def norm_relu_projection(
    features: Float[Tensor, "N C H W"], norm: nn.GroupNorm, projection: nn.Conv2d
) -> Float[Tensor, "N out H W"]:
    """projection(relu(norm(features))). It can be differentiated once."""
    if features.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return projection(F.relu(norm(features), inplace=True))
    features = features.contiguous(memory_format=layout(norm.num_channels))
    weight = projection.weight.flatten(1)
    return _NormReluProjection.apply(features, norm.weight, norm.bias, weight, projection.bias, norm)


class _NormReluProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, norm_weight, norm_bias, weight, bias, norm):
        num, _, height, width = features.shape
        out = features.new_empty(num, height, width, len(weight))
        statistics = []
        for first in range(0, num, _BLOCK):
            rows = slice(first, first + _BLOCK)
            activation, *moments = _norm_relu(features[rows], norm_weight, norm_bias, norm)
            torch.addmm(bias, _pixels(activation), weight.t(), out=out[rows].view(-1, len(weight)))
            statistics.append(moments)
        mean, rstd = map(torch.cat, zip(*statistics, strict=True))
        ctx.save_for_backward(features, norm_weight, norm_bias, weight, mean, rstd)
        ctx.norm = norm
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        features, norm_weight, norm_bias, weight, mean, rstd = ctx.saved_tensors
        of_features = torch.empty_like(features)
        of_norm_weight, of_norm_bias, of_weight = map(torch.zeros_like, (norm_weight, norm_bias, weight))
        for first in range(0, len(features), _BLOCK):
            rows = slice(first, first + _BLOCK)
            some = features[rows]
            activation, _, _ = _norm_relu(some, norm_weight, norm_bias, ctx.norm)
            of_out = _pixels(gradient[rows])
            of_weight.addmm_(of_out.t(), _pixels(activation))
            of_relu = (of_out @ weight).view(activation.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            of_relu = of_relu.contiguous(
                memory_format=layout(some.shape[1])
            )  # torch's kernels want it like their input
            of_normed = torch.ops.aten.threshold_backward.grad_input(of_relu, activation, 0, grad_input=of_relu)
            of_features[rows], of_its_weight, of_its_bias = torch.ops.aten.native_group_norm_backward(
                of_normed,
                some,
                mean[rows],
                rstd[rows],
                norm_weight,
                *_sizes(some),
                ctx.norm.num_groups,
                (True,) * 3,
            )
            of_norm_weight += of_its_weight
            of_norm_bias += of_its_bias
        return of_features, of_norm_weight, of_norm_bias, of_weight, gradient.sum((0, 2, 3)), None


def _norm_relu(features: Tensor, weight: Tensor, bias: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor, Tensor]:
    normed, mean, rstd = torch.native_group_norm(features, weight, bias, *_sizes(features), norm.num_groups, norm.eps)
    return normed.relu_(), mean, rstd


def _sizes(features: Tensor) -> tuple[int, int, int]:
    num, channels, height, width = features.shape
    return num, channels, height * width


def _pixels(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
